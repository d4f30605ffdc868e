//! The registry of models: options and samples, trials of hostile graphs, the memory budget, and which versions stay.

use sandpiper_tests::{
    Answer, Server, Tenant, model, multipart,
    onnx::{Dim, FLOAT, INT64, Onnx, product, row_product},
    until,
};
use serde_json::{Value, json};

fn put(tenant: &Tenant, path: &str, parts: &[(&str, &[u8])]) -> Answer {
    let (kind, body) = multipart(parts);
    let call = tenant.client.call("PUT", &format!("/api/v1/models/{path}"));
    call.header("content-type", &kind).body(body).send()
}

fn show(tenant: &Tenant, path: &str) -> Value {
    tenant.client.get(&format!("/api/v1/models/{path}")).expect(200).json()
}

fn samples(name: &str, shape: &[u64], data: &[f32]) -> Vec<u8> {
    let input = json!({ "name": name, "shape": shape, "datatype": "FP32", "data": data });
    json!([{ "inputs": [input] }]).to_string().into_bytes()
}

#[test]
fn options_make_a_version_and_are_shown() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let file = model("mul-add.onnx");
    let first = tenant.put_model("m", &file).expect(201).json();
    assert_eq!(
        first["options"],
        json!({
            "batching": true, "batch_size_max": 32, "batch_tolerance": 0.0, "max_delay_us": 0,
            "cache": false, "pinned": false,
        })
    );
    assert_eq!(first["state"], "ready");
    assert!(first["memory_bytes"].as_u64().unwrap() > 0, "{first}");
    assert!(first["operators"].as_object().is_some_and(|all| !all.is_empty()), "{first}");
    assert!(first["batching"]["sizes"].is_array() && first["parameters"].is_u64(), "{first}");

    let path = "m?cache=true&batch_size_max=8&max_delay_us=200&batching=false&batch_tolerance=0.5";
    let second = tenant.client.put(&format!("/api/v1/models/{path}"), &file).expect(201).json();
    let options = json!({
        "batching": false, "batch_size_max": 8, "batch_tolerance": 0.5, "max_delay_us": 200,
        "cache": true, "pinned": false,
    });
    assert_eq!((&second["version"], &second["options"]), (&json!(2), &options));
    // The same again is the same version, in whichever way the options come; other options are another one.
    let toml = b"cache = true\nbatch_size_max = 8\nmax_delay_us = 200\nbatching = false\nbatch_tolerance = 0.5";
    let same = put(&tenant, "m", &[("model", &file), ("options", toml)]).expect(200).json();
    assert_eq!(same["version"], 2);
    let third = put(&tenant, "m?pinned=true", &[("model", &file), ("options", b"cache = true")]);
    assert_eq!(third.expect(201).json()["version"], 3);
    // Defaults that are named are no options.
    assert_eq!(tenant.put_model("m", &file).expect(201).json()["version"], 4);
    let fourth = tenant.client.put("/api/v1/models/m?cache=false", &file).expect(200).json();
    assert_eq!(fourth["version"], 4);

    server.crash();
    assert_eq!(show(&tenant, "m/versions/2")["options"], options);
    assert_eq!(show(&tenant, "m/versions/2")["state"], "unloaded");
}

#[test]
fn an_option_that_makes_no_sense_is_refused_by_name() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let file = model("mul-add.onnx");
    let refused = |answer: Answer, part: &str| {
        let message = answer.refused(400, "invalid_option").message();
        assert!(message.contains(part), "{message}");
    };
    let query = |query: &str| tenant.client.put(&format!("/api/v1/models/m?{query}"), &file);
    refused(query("cashe=true"), "there is no model option `cashe`; the options are batching,");
    refused(query("cache=yes"), "`cache` is true or false");
    refused(query("batch_size_max=64"), "`batch_size_max` is a number from 1 to 32");
    refused(query("cache=true&cache=true"), "twice");
    query("activate=maybe").refused(400, "bad_request");
    let part = |options: &[u8]| put(&tenant, "m", &[("model", &file), ("options", options)]);
    refused(part(b"max_delay_us = -1"), "`max_delay_us` is a number of microseconds");
    part(b"cache = [1]").refused(400, "bad_request");
    part(b"cache = ").refused(400, "bad_request");
    put(&tenant, "m", &[("model", &file), ("modle", b"x")]).refused(400, "bad_request");
    put(&tenant, "m", &[("options", b"cache = true")]).refused(400, "bad_request");
    tenant.client.get("/api/v1/models/m").refused(404, "not_found");
}

#[test]
fn samples_come_with_a_model_and_must_fit_it() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let file = product(3, 0.5);
    let good = samples("x", &[2, 3], &[1., 2., 3., 4., 5., 6.]);
    let with = |samples: &[u8]| put(&tenant, "m", &[("model", &file), ("samples", samples)]);
    let blobs = server.blobs();
    for (bad, part) in [
        (&b"{}"[..], "no JSON array"),
        (b"[{\"inputs\": [{\"name\": \"x\", \"shape\": [1, 3], \"datatype\": \"FP32\", \"data\": [1]}]}]", "sample 0, input `x`"),
        (&samples("z", &[1, 3], &[0.; 3]), "the model has no input `z`"),
        (&samples("x", &[1, 4], &[0.; 4]), "the input `x` has the shape [1, 4]"),
        (b"[{\"inputs\": []}]", "the input `x` is missing"),
    ] {
        let message = with(bad).refused(422, "invalid_sample").message();
        assert!(message.contains(part) || part == "no JSON array", "{message}");
    }
    assert_eq!(server.blobs(), blobs, "a refused model left something behind");

    let version = with(&good).expect(201).json();
    assert!(version["samples_digest"].is_string(), "{version}");
    assert_eq!(with(&good).expect(200).json()["version"], 1);
    // The samples are part of the version, and a blob of their own.
    let other = samples("x", &[1, 3], &[1.; 3]);
    assert_eq!(with(&other).expect(201).json()["version"], 2);
    server.sweeps_to(3);
    server.crash();
    assert_eq!(server.blobs().len(), 3);
    tenant.client.delete("/api/v1/models/m/versions/1").expect(204);
    server.sweeps_to(2);
    server.still_runs();
}

#[test]
fn samples_are_bounded_in_length_and_in_what_they_become() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let file = product(3, 0.5);
    let with = |samples: &[u8]| put(&tenant, "m", &[("model", &file), ("samples", samples)]);
    let of_length = |elements: usize| {
        let zeros = vec!["0"; elements].join(",");
        let input = format!(
            r#"{{"name":"x","shape":[{},3],"datatype":"FP32","data":[{zeros}]}}"#,
            elements / 3 + 1
        );
        format!(r#"[{{"inputs":[{input}]}}]"#).into_bytes()
    };
    with(&samples("x", &[1, 3], &[1.; 3])).expect(201);
    let before = server.memory_peak_mib();
    // 7 MiB of zeros: as a tree of JSON they would be hundreds.
    let message = with(&of_length(7 << 19)).refused(422, "invalid_sample").message();
    assert!(message.contains("sample 0, input `x`"), "{message}");
    let peak = server.memory_peak_mib();
    assert!(peak < before + 128, "the server went from {before} to {peak} MiB");
    // The tier's model may have 512 MiB; what comes beside it may have 8.
    let message = with(&of_length(9 << 19)).refused(413, "too_large").message();
    assert!(message.contains("8192 KiB"), "{message}");
    with(&samples("x", &[1, 3], &[0.; 3])).expect(201);
    server.still_runs();
}

const SMALL_LIMITS: &str = "trial_cpu_s = 1\ntrial_memory_mib = 256";

#[test]
fn a_graph_that_eats_time_is_stopped() {
    let mut server = Server::with_settings("trial_cpu_s = 1");
    let tenant = server.tenant("acme", "standard");
    // One product of 1.1 * 10^12 multiplications, between two looks at the clock.
    let file = Onnx::default()
        .node("Expand", &["x", "shape"], &["big"])
        .node("MatMul", &["big", "big"], &["product"])
        .node("ReduceMax", &["product"], &["y"])
        .integers("shape", &[8192, 8192])
        .input("x", FLOAT, &[Dim::Fixed(1), Dim::Fixed(1)])
        .output("y", FLOAT, &[Dim::Fixed(1), Dim::Fixed(1)])
        .build();
    let message = tenant.put_model("slow", &file).refused(422, "model_cpu").message();
    assert!(message.contains("more than 1 s of processor time"), "{message}");
    tenant.client.get("/api/v1/models/slow").refused(404, "not_found");
    let peak = server.memory_peak_mib();
    assert!(peak < 256, "the server took {peak} MiB");
    tenant.put_model("m", &model("mul-add.onnx")).expect(201);
    server.still_runs();
}

#[test]
fn a_graph_that_eats_memory_is_stopped_outside_the_server() {
    let mut server = Server::with_settings(SMALL_LIMITS);
    let tenant = server.tenant("acme", "standard");
    // Eight values of 64 MiB that are all alive at the end.
    let names: Vec<String> = (0..8).map(|number| format!("y{number}")).collect();
    let mut file = Onnx::default().integers("shape", &[1 << 24]);
    for name in &names {
        file = file.node("Expand", &["x", "shape"], &[name]).output(
            name,
            FLOAT,
            &[Dim::Fixed(1 << 24)],
        );
    }
    let file = file.input("x", FLOAT, &[Dim::Fixed(1)]).build();
    let message = tenant.put_model("large", &file).refused(422, "model_memory").message();
    assert!(message.contains("more than 256 MiB of memory"), "{message}");
    tenant.client.get("/api/v1/models/large").refused(404, "not_found");
    let peak = server.memory_peak_mib();
    assert!(peak < 256, "the server took {peak} MiB");
    server.still_runs();
}

#[test]
fn a_graph_that_brings_its_process_down_leaves_the_server_up() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    // The sizes of these values are fractions of fractions, which the engine takes apart by recursion.
    let mut file = Onnx::default().node("Shape", &["x"], &["v0"]);
    for step in 0..200 {
        let (value, half, next) =
            (format!("v{step}"), format!("h{step}"), format!("v{}", step + 1));
        file = file.node("Div", &[&value, "two"], &[&half]).node("Add", &[&half, "one"], &[&next]);
    }
    let file = file
        .node("Identity", &["v200"], &["y"])
        .integers("one", &[1])
        .integers("two", &[2])
        .input("x", FLOAT, &[Dim::Named("N")])
        .output("y", INT64, &[Dim::Fixed(1)])
        .build();
    tenant.put_model("deep", &file).refused(422, "model_crashed");
    server.still_runs();
    tenant.put_model("m", &model("mul-add.onnx")).expect(201);
}

#[test]
fn models_make_room_for_each_other_within_the_budget() {
    let mut server = Server::with_settings("models_mib = 5");
    let tenant = server.tenant("acme", "standard");
    // Of 2.25 MiB each: two find room.
    let file = |number: u64| row_product(768, number as f32);
    for number in 1..=4 {
        let version = tenant.put_model(&format!("m{number}"), &file(number)).expect(201).json();
        assert_eq!(version["state"], "ready");
    }
    let state = |name: &str| show(&tenant, name)["state"].as_str().unwrap().to_owned();
    assert_eq!(["m1", "m2", "m3", "m4"].map(state), ["unloaded", "unloaded", "ready", "ready"]);
    assert_eq!(server.metrics().sum("sandpiper_models_loaded", &[]), 2.0);
    assert!(server.metrics().sum("sandpiper_models_bytes", &[]) <= f64::from(5 << 20));

    // Too large alone.
    let message =
        tenant.put_model("large", &row_product(1200, 1.)).refused(422, "model_over_budget");
    assert!(message.message().contains("may take 5 MiB"), "{message:?}");
    // A pinned one stays, and leaves no room for what is larger than the rest.
    let pin = |tenant: &Tenant, name: &str, number| {
        tenant.client.put(&format!("/api/v1/models/{name}?pinned=true"), file(number))
    };
    pin(&tenant, "m1", 1).expect(201);
    for number in 5..8 {
        tenant.put_model(&format!("m{number}"), &file(number)).expect(201);
        assert_eq!(state("m1"), "ready");
    }
    tenant.put_model("wide", &row_product(880, 1.)).expect(201);
    assert_eq!(["m1", "wide"].map(state), ["ready", "unloaded"]);
    // Another version of a pinned model takes its place.
    pin(&tenant, "m1", 9).expect(201);
    assert_eq!(state("m1"), "ready");

    // After a start the pinned ones come back by themselves.
    server.restart();
    until("the pinned model is loaded", || (state("m1") == "ready").then_some(()));
    server.still_runs();
}

#[test]
fn a_version_that_is_rolled_back_to_has_its_pin_again() {
    let server = Server::with_settings("models_mib = 5");
    let tenant = server.tenant("acme", "standard");
    let file = |number: u64| row_product(768, number as f32);
    let pin = |number| tenant.client.put("/api/v1/models/m?pinned=true", file(number));
    let loaded = |name: &str| show(&tenant, name)["state"] == "ready";
    let roll_back =
        || drop(tenant.client.post("/api/v1/models/m/aliases/live/rollback").expect(200));
    let stays = |numbers: std::ops::Range<u64>| {
        for number in numbers {
            tenant.put_model("other", &file(number)).expect(201);
            assert!(loaded("m") && loaded("other"));
        }
    };
    // Of 2.25 MiB each: there is room for two, and for one pin.
    pin(1).expect(201);
    pin(2).expect(201);
    roll_back();
    // The same file again makes no new version, and is in memory still.
    assert_eq!(pin(2).expect(200).json()["version"], 2);
    stays(3..6);
    pin(6).expect(201);
    roll_back();
    stays(7..10);
}

#[test]
fn pinned_models_of_all_tenants_take_half_of_the_budget_at_most() {
    let server = Server::with_settings("models_mib = 10");
    let file = |number: u64| row_product(768, number as f32);
    let pin = |tenant: &Tenant, name: &str, number| {
        tenant.client.put(&format!("/api/v1/models/{name}?pinned=true"), file(number))
    };
    // Of 2.25 MiB each: the tier would let each tenant pin a hundred.
    let (acme, beta) = (server.tenant("acme", "standard"), server.tenant("beta", "standard"));
    pin(&acme, "m", 1).expect(201);
    pin(&beta, "m", 2).expect(201);
    for tenant in [&acme, &beta] {
        let message = pin(tenant, "n", 3).refused(429, "limit_reached").message();
        assert!(message.contains("all tenants together may take 5 MiB"), "{message}");
        tenant.client.get("/api/v1/models/n").refused(404, "not_found");
        tenant.put_model("n", &file(3)).expect(201);
    }
    // In the place of the one that it was, a pin finds room.
    pin(&beta, "m", 4).expect(201);
    // What one lets go of, the other may pin.
    acme.client.delete("/api/v1/models/m").expect(204);
    pin(&beta, "n", 5).expect(201);
    assert_eq!(show(&beta, "m")["state"], "ready");
    assert_eq!(show(&beta, "n")["state"], "ready");
}

#[test]
fn a_tier_says_what_may_be_pinned() {
    let server = Server::start();
    let free = server.tenant("free", "free");
    let file = model("mul-add.onnx");
    let pin = |tenant: &Tenant, name: &str| {
        tenant.client.put(&format!("/api/v1/models/{name}?pinned=true"), &file)
    };
    let message = pin(&free, "m").refused(429, "limit_reached").message();
    assert!(message.contains("pinned models may take 0 MiB together"), "{message}");
    free.client.get("/api/v1/models/m").refused(404, "not_found");
    free.put_model("m", &file).expect(201);
    pin(&server.tenant("acme", "standard"), "m").expect(201);
}

#[test]
fn retention_keeps_the_latest_or_the_named_and_what_an_alias_points_at() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let upload = |number: u64| tenant.put_model("m", &product(2, number as f32)).expect(201);
    for number in 1..=5 {
        upload(number);
    }
    let numbers = || -> Vec<u64> {
        let all = tenant.client.get("/api/v1/models/m/versions").expect(200).json();
        let all = all["versions"].as_array().unwrap();
        all.iter().map(|version| version["version"].as_u64().unwrap()).collect()
    };
    let retain = |body: Value| tenant.client.put_json("/api/v1/models/m/retention", &body);
    assert_eq!(show(&tenant, "m")["retention"], json!({}));
    let canary = "/api/v1/models/m/aliases/canary";
    tenant.client.put_json(canary, &json!({ "version": 1 })).expect(200);
    let answer = retain(json!({ "latest": 2 })).expect(200).json();
    assert_eq!(answer, json!({ "name": "m", "retention": { "latest": 2 }, "removed": [3, 2] }));
    assert_eq!(numbers(), [1, 4, 5]);
    upload(6);
    assert_eq!(numbers(), [1, 5, 6]);
    server.crash();
    assert_eq!(show(&tenant, "m")["retention"], json!({ "latest": 2 }));
    upload(7);
    upload(8);
    assert_eq!(numbers(), [1, 7, 8]);
    server.sweeps_to(3);

    retain(json!({ "versions": [7] })).expect(200);
    upload(9);
    // Number 8 was the newest and `live` until now.
    assert_eq!(numbers(), [1, 7, 9]);
    tenant.client.delete(canary).expect(204);
    retain(json!({})).expect(200);
    upload(10);
    assert_eq!(numbers(), [1, 7, 9, 10]);

    retain(json!({ "latest": 0 })).refused(422, "invalid");
    retain(json!({ "latest": 1, "versions": [1] })).refused(400, "bad_request");
    retain(json!({ "versions": [2] })).refused(404, "not_found");
    retain(json!({ "newest": 1 })).refused(400, "bad_request");
    tenant.client.put_json("/api/v1/models/x/retention", &json!({})).refused(404, "not_found");
    let other = tenant.with_scopes(&["models"]);
    other.put_json("/api/v1/models/m/retention", &json!({})).refused(403, "missing_scope");
}
