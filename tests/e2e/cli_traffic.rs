//! The commands for versions and traffic.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use sandpiper_tests::{Server, binary, example, guest};
use serde_json::{Value, json};

use crate::cli::{Person, member};

/// Where `guest` lies as a file.
fn component(person: &Person, name: &str) -> String {
    let bytes = if name == "hello" { example(name) } else { guest(name) };
    person.file(&format!("{name}.wasm"), &bytes)
}

/// Deploys `guest` as `f` with these lines in its manifest.
fn deploy(person: &Person, name: &str, manifest: &str, more: &[&str]) -> Value {
    person.file("sandpiper.toml", format!("name = \"f\"\n{manifest}").as_bytes());
    let component = component(person, name);
    person.json(&[&["deploy", ".", "--component", &component], more].concat())
}

#[test]
fn versions_are_listed_compared_and_gone_back_to() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    deploy(&person, "hello", "[limits]\ncpu_ms = 50", &[]);
    deploy(&person, "hello", "[limits]\ncpu_ms = 80", &[]);
    deploy(&person, "misbehave", "[limits]\ncpu_ms = 80", &[]);
    let listed = person.json(&["versions", "f"]);
    let numbers: Vec<_> = listed["versions"].as_array().unwrap().iter().collect();
    assert_eq!(numbers.len(), 3);
    assert_eq!(numbers[2]["aliases"], json!(["live"]));
    assert!(person.good(&["versions", "f"]).contains("VERSION"));

    let diff = person.json(&["diff", "f", "1", "2"]);
    let expected = json!({
        "from": 1,
        "to": 2,
        "imports": {"added": [], "removed": []},
        "size_bytes": [example("hello").len(), example("hello").len()],
        "manifest": [{"key": "limits.cpu_ms", "from": 50, "to": 80}],
        "digest_changed": false,
    });
    assert_eq!(diff, expected);
    assert_eq!(person.good(&["diff", "f", "1", "2"]), "limits.cpu_ms: 50 -> 80\n");
    assert_eq!(person.json(&["diff", "f", "1"])["to"], 3, "the newest");
    assert!(person.good(&["diff", "f", "2"]).contains("+ import wasi:nn/"));
    assert_eq!(person.fails(5, &["diff", "f", "1", "9"])["code"], "not_found");

    let back = person.json(&["rollback", "f"]);
    assert_eq!(back, json!({"alias": "live", "version": 2, "models": {}}));
    assert_eq!(person.good(&["rollback", "f", "--to", "1"]), "f@live is version 1\n");
    assert_eq!(tenant.invoke("f", "/").expect(200).text(), "hello\n");
    assert_eq!(person.fails(6, &["rollback", "f"])["code"], "invalid");

    let kept = json!({"name": "f", "retention": {"latest": 1}, "removed": [2]});
    assert_eq!(person.json(&["functions", "retain", "f", "--latest", "1"]), kept);
}

#[test]
fn a_canary_that_does_well_takes_all() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    deploy(&person, "hello", "", &[]);
    let canary = ["--canary", "10", "--bake", "1s", "--max-p99", "10s"];
    let deployed = deploy(&person, "misbehave", "", &canary);
    assert_eq!(
        (&deployed["version"], &deployed["rollout"]["state"]),
        (&json!(2), &json!("promoted"))
    );
    assert_eq!(tenant.invoke("f", "/ok").expect(200).text(), "ok");
    let detached = ["--canary", "5", "--bake", "1h", "--detach"];
    let deployed = deploy(&person, "hello", "", &detached);
    let rollout = &deployed["rollout"];
    assert_eq!((&rollout["state"], &rollout["percent"]), (&json!("baking"), &json!(5)));
    assert_eq!(rollout["error_rate_max"], 0.05);
    assert!(person.good(&["functions", "rollout", "f"]).starts_with("version 3 takes 5 % of the"));
    assert_eq!(person.good(&["functions", "rollout", "f", "--abort"]), "f@live is version 2\n");
    assert_eq!(person.json(&["functions", "rollout", "f"])["state"], "aborted");
    let history = person.json(&["functions", "history", "f"]);
    let causes: Vec<_> =
        history["history"].as_array().unwrap().iter().map(|place| &place["cause"]).collect();
    assert_eq!(causes, ["rolled_back", "deployed"]);
    assert!(person.good(&["functions", "history", "f"]).contains("rolled_back"));
}

#[test]
fn a_split_is_made_sticky() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    deploy(&person, "hello", "", &[]);
    deploy(&person, "misbehave", "", &[]);
    let split = |how: &str| {
        let command = ["functions", "alias", "f", "live", "1=50,2=50", "--sticky", how];
        person.json(&command);
        tenant.client.get("/api/v1/functions/f").expect(200).json()["aliases"]["live"].clone()
    };
    assert_eq!(split("cookie:group")["sticky"], json!({"cookie": "group"}));
    assert_eq!(split("header:x-user")["sticky"], json!({"header": "x-user"}));
    assert_eq!(split("none"), json!({"weights": {"1": 50, "2": 50}}));
    let refused = person.fails(6, &["functions", "alias", "f", "live", "1=60,2=50"]);
    assert_eq!(refused["code"], "invalid");
}

#[test]
fn a_canary_that_fails_ends_the_command_with_1() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    deploy(&person, "hello", "", &[]);
    let file = component(&person, "misbehave");
    let command = ["deploy", ".", "--component", &file, "--canary", "50", "--bake", "1h"];
    let over = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                tenant.invoke("f", "/status?code=503");
            }
        });
        let output = person.run(&[&["--json"], &command[..]].concat());
        over.store(true, Ordering::Relaxed);
        output
    });
    assert_eq!(output.status.code(), Some(1), "{output:#?}");
    let deployed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(deployed["rollout"]["state"], "rolled_back", "{deployed}");
    tenant.invoke("f", "/status?code=503").expect(200);
    assert_eq!(
        person.fails(6, &["functions", "alias", "f", "live", "2"])["code"],
        "version_failed"
    );
    person.good(&["functions", "alias", "f", "live", "2", "--force"]);
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let usage = |arguments: &[&str]| {
        let output = std::process::Command::new(binary()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:#?}");
    };
    usage(&["deploy", "--canary", "0"]);
    usage(&["deploy", "--canary", "100"]);
    usage(&["deploy", "--canary", "10", "--no-activate"]);
    usage(&["deploy", "--canary", "10", "--bake", "5"]);
    usage(&["deploy", "--canary", "10", "--max-error-rate", "2"]);
    usage(&["deploy", "--bake", "5m"]);
    usage(&["deploy", "--detach"]);
    usage(&["diff", "f"]);
    usage(&["rollback", "f", "--to", "x"]);
}
