//! Functions: deploying, versions, aliases, going back, deleting.

use std::collections::BTreeMap;

use sandpiper_tests::{Server, Tenant, example, guest, until};
use serde_json::{Value, json};

fn alias(tenant: &Tenant, alias: &str, target: &Value) -> Value {
    let path = format!("/api/v1/functions/f/aliases/{alias}");
    tenant.client.put_json(&path, target).expect(200).json()
}

/// A tenant whose function `f` tells its version, so that it can be seen which one answered.
fn with_versions(server: &Server, count: usize) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    for version in 1..=count {
        let manifest = format!("[env]\nVERSION = \"{version}\"");
        let json = tenant.put_function("f", &guest("misbehave"), &manifest).expect(201).json();
        assert_eq!(json["version"], version);
    }
    tenant
}

fn answering(tenant: &Tenant, selector: &str) -> String {
    let env = tenant.invoke(&format!("f{selector}"), "/env").expect(200).json();
    env["VERSION"].as_str().unwrap().to_owned()
}

#[test]
fn a_component_alone_is_a_function() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    // The type that curl sends by itself says nothing.
    let call = tenant.client.call("PUT", "/api/v1/functions/hello");
    let call = call.header("content-type", "application/x-www-form-urlencoded");
    let made = call.body(example("hello")).send().expect(201).json();
    assert_eq!(made["name"], "hello");
    assert_eq!(made["version"], 1);
    assert_eq!(made["url"], "/fn/acme/hello");
    assert_eq!(made["auth"], "key");
    assert_eq!(made["aliases"], json!(["live"]));
    assert_eq!(made["digest"].as_str().map(str::len), Some(64));
    assert_eq!(made["size_bytes"], example("hello").len());
    assert_eq!(made["limits"]["memory_mib"], 128, "those of the tier");
    let imports = made["imports"].as_array().unwrap();
    let has_http = |import: &Value| import.as_str().unwrap().starts_with("wasi:http/types@0.2.");
    assert!(imports.iter().any(has_http), "{imports:?}");
    assert_eq!(server.blobs(), [made["digest"].as_str().unwrap()]);
    assert_eq!(tenant.client.get(made["url"].as_str().unwrap()).expect(200).text(), "hello\n");
}

#[test]
fn a_manifest_lowers_limits_and_never_raises_them() {
    let server = Server::start();
    let tenant = server.tenant("acme", "free");
    let limits = "[limits]\nmemory_mib = 5000\ncpu_ms = 7\nwall_ms = 999999";
    let made = tenant.put_function("counter", &guest("counter"), limits).expect(201).json();
    assert_eq!(made["limits"]["memory_mib"], 64);
    assert_eq!(made["limits"]["cpu_ms"], 7);
    assert_eq!(made["limits"]["wall_ms"], 5000);
}

#[test]
fn the_same_upload_twice_is_one_version() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    alias(&tenant, "live", &json!({ "version": 1 }));
    let again = tenant.put_function("f", &guest("misbehave"), "[env]\nVERSION = \"2\"");
    let again = again.expect(200).json();
    assert_eq!(again["version"], 2);
    assert_eq!(again["aliases"], json!(["live"]), "`live` moved to it");
    assert_eq!(answering(&tenant, ""), "2");
    // The same bytes as an older version are a new one: what was deployed last is the newest.
    let third = tenant.put_function("f", &guest("misbehave"), "[env]\nVERSION = \"1\"");
    assert_eq!(third.expect(201).json()["version"], 3);
    assert_eq!(server.blobs().len(), 1, "and all of them are one file");
}

#[test]
fn activate_false_leaves_live_where_it_is() {
    let server = Server::start();
    let tenant = with_versions(&server, 1);
    let path = "/api/v1/functions/f?activate=false";
    let made = tenant.client.put(path, guest("counter")).expect(201).json();
    assert_eq!((&made["version"], &made["aliases"]), (&json!(2), &json!([])));
    assert_eq!(answering(&tenant, ""), "1");
    assert_eq!(tenant.invoke("f@2", "/").expect(200).text(), "1");
    let shown = tenant.client.get("/api/v1/functions/f").expect(200).json();
    assert_eq!(shown["version"], 1);
    assert_eq!(shown["latest_version"], 2);
    assert_eq!(shown["aliases"], json!({ "live": { "version": 1 } }));
    for query in ["activate=maybe", "activte=false", "wait=2"] {
        let path = format!("/api/v1/functions/f?{query}");
        tenant.client.put(&path, b"").refused(400, "bad_request");
    }
}

#[test]
fn wait_false_answers_before_the_version_is_ready() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let path = "/api/v1/functions/later?wait=false";
    let accepted = tenant.client.put(path, guest("misbehave")).expect(202).json();
    assert_eq!(accepted, json!({ "name": "later", "state": "preparing" }));
    let shown = until("the deployment is done", || {
        let shown = tenant.client.get("/api/v1/functions/later").expect(200).json();
        shown["version"].is_number().then_some(shown)
    });
    assert_eq!(shown["version"], 1);
    assert_eq!(tenant.invoke("later", "/ok").expect(200).text(), "ok");
    let path = "/api/v1/functions/never?wait=false";
    tenant.client.put(path, b"not wasm").expect(202);
    let failed = until("the deployment has failed", || {
        let shown = tenant.client.get("/api/v1/functions/never").expect(200).json();
        (shown["deployment"]["state"] == "failed").then_some(shown)
    });
    assert_eq!(failed["deployment"]["error"]["code"], "not_wasm");
    tenant.invoke("never", "/").refused(404, "not_found");
    let list = tenant.client.get("/api/v1/functions").expect(200).json();
    assert_eq!(list["functions"].as_array().map(Vec::len), Some(1));
}

#[test]
fn versions_are_listed_shown_and_invoked() {
    let server = Server::start();
    let tenant = with_versions(&server, 3);
    let versions = tenant.client.get("/api/v1/functions/f/versions").expect(200).json();
    let numbers: Vec<&Value> =
        versions["versions"].as_array().unwrap().iter().map(|one| &one["version"]).collect();
    assert_eq!(numbers, [1, 2, 3]);
    let second = tenant.client.get("/api/v1/functions/f/versions/2").expect(200).json();
    assert_eq!((&second["version"], &second["aliases"]), (&json!(2), &json!([])));
    tenant.client.get("/api/v1/functions/f/versions/4").refused(404, "not_found");
    for version in ["1", "2", "3"] {
        assert_eq!(answering(&tenant, &format!("@{version}")), version);
    }
    tenant.invoke("f@4", "/ok").refused(404, "not_found");
    tenant.invoke("f@canary", "/ok").refused(404, "not_found");
}

#[test]
fn an_alias_moves_and_splits_and_goes() {
    let server = Server::start();
    let tenant = with_versions(&server, 3);
    assert_eq!(
        alias(&tenant, "canary", &json!({ "version": 2 })),
        json!({ "alias": "canary", "version": 2 })
    );
    assert_eq!(answering(&tenant, "@canary"), "2");
    assert_eq!(answering(&tenant, ""), "3");
    let weights = json!({ "weights": { "1": 50, "2": 50 } });
    assert_eq!(alias(&tenant, "canary", &weights)["weights"], weights["weights"]);
    let mut seen = BTreeMap::new();
    for _ in 0..60 {
        *seen.entry(answering(&tenant, "@canary")).or_insert(0) += 1;
    }
    // One in 2^59 runs sees only one of the two.
    assert_eq!(seen.keys().collect::<Vec<_>>(), ["1", "2"], "{seen:?}");
    let path = "/api/v1/functions/f/aliases/canary";
    for (body, status) in [
        (json!({}), 400),
        (json!({ "version": 1, "weights": { "1": 1 } }), 400),
        (json!({ "version": -1 }), 400),
        (json!({ "version": 9 }), 404),
        (json!({ "weights": {} }), 422),
        (json!({ "weights": { "1": 100, "2": 0 } }), 422),
        (json!({ "weights": { "1": 50, "2": 51 } }), 422),
        (json!({ "weights": { "9": 100 } }), 404),
    ] {
        let answer = tenant.client.put_json(path, &body);
        assert_eq!(answer.status, status, "{body}: {answer:?}");
    }
    tenant.client.delete(path).expect(204);
    tenant.invoke("f@canary", "/ok").refused(404, "not_found");
    tenant.client.delete(path).refused(404, "not_found");
}

#[test]
fn an_alias_goes_back() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    let path = "/api/v1/functions/f/aliases/live/rollback";
    let back = tenant.client.post(path).expect(200).json();
    assert_eq!(back, json!({ "alias": "live", "version": 1, "models": {} }));
    assert_eq!(answering(&tenant, ""), "1");
    tenant.client.post("/api/v1/functions/f/aliases/none/rollback").refused(404, "not_found");
    let fresh = server.tenant("beta", "standard");
    fresh.put_function("f", &guest("counter"), "").expect(201);
    let answer = fresh.client.post(path);
    assert!([404, 409, 422].contains(&answer.status), "there is nothing to go back to: {answer:?}");
}

#[test]
fn a_version_in_use_stays() {
    let server = Server::start();
    let tenant = with_versions(&server, 3);
    alias(&tenant, "canary", &json!({ "weights": { "1": 10, "3": 90 } }));
    for version in [1, 3] {
        let path = format!("/api/v1/functions/f/versions/{version}");
        let answer = tenant.client.delete(&path).refused(409, "in_use");
        assert!(answer.json()["error"]["hint"].is_string(), "{answer:?}");
    }
    tenant.client.delete("/api/v1/functions/f/versions/2").expect(204);
    tenant.invoke("f@2", "/ok").refused(404, "not_found");
    tenant.client.delete("/api/v1/functions/f/versions/2").refused(404, "not_found");
    assert_eq!(answering(&tenant, ""), "3");
    // Its number is not given again.
    let made = tenant.put_function("f", &guest("counter"), "").expect(201).json();
    assert_eq!(made["version"], 4);
}

#[test]
fn a_deleted_function_is_gone_with_its_blobs() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    tenant.put_function("g", &guest("counter"), "").expect(201);
    assert_eq!(server.blobs().len(), 2);
    tenant.client.delete("/api/v1/functions/f").expect(204);
    tenant.invoke("f", "/ok").refused(404, "not_found");
    tenant.invoke("f@1", "/ok").refused(404, "not_found");
    tenant.client.get("/api/v1/functions/f").refused(404, "not_found");
    tenant.client.get("/api/v1/functions/f/logs").refused(404, "not_found");
    tenant.client.delete("/api/v1/functions/f").refused(404, "not_found");
    server.sweeps_to(1);
    tenant.invoke("g", "/").expect(200);
}

#[test]
fn the_limits_of_the_free_tier_are_reached_and_told() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    let counter = guest("counter");
    for n in 0..10 {
        tenant.put_function(&format!("f{n}"), &counter, "").expect(201);
    }
    let answer = tenant.put_function("f10", &counter, "").refused(429, "limit_reached");
    assert!(answer.message().contains("10 functions"), "{answer:?}");
    assert!(answer.json()["error"]["hint"].is_string(), "{answer:?}");
    tenant.client.get("/api/v1/functions/f10").refused(404, "not_found");
    // What exists can still be changed, and room can be made.
    tenant.put_function("f0", &counter, "[env]\nA = \"1\"").expect(201);
    tenant.client.delete("/api/v1/functions/f9").expect(204);
    tenant.put_function("f10", &counter, "").expect(201);
}

#[test]
fn old_versions_make_room_for_new_ones() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    for n in 1..=12 {
        let manifest = format!("[env]\nN = \"{n}\"");
        let answer = tenant.put_function("f", &guest("counter"), &manifest);
        // Kept of each: 10. Either the oldest unused one goes, or the limit is told.
        assert!([201, 429].contains(&answer.status), "{answer:?}");
    }
    let versions = tenant.client.get("/api/v1/functions/f/versions").expect(200).json();
    assert_eq!(versions["versions"].as_array().map(Vec::len), Some(10));
    tenant.invoke("f", "/").expect(200);
}
