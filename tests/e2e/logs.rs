//! What functions print: kept within limits, counted where it is dropped, followed as it comes.

use std::thread;

use sandpiper_tests::{Connection, Server, Tenant, until};
use serde_json::Value;

fn tenant(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("misbehave", "");
    tenant
}

fn logs(tenant: &Tenant) -> Value {
    tenant.client.get("/api/v1/functions/misbehave/logs").expect(200).json()
}

fn texts(logs: &Value) -> Vec<&str> {
    logs["lines"].as_array().unwrap().iter().map(|line| line["text"].as_str().unwrap()).collect()
}

#[test]
fn lines_are_kept_with_stream_time_and_request() {
    let server = Server::start();
    let tenant = tenant(&server);
    assert_eq!(texts(&logs(&tenant)), [""; 0]);
    let call = tenant.call("GET", "misbehave", "/log?lines=2").header("x-request-id", "my-request");
    call.send().expect(200);
    let logs = logs(&tenant);
    assert_eq!(texts(&logs), ["out 0 ", "err 0 ", "out 1 ", "err 1 "]);
    for line in logs["lines"].as_array().unwrap() {
        assert_eq!(line["request_id"], "my-request");
        let stream =
            if line["text"].as_str().unwrap().starts_with("out") { "stdout" } else { "stderr" };
        assert_eq!(line["stream"], stream);
        assert!(line["time"].as_str().unwrap().ends_with('Z'));
    }
    assert_eq!((&logs["dropped_lines"], &logs["dropped_bytes"]), (&0.into(), &0.into()));
}

#[test]
fn what_is_beyond_the_budget_is_counted_exactly() {
    let server = Server::start();
    let tenant = tenant(&server);
    // 300 lines of about 1 KB on either stream, under a budget of 64 KiB.
    tenant.invoke("misbehave", "/log?lines=300&bytes=1000").expect(200);
    let logs = logs(&tenant);
    let printed: usize = (0..300).map(|n| 2 * format!("out {n} ").len() + 2000).sum();
    let kept: usize = texts(&logs).iter().map(|text| text.len()).sum();
    assert!(kept <= 64 * 1024, "{kept}");
    assert_eq!(kept as u64 + logs["dropped_bytes"].as_u64().unwrap(), printed as u64);
    let lines = texts(&logs).len() as u64 + logs["dropped_lines"].as_u64().unwrap();
    assert_eq!(lines, 600);
}

#[test]
fn a_long_line_is_cut_and_the_rest_counted() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.invoke("misbehave", "/log?lines=1&bytes=10000").expect(200);
    let logs = logs(&tenant);
    let lengths: Vec<usize> = texts(&logs).iter().map(|text| text.len()).collect();
    assert_eq!(lengths, [4096, 4096]);
    assert_eq!(logs["dropped_bytes"], 2 * (10_000 + "out 0 ".len() - 4096));
    assert_eq!(logs["dropped_lines"], 0);
}

#[test]
fn a_log_without_end_costs_no_memory() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    let before = server.memory_peak_mib();
    for _ in 0..50 {
        tenant.invoke("misbehave", "/log?lines=2000&bytes=1000").expect(200);
    }
    tenant.invoke("misbehave", "/log-empty?n=10000").expect(200);
    let logs = logs(&tenant);
    assert!(texts(&logs).len() <= 1000);
    let kept: usize = texts(&logs).iter().map(|text| text.len()).sum();
    assert!(kept <= 256 * 1024, "{kept}");
    let grown = server.memory_peak_mib() - before;
    assert!(grown < 200, "100 MB of log cost {grown} MiB");
    server.still_runs();
}

#[test]
fn what_a_function_printed_before_it_failed_is_there() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_function("c", &sandpiper_tests::guest("core_module"), "").expect(201);
    // The handler prints, then finds no model.
    tenant.invoke("c", "/model").expect(503);
    let logs = tenant.client.get("/api/v1/functions/c/logs").expect(200).json();
    assert!(texts(&logs).contains(&"GET /model"), "{logs}");
}

/// The data of the next event of this name.
fn event(connection: &mut Connection, lines: &mut String) -> Value {
    until("an event arrives", || {
        let chunk = connection.chunk().expect("the stream goes on");
        lines.push_str(&String::from_utf8_lossy(&chunk));
        let (event, rest) = lines.split_once("\n\n")?;
        let data = event.lines().find_map(|line| line.strip_prefix("data: "));
        let value = data.map(|data| serde_json::from_str(data).unwrap());
        *lines = rest.to_owned();
        value
    })
}

#[test]
fn a_log_is_followed_as_it_comes() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    tenant.invoke("misbehave", "/log?lines=1").expect(200);
    let mut connection = server.connect();
    connection.send(format!(
        "GET /api/v1/functions/misbehave/logs?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    let head = connection.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    let mut rest = String::new();
    assert_eq!(event(&mut connection, &mut rest)["text"], "out 0 ");
    // From here on, what is printed while we listen.
    thread::scope(|scope| {
        scope.spawn(|| tenant.invoke("misbehave", "/log?lines=2").expect(200));
        let mut seen = Vec::new();
        while seen.len() < 5 {
            // Several events may lie in one chunk.
            if let Some((event, more)) = rest.clone().split_once("\n\n") {
                rest = more.to_owned();
                let data = event.lines().find_map(|line| line.strip_prefix("data: "));
                seen.extend(data.map(|data| serde_json::from_str::<Value>(data).unwrap()));
                continue;
            }
            seen.push(event(&mut connection, &mut rest));
        }
        let texts: Vec<&str> = seen.iter().map(|line| line["text"].as_str().unwrap()).collect();
        assert_eq!(texts, ["err 0 ", "out 0 ", "err 0 ", "out 1 ", "err 1 "]);
    });
    // A follower does not hold up the end of the server.
    assert!(server.stop().success());
}

#[test]
fn a_log_is_its_tenants_alone() {
    let server = Server::start();
    let tenant = tenant(&server);
    let other = server.tenant("beta", "standard");
    tenant.invoke("misbehave", "/log").expect(200);
    other.client.get("/api/v1/functions/misbehave/logs").refused(404, "not_found");
    other.client.get("/api/v1/functions/misbehave/logs?follow=true").refused(404, "not_found");
    let call = other.client.with_header("x-sandpiper-tenant", "acme");
    call.get("/api/v1/functions/misbehave/logs").refused(404, "not_found");
}
