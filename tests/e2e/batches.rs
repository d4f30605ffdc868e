//! Many lines for one function: what comes out, in which order, and what becomes of it when the server dies.

use crate::cli::Person;
use sandpiper_tests::{Answer, Server, Tenant, until};
use serde_json::{Value, json};

const FUNCTION: &str = "misbehave";

fn started(settings: &str) -> (Server, Tenant) {
    let server = Server::with_settings(settings);
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy(FUNCTION, "");
    (server, tenant)
}

pub(crate) fn send(tenant: &Tenant, query: &str, kind: &str, body: &[u8]) -> Answer {
    let path = format!("/api/v1/functions/{FUNCTION}/batches{query}");
    tenant.client.call("POST", &path).header("content-type", kind).body(body).send()
}

pub(crate) fn create(tenant: &Tenant, query: &str, lines: &str) -> String {
    let answer = send(tenant, query, "application/x-ndjson", lines.as_bytes()).expect(202).json();
    answer["id"].as_str().unwrap().to_owned()
}

pub(crate) fn show(tenant: &Tenant, id: &str) -> Value {
    tenant.client.get(&format!("/api/v1/batches/{id}")).expect(200).json()
}

pub(crate) fn ends(tenant: &Tenant, id: &str) -> Value {
    until("the batch is done", || {
        let batch = show(tenant, id);
        (batch["state"] == "done").then_some(batch)
    })
}

fn lines(answer: &Answer) -> Vec<Value> {
    answer.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn output(tenant: &Tenant, id: &str) -> Vec<Value> {
    lines(&tenant.client.get(&format!("/api/v1/batches/{id}/output")).expect(200))
}

#[test]
fn lines_come_out_in_order() {
    let (_server, tenant) = started("");
    let input: String = (1..=250).map(|n| format!("{{\"n\": {n}}}\n")).collect();
    let kind = "application/x-ndjson";
    let answer =
        send(&tenant, "?path=/job&shard_lines=7", kind, input.as_bytes()).expect(202).json();
    assert_eq!((&answer["lines"], &answer["shards"]), (&json!(250), &json!(36)));
    let id = answer["id"].as_str().unwrap();
    let done = ends(&tenant, id);
    let counts =
        ["lines", "done_lines", "failed_lines", "shards", "done_shards"].map(|key| &done[key]);
    assert_eq!(counts, [250, 250, 0, 36, 36]);
    let output = output(&tenant, id);
    assert_eq!(output.len(), 250);
    for (n, line) in (1..).zip(&output) {
        assert_eq!((&line["line"], &line["status"]), (&json!(n), &json!(200)));
        assert_eq!(line["output"]["body"], format!("{{\"n\": {n}}}"));
    }
    let list = tenant.client.get("/api/v1/batches").expect(200).json();
    assert_eq!(list["batches"][0]["id"], id);
}

#[test]
fn a_line_that_is_not_json_is_told_by_its_number() {
    let (_server, tenant) = started("");
    let id = create(&tenant, "?path=/job&shard_lines=2", "{\"a\":1}\n{\"a\":\n\n\"ok\"\nnope");
    let done = ends(&tenant, &id);
    assert_eq!((&done["done_lines"], &done["failed_lines"]), (&json!(5), &json!(3)));
    let output = output(&tenant, &id);
    let good: Vec<bool> = output.iter().map(|line| line["status"] == 200).collect();
    assert_eq!(good, [true, false, false, true, false]);
    assert_eq!(output[1]["error"]["code"], "not_json");
    let message = output[1]["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("line 2 is not JSON: ") && message.contains("column"), "{message}");
    assert!(output[4]["error"]["message"].as_str().unwrap().starts_with("line 5 is not JSON"));
}

#[test]
fn a_line_that_the_function_fails_on_leaves_the_others_alone() {
    let (_server, tenant) = started("");
    let id = create(&tenant, "?path=/trap", "1\n2\n");
    let done = ends(&tenant, &id);
    assert_eq!(done["failed_lines"], 2);
    let output = output(&tenant, &id);
    assert_eq!((&output[0]["line"], &output[0]["error"]["code"]), (&json!(1), &json!("failed")));
    assert!(
        output[1]["error"]["message"].as_str().unwrap().starts_with("line 2: trap: "),
        "{output:?}"
    );
}

#[test]
fn a_batch_goes_on_after_a_crash_without_redoing_shards() {
    let (mut server, tenant) = started("access_log = true\njob_workers = 4");
    let input: String = (1..=200).map(|n| format!("{n}\n")).collect();
    let id = create(&tenant, "?path=/job?ms=20&shard_lines=5", &input);
    let mut done_before = 0;
    for part in 1..=3 {
        until("some shards are done", || {
            let done = show(&tenant, &id)["done_shards"].as_u64().unwrap();
            (done >= part * 6).then_some(())
        });
        server.crash();
        let done = show(&tenant, &id)["done_shards"].as_u64().unwrap();
        assert!(done >= done_before, "a finished shard was lost");
        done_before = done;
    }
    let partial =
        lines(&tenant.client.get(&format!("/api/v1/batches/{id}/output?partial=true")).expect(200));
    assert!(partial.len() as u64 >= done_before * 5, "{}", partial.len());
    assert!(partial.windows(2).all(|pair| pair[0]["line"].as_u64() < pair[1]["line"].as_u64()));
    ends(&tenant, &id);
    let output = output(&tenant, &id);
    let bodies: Vec<String> =
        output.iter().map(|line| line["output"]["body"].as_str().unwrap().to_owned()).collect();
    assert_eq!(bodies, (1..=200).map(|n| n.to_string()).collect::<Vec<_>>());
    // Each shard is begun once, and those that were running in a crash once more for each.
    let begun = server.all_logs().lines().filter(|line| line.contains("job begins")).count();
    assert!((40..=40 + 3 * 4).contains(&begun), "{begun}");
}

#[test]
fn a_batch_from_blobs() {
    let (_server, tenant) = started("");
    let put = |bytes: &[u8]| tenant.client.put("/api/v1/blobs", bytes).expect(201).json();
    let (one, two) = (put(b"first"), put(b"\0second"));
    let gone = put(b"third");
    tenant.client.delete(gone["url"].as_str().unwrap()).expect(204);
    tenant.client.get(gone["url"].as_str().unwrap()).refused(404, "not_found");
    assert_eq!(tenant.client.get(one["url"].as_str().unwrap()).expect(200).text(), "first");
    let list = json!([one["url"], two["url"], gone["url"]]).to_string();
    let answer =
        send(&tenant, "?path=/job", "application/json", list.as_bytes()).expect(202).json();
    let id = answer["id"].as_str().unwrap();
    ends(&tenant, id);
    let output = output(&tenant, id);
    assert_eq!(output[0]["output"]["body"], "first");
    assert_eq!(output[1]["output"]["body"], "\0second");
    assert_eq!(output[2]["error"]["code"], "no_blob");
}

#[test]
fn progress_is_told_as_it_comes() {
    let (_server, tenant) = started("job_workers = 2");
    let input: String = (1..=40).map(|n| format!("{n}\n")).collect();
    let id = create(&tenant, "?path=/job?ms=50&shard_lines=2", &input);
    let output = format!("/api/v1/batches/{id}/output");
    tenant.client.get(&output).refused(409, "batch_running");
    let text = tenant.client.get(&format!("/api/v1/batches/{id}/events")).expect(200).text();
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!(names.last(), Some(&"done"));
    assert!(
        names.len() > 2 && names[..names.len() - 1].iter().all(|name| *name == "progress"),
        "{names:?}"
    );
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    let done: Vec<u64> = events.iter().map(|event| event["done_lines"].as_u64().unwrap()).collect();
    assert!(done.is_sorted() && done.last() == Some(&40), "{done:?}");
    assert!(events.iter().any(|event| event["eta_s"].is_number()), "{text}");
}

#[test]
fn a_cancelled_batch_stops() {
    let (_server, tenant) = started("job_workers = 2");
    let input: String = (1..=100).map(|n| format!("{n}\n")).collect();
    let id = create(&tenant, "?path=/job?ms=1000&shard_lines=1", &input);
    tenant.client.delete(&format!("/api/v1/batches/{id}")).expect(204);
    assert_eq!(show(&tenant, &id)["state"], "cancelled");
    assert!(
        tenant.client.get(&format!("/api/v1/batches/{id}/output")).expect(200).text().len() < 1_000
    );
    // What was taken back holds no worker and no place.
    let next = create(&tenant, "?path=/job", "1\n");
    ends(&tenant, &next);
}

#[test]
fn batches_that_make_no_sense_are_refused() {
    let (server, tenant) = started("");
    let lines = "application/x-ndjson";
    send(&tenant, "", "text/plain", b"1").refused(415, "unsupported_media_type");
    send(&tenant, "?shard_lines=0", lines, b"1").refused(400, "bad_request");
    send(&tenant, "?path=no", lines, b"1").refused(400, "bad_request");
    send(&tenant, "?selector=none", lines, b"1").refused(404, "not_found");
    send(&tenant, "", "application/json", b"{}").refused(400, "bad_request");
    send(&tenant, "", "application/json", b"[\"/etc/passwd\"]").refused(422, "invalid");
    let long = vec![b'1'; (1 << 20) + 10];
    let message = send(&tenant, "", lines, &long).refused(413, "too_large").message();
    assert!(message.starts_with("line 1 "), "{message}");
    let empty = send(&tenant, "", lines, b"").expect(202).json();
    assert_eq!((&empty["lines"], &empty["state"]), (&json!(0), &json!("done")));
    let other = server.tenant("beta", "standard");
    let id = empty["id"].as_str().unwrap();
    for path in ["", "/output", "/events"] {
        other.client.get(&format!("/api/v1/batches/{id}{path}")).refused(404, "not_found");
    }
    other.client.delete(&format!("/api/v1/batches/{id}")).refused(404, "not_found");
    let blob = tenant.client.put("/api/v1/blobs", b"mine").expect(201).json();
    other.client.get(blob["url"].as_str().unwrap()).refused(404, "not_found");
    let free = server.tenant("free", "free");
    free.deploy(FUNCTION, "");
    let line = format!("\"{}\"\n", "x".repeat(1 << 19)).repeat(40);
    send(&free, "", lines, line.as_bytes()).refused(413, "too_large");
}

#[test]
fn the_command_line_runs_a_batch() {
    let (server, tenant) = started("");
    let person = Person::new(&server, &tenant.key);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let (input, out) = (path("input.jsonl"), path("out.jsonl"));
    std::fs::write(&input, "1\nnope\n3\n").unwrap();
    let run = ["batch", "run", FUNCTION, &input, "--path", "/job?x=1", "-o", &out];
    let done = person.json(&run);
    assert_eq!((&done["done_lines"], &done["failed_lines"]), (&json!(3), &json!(1)));
    let text = std::fs::read_to_string(&out).unwrap();
    assert_eq!(text.lines().count(), 3, "{text}");
    let detached = person.json(&["batch", "run", FUNCTION, &input, "--path", "/job", "--detach"]);
    let id = detached["id"].as_str().unwrap();
    let output = person.good(&["batch", "attach", id]);
    assert_eq!(output.lines().count(), 3, "{output}");
    assert_eq!(person.good(&["batch", "output", id]), output);
    assert_eq!(person.json(&["batch", "show", id])["state"], "done");
    assert_eq!(person.json(&["batch", "list"])["batches"].as_array().map(Vec::len), Some(2));
    person.good(&["batch", "cancel", id]);
}
