//! Sandboxes that are made ahead, kept and used again; code that leaves memory and comes back.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use sandpiper_tests::{Connection, Server, Tenant, guest, model, until};
use serde_json::{Value, json};

/// Windows short enough for a test.
const QUICK: &str = "scale_window_ms = 1000\nscale_panic_window_ms = 300\n";

fn instances(tenant: &Tenant, function: &str) -> Value {
    tenant.client.get(&format!("/api/v1/functions/{function}/instances")).expect(200).json()
}

/// The only version that is there.
fn version(tenant: &Tenant, function: &str) -> Value {
    instances(tenant, function)["versions"][0].clone()
}

fn until_ready(tenant: &Tenant, function: &str, ready: u64) {
    until(&format!("{ready} are ready"), || {
        (version(tenant, function)["ready"] == ready).then_some(())
    });
}

fn deploy(server: &Server, guest_name: &str, manifest: &str) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy(guest_name, manifest);
    tenant
}

#[test]
fn a_fresh_function_keeps_nothing_ready() {
    let server = Server::start();
    let tenant = deploy(&server, "misbehave", "");
    assert_eq!(
        instances(&tenant, "misbehave"),
        json!({
            "versions": [{
                "version": 1, "mode": "fresh",
                "scale": { "min": 0, "max": 64, "reuse": 1, "concurrency": 1 },
                "code": "memory", "wanted": 0, "ready": 0, "running": 0, "suspended": 0, "waiting": 0,
            }],
            "instances": [],
        })
    );
    for _ in 0..3 {
        assert_eq!(tenant.invoke("misbehave", "/counter").expect(200).text(), "1");
    }
    assert_eq!(version(&tenant, "misbehave")["ready"], 0);
}

#[test]
fn a_prepared_sandbox_serves_one_request() {
    let server = Server::start();
    let tenant = deploy(&server, "misbehave", "[scale]\nmin = 2");
    until_ready(&tenant, "misbehave", 2);
    let before = instances(&tenant, "misbehave");
    let ids = |value: &Value| -> Vec<String> {
        let all = value["instances"].as_array().unwrap().iter();
        all.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
    };
    for one in before["instances"].as_array().unwrap() {
        assert_eq!((&one["state"], &one["served"]), (&json!("ready"), &json!(0)), "{one}");
        assert!(one["memory_bytes"].as_u64().unwrap() > 0, "{one}");
    }
    for _ in 0..5 {
        assert_eq!(tenant.invoke("misbehave", "/counter").expect(200).text(), "1");
    }
    until_ready(&tenant, "misbehave", 2);
    let after = instances(&tenant, "misbehave");
    assert!(ids(&before).iter().any(|id| !ids(&after).contains(id)), "{before} {after}");
    let text = server.metrics();
    assert_eq!(text.sum("sandpiper_sandboxes_ready", &[]), 2.0, "{}", text.text());
}

#[test]
fn a_minimum_is_kept_over_a_restart_and_goes_with_its_alias() {
    let mut server = Server::with_settings(QUICK);
    let tenant = deploy(&server, "misbehave", "[scale]\nmin = 3");
    until_ready(&tenant, "misbehave", 3);
    server.restart();
    until_ready(&tenant, "misbehave", 3);
    // The next version keeps its own, and the first one none any more.
    tenant.deploy("misbehave", "[scale]\nmin = 1");
    until("the versions have what they keep", || {
        let all = instances(&tenant, "misbehave");
        let ready: Vec<(u64, u64)> = all["versions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| (one["version"].as_u64().unwrap(), one["ready"].as_u64().unwrap()))
            .collect();
        (ready.contains(&(2, 1)) && !ready.iter().any(|one| one.0 == 1 && one.1 > 0)).then_some(())
    });
    let deleted = tenant.client.delete("/api/v1/functions/misbehave");
    assert!(deleted.status < 300, "{deleted:?}");
    until("nothing is kept of what is gone", || {
        (server.metrics().sum("sandpiper_sandboxes", &[]) == 0.0).then_some(())
    });
}

#[test]
fn code_leaves_memory_and_comes_back() {
    let server = Server::with_settings("code_idle_ms = 300");
    let tenant = deploy(&server, "misbehave", "");
    for times in 1..=2 {
        until("the code has left memory", || {
            (version(&tenant, "misbehave")["code"] == "disk").then_some(())
        });
        assert_eq!(server.metrics().sum("sandpiper_code_resident", &[]), 0.0);
        tenant.invoke("misbehave", "/ok").expect(200);
        let loads = server.metrics().sum("sandpiper_code_loads_total", &[("from", "cache")]);
        assert_eq!(loads, f64::from(times));
    }
}

#[test]
fn a_reused_sandbox_serves_as_many_as_it_may() {
    let server = Server::start();
    let tenant = deploy(&server, "misbehave", "[scale]\nreuse = 3");
    let mut seen = [0; 4];
    for _ in 0..60 {
        let count: usize =
            tenant.invoke("misbehave", "/counter").expect(200).text().parse().unwrap();
        seen[count] += 1;
    }
    // Which of them comes next is open; that none serves a fourth is not.
    assert!(seen[1] >= seen[2] && seen[2] >= seen[3] && seen[3] >= 10, "{seen:?}");
}

#[test]
fn a_reused_sandbox_is_never_shared_by_tenants_or_versions() {
    let server = Server::start();
    let (one, other) = (server.tenant("one", "dedicated"), server.tenant("other", "dedicated"));
    let manifest = |owner: &str| format!("[scale]\nreuse = 128\n[env]\nOWNER = \"{owner}\"");
    one.deploy("misbehave", &manifest("one"));
    other.deploy("misbehave", &manifest("other"));
    let env = |tenant: &Tenant, function: &str| {
        tenant.invoke(function, "/env").expect(200).json()["OWNER"].as_str().unwrap().to_owned()
    };
    let count = |tenant: &Tenant, function: &str| -> u32 {
        tenant.invoke(function, "/counter").expect(200).text().parse().unwrap()
    };
    until("a sandbox is used again", || (count(&one, "misbehave") >= 10).then_some(()));
    // The same component, and another tenant: its first sandbox has seen nobody.
    assert_eq!(count(&other, "misbehave"), 1);
    one.deploy("misbehave", &manifest("second"));
    assert_eq!(count(&one, "misbehave"), 1, "a new version begins anew");
    thread::scope(|scope| {
        for (tenant, function, own) in [
            (&one, "misbehave@1", "one"),
            (&one, "misbehave@2", "second"),
            (&other, "misbehave", "other"),
        ] {
            scope.spawn(move || {
                for _ in 0..50 {
                    assert_eq!(env(tenant, function), own);
                }
            });
        }
    });
    // A function that is made anew under its old name has nothing of the old one.
    assert!(one.client.delete("/api/v1/functions/misbehave").status < 300);
    one.deploy("misbehave", &manifest("third"));
    assert_eq!(count(&one, "misbehave"), 1);
    assert_eq!(env(&one, "misbehave"), "third");
}

/// Uses sandboxes until one has served at least ten, and asks it for `path`; gives the count of the next one.
fn count_after(tenant: &Tenant, path: &str) -> u32 {
    let number = |text: String| text.parse::<u32>().ok();
    until("one that was used often is asked", || {
        let before = number(tenant.invoke("misbehave", "/counter").expect(200).text())?;
        if before < 10 {
            return None;
        }
        // One that breaks off has no answer at all.
        let _ = tenant.call("GET", "misbehave", path).try_send();
        number(tenant.invoke("misbehave", "/counter").expect(200).text())
    })
}

#[test]
fn what_a_request_left_behind_ends_its_sandbox() {
    let server = Server::start();
    let tenant = deploy(
        &server,
        "misbehave",
        "[scale]\nreuse = 128\n[limits]\nmemory_mib = 32\ncpu_ms = 200\nwall_ms = 2000",
    );
    assert!(count_after(&tenant, "/keep") > 10, "nothing was left behind");
    assert!(count_after(&tenant, "/log?lines=2") > 10, "output is nothing to leave behind");
    for path in [
        "/keep?kind=fields",
        "/keep?kind=tensor",
        "/keep?kind=memory&mib=17",
        "/trap",
        "/trap-after-head?ms=1",
        "/exit?code=0",
        "/exit?code=1",
        "/no-response",
        "/grow",
        "/spin",
        "/sleep?ms=5000",
    ] {
        let count = count_after(&tenant, path);
        assert!(count < 10, "{path} and then the count {count}");
    }
}

#[test]
fn limits_count_anew_for_each_request_of_a_reused_sandbox() {
    let server = Server::start();
    let limits = "[limits]\ncpu_ms = 100\nwall_ms = 1000\n[scale]\nreuse = 128";
    let tenant = deploy(&server, "misbehave", limits);
    let counts: Vec<u32> = (0..10)
        .map(|_| tenant.invoke("misbehave", "/burn?ms=50").expect(200).text().parse().unwrap())
        .collect();
    assert!(counts.iter().any(|count| *count >= 3), "{counts:?}");
    for number in 0..3 {
        let id = format!("request-{number}");
        let call = tenant.call("GET", "misbehave", "/log?lines=1").header("x-request-id", &id);
        call.send().expect(200);
    }
    let logs = tenant.client.get("/api/v1/functions/misbehave/logs").expect(200).json();
    let ids: Vec<&str> = logs["lines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|line| line["request_id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["request-0", "request-0", "request-1", "request-1", "request-2", "request-2"]);
    assert!(tenant.invoke("misbehave", "/counter").expect(200).text() != "1");
    let hung = tenant.invoke("misbehave", "/hang");
    assert_eq!(hung.header("x-sandpiper-error"), Some("wall_exceeded"), "{hung:?}");
    tenant.invoke("misbehave", "/counter").expect(200);
    let spun = tenant.invoke("misbehave", "/spin");
    assert_eq!(spun.header("x-sandpiper-error"), Some("cpu_exceeded"), "{spun:?}");
}

#[test]
fn ready_sandboxes_make_room_when_the_pool_is_full() {
    let server = Server::with_settings("sandboxes_max = 3\nready_max = 3");
    // One tenant alone may not fill it.
    let tenants = ["one", "two", "three"].map(|name| server.tenant(name, "standard"));
    for tenant in &tenants {
        tenant.deploy("misbehave", "[scale]\nmin = 1");
        until_ready(tenant, "misbehave", 1);
    }
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("other", &guest("counter"), "").expect(201);
    for _ in 0..3 {
        assert_eq!(tenant.invoke("other", "/").expect(200).text(), "1");
    }
    assert!(server.metrics().sum("sandpiper_sandboxes_reclaimed_total", &[]) >= 1.0);
    for tenant in &tenants {
        until_ready(tenant, "misbehave", 1);
    }
}

#[test]
fn ready_sandboxes_are_bounded_on_a_node() {
    let server = Server::with_settings("ready_max = 3");
    let tenants = ["one", "two", "three", "four"].map(|name| server.tenant(name, "dedicated"));
    for tenant in &tenants {
        tenant.deploy("counter", "[scale]\nmin = 2");
    }
    let ready = |tenant| version(tenant, "counter")["ready"].as_u64().unwrap();
    until("three are ready", || (tenants.iter().map(ready).sum::<u64>() == 3).then_some(()));
    for _ in 0..50 {
        assert!(server.metrics().sum("sandpiper_sandboxes_ready", &[]) <= 3.0);
        tenants[3].invoke("counter", "/").expect(200);
    }
}

#[test]
fn one_tenant_does_not_take_all_that_is_ready() {
    let server = Server::with_settings("ready_max = 4");
    let greedy = server.tenant("greedy", "free");
    // The tier allows 16 sandboxes at once.
    let refused = greedy.put_function("much", &guest("counter"), "[scale]\nmin = 17");
    let refused = refused.refused(422, "invalid_manifest");
    assert!(refused.message().contains("scale.min"), "{refused:?}");
    for name in ["one", "two", "three", "four", "five"] {
        greedy.put_function(name, &guest("counter"), "[scale]\nmin = 16").expect(201);
    }
    until("it has what it may have", || {
        (server.metrics().sum("sandpiper_sandboxes_ready", &[]) >= 1.0).then_some(())
    });
    let other = server.tenant("other", "free");
    other.deploy("counter", "[scale]\nmin = 1");
    until_ready(&other, "counter", 1);
    assert_eq!(server.metrics().sum("sandpiper_sandboxes_ready", &[]), 2.0);
}

#[test]
fn slow_starts_hold_up_their_own_tenant_alone() {
    let server = Server::start();
    let [slow, other] = ["slow", "other"].map(|name| server.tenant(name, "dedicated"));
    // Its code is there already when it is to be kept ready.
    other.deploy("starter", "");
    let names = ["one", "two", "three", "four", "five"];
    for name in names {
        let manifest = "[scale]\nmin = 2\n[env]\nSTART = \"sleep:600000\"";
        slow.put_function(name, &guest("starter"), manifest).expect(201);
    }
    until("a start is under way", || {
        (server.metrics().sum("sandpiper_sandboxes", &[]) >= 1.0).then_some(())
    });
    other.deploy("starter", "[scale]\nmin = 1");
    until("the other tenant's is ready", || {
        let all = instances(&other, "starter");
        let ready = |one: &Value| one["ready"].as_u64() == Some(1);
        all["versions"].as_array().unwrap().iter().any(ready).then_some(())
    });
    // Each start of the slow one may take 10 s before it is given up.
    let given_up = |name: &&str| version(&slow, name)["start_fault"]["code"] == "wall_exceeded";
    assert!(names.iter().filter(|name| given_up(name)).count() < names.len());
}

#[test]
fn a_model_that_was_opened_at_the_start_is_not_carried_into_requests() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("digits", &model("digits")).expect(201);
    let manifest = "[scale]\nmin = 1\n[env]\nSTART = \"model:digits\"";
    tenant.put_function("f", &guest("starter"), manifest).expect(201);
    let fault = until("the start fails", || {
        let version = version(&tenant, "f");
        version.get("start_fault").cloned()
    });
    assert_eq!(fault["code"], "kept_model", "{fault}");
    let log = tenant.client.get("/api/v1/functions/f/logs").expect(200).json();
    let line = &log["lines"][0];
    assert_eq!(line["request_id"], "start", "{log}");
    assert!(line["text"].as_str().unwrap().contains("a model that it opened"), "{log}");
    // A sandbox of a request's own opens what the request may open.
    assert_eq!(tenant.invoke("f", "/").expect(200).text(), "1");
    assert_eq!(version(&tenant, "f")["ready"], 0);
}

#[test]
fn a_full_pool_waits_and_is_then_told() {
    let server = Server::with_settings("sandboxes_max = 1");
    let tenant = deploy(&server, "misbehave", "");
    thread::scope(|scope| {
        scope.spawn(|| tenant.invoke("misbehave", "/sleep?ms=4000").expect(200));
        until("it sleeps", || (version(&tenant, "misbehave")["running"] == 1).then_some(()));
        tenant.invoke("misbehave", "/ok").refused(503, "node_saturated");
    });
    tenant.invoke("misbehave", "/ok").expect(200);
}

#[test]
fn instances_rise_under_load_and_fall_back_to_the_minimum() {
    let server = Server::with_settings(QUICK);
    let tenant = deploy(&server, "misbehave", "[scale]\nmin = 1");
    until_ready(&tenant, "misbehave", 1);
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    let risen = thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while !is_over.load(Relaxed) {
                    assert_eq!(tenant.invoke("misbehave", "/sleep?ms=20").expect(200).text(), "1");
                    asked.fetch_add(1, Relaxed);
                }
            });
        }
        let risen = until("more are kept ready", || {
            let version = version(&tenant, "misbehave");
            (version["wanted"].as_u64() >= Some(4) && version["ready"].as_u64() >= Some(3))
                .then_some(version)
        });
        is_over.store(true, Relaxed);
        risen
    });
    assert!(asked.load(Relaxed) > 0 && risen["wanted"].as_u64() <= Some(64), "{risen}");
    until("what nobody needs has gone", || {
        let version = version(&tenant, "misbehave");
        (version["wanted"] == 1 && version["ready"] == 1 && version["running"] == 0).then_some(())
    });
}

/// The names and data of the next events, until `enough`.
fn events(
    connection: &mut Connection,
    enough: impl Fn(&[(String, Value)]) -> bool,
) -> Vec<(String, Value)> {
    let (mut text, mut seen) = (String::new(), Vec::new());
    until("the events have come", || {
        text.push_str(&String::from_utf8_lossy(&connection.chunk().expect("the stream goes on")));
        while let Some((event, rest)) = text.split_once("\n\n") {
            let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name));
            if let (Some(name), Some(data)) = (field("event: "), field("data: ")) {
                seen.push((name.to_owned(), serde_json::from_str(data).unwrap()));
            }
            text = rest.to_owned();
        }
        enough(&seen).then_some(())
    });
    seen
}

#[test]
fn instances_are_told_as_they_come_and_go() {
    let server = Server::with_settings(QUICK);
    let tenant = deploy(&server, "misbehave", "[scale]\nmin = 1");
    until_ready(&tenant, "misbehave", 1);
    let id = instances(&tenant, "misbehave")["instances"][0]["id"].clone();
    let mut connection = server.connect();
    connection.send(format!(
        "GET /api/v1/functions/misbehave/instances?follow=true HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    let head = connection.head();
    assert_eq!((head.status, head.header("content-type")), (200, Some("text/event-stream")));
    tenant.invoke("misbehave", "/ok").expect(200);
    let is = |event: &(String, Value), id: Option<&Value>, change: &str| {
        event.0 == "instance"
            && event.1["change"] == change
            && id.is_none_or(|id| event.1["id"] == *id)
    };
    let seen = events(&mut connection, |seen| {
        seen.iter().any(|event| is(event, Some(&id), "ended"))
            && seen.iter().any(|event| is(event, None, "ready"))
    });
    let of_it: Vec<&Value> =
        seen.iter().map(|event| &event.1).filter(|event| event["id"] == id).collect();
    assert_eq!(
        of_it,
        [
            &json!({ "id": id, "version": 1, "change": "running" }),
            &json!({ "id": id, "version": 1, "change": "ended", "reason": "served_out" }),
        ]
    );
    tenant.invoke("misbehave", "/trap");
    let seen = events(&mut connection, |seen| seen.iter().any(|event| is(event, None, "ended")));
    let ended = seen.iter().find(|event| is(event, None, "ended")).unwrap();
    assert_eq!(ended.1["reason"], "fault");
}

#[test]
fn instances_are_their_tenants_alone() {
    let server = Server::start();
    let tenant = deploy(&server, "misbehave", "");
    let other = server.tenant("beta", "standard");
    let path = "/api/v1/functions/misbehave/instances";
    other.client.get(path).refused(404, "not_found");
    other.client.get(&format!("{path}?follow=true")).refused(404, "not_found");
    tenant.with_scopes(&["invoke"]).get(path).refused(403, "missing_scope");
    assert_eq!(tenant.client.get(&format!("{path}?follow=maybe")).status, 400);
    assert_eq!(tenant.client.get(&format!("{path}?folow=true")).status, 400);
}

#[test]
fn a_cold_spike_of_500_has_no_errors() {
    let server = Server::with_settings("code_idle_ms = 300");
    let tenant = deploy(&server, "counter", "[scale]\nmax = 512");
    until("the code has left memory", || {
        (version(&tenant, "counter")["code"] == "disk").then_some(())
    });
    thread::scope(|scope| {
        for _ in 0..500 {
            let ask = || assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
            thread::Builder::new().stack_size(1 << 18).spawn_scoped(scope, ask).unwrap();
        }
    });
}

#[test]
fn the_command_line_shows_instances() {
    let server = Server::start();
    let tenant = deploy(&server, "misbehave", "[scale]\nmin = 1");
    until_ready(&tenant, "misbehave", 1);
    let person = crate::cli::Person::new(&server, &tenant.key);
    let shown = person.good(&["instances", "misbehave"]);
    assert!(shown.contains("prepared") && shown.contains("ready"), "{shown}");
    assert_eq!(person.json(&["instances", "misbehave"])["versions"][0]["ready"], 1);
    person.fails(5, &["instances", "no-such-function"]);
}
