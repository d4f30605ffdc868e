//! Requests that are accepted now and run later: each is run, tried again, given up, taken back and forgotten as its
//! owner was told.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    time::Duration,
};

use crate::cli::Person;
use hmac::{Hmac, KeyInit, Mac};
use sandpiper_tests::{Answer, Client, Server, Tenant, until};
use serde_json::{Value, json};
use sha2::Sha256;

const FUNCTION: &str = "misbehave";

/// Sends a request as a job; gives the job's id.
pub(crate) fn enqueue(tenant: &Tenant, path: &str, headers: &[(&str, &str)]) -> String {
    id_of(&send(tenant, path, headers, b"the body").expect(202))
}

pub(crate) fn send(tenant: &Tenant, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    let call = tenant.call("POST", FUNCTION, path).header("prefer", "respond-async").body(body);
    headers.iter().fold(call, |call, (name, value)| call.header(name, value)).send()
}

pub(crate) fn id_of(accepted: &Answer) -> String {
    accepted.json()["id"].as_str().unwrap().to_owned()
}

pub(crate) fn show(client: &Client, id: &str) -> Value {
    client.get(&format!("/api/v1/jobs/{id}")).expect(200).json()
}

pub(crate) fn ends(client: &Client, id: &str, state: &str) -> Value {
    until(&format!("the job is {state}"), || {
        let job = show(client, id);
        (job["state"] == state).then_some(job)
    })
}

fn result(client: &Client, id: &str) -> Answer {
    client.get(&format!("/api/v1/jobs/{id}/result"))
}

pub(crate) fn started(settings: &str) -> (Server, Tenant) {
    let server = Server::with_settings(settings);
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy(FUNCTION, "");
    (server, tenant)
}

#[test]
fn a_job_is_accepted_run_and_replayed() {
    let (mut server, tenant) = started("");
    let accepted = send(&tenant, "/job?x=1", &[("x-note", "kept")], b"the body").expect(202);
    let id = id_of(&accepted);
    assert_eq!(accepted.header("location"), Some(&*format!("/api/v1/jobs/{id}")));
    assert_eq!(accepted.header("preference-applied"), Some("respond-async"));
    assert_eq!(accepted.json()["state"], "pending");
    let done = ends(&tenant.client, &id, "done");
    assert_eq!(
        (&done["attempts"], &done["version"], &done["function"]),
        (&json!(1), &json!(1), &json!(FUNCTION))
    );
    let answer = result(&tenant.client, &id).expect(200);
    let expected =
        json!({ "attempt": 1, "job": id, "prefer": null, "note": "kept", "body": "the body" });
    assert_eq!(answer.json(), expected);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    // A client's own mistake is an answer, and comes as the function gave it.
    let id = enqueue(&tenant, "/no-such-path", &[]);
    ends(&tenant.client, &id, "done");
    let answer = result(&tenant.client, &id).expect(404);
    assert_eq!(
        (answer.text().as_str(), answer.header("x-sandpiper-error")),
        ("no such misdeed", None)
    );
    // All of it is there after a crash.
    server.crash();
    assert_eq!(result(&tenant.client, &id).expect(404).text(), "no such misdeed");
    let jobs = tenant.client.get("/api/v1/jobs?state=done").expect(200).json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(2), "{jobs}");
    assert_eq!(jobs["jobs"][0]["id"], id, "the newest comes first");
}

#[test]
fn large_bodies_and_results_pass() {
    let (_server, tenant) = started("");
    let body = vec![b'x'; 900_000];
    let id = id_of(&send(&tenant, "/echo", &[], &body).expect(202));
    ends(&tenant.client, &id, "done");
    let answer = result(&tenant.client, &id).expect(200).json();
    assert!(answer["body"].as_str().unwrap().as_bytes() == body);
}

#[test]
fn a_job_that_fails_is_tried_again_then_dead_and_redriven() {
    let (_server, tenant) = started("");
    let fails = "/job?fail_until=2";
    let recovers = enqueue(&tenant, fails, &[("x-sandpiper-attempts", "3")]);
    let dies = enqueue(&tenant, fails, &[("x-sandpiper-attempts", "2")]);
    let traps = enqueue(&tenant, "/trap", &[("x-sandpiper-attempts", "1")]);
    let done = ends(&tenant.client, &recovers, "done");
    assert_eq!(done["attempts"], 3);
    assert_eq!(result(&tenant.client, &recovers).expect(200).json()["attempt"], 3);
    let dead = ends(&tenant.client, &dies, "dead");
    assert_eq!(
        (&dead["attempts"], &dead["error"]),
        (&json!(2), &json!("the function answered 500"))
    );
    result(&tenant.client, &dies).refused(424, "job_dead");
    let error = ends(&tenant.client, &traps, "dead")["error"].as_str().unwrap().to_owned();
    assert!(error.starts_with("trap: "), "{error}");
    // The dead letters are listed, and go on their way again with new attempts.
    let list = tenant.client.get("/api/v1/jobs?state=dead").expect(200).json();
    assert_eq!(list["jobs"].as_array().map(Vec::len), Some(2), "{list}");
    let redriven = tenant.client.post(&format!("/api/v1/jobs/{dies}/redrive")).expect(200).json();
    assert_eq!(redriven, json!({ "redriven": 1 }));
    assert_eq!(ends(&tenant.client, &dies, "dead")["attempts"], 2);
    let all = tenant.client.post_json("/api/v1/jobs/redrive", &json!({ "function": "other" }));
    assert_eq!(all.expect(200).json(), json!({ "redriven": 0 }));
    let all = tenant.client.post_json("/api/v1/jobs/redrive", &json!({ "function": FUNCTION }));
    assert_eq!(all.expect(200).json(), json!({ "redriven": 2 }));
}

#[test]
fn a_key_used_again_gives_the_same_job_and_with_another_body_409() {
    let (mut server, tenant) = started("");
    let key = [("idempotency-key", "order-17")];
    let first = send(&tenant, "/job", &key, b"a").expect(202);
    let again = send(&tenant, "/job", &key, b"a").expect(202);
    assert_eq!(id_of(&first), id_of(&again));
    assert_eq!(
        (first.header("x-sandpiper-replayed"), again.header("x-sandpiper-replayed")),
        (None, Some("true"))
    );
    server.crash();
    assert_eq!(id_of(&send(&tenant, "/job", &key, b"a").expect(202)), id_of(&first));
    send(&tenant, "/job", &key, b"b").refused(409, "idempotency_conflict");
    send(&tenant, "/job?x", &key, b"a").refused(409, "idempotency_conflict");
    ends(&tenant.client, &id_of(&first), "done");
    let jobs = tenant.client.get("/api/v1/jobs").expect(200).json();
    assert_eq!(jobs["jobs"].as_array().map(Vec::len), Some(1), "{jobs}");
}

#[test]
fn a_delay_holds_and_a_priority_overtakes() {
    let (_server, tenant) = started("job_workers = 1");
    let delayed = enqueue(&tenant, "/job", &[("x-sandpiper-delay", "2s")]);
    // One worker is busy, so that the others wait and are sorted.
    let busy = enqueue(&tenant, "/job?ms=1000", &[]);
    until("the worker is busy", || {
        (show(&tenant.client, &busy)["state"] == "running").then_some(())
    });
    let low = enqueue(&tenant, "/job", &[("x-sandpiper-priority", "1")]);
    let high = enqueue(&tenant, "/job", &[("x-sandpiper-priority", "9")]);
    let finished = |id: &str| {
        let job = ends(&tenant.client, id, "done");
        job["finished_at"].as_str().unwrap().to_owned()
    };
    let (low, high) = (finished(&low), finished(&high));
    assert!(high <= low, "{high} {low}");
    let job = ends(&tenant.client, &delayed, "done");
    let time = |name: &str| {
        let text = job[name].as_str().unwrap();
        time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).unwrap()
    };
    assert!(time("finished_at") - time("created_at") >= Duration::from_secs(2), "{job}");
}

#[test]
fn a_result_goes_after_its_ttl() {
    let (_server, tenant) = started("");
    let id = enqueue(&tenant, "/job", &[("x-sandpiper-result-ttl", "1s")]);
    ends(&tenant.client, &id, "done");
    until("the result is gone", || (result(&tenant.client, &id).status == 410).then_some(()));
    result(&tenant.client, &id).refused(410, "result_expired");
    assert_eq!(show(&tenant.client, &id)["state"], "done", "the job itself is still known");
}

#[test]
fn a_cancelled_job_does_not_run() {
    let (_server, tenant) = started("job_workers = 1");
    let running = enqueue(&tenant, "/job?ms=20000", &[]);
    until("the job runs", || (show(&tenant.client, &running)["state"] == "running").then_some(()));
    let pending = enqueue(&tenant, "/job", &[]);
    for id in [&pending, &running] {
        tenant.client.delete(&format!("/api/v1/jobs/{id}")).expect(204);
        result(&tenant.client, id).refused(410, "job_cancelled");
    }
    // The worker is free at once, and what was taken back is not run.
    let last = enqueue(&tenant, "/job", &[]);
    ends(&tenant.client, &last, "done");
    let logs = tenant.client.get(&format!("/api/v1/functions/{FUNCTION}/logs")).expect(200).text();
    assert!(
        !logs.contains(&format!("job {pending}")) && logs.contains(&format!("job {last}")),
        "{logs}"
    );
    assert_eq!(show(&tenant.client, &pending)["state"], "cancelled");
}

#[test]
fn a_server_that_ends_in_good_order_gives_its_jobs_back() {
    let (mut server, tenant) = started("drain_ms = 1000");
    let id = enqueue(&tenant, "/job?ms=2000", &[]);
    until("the job runs", || (show(&tenant.client, &id)["state"] == "running").then_some(()));
    server.restart();
    // It was not the job's fault.
    assert_eq!(ends(&tenant.client, &id, "done")["attempts"], 1);
    let logs = server.all_logs();
    assert!(logs.contains("jobs that run go back to the queue"), "{logs}");
    assert!(!logs.contains("jobs were running when the server ended"), "{logs}");
}

#[test]
fn jobs_are_their_owners_alone() {
    let (server, tenant) = started("");
    let other = server.tenant("beta", "standard");
    let id = enqueue(&tenant, "/job", &[]);
    ends(&tenant.client, &id, "done");
    let path = format!("/api/v1/jobs/{id}");
    other.client.get(&path).refused(404, "not_found");
    result(&other.client, &id).refused(404, "not_found");
    other.client.delete(&path).refused(404, "not_found");
    other.client.post(&format!("{path}/redrive")).refused(404, "not_found");
    assert_eq!(other.client.get("/api/v1/jobs").expect(200).json(), json!({ "jobs": [] }));
    tenant.with_scopes(&["logs"]).get(&path).refused(403, "missing_scope");
    tenant.client.without_key().get(&path).refused(401, "unauthenticated");
    for path in ["/api/v1/jobs/x", "/api/v1/jobs/00000000000000000000000000000000"] {
        tenant.client.get(path).refused(404, "not_found");
    }
}

#[test]
fn nobody_without_a_key_makes_jobs_of_a_public_function() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy(FUNCTION, "auth = \"public\"");
    let path = tenant.path(FUNCTION, "/job");
    let anonymous = server.client().with_header("prefer", "respond-async");
    anonymous.post(&path).refused(401, "unauthenticated");
    server.client().post(&path).expect(200);
}

#[test]
fn what_the_queue_holds_is_bounded() {
    let server = Server::with_settings("job_workers = 1");
    let tenant = server.tenant("acme", "free");
    tenant.deploy(FUNCTION, "");
    let path = tenant.path(FUNCTION, "/job");
    let client = tenant.client.with_header("prefer", "respond-async");
    let client = client.with_header("x-sandpiper-delay", "1h");
    let mut accepted = 0;
    let refused = loop {
        let answer = client.post(&path);
        if answer.status != 202 {
            break answer;
        }
        accepted += 1;
    };
    refused.refused(429, "queue_full");
    assert_eq!(accepted, 1_000);
}

#[test]
fn headers_that_make_no_sense_are_refused_by_name() {
    let (_server, tenant) = started("");
    for (name, value) in [
        ("x-sandpiper-delay", "soon"),
        ("x-sandpiper-priority", "10"),
        ("x-sandpiper-attempts", "0"),
        ("x-sandpiper-timeout", "-1s"),
        ("x-sandpiper-result-ttl", "8d"),
        ("x-sandpiper-deadline", "0"),
    ] {
        let message =
            send(&tenant, "/job", &[(name, value)], b"").refused(400, "bad_request").message();
        assert!(message.contains(name), "{message}");
    }
    let long = "k".repeat(256);
    send(&tenant, "/job", &[("idempotency-key", &long)], b"").refused(400, "bad_request");
}

#[test]
fn webhooks_to_private_addresses_are_refused() {
    let (_server, tenant) = started("");
    for url in [
        "http://127.0.0.1/",
        "http://10.1.2.3/",
        "http://192.168.0.1/",
        "http://172.20.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fd00::1]/",
        "http://localhost:8080/",
        "http://2130706433/",
        "http://user:secret@example.com/",
        "file:///etc/passwd",
        "not a url",
    ] {
        send(&tenant, "/job", &[("x-sandpiper-webhook", url)], b"")
            .refused(422, "webhook_forbidden");
    }
}

/// One request to a listener: its head's lines and its body.
pub(crate) fn receive(listener: &TcpListener, answer: &str) -> (Vec<String>, String) {
    let (stream, _) = listener.accept().unwrap();
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).unwrap();
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        head.push(line);
    }
    let length = head.iter().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.unwrap().parse().unwrap()];
    stream.read_exact(&mut body).unwrap();
    write!(stream.get_mut(), "HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n").unwrap();
    (head, String::from_utf8(body).unwrap())
}

#[test]
fn a_webhook_is_signed_and_called_again_until_it_is_taken() {
    let (_server, tenant) = started("webhook_private = [\"127.0.0.1\"]");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/hook?a=b", listener.local_addr().unwrap());
    let secret = tenant.client.get("/api/v1/webhooks/secret").expect(200).json();
    let secret = secret["secret"].as_str().unwrap().to_owned();
    tenant.with_scopes(&["invoke"]).get("/api/v1/webhooks/secret").refused(403, "missing_scope");
    let id = enqueue(&tenant, "/job", &[("x-sandpiper-webhook", &url)]);
    receive(&listener, "503 Service Unavailable");
    assert_eq!(show(&tenant.client, &id)["webhook"]["state"], "waiting");
    let (head, body) = receive(&listener, "204 No Content");
    assert_eq!(head[0], "post /hook?a=b http/1.1");
    let told: Value = serde_json::from_str(&body).unwrap();
    let expected = json!({
        "id": id, "function": FUNCTION, "state": "done", "status": 200, "attempts": 1,
        "result_url": format!("/api/v1/jobs/{id}/result"),
    });
    assert_eq!(told, expected);
    let signature =
        head.iter().find_map(|line| line.strip_prefix("x-sandpiper-signature: t=")).unwrap();
    let (time, signature) = signature.split_once(",v1=").unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).unwrap();
    mac.update(format!("{time}.{body}").as_bytes());
    let expected: String =
        mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(signature, expected);
    until("the call is noted", || {
        let webhook = show(&tenant.client, &id)["webhook"].clone();
        (webhook == json!({ "url": url, "state": "delivered" })).then_some(())
    });
}

#[test]
fn the_command_line_makes_shows_and_ends_jobs() {
    let (server, tenant) = started("");
    let person = Person::new(&server, &tenant.key);
    let invoke = ["invoke", FUNCTION, "/job", "-d", "hello", "--async"];
    let result: Value =
        serde_json::from_str(&person.good(&[&invoke[..], &["--wait"]].concat())).unwrap();
    assert_eq!(result["body"], "hello");
    let job = person.json(&invoke);
    let id = job["id"].as_str().unwrap();
    ends(&tenant.client, id, "done");
    assert_eq!(person.json(&["jobs", "show", id])["state"], "done");
    assert!(person.good(&["jobs", "result", id]).contains("hello"));
    let listed = person.json(&["jobs", "list", "--state", "done", "--function", FUNCTION]);
    assert_eq!(listed["jobs"].as_array().map(Vec::len), Some(2), "{listed}");
    assert_eq!(person.json(&["jobs", "redrive"]), json!({ "redriven": 0 }));
    // What the function refuses is its answer, printed as it came.
    let refused = ["invoke", FUNCTION, "/no-such-path", "--async", "--wait"];
    let refusal = person.run(&refused);
    assert_eq!((refusal.status.code(), &*refusal.stdout), (Some(6), &b"no such misdeed"[..]));
    let refused = person.json(&refused[..4]);
    let refused = refused["id"].as_str().unwrap();
    ends(&tenant.client, refused, "done");
    let refusal = person.run(&["jobs", "result", refused]);
    assert_eq!((refusal.status.code(), &*refusal.stdout), (Some(6), &b"no such misdeed"[..]));
    assert_eq!(person.json(&["jobs", "cancel", id]), json!({ "cancelled": id }));
    assert_eq!(person.run(&["jobs", "result", id]).status.code(), Some(6), "the result is gone");
}
