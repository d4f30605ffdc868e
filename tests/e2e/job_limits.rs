//! What one tenant's jobs cannot do to others, and what a name that is used again does not bring back.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    thread,
    time::Duration,
};

use crate::jobs::{ends, enqueue, id_of, receive, send, show, started};
use sandpiper_tests::{Server, until};
use serde_json::{Value, json};

const FUNCTION: &str = "misbehave";
const WEBHOOK: &str = "x-sandpiper-webhook";
const LOCAL: &str = "webhook_private = [\"127.0.0.1\"]";

fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn a_webhook_that_never_answers_holds_up_its_own_tenant_alone() {
    const JOBS: usize = 40;
    let (server, slow) = started(LOCAL);
    let other = server.tenant("beta", "standard");
    other.deploy(FUNCTION, "");
    let (silent, silent_url) = listen();
    let (listener, url) = listen();
    let called = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut open = Vec::new();
            // The last one is ours.
            while let Ok((stream, _)) = silent.accept() {
                open.push(stream);
                if called.fetch_add(1, Relaxed) >= JOBS {
                    return;
                }
            }
        });
        for id in (0..JOBS).map(|_| enqueue(&slow, "/job", &[(WEBHOOK, &silent_url)])) {
            ends(&slow.client, &id, "done");
        }
        let id = enqueue(&other, "/job", &[(WEBHOOK, &url)]);
        let (_, body) = receive(&listener, "204 No Content");
        // Theirs were all due before: with one line for all they would all have been called by now.
        let before = called.load(Relaxed);
        assert!((1..JOBS / 2).contains(&before), "{before}");
        assert_eq!(serde_json::from_str::<Value>(&body).unwrap()["id"], id);
        called.store(JOBS, Relaxed);
        let _ = std::net::TcpStream::connect(silent.local_addr().unwrap());
    });
}

#[test]
fn a_webhook_follows_no_redirect() {
    let (_server, tenant) = started(LOCAL);
    let (listener, url) = listen();
    let (elsewhere, elsewhere_url) = listen();
    elsewhere.set_nonblocking(true).unwrap();
    let id = enqueue(&tenant, "/job", &[(WEBHOOK, &url)]);
    receive(&listener, &format!("307 Temporary Redirect\r\nlocation: {elsewhere_url}"));
    // It was not told, and is called again where it was to be called.
    receive(&listener, "204 No Content");
    until("the call is noted", || {
        (show(&tenant.client, &id)["webhook"]["state"] == "delivered").then_some(())
    });
    assert!(elsewhere.accept().is_err(), "nobody came");
}

#[test]
fn a_name_that_is_used_again_brings_nothing_back() {
    let server = Server::start();
    let make = || {
        let tenant = server.tenant("acme", "standard");
        tenant.deploy(FUNCTION, "");
        let secret = tenant.client.get("/api/v1/webhooks/secret").expect(200).json();
        let job = send(&tenant, "/job", &[("idempotency-key", "k")], b"x").expect(202);
        let id = id_of(&job);
        ends(&tenant.client, &id, "done");
        (secret["secret"].clone(), id, job.header("x-sandpiper-replayed").is_some())
    };
    let (first_secret, first_id, _) = make();
    server.operator().delete("/api/v1/tenants/acme").expect(204);
    // Times are kept to the millisecond.
    thread::sleep(Duration::from_millis(10));
    let (secret, id, replayed) = make();
    assert!(secret != first_secret && id != first_id && !replayed);
}

#[test]
fn a_jobs_body_is_billed_once() {
    let (_server, tenant) = started("");
    let body = vec![b'x'; 1_000];
    let id = id_of(&send(&tenant, "/job?fail_until=1", &[], &body).expect(202));
    ends(&tenant.client, &id, "done");
    until("both attempts are billed", || {
        let used = tenant.client.get("/api/v1/usage").expect(200).json();
        (used["total"]["requests"] == 2).then(|| assert_eq!(used["total"]["bytes_in"], 1_000))
    });
}

#[test]
fn jobs_leave_a_part_of_the_rate_to_those_who_wait() {
    let server = Server::with_settings("access_log = true");
    let tenant = server.tenant("acme", "free");
    tenant.deploy(FUNCTION, "");
    let ids: Vec<String> = (0..60).map(|_| enqueue(&tenant, "/job", &[])).collect();
    for _ in 0..15 {
        tenant.invoke(FUNCTION, "/ok").expect(200);
    }
    for id in &ids {
        assert_eq!(ends(&tenant.client, id, "done")["attempts"], 1);
    }
    // Those that had to wait did so in the queue.
    let begun = server.log().lines().filter(|line| line.contains("job begins")).count();
    assert!(begun < 2 * ids.len(), "{begun}");
}

#[test]
fn more_dead_letters_than_one_command_takes_are_redriven() {
    let (_server, tenant) = started("");
    let ids: Vec<String> = (0..1_100)
        .map(|_| enqueue(&tenant, "/job?fail_until=9", &[("x-sandpiper-attempts", "1")]))
        .collect();
    for id in &ids {
        ends(&tenant.client, id, "dead");
    }
    let all = tenant.client.post_json("/api/v1/jobs/redrive", &json!({}));
    assert_eq!(all.expect(200).json(), json!({ "redriven": 1_100 }));
}
