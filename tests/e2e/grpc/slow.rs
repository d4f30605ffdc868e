//! Messages that do not come, or come to a method that has no use for so much.

use bytes::Bytes;
use sandpiper_tests::{Server, frame};

use super::{
    client, code, inference,
    message::{ServerLiveResponse, health::HealthCheckResponse},
    refused, tenant,
};

const CHECK: &str = "/grpc.health.v1.Health/Check";

#[test]
fn a_call_whose_message_does_not_come_is_given_up() {
    let server = Server::start();
    let tenant = tenant(&server, "acme");
    let (stranger, member) = (server.grpc(), client(&server, &tenant));
    // A byte of a hundred, a part of a head, and nothing.
    let (begun, part, nothing) = (&[0, 0, 0, 0, 100, 0][..], &[0, 0, 0][..], &[][..]);
    let calls = [
        (&stranger, inference("ServerLive"), begun),
        (&stranger, inference("ServerMetadata"), nothing),
        (&stranger, CHECK.to_owned(), part),
        (&stranger, "/grpc.health.v1.Health/Watch".to_owned(), begun),
        (&member, inference("ModelReady"), begun),
        (&member, inference("TraceSetting"), nothing),
        (&member, inference("RepositoryIndex"), begun),
        (&member, inference("RepositoryModelLoad"), nothing),
        (&member, inference("ModelInfer"), nothing),
        (&member, inference("ModelInfer"), part),
    ];
    let mut opened = calls.each_ref().map(|(client, path, bytes)| {
        let mut call = client.open(path);
        call.send_bytes(Bytes::from_static(bytes), false);
        call
    });
    for (call, (_, path, bytes)) in opened.iter_mut().zip(&calls) {
        let status = call.end();
        assert_eq!(status.code, code::DEADLINE_EXCEEDED, "{path} {bytes:?}: {status:?}");
        assert!(status.message.contains("slowly"), "{path}: {status:?}");
    }
}

/// A message of an unknown field and so many bytes in all.
fn unknown(bytes: usize) -> Bytes {
    let text = bytes - 3;
    let mut message = vec![15 << 3 | 2, (text & 0x7f) as u8 | 0x80, (text >> 7) as u8];
    message.resize(bytes, b'x');
    frame(&message)
}

#[test]
fn what_needs_no_key_takes_short_messages_alone() {
    let server = Server::start();
    let client = server.grpc();
    let live = |body| client.unary_bytes::<ServerLiveResponse>(&inference("ServerLive"), body);
    let check = |body| client.unary_bytes::<HealthCheckResponse>(CHECK, body);
    assert!(live(unknown(1024)).unwrap().live);
    assert_eq!(check(unknown(1024)).unwrap().status, 1);
    // They are refused by what is announced, before the rest comes.
    for body in [unknown(1025), Bytes::from_static(&[0, 0, 16, 0, 0, 1])] {
        assert!(refused(live(body.clone()), code::RESOURCE_EXHAUSTED).contains("1024"));
        assert!(refused(check(body), code::RESOURCE_EXHAUSTED).contains("1024"));
    }
}
