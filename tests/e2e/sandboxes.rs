//! Sandboxes that are made ahead, kept and used again; code that leaves memory and comes back.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    thread,
};

use sandpiper_tests::{Connection, Server, Tenant, guest, until};
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
