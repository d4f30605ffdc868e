//! What goes around a body: events, `Expect: 100-continue` and trailers.

use std::time::{Duration, Instant};

use bytes::Bytes;
use sandpiper_tests::{Server, guest};
use serde_json::Value;
use ureq::http::HeaderMap;

use super::{MIB, block_on, h2, h2_request, head, tenant, text_h2};
use crate::oip_reading::slow_free_tier;

#[test]
fn events_arrive_as_they_are_written() {
    let server = Server::start();
    let tenant = tenant(&server);
    const PAUSE: Duration = Duration::from_millis(400);
    let mut connection = server.connect();
    connection.send(head(&tenant, "/sse?events=4&ms=400") + "content-length: 0\r\n\r\n");
    let answer = connection.head().expect(200);
    assert_eq!(answer.header("content-type"), Some("text/event-stream"));
    assert_eq!(answer.header("transfer-encoding"), Some("chunked"));
    assert_eq!(answer.header("content-length"), None);
    let began = Instant::now();
    let mut arrivals = Vec::new();
    while let Some(chunk) = connection.chunk() {
        let n = arrivals.len();
        assert_eq!(String::from_utf8(chunk).unwrap(), format!("id: {n}\ndata: tick {n}\n\n"));
        arrivals.push(began.elapsed());
    }
    assert_eq!(arrivals.len(), 4);
    // Had they been gathered, they would have come together at the end.
    assert!(*arrivals.last().unwrap() - arrivals[0] >= PAUSE * 3 / 2, "{arrivals:?}");
}

#[test]
fn continue_is_sent_when_the_body_is_read() {
    let server = Server::start();
    let tenant = tenant(&server);
    let expecting = |path: &str, length: u64| {
        format!("{}expect: 100-continue\r\ncontent-length: {length}\r\n\r\n", head(&tenant, path))
    };
    let mut connection = server.connect();
    assert_eq!(connection.send(expecting("/drain", 5)).head().status, 100);
    let said = connection.send("hello").answer().expect(200).json();
    assert_eq!(said["bytes"], 5);
    // The connection goes on.
    assert_eq!(connection.send(expecting("/body-size", 4)).head().status, 100);
    assert_eq!(connection.send("body").answer().expect(200).text(), "4");
    // A function that does not want the body gets none, and the client is told at once.
    let mut connection = server.connect();
    assert_eq!(connection.send(expecting("/ok", 5)).answer().expect(200).text(), "ok");
}

#[test]
fn a_refusal_comes_without_continue() {
    let (server, _policies) = slow_free_tier();
    let tenant = server.tenant("acme", "free");
    tenant.put_function("m", &guest("misbehave"), "").expect(201);
    let ask = |path: &str, key: &str, length: u64| {
        let mut connection = server.connect();
        connection.send(format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n\
             expect: 100-continue\r\ncontent-length: {length}\r\n\r\n"
        ));
        let answer = connection.answer();
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
        answer
    };
    let path = tenant.path("m", "/drain");
    ask(&path, &tenant.key, 64 * MIB).refused(413, "too_large");
    ask(&path, "sp_wrong", 5).refused(401, "key_malformed");
    ask("/fn/acme/nothing/", &tenant.key, 5).refused(404, "not_found");
    ask("/api/v1/tenants", &tenant.key, 5).refused(403, "operator_only");
    // The rate is a burst of three and one in a second.
    let limited = sandpiper_tests::until("the rate is used up", || {
        while tenant.invoke("m", "/ok").status == 200 {}
        let answer = ask(&path, &tenant.key, 5);
        (answer.status == 429).then_some(answer)
    });
    limited.refused(429, "rate_limited");
}

#[test]
fn an_expectation_that_nobody_can_meet_is_417() {
    let server = Server::start();
    let tenant = tenant(&server);
    for expected in ["200-ok", "100-continue, more", "", "100-continue\r\nexpect: more"] {
        for path in ["/fn/acme/m/ok", "/api/v1/functions", "/livez", "/v2/health/live"] {
            let mut connection = server.connect();
            connection.send(format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nexpect: {expected}\r\n\r\n",
                tenant.key
            ));
            connection.answer().refused(417, "expectation_failed");
        }
    }
    block_on(async {
        let mut requests = h2(&server).await;
        for (expected, status) in [("200-ok", 417), ("100-continue", 200)] {
            let mut request = h2_request(&tenant, "/ok");
            request.headers_mut().insert("expect", expected.parse().unwrap());
            let (response, _) = requests.send_request(request, true).unwrap();
            assert_eq!(response.await.unwrap().status(), status, "{expected}");
        }
    });
}

#[test]
fn a_function_may_answer_before_it_reads() {
    let server = Server::start();
    let tenant = tenant(&server);
    let mut connection = server.connect();
    connection.send(head(&tenant, "/late") + "content-length: 5\r\n\r\n");
    connection.head().expect(200);
    assert_eq!(connection.chunk().unwrap(), b"early\n");
    connection.send("hello");
    assert_eq!(connection.chunk().unwrap(), b"5\n");
    assert_eq!(connection.chunk(), None);
}

#[test]
fn trailers_pass_both_ways_over_http_1() {
    let server = Server::start();
    let tenant = tenant(&server);
    let body = "5\r\nhello\r\n0\r\nx-mine: 1\r\nx-mine: 2\r\n\r\n";
    let ask = |more: &str| {
        let mut connection = server.connect();
        let head = head(&tenant, "/trailers?forbidden");
        connection.send(format!("{head}{more}transfer-encoding: chunked\r\n\r\n{body}"));
        let answer = connection.answer().expect(200);
        let said = answer.json();
        assert_eq!(said["trailers"], serde_json::json!([["x-mine", "1"], ["x-mine", "2"]]));
        assert_eq!(said["bytes"], 5);
        assert_eq!(answer.header("x-checksum"), None, "a trailer is no header");
        // The connection goes on behind them.
        connection.send("GET /livez HTTP/1.1\r\nhost: x\r\n\r\n");
        let trailers = connection.trailers().clone();
        assert_eq!(connection.answer().expect(200).json()["status"], "live");
        trailers
    };
    let trailers = ask("te: trailers\r\n");
    assert_eq!(trailers["x-checksum"].len(), 16);
    // Those that the head did not announce stay behind, and so does what is ours to say.
    assert_eq!(trailers.len(), 1, "{trailers:?}");
    // A client that did not ask for trailers gets none.
    assert!(ask("").is_empty());
}

#[test]
fn trailers_pass_both_ways_over_http_2() {
    let server = Server::start();
    let tenant = tenant(&server);
    block_on(async {
        let mut requests = h2(&server).await;
        let request = h2_request(&tenant, "/trailers?forbidden");
        let (response, mut send) = requests.send_request(request, false).unwrap();
        send.send_data(Bytes::from_static(b"hello"), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-mine", "1".parse().unwrap());
        send.send_trailers(trailers).unwrap();
        let (text, trailers) = text_h2(response.await.unwrap()).await;
        let said: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(said["trailers"], serde_json::json!([["x-mine", "1"]]));
        let trailers = trailers.expect("the guest sends trailers");
        assert_eq!(trailers["x-checksum"].len(), 16);
        assert_eq!(trailers["x-unannounced"], "1");
        assert_eq!(trailers.len(), 2, "{trailers:?}");
    });
}
