//! What batches may take from others, and what becomes of those that may not go on.

use std::{thread, time::Duration};

use crate::batches::{create, ends, output, send, show};
use sandpiper_tests::{Server, Tenant, until};
use serde_json::json;

const FUNCTION: &str = "misbehave";

fn tenant(server: &Server, name: &str, tier: &str) -> Tenant {
    let tenant = server.tenant(name, tier);
    tenant.deploy(FUNCTION, "");
    tenant
}

fn numbers(count: u32) -> String {
    (1..=count).map(|n| format!("{n}\n")).collect()
}

/// How often something was begun so far.
fn begun(server: &Server) -> usize {
    server.log().lines().filter(|line| line.contains("job begins")).count()
}

/// Has a batch of so many lines run, and asks meanwhile; nobody is refused.
fn asks_beside_a_batch(tier: &str, lines: u32, requests: u32) {
    let server = Server::start();
    let tenant = tenant(&server, "acme", tier);
    let id = create(&tenant, "?path=/job", &numbers(lines));
    until("the batch runs", || (show(&tenant, &id)["state"] == "running").then_some(()));
    for _ in 0..requests {
        tenant.invoke(FUNCTION, "/ok").expect(200);
    }
    assert_eq!(ends(&tenant, &id)["failed_lines"], 0);
}

#[test]
fn interactive_requests_are_not_refused_while_a_batch_runs() {
    asks_beside_a_batch("dedicated", 2_000, 50);
}

#[test]
fn nor_are_those_of_a_tenant_with_a_rate() {
    asks_beside_a_batch("standard", 2_000, 200);
}

#[test]
fn nor_are_those_of_one_with_a_low_rate() {
    asks_beside_a_batch("free", 60, 15);
}

#[test]
fn a_shard_goes_back_with_what_it_has_where_the_rate_is_used_up() {
    let server = Server::with_settings("access_log = true");
    let tenant = tenant(&server, "acme", "free");
    let id = create(&tenant, "?path=/job&shard_lines=50", &numbers(50));
    let done = ends(&tenant, &id);
    assert_eq!((&done["shards"], &done["failed_lines"]), (&json!(1), &json!(0)));
    assert!(begun(&server) > 1, "it had its worker for all the time");
    let bodies: Vec<String> = output(&tenant, &id)
        .iter()
        .map(|line| line["output"]["body"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(bodies, (1..=50).map(|n| n.to_string()).collect::<Vec<_>>());
    // No line was run twice.
    let used = tenant.client.get("/api/v1/usage").expect(200).json();
    assert_eq!(used["total"]["requests"], 50, "{used}");
    assert_eq!(used["total"]["bytes_in"], numbers(50).len() - 50, "{used}");
}

#[test]
fn a_tenant_whose_budget_is_spent_holds_nobody_up() {
    let server = Server::with_settings("job_workers = 1\naccess_log = true");
    let (spent, other) = (tenant(&server, "spent", "free"), tenant(&server, "other", "standard"));
    let budget = json!({ "requests": 5 });
    server.operator().put_json("/api/v1/tenants/spent/budget", &budget).expect(200);
    let id = create(&spent, "?path=/job&shard_lines=1", &numbers(40));
    for _ in 0..20 {
        spent.call("POST", FUNCTION, "/job").header("prefer", "respond-async").send().expect(202);
    }
    until("the budget is spent", || {
        let used = spent.client.get("/api/v1/usage").expect(200).json();
        // Those that were let in at once may be a few more.
        (used["total"]["requests"].as_u64() >= Some(5)).then_some(())
    });
    let mine = create(&other, "?path=/job", &numbers(10));
    assert_eq!(ends(&other, &mine)["failed_lines"], 0);
    crate::jobs::ends(&other.client, &crate::jobs::enqueue(&other, "/job", &[]), "done");
    // It waits in the queue, where it costs nothing, and what could not be done has not failed.
    thread::sleep(Duration::from_secs(2));
    let count = begun(&server);
    assert!(count < 5 + 10 + 1 + 20, "{count} were begun");
    assert_eq!(show(&spent, &id)["failed_lines"], 0);
}

#[test]
fn shards_leave_the_workers_of_jobs_alone() {
    let server = Server::start();
    let slow = |name| {
        let tenant = tenant(&server, name, "dedicated");
        create(&tenant, "?path=/job?ms=120000&shard_lines=1", &numbers(100));
    };
    slow("one");
    slow("two");
    let other = tenant(&server, "other", "standard");
    until("shards run", || (server.metrics().sum("sandpiper_running", &[]) > 0.0).then_some(()));
    for _ in 0..5 {
        crate::jobs::ends(&other.client, &crate::jobs::enqueue(&other, "/job", &[]), "done");
    }
    // They still wait, and are counted for themselves.
    let metrics = until("what waits is counted", || {
        let metrics = server.metrics();
        let waiting = |lane| metrics.sum("sandpiper_jobs_waiting", &[("lane", lane)]);
        (waiting("batch") > 150.0 && waiting("job") == 0.0).then_some(metrics)
    });
    assert!(metrics.sum("sandpiper_job_commit_size_bucket", &[("le", "256")]) > 0.0);
}

#[test]
fn a_line_that_fails_is_tried_again() {
    let server = Server::start();
    let tenant = tenant(&server, "acme", "dedicated");
    let id = create(&tenant, "?path=/job?fail_until=2", &numbers(3));
    assert_eq!(ends(&tenant, &id)["failed_lines"], 0);
    for line in output(&tenant, &id) {
        assert_eq!(line["output"]["attempt"], 3, "{line}");
    }
    let id = create(&tenant, "?path=/job?fail_until=5", &numbers(1));
    assert_eq!(ends(&tenant, &id)["failed_lines"], 1);
}

#[test]
fn one_poisonous_line_is_given_up_alone() {
    let mut server = Server::with_settings("access_log = true");
    let tenant = tenant(&server, "acme", "dedicated");
    let id = create(&tenant, "?path=/job?ms=60000%26only=3&shard_lines=5", &numbers(5));
    // It runs for as long as it takes to be seen, and whenever it is seen the process dies.
    let mut crashes = 0;
    until("the batch is done", || {
        if show(&tenant, &id)["state"] == "done" {
            return Some(());
        }
        let logs = format!("/api/v1/functions/{FUNCTION}/logs");
        if tenant.client.get(&logs).expect(200).text().contains("body 3") {
            server.crash();
            crashes += 1;
        }
        None
    });
    assert_eq!(crashes, 4, "two of the shard, two of the line");
    let done = show(&tenant, &id);
    let counts = ["lines", "done_lines", "failed_lines", "shards"].map(|key| &done[key]);
    assert_eq!(counts, [5, 5, 1, 5]);
    let output = output(&tenant, &id);
    let good: Vec<bool> = output.iter().map(|line| line["status"] == 200).collect();
    assert_eq!(good, [true, true, false, true, true], "{output:?}");
    let message = output[2]["error"]["message"].as_str().unwrap();
    assert_eq!(message, "line 3: the server ended while it ran");
}

#[test]
fn what_is_kept_of_a_tenants_batches_is_bounded() {
    let server = Server::start();
    let tenant = tenant(&server, "acme", "free");
    let line = format!("\"{}\"\n", "x".repeat(1_000_000)).repeat(15);
    let send = || send(&tenant, "?path=/ok", "application/x-ndjson", line.as_bytes());
    let ids: Vec<String> =
        (0..4).map(|_| send().expect(202).json()["id"].as_str().unwrap().to_owned()).collect();
    send().refused(429, "queue_full");
    tenant.client.put("/api/v1/blobs", vec![1; 1 << 20]).expect(201);
    // What was taken back counts until it is forgotten, what has ended until its owner has no use for it.
    ends(&tenant, &ids[0]);
    tenant.client.delete(&format!("/api/v1/batches/{}", ids[0])).expect(204);
    let answer = until("there is room", || Some(send()).filter(|answer| answer.status == 202));
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    ends(&tenant, &id);
    tenant.client.get(&format!("/api/v1/batches/{}", ids[0])).refused(404, "not_found");
}

#[test]
fn a_batch_of_many_shards_is_made_and_taken_back_while_others_are_served() {
    let server = Server::start();
    let tenant = tenant(&server, "acme", "dedicated");
    let id = create(&tenant, "?path=/job?ms=1000&shard_lines=1", &numbers(5_000));
    assert_eq!(show(&tenant, &id)["shards"], 5_000);
    tenant.client.delete(&format!("/api/v1/batches/{id}")).expect(204);
    assert_eq!(show(&tenant, &id)["state"], "cancelled");
    until("all have ended", || {
        (server.metrics().sum("sandpiper_jobs_waiting", &[]) == 0.0).then_some(())
    });
    let next = create(&tenant, "?path=/job", "1\n");
    ends(&tenant, &next);
}
