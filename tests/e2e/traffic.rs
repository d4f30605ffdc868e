//! Aliases, splits, rollouts and rollbacks.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
};

use sandpiper_tests::{Answer, Call, Server, Tenant, example, guest, model};
use serde_json::{Value, json};

mod placements;
mod rollouts;

const LIVE: &str = "/api/v1/functions/f/aliases/live";

/// The next version of `f`, which tells its number, and is for anyone.
fn put(tenant: &Tenant, version: u32) -> Answer {
    let manifest = format!("auth = \"public\"\n[env]\nVERSION = \"{version}\"");
    tenant.put_function("f", &guest("misbehave"), &manifest)
}

/// A tenant with so many versions of `f`.
fn with_versions(server: &Server, count: u32) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    for version in 1..=count {
        assert_eq!(put(&tenant, version).expect(201).json()["version"], version);
    }
    tenant
}

fn point(tenant: &Tenant, body: &Value) -> Answer {
    tenant.client.put_json(LIVE, body)
}

fn version_of(answer: &Answer) -> u32 {
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.json()["VERSION"].as_str().unwrap().parse().unwrap()
}

fn answering(tenant: &Tenant) -> u32 {
    version_of(&tenant.invoke("f", "/env"))
}

fn ask(tenant: &Tenant) -> Call {
    tenant.call("GET", "f", "/env")
}

/// The history without its times.
fn history(tenant: &Tenant) -> Vec<Value> {
    let json = tenant.client.get(&format!("{LIVE}/history")).expect(200).json();
    let mut history = json["history"].as_array().unwrap().clone();
    for placement in &mut history {
        let at = placement.as_object_mut().unwrap().remove("at").unwrap();
        assert!(at.is_string(), "{json}");
    }
    history
}

#[test]
fn two_hundred_deploys_under_load_lose_nothing() {
    const DEPLOYS: u32 = 200;
    const CLIENTS: usize = 8;
    let mut server = Server::start();
    let tenant = with_versions(&server, 1);
    let (acknowledged, over) = (AtomicU32::new(1), AtomicBool::new(false));
    let seen: Vec<BTreeSet<u32>> = thread::scope(|scope| {
        let ask_on = || {
            let anyone = server.client();
            let mut seen = BTreeSet::new();
            while !over.load(Ordering::Acquire) {
                // What was acknowledged before the request was sent must be in force when it comes.
                let least = acknowledged.load(Ordering::Acquire);
                let version = version_of(&anyone.get("/fn/acme/f/env"));
                assert!(version >= least, "version {version} answers, {least} was acknowledged");
                seen.insert(version);
            }
            seen
        };
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask_on)).collect();
        let deploys = scope.spawn(|| {
            for version in 2..=DEPLOYS {
                let made = put(&tenant, version);
                over.fetch_or(made.status != 201, Ordering::AcqRel);
                assert_eq!(made.expect(201).json()["version"], version);
                acknowledged.store(version, Ordering::Release);
            }
        });
        let deployed = deploys.join();
        over.store(true, Ordering::Release);
        deployed.unwrap();
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let all: BTreeSet<u32> = seen.into_iter().flatten().collect();
    assert!(all.len() > 20, "the load has seen few of the switches: {all:?}");
    assert_eq!(answering(&tenant), DEPLOYS);
    server.still_runs();
}

#[test]
fn a_split_is_kept_by_header() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    let split = |old: u32, new: u32| {
        let body = json!({"weights": {"1": old, "2": new}, "sticky": {"header": "x-user"}});
        point(&tenant, &body).expect(200);
    };
    let of = |user: u32| version_of(&ask(&tenant).header("x-user", &format!("user-{user}")).send());
    split(90, 10);
    let early: BTreeSet<u32> = (0..1_000).filter(|user| of(*user) == 2).collect();
    // Three standard deviations of what chance would give.
    assert!((72..=128).contains(&early.len()), "{}", early.len());
    let (inside, outside) = (*early.first().unwrap(), (0..).find(|u| !early.contains(u)).unwrap());
    for _ in 0..50 {
        assert_eq!((of(inside), of(outside)), (2, 1));
    }
    split(70, 30);
    for user in early {
        assert_eq!(of(user), 2, "who was in the small group is in the larger one");
    }
    let shown = tenant.client.get("/api/v1/functions/f").expect(200).json();
    let split = json!({"weights": {"1": 70, "2": 30}, "sticky": {"header": "x-user"}});
    assert_eq!(shown["aliases"]["live"], split);
    // Null ends it; leaving it out does not.
    point(&tenant, &json!({"weights": {"1": 50, "2": 50}})).expect(200);
    for _ in 0..20 {
        assert_eq!(of(inside), 2);
    }
    point(&tenant, &json!({"weights": {"1": 50, "2": 50}, "sticky": null})).expect(200);
    let versions: BTreeSet<u32> = (0..100).map(|_| of(inside)).collect();
    assert_eq!(versions, [1, 2].into());
}

#[test]
fn a_split_is_kept_by_a_cookie_that_is_given_to_who_has_none() {
    let mut server = Server::start();
    let tenant = with_versions(&server, 2);
    let body = json!({"weights": {"1": 50, "2": 50}, "sticky": {"cookie": "group"}});
    point(&tenant, &body).expect(200);
    let mut groups = Vec::new();
    for _ in 0..30 {
        let first = ask(&tenant).send();
        let version = version_of(&first);
        let cookie = first.header("set-cookie").unwrap();
        let (pair, rest) = cookie.split_once(';').unwrap();
        assert!(pair.starts_with("group="), "{cookie}");
        assert_eq!(rest, " Path=/fn/acme/f; Max-Age=604800; HttpOnly; SameSite=Lax");
        groups.push((format!("other=1; {pair}"), version));
    }
    server.crash();
    for (cookie, version) in &groups {
        for _ in 0..3 {
            let again = ask(&tenant).header("cookie", cookie).send();
            assert_eq!(version_of(&again), *version, "a restart changes nothing");
            assert_eq!(again.header("set-cookie"), None);
        }
    }
    assert!(groups.iter().any(|(_, v)| *v == 1) && groups.iter().any(|(_, v)| *v == 2));
    point(&tenant, &json!({"version": 2})).expect(200);
    assert_eq!(ask(&tenant).send().header("set-cookie"), None, "where nothing splits");
}

/// The cookies of one browser, each with the path it is for.
#[derive(Default)]
struct Browser(Vec<(String, String)>);

impl Browser {
    /// Sends the cookies that RFC 6265 lets it send there, and keeps what it is given.
    fn ask(&mut self, tenant: &Tenant, function: &str, path: &str) -> Answer {
        let url = tenant.path(function, path);
        let mut call = tenant.client.call("GET", &url);
        for (cookie, of) in &self.0 {
            if is_below(&url, of) {
                call = call.header("cookie", cookie);
            }
        }
        let answer = call.send();
        if let Some(given) = answer.header("set-cookie") {
            let (cookie, attributes) = given.split_once("; ").unwrap();
            let mut attributes = attributes.split("; ");
            let path = attributes.find_map(|attribute| attribute.strip_prefix("Path=")).unwrap();
            self.0.push((cookie.to_owned(), path.to_owned()));
        }
        answer
    }
}

/// RFC 6265, section 5.1.4.
fn is_below(url: &str, path: &str) -> bool {
    let asked = url.split('?').next().unwrap();
    let rest = asked.strip_prefix(path);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || path.ends_with('/'))
}

#[test]
fn a_browser_keeps_its_version_under_every_alias() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    let body = json!({"weights": {"1": 50, "2": 50}, "sticky": {"cookie": "group"}});
    point(&tenant, &body).expect(200);
    tenant.client.put_json("/api/v1/functions/f/aliases/canary", &body).expect(200);
    for function in ["f", "f@canary"] {
        let mut versions = BTreeSet::new();
        for _ in 0..20 {
            let mut browser = Browser::default();
            let version = version_of(&browser.ask(&tenant, function, "/env"));
            for _ in 0..5 {
                let again = browser.ask(&tenant, function, "/env?again");
                assert_eq!(version_of(&again), version, "{function}");
                assert_eq!(again.header("set-cookie"), None, "{function}");
            }
            versions.insert(version);
        }
        assert_eq!(versions, [1, 2].into(), "{function}");
    }
}

#[test]
fn weights_that_do_not_sum_to_100_are_refused() {
    let server = Server::start();
    let tenant = with_versions(&server, 2);
    for weights in [
        json!({"1": 90, "2": 9}),
        json!({"1": 90, "2": 11}),
        json!({"1": 100, "2": 0}),
        json!({"1": 4_294_967_295_u32, "2": 101}),
        json!({}),
    ] {
        let refused = point(&tenant, &json!({ "weights": weights })).refused(422, "invalid");
        assert!(refused.message().contains("add up to 100"), "{refused:?}");
    }
    point(&tenant, &json!({"weights": {"1": 90, "3": 10}})).refused(404, "not_found");
    for sticky in [json!({"header": ""}), json!({"cookie": "a;b"}), json!({"header": "x\r\n"})] {
        let body = json!({"version": 1, "sticky": sticky});
        point(&tenant, &body).refused(400, "bad_request");
    }
    point(&tenant, &json!({"version": 1, "sticky": {"ip": "x"}})).refused(400, "bad_request");
    assert_eq!(answering(&tenant), 2);
}

#[test]
fn a_rollback_goes_to_the_version_that_is_named() {
    let mut server = Server::start();
    let tenant = with_versions(&server, 4);
    let back = |body: &Value| tenant.client.post_json(&format!("{LIVE}/rollback"), body);
    let answer = back(&json!({"to": 2})).expect(200).json();
    assert_eq!(answer, json!({"alias": "live", "version": 2, "models": {}}));
    assert_eq!(answering(&tenant), 2);
    server.crash();
    assert_eq!(answering(&tenant), 2);
    back(&json!({"to": 4})).refused(422, "invalid");
    assert_eq!(back(&json!({})).expect(200).json()["version"], 1);
    back(&json!({})).refused(422, "invalid");
    assert_eq!(history(&tenant), [json!({"version": 1, "models": {}, "cause": "rolled_back"})],);
}

/// Whether `f` answers with the model, or says that it takes other inputs.
fn model_answers(tenant: &Tenant, name: &str) -> bool {
    let path = format!("/tensor?case=ok&model={name}");
    tenant.invoke("f", &path).expect(200).json()["outputs"].is_array()
}

#[test]
fn a_function_and_its_model_go_back_together() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("m", &model("digits")).expect(201);
    let manifest = "[models]\nm = \"live\"";
    tenant.put_function("f", &guest("misbehave"), manifest).expect(201);
    assert!(model_answers(&tenant, "m"));
    let placed = |cause: &str, model: u32| {
        let mut json = json!({"version": 1, "models": {"m": model}, "cause": cause});
        if cause == "model_moved" {
            json["model"] = json!("m");
        }
        json
    };
    // The second takes other inputs, which shows that it is another model.
    tenant.put_model("m", &model("iris")).expect(201);
    assert!(!model_answers(&tenant, "m"));
    assert_eq!(history(&tenant), [placed("model_moved", 2), placed("deployed", 1)]);

    let back = tenant.client.post(&format!("{LIVE}/rollback")).expect(200).json();
    assert_eq!(back, json!({"alias": "live", "version": 1, "models": {"m": 1}}));
    assert!(model_answers(&tenant, "m"), "the model has gone back with it");
    assert_eq!(history(&tenant), [placed("rolled_back", 1)]);
    let alias = tenant.client.get("/api/v1/models/m").expect(200).json();
    assert_eq!(alias["aliases"]["live"]["version"], 2, "for others it has not");
    tenant.client.delete("/api/v1/models/m/versions/1").refused(409, "in_use");
    server.crash();
    assert!(model_answers(&tenant, "m"), "nor does a restart change that");

    // Either alias that moves settles it anew.
    point(&tenant, &json!({"version": 1})).expect(200);
    assert!(!model_answers(&tenant, "m"));
    tenant.client.delete("/api/v1/models/m/versions/1").expect(204);
}

#[test]
fn a_model_that_was_granted_moves_and_goes_back_with_the_function_that_uses_it() {
    let server = Server::start();
    let (acme, beta) = (server.tenant("acme", "dedicated"), server.tenant("beta", "dedicated"));
    beta.put_model("m", &model("digits")).expect(201);
    let grant = json!({"tenants": ["acme"]});
    beta.client.put_json("/api/v1/models/m/grants", &grant).expect(200);
    let manifest = "[models]\n\"beta/m\" = \"live\"";
    acme.put_function("f", &guest("misbehave"), manifest).expect(201);
    beta.put_model("m", &model("iris")).expect(201);
    assert!(!model_answers(&acme, "beta/m"));
    let latest = &history(&acme)[0];
    let moved =
        json!({"version": 1, "models": {"beta/m": 2}, "cause": "model_moved", "model": "beta/m"});
    assert_eq!(*latest, moved);
    acme.client.post(&format!("{LIVE}/rollback")).expect(200);
    assert!(model_answers(&acme, "beta/m"));
    // No other tenant keeps an owner from deleting: what is gone means what the alias means.
    beta.client.delete("/api/v1/models/m/versions/1").expect(204);
    assert!(!model_answers(&acme, "beta/m"));
    // And a version that was settled on is no right to it.
    beta.client.put_json("/api/v1/models/m/grants", &json!({"tenants": []})).expect(200);
    let refused = acme.invoke("f", "/tensor?case=ok&model=beta/m").expect(200).json();
    assert_eq!(refused["error_code"], "not-found");
}

#[test]
fn versions_differ_by_imports_size_and_manifest() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("f", &example("hello"), "[limits]\ncpu_ms = 50").expect(201);
    let manifest = "auth = \"public\"\n[limits]\ncpu_ms = 80\n[env]\nA = \"1\"";
    tenant.put_function("f", &guest("misbehave"), manifest).expect(201);
    let diff = |from: u32, to: u32| {
        tenant.client.get(&format!("/api/v1/functions/f/versions/{from}/diff/{to}"))
    };
    let json = diff(1, 2).expect(200).json();
    assert_eq!((&json["from"], &json["to"]), (&json!(1), &json!(2)));
    assert_eq!(json["size_bytes"], json!([example("hello").len(), guest("misbehave").len()]));
    assert_eq!(json["digest_changed"], true);
    let manifest = json!([
        {"key": "auth", "from": "key", "to": "public"},
        {"key": "env.A", "from": null, "to": "1"},
        {"key": "limits.cpu_ms", "from": 50, "to": 80},
    ]);
    assert_eq!(json["manifest"], manifest);
    let added = json["imports"]["added"].as_array().unwrap();
    assert!(added.iter().any(|import| import.as_str().unwrap().contains("nn")), "{json}");
    let back = diff(2, 1).expect(200).json();
    assert_eq!(back["imports"]["removed"], json["imports"]["added"]);
    let same = diff(1, 1).expect(200).json();
    assert_eq!((&same["manifest"], &same["digest_changed"]), (&json!([]), &json!(false)));
    diff(1, 3).refused(404, "not_found");
    tenant.client.get("/api/v1/functions/f/versions/x/diff/1").refused(404, "not_found");
}

#[test]
fn old_versions_go_as_retention_says() {
    let mut server = Server::start();
    let tenant = with_versions(&server, 5);
    let canary = "/api/v1/functions/f/aliases/canary";
    tenant.client.put_json(canary, &json!({"version": 1})).expect(200);
    let path = "/api/v1/functions/f/retention";
    let numbers = || -> Vec<u64> {
        let json = tenant.client.get("/api/v1/functions/f/versions").expect(200).json();
        let versions = json["versions"].as_array().unwrap().iter();
        versions.map(|version| version["version"].as_u64().unwrap()).collect()
    };
    let kept = tenant.client.put_json(path, &json!({"latest": 2})).expect(200).json();
    assert_eq!(kept, json!({"name": "f", "retention": {"latest": 2}, "removed": [3, 2]}));
    assert_eq!(numbers(), [1, 4, 5], "what an alias points at stays");
    server.crash();
    put(&tenant, 6).expect(201);
    assert_eq!(numbers(), [1, 5, 6]);
    // Nobody goes back to what is gone.
    for version in [5, 1] {
        let back = tenant.client.post(&format!("{LIVE}/rollback")).expect(200).json();
        assert_eq!(back["version"], version);
    }
    tenant.client.post(&format!("{LIVE}/rollback")).refused(422, "invalid");
    tenant.client.put_json(path, &json!({"latest": 0})).refused(422, "invalid");
    tenant.client.put_json(path, &json!({"versions": [9]})).refused(404, "not_found");
    let both = json!({"latest": 1, "versions": [1]});
    tenant.client.put_json(path, &both).refused(400, "bad_request");
}
