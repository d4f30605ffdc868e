//! `sandpiper bench` against a real server: its counts are the server's, and nothing that failed is left out.

use sandpiper_tests::{Server, Tenant, guest, model};
use serde_json::Value;

use crate::cli::{Person, member};

const SHORT: [&str; 4] = ["--seconds", "0.3", "--warm-up", "0.1"];

fn with_short<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [arguments, &SHORT].concat()
}

/// A tenant with a function and a model of the name `both`, the function `counter` and the model `iris`.
fn loaded(server: &Server) -> Person {
    loaded_with_tenant(server).1
}

fn loaded_with_tenant(server: &Server) -> (Tenant, Person) {
    let (tenant, person) = member(server);
    tenant.deploy("counter", "auth = \"key\"\n");
    tenant.put_function("both", &guest("counter"), "auth = \"key\"\n").expect(201);
    tenant.put_model("both", &model("iris")).expect(201);
    tenant.put_model("iris", &model("iris")).expect(201);
    (tenant, person)
}

#[test]
fn a_sweep_over_a_function_counts_what_the_server_counts() {
    let server = Server::start();
    let person = loaded(&server);
    let arguments = with_short(&["bench", "function", "counter", "--concurrency", "1:4"]);
    let result = person.json(&arguments);
    assert_eq!(
        (result["kind"].as_str(), result["name"].as_str()),
        (Some("function"), Some("counter"))
    );
    let levels = result["levels"].as_array().unwrap();
    let concurrency: Vec<u64> =
        levels.iter().map(|level| level["concurrency"].as_u64().unwrap()).collect();
    assert_eq!(concurrency, [1, 2, 4]);
    for level in levels {
        let number = |pointer: &str| level.pointer(pointer).and_then(Value::as_f64).unwrap();
        assert!(number("/requests") > 0.0 && number("/requests") <= number("/requests_sent"));
        let order = ["p50", "p90", "p95", "p99", "max"];
        let latencies = order.map(|name| number(&format!("/latency_us/{name}")));
        assert!(latencies[0] > 10.0 && latencies.is_sorted(), "{level}");
        assert_eq!(level["errors"], serde_json::json!({}));
        // So many in flight can spend no more time than there was, and what they had spent before it began.
        let spent = number("/requests") * number("/latency_us/mean") / 1e6;
        let time = number("/seconds") + number("/latency_us/max") / 1e6;
        assert!(spent <= number("/concurrency") * time * 1.01, "{level}");
        assert!(number("/client_cpu") > 0.0);
    }
    let sent = result["requests_sent"].as_f64().unwrap();
    let counted = server.metrics().sum("sandpiper_invocations_total", &[("function", "counter")]);
    assert_eq!(sent, counted);
}

#[test]
fn people_get_a_table_and_a_curve() {
    let server = Server::start();
    let person = loaded(&server);
    let text = person.good(&with_short(&["bench", "counter", "-c", "2,1"]));
    for part in ["function counter", "CONCURRENCY", "P99", "CLIENT CPU", "requests per second", "█"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_rate_is_kept() {
    let server = Server::start();
    let person = loaded(&server);
    let arguments = with_short(&["bench", "counter", "--rate", "50", "--concurrency", "8"]);
    let level = &person.json(&arguments)["levels"][0];
    assert_eq!(level["rate"], 50);
    // 0.4 s and the moment in which the run ends.
    let sent = level["requests_sent"].as_u64().unwrap();
    assert!((10..=60).contains(&sent), "{level}");
}

#[test]
fn names_are_found_or_asked_for() {
    let server = Server::start();
    let person = loaded(&server);
    let hint = |code, arguments: &[&str]| {
        person.fails(code, arguments)["hint"].as_str().unwrap_or_default().to_owned()
    };
    assert!(hint(2, &["bench", "both"]).contains("bench model both"));
    assert!(hint(5, &["bench", "nothing"]).contains("models list"));
    assert!(hint(5, &["bench", "function", "nothing"]).contains("functions list"));
    assert!(hint(2, &["bench", "acme/counter"]).contains("bench function acme/counter"));
    assert!(hint(2, &["bench", "thing", "counter"]).contains("bench function NAME"));
    assert!(hint(2, &["bench", "counter", "--binary"]).contains("--help"));
    assert!(hint(2, &["bench", "counter", "-c", "5000"]).contains("4096"));
    let refused = person.fails(2, &["bench", "counter", "--concurrency", "8:1"]);
    assert!(refused["message"].as_str().unwrap().contains("ends before"), "{refused}");
}

#[test]
fn failures_are_counted_and_decide_the_exit_code() {
    let server = Server::start();
    let (_tenant, person) = {
        let tenant = server.tenant("acme", "free");
        tenant.deploy("counter", "auth = \"key\"\n");
        let person = Person::new(&server, &tenant.key);
        (tenant, person)
    };
    // A free tenant may send 20 requests a second, and 40 at once.
    let arguments = with_short(&["--json", "bench", "counter", "-c", "4"]);
    let output = person.run(&arguments);
    assert_eq!(output.status.code(), Some(7), "{output:#?}");
    let result: Value = serde_json::from_slice(&output.stdout).unwrap();
    let level = &result["levels"][0];
    let refused: u64 = level["errors"]
        .as_object()
        .unwrap()
        .iter()
        .filter(|(name, _)| name.starts_with("429 "))
        .map(|(_, count)| count.as_u64().unwrap())
        .sum();
    assert!(refused > level["requests"].as_u64().unwrap(), "{level}");
    std::thread::sleep(std::time::Duration::from_secs(2));
    person.json(&with_short(&["bench", "counter", "-c", "4", "--allow-errors"]));
    // What fails at the first request is not worth a run.
    let stranger = Person::new(&server, "sp_wrong");
    stranger.fails(4, &["bench", "function", "acme/counter"]);
}

#[test]
fn a_run_in_which_nothing_succeeds_does_not_end_well() {
    let server = Server::start();
    let (tenant, person) = member(&server);
    tenant.deploy("misbehave", "");
    // One answer takes two seconds, and the level a third of one.
    let slow = ["--json", "bench", "misbehave", "--path", "/stream?chunks=2&ms=1000", "-c", "2"];
    for more in [&[][..], &["--allow-errors"]] {
        let output = person.run(&with_short(&[&slow[..], more].concat()));
        assert_eq!(output.status.code(), Some(3), "{output:#?}");
        let result: Value = serde_json::from_slice(&output.stdout).unwrap();
        let level = &result["levels"][0];
        assert_eq!(
            (&level["requests"], &level["requests_late"]),
            (&0.into(), &2.into()),
            "{level}"
        );
    }
}

#[test]
fn the_servers_part_is_that_of_the_version_that_answers() {
    let server = Server::start();
    let (tenant, person) = loaded_with_tenant(&server);
    tenant.client.put("/api/v1/models/iris?max_delay_us=1", model("iris")).expect(201);
    for name in ["iris", "iris@1"] {
        let result = person.json(&with_short(&["bench", "model", name, "-c", "1", "--binary"]));
        let level = &result["levels"][0];
        assert_eq!(level["server"]["requests"], level["requests_sent"], "{name}: {level}");
    }
}

#[test]
fn a_model_is_loaded_with_inputs_made_for_it() {
    let server = Server::start();
    let (tenant, person) = loaded_with_tenant(&server);
    let count = || {
        let stats = tenant.client.get("/v2/models/iris/stats").expect(200).json();
        stats["model_stats"][0]["inference_stats"]["success"]["count"].as_u64().unwrap()
    };
    let before = count();
    let result = person.json(&with_short(&["bench", "model", "iris", "-c", "1,4"]));
    assert_eq!(result["kind"], "model");
    for level in result["levels"].as_array().unwrap() {
        assert_eq!(level["errors"], serde_json::json!({}), "{level}");
        let number = |pointer: &str| level.pointer(pointer).and_then(Value::as_f64).unwrap();
        assert_eq!(number("/server/requests"), number("/requests_sent"), "{level}");
        assert!(number("/server/compute_us_mean") > 0.0);
        assert!(number("/server/compute_us_mean") <= number("/latency_us/mean"));
        assert!(number("/server/batch_size_mean") >= 1.0);
    }
    assert_eq!(count() - before, result["requests_sent"].as_u64().unwrap());
}

#[test]
fn inputs_are_shaped_sent_as_bytes_or_read_from_a_file() {
    let server = Server::start();
    let person = loaded(&server);
    let rows = |extra: &[&str]| {
        let arguments = [&["bench", "model", "iris", "-c", "1"], extra].concat();
        let level = &person.json(&with_short(&arguments))["levels"][0];
        assert!(level["requests"].as_u64().unwrap() > 0, "{level}");
    };
    rows(&["--shape", "X:8,4"]);
    rows(&["--binary"]);
    let input =
        r#"{"inputs":[{"name":"X","datatype":"FP32","shape":[1,4],"data":[6.3,3.3,6,2.5]}]}"#;
    rows(&["--input", &person.file("iris.json", input.as_bytes())]);
    let wrong = person.file("wrong.json", b"{\"inputs\":[]}");
    let refused = person.fails(6, &["bench", "model", "iris", "--input", &wrong]);
    assert!(!refused["message"].as_str().unwrap().contains("answered 400"), "{refused}");
    let hint = person.fails(2, &["bench", "model", "iris", "--shape", "X:8,5"])["hint"].clone();
    assert!(hint.as_str().unwrap().contains("[-1, 4]"), "{hint}");
    person.fails(2, &["bench", "model", "iris", "--path", "/x"]);
    person.fails(2, &["bench", "model", "iris?x"]);
    person.fails(5, &["bench", "model", "nothing"]);
}
