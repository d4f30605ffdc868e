//! Rollouts: how they begin, are watched and end.

use std::{
    thread,
    time::{Duration, Instant},
};

use sandpiper_tests::{Answer, Server, Tenant, example, guest, multipart, until};
use serde_json::{Value, json};

use super::{LIVE, history, point};

fn rollout(tenant: &Tenant) -> Value {
    tenant.client.get(&format!("{LIVE}/rollouts")).expect(200).json()
}

fn begin(tenant: &Tenant, body: &Value) -> Answer {
    tenant.client.post_json(&format!("{LIVE}/rollouts"), body)
}

/// `f`: version 1 answers all paths, version 2 does as it is told.
fn with_candidate(server: &Server) -> Tenant {
    with_versions(server, &example("hello"), "")
}

/// `f`: version 1 is `stable`, version 2 does as it is told and has these lines in its manifest.
fn with_versions(server: &Server, stable: &[u8], manifest: &str) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("f", stable, "").expect(201);
    let manifest = format!("name = \"f\"\n{manifest}");
    let parts: [(&str, &[u8]); 2] =
        [("component", &guest("misbehave")), ("manifest", manifest.as_bytes())];
    let (kind, body) = multipart(&parts);
    let call = tenant.client.call("PUT", "/api/v1/functions/f?activate=false");
    call.header("content-type", &kind).body(body).send().expect(201);
    tenant
}

fn count(rollout: &Value, what: &str) -> u64 {
    rollout[what].as_u64().unwrap_or_else(|| panic!("no {what} in {rollout}"))
}

/// Waits until the rollout is watched, and gives what it shows then.
fn until_watched(tenant: &Tenant) -> Value {
    until("the rollout is watched", || {
        tenant.invoke("f", "/ok").expect(200);
        let now = rollout(tenant);
        (count(&now, "requests") > 0).then_some(now)
    })
}

/// Asks for `path` with ten clients at once, who leave after so long, and again until the rollout has ended.
fn leave(server: &Server, tenant: &Tenant, path: &str, after: Duration) -> Value {
    until("the rollout has ended", || {
        let mut clients: Vec<_> = (0..10).map(|_| server.connect()).collect();
        for client in &mut clients {
            client.send(format!(
                "GET /fn/acme/f{path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
                tenant.key
            ));
        }
        thread::sleep(after);
        drop(clients);
        let now = rollout(tenant);
        (now["state"] != "baking").then_some(now)
    })
}

/// Asks for `path` until the rollout has ended.
fn drive(tenant: &Tenant, path: &str) -> Value {
    until("the rollout has ended", || {
        for _ in 0..10 {
            tenant.invoke("f", path);
        }
        let now = rollout(tenant);
        (now["state"] != "baking").then_some(now)
    })
}

#[test]
fn a_canary_that_fails_is_rolled_back() {
    let mut server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 50, "bake_s": 600, "requests_min": 5});
    let begun = begin(&tenant, &body).expect(201).json();
    assert_eq!(begun["state"], "baking");
    assert_eq!((&begun["version"], &begun["stable"]), (&json!(2), &json!(1)));
    begin(&tenant, &body).refused(409, "rollout_running");
    let live = tenant.client.get("/api/v1/functions/f").expect(200).json();
    assert_eq!(live["aliases"]["live"], json!({"weights": {"1": 50, "2": 50}}));

    let ended = drive(&tenant, "/status?code=500");
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("requests failed"), "{ended}");
    for _ in 0..50 {
        tenant.invoke("f", "/status?code=500").expect(200);
    }
    let latest = &history(&tenant)[0];
    assert_eq!((&latest["version"], &latest["cause"]), (&json!(1), &json!("failed")));
    assert_eq!(latest["reason"], ended["reason"]);
    let label = ("end", "rolled_back");
    until("the end is counted", || {
        (server.metrics().sum("sandpiper_rollouts_total", &[label]) == 1.0).then_some(())
    });

    server.crash();
    let version = tenant.client.get("/api/v1/functions/f/versions/2").expect(200).json();
    assert_eq!(version["failed"], ended["reason"]);
    point(&tenant, &json!({"version": 2})).refused(409, "version_failed");
    point(&tenant, &json!({"weights": {"1": 99, "2": 1}})).refused(409, "version_failed");
    begin(&tenant, &body).refused(409, "version_failed");
    tenant.invoke("f", "/status?code=500").expect(200);
    point(&tenant, &json!({"version": 2, "force": true})).expect(200);
    tenant.invoke("f", "/status?code=500").expect(500);
}

#[test]
fn a_canary_that_traps_is_rolled_back() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 50, "bake_s": 600, "requests_min": 5});
    begin(&tenant, &body).expect(201);
    assert_eq!(drive(&tenant, "/trap")["state"], "rolled_back");
    tenant.invoke("f", "/trap").expect(200);
}

#[test]
fn a_slow_canary_is_rolled_back() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({
        "version": 2, "percent": 50, "bake_s": 600, "requests_min": 3, "p99_ms_max": 300,
    });
    begin(&tenant, &body).expect(201);
    let ended = drive(&tenant, "/stream?chunks=2&ms=250");
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("300 ms"), "{ended}");
}

#[test]
fn a_canary_that_hangs_is_rolled_back_though_its_callers_leave() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 50, "bake_s": 600, "requests_min": 5});
    begin(&tenant, &body).expect(201);
    let ended = leave(&server, &tenant, "/hang", Duration::from_millis(1_500));
    assert_eq!(ended["state"], "rolled_back", "{ended}");
    assert!(ended["reason"].as_str().unwrap().contains("requests failed"), "{ended}");
}

#[test]
fn a_canary_that_nobody_waits_for_is_not_promoted() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 99, "bake_s": 2});
    begin(&tenant, &body).expect(201);
    let ended = leave(&server, &tenant, "/hang", Duration::from_millis(50));
    assert_eq!(ended["state"], "rolled_back", "{ended}");
}

#[test]
fn only_what_the_rollout_sends_is_counted_and_each_failure_once() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let alias = |name: &str| format!("/api/v1/functions/f/aliases/{name}");
    tenant.client.put_json(&alias("other"), &json!({"version": 2})).expect(200);
    tenant.client.put_json(&alias("second"), &json!({"version": 1})).expect(200);
    let body = json!({
        "version": 2, "percent": 90, "bake_s": 600, "requests_min": 10_000, "error_rate_max": 1.0,
    });
    begin(&tenant, &body).expect(201);
    let before = count(&until_watched(&tenant), "requests");
    let (mut requests, mut failures) = (0, 0);
    for _ in 0..20 {
        requests += u64::from(tenant.invoke("f", "/ok").expect(200).text() == "ok");
        // Version 1 answers; version 2 says 500 and then breaks off.
        let broken = tenant.call("GET", "f", "/trap-after-head?code=500&ms=1").try_send();
        failures += u64::from(broken.is_err());
    }
    for _ in 0..20 {
        tenant.invoke("f@2", "/status?code=500").expect(500);
        tenant.invoke("f@other", "/status?code=500").expect(500);
    }
    // Another alias that tries the same version has counts of its own.
    tenant.client.post_json(&format!("{}/rollouts", alias("second")), &body).expect(201);
    until("the second rollout is watched", || {
        tenant.invoke("f@second", "/ok").expect(200);
        let path = format!("{}/rollouts", alias("second"));
        let second = tenant.client.get(&path).expect(200).json();
        (count(&second, "requests") > 0).then_some(())
    });
    assert!(requests > 0 && failures > 0);
    let expected = before + requests + failures;
    let seen = until("all requests are counted", || {
        let now = rollout(&tenant);
        (count(&now, "requests") >= expected).then_some(now)
    });
    assert_eq!((count(&seen, "requests"), count(&seen, "errors")), (expected, failures), "{seen}");
    assert_eq!(seen["stable_seen"]["errors"], 0, "{seen}");
    assert!(count(&seen["stable_seen"], "requests") > 0, "{seen}");
}

#[test]
fn waiting_for_others_is_not_the_canarys_time() {
    let server = Server::start();
    let tenant = with_versions(&server, &example("hello"), "[scale]\nmax = 1");
    let body = json!({"version": 2, "percent": 99, "bake_s": 600, "requests_min": 10_000});
    begin(&tenant, &body).expect(201);
    let before = count(&until_watched(&tenant), "requests");
    let ask = || {
        let began = Instant::now();
        let answer = tenant.invoke("f", "/sleep?ms=150").expect(200);
        (answer.text() != "hello\n", began.elapsed().as_millis() as u64)
    };
    let all: Vec<(bool, u64)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..10).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let longest = all.iter().map(|(_, took_ms)| *took_ms).max().unwrap();
    let expected = before + all.iter().filter(|(is_canary, _)| *is_canary).count() as u64;
    let seen = until("all requests are counted", || {
        let now = rollout(&tenant);
        (count(&now, "requests") >= expected).then_some(now)
    });
    // One after the other: whoever comes last waits for all others.
    assert!(count(&seen, "p99_ms") * 2 < longest, "{longest} ms, {seen}");
}

#[test]
fn a_canary_is_not_to_blame_for_what_fails_everywhere() {
    let server = Server::start();
    let tenant = with_versions(&server, &guest("misbehave"), "[env]\nVERSION = \"2\"");
    let body = json!({"version": 2, "percent": 5, "bake_s": 600, "requests_min": 5});
    begin(&tenant, &body).expect(201);
    until("it has failed often enough", || {
        for _ in 0..20 {
            tenant.invoke("f", "/status?code=500").expect(500);
        }
        let now = rollout(&tenant);
        assert_eq!(now["state"], "baking", "{now}");
        (count(&now, "errors") >= 8).then_some(())
    });
    thread::sleep(Duration::from_secs(1));
    let now = rollout(&tenant);
    assert_eq!(now["state"], "baking", "{now}");
    assert_eq!(now["errors"], now["requests"], "{now}");
}

#[test]
fn a_good_canary_takes_over_after_the_bake() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 30, "bake_s": 1, "requests_min": 1});
    begin(&tenant, &body).expect(201);
    assert_eq!(drive(&tenant, "/ok")["state"], "promoted");
    for _ in 0..20 {
        assert_eq!(tenant.invoke("f", "/ok").expect(200).text(), "ok");
    }
    let history = history(&tenant);
    assert_eq!(history[0], json!({"version": 2, "models": {}, "cause": "promoted"}));
    assert_eq!(history[1], json!({"version": 1, "models": {}, "cause": "deployed"}));
    assert_eq!(history.len(), 2, "nobody wants to go back to the split");
    tenant.client.post(&format!("{LIVE}/rollback")).expect(200);
    assert_eq!(tenant.invoke("f", "/ok").expect(200).text(), "hello\n");
}

#[test]
fn a_rollout_survives_a_kill_9() {
    let mut server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 50, "bake_s": 5, "requests_min": 1});
    let begun = begin(&tenant, &body).expect(201).json();
    server.crash();
    let now = rollout(&tenant);
    if now["state"] == "baking" {
        assert_eq!(now["bake_until"], begun["bake_until"]);
    }
    assert_eq!(drive(&tenant, "/ok")["state"], "promoted");
    server.crash();
    assert_eq!(rollout(&tenant)["state"], "promoted");
    assert_eq!(tenant.invoke("f", "/ok").expect(200).text(), "ok");
}

#[test]
fn a_node_that_was_down_watches_as_long_again() {
    const BAKE: Duration = Duration::from_secs(3);
    let mut server = Server::start();
    let tenant = with_candidate(&server);
    let body = json!({"version": 2, "percent": 50, "bake_s": BAKE.as_secs()});
    begin(&tenant, &body).expect(201);
    server.kill9();
    // Beyond the time by which it ends without requests.
    thread::sleep(BAKE * 2 + Duration::from_secs(1));
    let began = Instant::now();
    server.start_again();
    let ended = until("the rollout has ended", || {
        let now = rollout(&tenant);
        (now["state"] != "baking").then_some(now)
    });
    assert_eq!(ended["state"], "promoted", "{ended}");
    assert!(began.elapsed() >= BAKE, "{:?}", began.elapsed());
}

#[test]
fn a_rollout_ends_when_somebody_moves_the_alias() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let path = format!("{LIVE}/rollouts");
    tenant.client.get(&path).refused(404, "not_found");
    tenant.client.delete(&path).refused(404, "not_found");
    let body = json!({"version": 2, "percent": 50, "bake_s": 600});
    begin(&tenant, &body).expect(201);
    let aborted = tenant.client.delete(&path).expect(200).json();
    assert_eq!(aborted, json!({"alias": "live", "version": 1, "models": {}}));
    assert_eq!(rollout(&tenant)["state"], "aborted");
    begin(&tenant, &body).expect(201);
    let back = tenant.client.post(&format!("{LIVE}/rollback")).expect(200).json();
    assert_eq!(back["version"], 1);
    assert_eq!(rollout(&tenant)["state"], "aborted");
    begin(&tenant, &body).expect(201);
    point(&tenant, &json!({"version": 2})).expect(200);
    assert_eq!(rollout(&tenant)["state"], "aborted");
    let back = tenant.client.post(&format!("{LIVE}/rollback")).expect(200).json();
    assert_eq!(back["version"], 1, "and not the split");
}

#[test]
fn rollouts_that_make_no_sense_are_refused() {
    let server = Server::start();
    let tenant = with_candidate(&server);
    let with = |key: &str, value: Value| {
        let mut body = json!({"version": 2, "percent": 10, "bake_s": 60});
        body[key] = value;
        begin(&tenant, &body)
    };
    for (key, value) in [
        ("percent", json!(0)),
        ("percent", json!(100)),
        ("percent", json!(101)),
        ("bake_s", json!(0)),
        ("bake_s", json!(604_801)),
        ("error_rate_max", json!(-0.1)),
        ("error_rate_max", json!(1.1)),
        ("version", json!(1)),
    ] {
        with(key, value).refused(422, "invalid");
    }
    with("version", json!(3)).refused(404, "not_found");
    with("percent", json!(-1)).refused(400, "bad_request");
    with("colour", json!(1)).refused(400, "bad_request");
    let absent = "/api/v1/functions/f/aliases/canary/rollouts";
    let body = json!({"version": 2, "percent": 10, "bake_s": 60});
    tenant.client.post_json(absent, &body).refused(404, "not_found");
    point(&tenant, &json!({"weights": {"1": 50, "2": 50}})).expect(200);
    begin(&tenant, &body).refused(422, "invalid");
    let other = server.tenant("beta", "standard");
    other.client.post_json(&format!("{LIVE}/rollouts"), &body).refused(404, "not_found");
}
