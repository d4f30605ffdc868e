//! Loads that bring a model's file, its configuration or both, over REST.

use base64::{Engine, prelude::BASE64_STANDARD};
use sandpiper_tests::{Answer, Client, Server, Tenant, model};
use serde_json::{Value, json};

use crate::oip::refused;

const LOAD: &str = "/v2/repository/models/adder/load";

fn load(client: &Client, parameters: &Value) -> Answer {
    client.post_json(LOAD, &json!({ "parameters": parameters }))
}

fn base64(name: &str) -> String {
    BASE64_STANDARD.encode(model(name))
}

/// y of the model `adder` for x = [0, 1, -1.5]. `mul-add.onnx` is y = 2x + [1, 2, 3], `identity-fp32.onnx` is y = x.
fn answer(tenant: &Tenant) -> (Value, Value) {
    let x = json!({ "name": "x", "shape": [1, 3], "datatype": "FP32", "data": [0.0, 1.0, -1.5] });
    let body = json!({ "inputs": [x] });
    let answer = tenant.client.post_json("/v2/models/adder/infer", &body).expect(200).json();
    (answer["model_version"].clone(), answer["outputs"][0]["data"].clone())
}

fn versions(tenant: &Tenant) -> Value {
    tenant.client.get("/v2/models/adder").expect(200).json()["versions"].clone()
}

fn options(tenant: &Tenant, version: u32) -> Value {
    let path = format!("/api/v1/models/adder/versions/{version}");
    tenant.client.get(&path).expect(200).json()["options"].clone()
}

#[test]
fn a_load_with_a_file_deploys_the_next_version() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let client = &tenant.client;
    // The numbers in the paths are the sender's own.
    let first = json!({ "file:7/model.onnx": base64("mul-add.onnx") });
    assert_eq!(load(client, &first).expect(200).json(), json!({}));
    assert_eq!(answer(&tenant), (json!("1"), json!([1.0, 4.0, 0.0])));
    load(client, &first).expect(200);
    assert_eq!(versions(&tenant), json!(["1"]), "the same bytes make no version");
    let second = json!({ "config": "{}", "file:1/other.onnx": base64("identity-fp32.onnx") });
    load(client, &second).expect(200);
    assert_eq!(answer(&tenant), (json!("2"), json!([0.0, 1.0, -1.5])));
    // An unloaded model comes back with it, and the first version is where it was.
    client.post("/v2/repository/models/adder/unload").expect(200);
    load(client, &first).expect(200);
    assert_eq!(answer(&tenant), (json!("3"), json!([1.0, 4.0, 0.0])));
    client.post("/api/v1/models/adder/aliases/live/rollback").expect(200);
    assert_eq!(answer(&tenant).0, "2");
    server.restart();
    assert_eq!(answer(&tenant), (json!("2"), json!([0.0, 1.0, -1.5])));
}

#[test]
fn a_configuration_becomes_the_versions_options() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let config = json!({
        "name": "adder",
        "backend": "onnxruntime",
        "platform": "",
        "max_batch_size": 8,
        "default_model_filename": "model.onnx",
        "version_policy": { "all": {} },
        "dynamic_batching": {
            "preferred_batch_size": [4, 8], "max_queue_delay_microseconds": "250", "preserve_ordering": false,
        },
        "response_cache": { "enable": true },
        "input": [{ "name": "x", "data_type": "TYPE_FP32", "format": "FORMAT_NONE", "dims": [3] }],
        "output": [{ "name": "y", "data_type": "TYPE_FP32", "dims": ["3"], "label_filename": "" }],
        "instance_group": [],
    });
    let parameters =
        json!({ "config": config.to_string(), "file:1/model.onnx": base64("mul-add.onnx") });
    load(&tenant.client, &parameters).expect(200);
    let of_config = json!({
        "batching": true,
        "batch_size_max": 8,
        "batch_tolerance": 0.0,
        "max_delay_us": 250,
        "cache": true,
        "pinned": false,
    });
    assert_eq!(options(&tenant, 1), of_config);
    assert_eq!(answer(&tenant), (json!("1"), json!([1.0, 4.0, 0.0])));
    // A file alone keeps them; a configuration alone keeps the file, and is taken whole.
    load(&tenant.client, &json!({ "file:1/model.onnx": base64("identity-fp32.onnx") })).expect(200);
    assert_eq!(options(&tenant, 2), of_config);
    let alone = json!({ "config": r#"{"maxBatchSize":0}"# });
    load(&tenant.client, &alone).expect(200);
    let given = options(&tenant, 3);
    assert_eq!((&given["batching"], &given["cache"]), (&json!(false), &json!(false)));
    assert_eq!(given["max_delay_us"], 0);
    assert_eq!(answer(&tenant), (json!("3"), json!([0.0, 1.0, -1.5])));
    load(&tenant.client, &alone).expect(200);
    assert_eq!(
        versions(&tenant),
        json!(["1", "2", "3"]),
        "the same configuration makes no version"
    );
}

#[test]
fn the_configuration_that_is_shown_can_be_loaded_again() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("adder", &model("mul-add.onnx")).expect(201);
    let shown = tenant.client.get("/v2/models/adder/config").expect(200).json();
    load(&tenant.client, &json!({ "config": shown.to_string() })).expect(200);
    assert_eq!(answer(&tenant).1, json!([1.0, 4.0, 0.0]));
    let again = tenant.client.get("/v2/models/adder/config").expect(200).json();
    assert_eq!(again["max_batch_size"], shown["max_batch_size"]);
}

#[test]
fn what_triton_has_no_words_for_stays_and_samples_stay_with_their_file() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let path = "/api/v1/models/adder?pinned=true&batch_tolerance=0.5&cache=true";
    tenant.client.put(path, model("mul-add.onnx")).expect(201);
    load(&tenant.client, &json!({ "config": r#"{"max_batch_size":4}"# })).expect(200);
    let given = options(&tenant, 2);
    assert_eq!((&given["pinned"], &given["batch_tolerance"]), (&json!(true), &json!(0.5)));
    assert_eq!((&given["cache"], &given["batch_size_max"]), (&json!(false), &json!(4)));
    let both = json!({ "weights": { "1": 50, "2": 50 } });
    tenant.client.put_json("/api/v1/models/adder/aliases/live", &both).expect(200);
    let split = load(&tenant.client, &json!({ "config": "{}" }));
    assert!(refused(split, 400).contains("split"));
}

#[test]
fn configurations_that_cannot_be_done_are_refused_by_field() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("adder", &model("mul-add.onnx")).expect(201);
    for (config, said) in [
        (r#"{"#, "no JSON"),
        (r#"[]"#, "`config` is no object"),
        (r#"{"name":"other"}"#, "`config.name`"),
        (r#"{"backend":"python"}"#, "`config.backend`"),
        (r#"{"platform":"tensorrt_plan"}"#, "`config.platform`"),
        (r#"{"speed":3}"#, "`config.speed` is no field"),
        (r#"{"instance_group":[{"count":2}]}"#, "`config.instance_group` is not supported"),
        (r#"{"instanceGroup":[{"count":2}]}"#, "`config.instance_group` is not supported"),
        (r#"{"model_warmup":[{"name":"w"}]}"#, "`config.model_warmup` is not supported"),
        (r#"{"sequence_batching":{"direct":{}}}"#, "`config.sequence_batching` is not supported"),
        (r#"{"parameters":{"a":{"string_value":"b"}}}"#, "`config.parameters` is not supported"),
        (r#"{"version_policy":{"latest":{"num_versions":1}}}"#, "`config.version_policy.latest`"),
        (r#"{"model_transaction_policy":{"decoupled":true}}"#, "policy.decoupled` is not"),
        (r#"{"max_batch_size":-1}"#, "`config.max_batch_size`"),
        (r#"{"max_batch_size":64}"#, "from 1 to 32"),
        (r#"{"dynamic_batching":{"max_queue_delay_microseconds":1000001}}"#, "from 0 to 1000000"),
        (r#"{"dynamic_batching":{"priority_levels":2}}"#, "batching.priority_levels` is not"),
        (r#"{"dynamic_batching":{"preserve_ordering":true}}"#, "preserve_ordering` is not"),
        (r#"{"max_batch_size":4,"dynamic_batching":{"preferred_batch_size":[8]}}"#, "preferred"),
        (r#"{"max_batch_size":0,"dynamic_batching":{}}"#, "contradicts"),
        (r#"{"response_cache":{"enable":1}}"#, "neither true nor false"),
        (r#"{"response_cache":{"size":1}}"#, "`config.response_cache.size` is no field"),
        (r#"{"input":[{"name":"z","data_type":"TYPE_FP32","dims":[3]}]}"#, "none of the model"),
        (r#"{"input":[{"name":"x","data_type":"TYPE_INT64","dims":[-1,3]}]}"#, "TYPE_FP32"),
        (r#"{"input":[{"name":"x","data_type":"TYPE_FP32","dims":[3]}]}"#, "[-1, 3]"),
        (r#"{"max_batch_size":4,"output":[{"name":"y","dims":[4]}]}"#, "[3]"),
        (r#"{"input":[{"name":"x","reshape":{"shape":[3]}}]}"#, "`config.input.reshape` is not"),
        (r#"{"input":[{"dims":[3]}]}"#, "no `name`"),
    ] {
        let text = refused(load(&tenant.client, &json!({ "config": config })), 400);
        assert!(text.contains(said), "{config}: {text}");
    }
    let named = json!({
        "config": r#"{"default_model_filename":"a.onnx"}"#, "file:1/b.onnx": base64("mul-add.onnx"),
    });
    assert!(refused(load(&tenant.client, &named), 400).contains("default_model_filename"));
    // What does not fit the file is found before a version is made of it.
    let other = json!({
        "config": r#"{"input":[{"name":"x","data_type":"TYPE_INT64"}]}"#,
        "file:1/b.onnx": base64("identity-fp32.onnx"),
    });
    assert!(refused(load(&tenant.client, &other), 400).contains("TYPE_FP32"));
    let long = json!({ "config": " ".repeat(70_000) });
    assert!(refused(load(&tenant.client, &long), 413).contains("64 KiB"));
    assert_eq!(versions(&tenant), json!(["1"]));
}

#[test]
fn files_that_are_no_model_are_refused_and_nothing_is_made() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let good = base64("mul-add.onnx");
    for (parameters, said) in [
        (json!({ "file:1/model.onnx": "no base64!" }), "not base64"),
        (json!({ "file:1/model.onnx": "" }), "empty"),
        (json!({ "file:1/model.onnx": null }), "missing"),
        (json!({ "file:1/model.onnx": { "content": good } }), "missing"),
        (json!({ "file:1/model.onnx": BASE64_STANDARD.encode("plain text") }), "ONNX"),
        (json!({ "file:1/model.onnx": base64("unsupported-unique.onnx") }), "Unique"),
        (json!({ "file:1/model.onnx": base64("external-beside.onnx") }), "weights inside"),
        (json!({ "file:1/model.onnx": base64("bomb-memory.onnx") }), ""),
        (json!({ "file:1/model.onnx": good, "file:2/model.onnx": good }), "one file"),
        (json!({ "file:1/model.onnx": good, "file:1/weights.data": good }), "weights inside"),
        (json!({ "file:model.onnx": good }), "file:<version>/<name>.onnx"),
        (json!({ "file:1/model.onnx": good, "speed": 3 }), "`speed`"),
    ] {
        let text = refused(load(&tenant.client, &parameters), 400);
        assert!(text.contains(said), "{said}: {text}");
    }
    // A configuration alone needs a model, and a version has no file of its own to be given.
    refused(load(&tenant.client, &json!({ "config": "{}" })), 404);
    let one = json!({ "parameters": { "file:1/model.onnx": good } });
    let client = &tenant.client;
    refused(client.post_json("/v2/repository/models/adder@1/load", &one), 400);
    refused(client.post_json("/v2/repository/models/Not%20a%20name/load", &one), 400);
    assert_eq!(client.get("/api/v1/models").expect(200).json(), json!({ "models": [] }));
    client.post_json(LOAD, &one).expect(200);
    server.still_runs();
}

#[test]
fn a_load_with_a_file_needs_what_an_upload_needs() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("adder", &model("mul-add.onnx")).expect(201);
    let file = json!({ "file:1/model.onnx": base64("identity-fp32.onnx") });
    let invoke = tenant.with_scopes(&["invoke"]);
    assert!(refused(load(&invoke, &file), 403).contains("`models`"));
    refused(load(&server.client(), &file), 401);
    load(&tenant.with_scopes(&["models"]), &file).expect(200);
    // Somebody else's model takes a file of nobody but its owner, and one's own name is another model.
    let beta = server.tenant("beta", "standard");
    let grants = json!({ "tenants": ["beta"] });
    let foreign = "/v2/repository/models/acme%2Fadder/load";
    let body = json!({ "parameters": file });
    refused(beta.client.post_json(foreign, &body), 404);
    tenant.client.put_json("/api/v1/models/adder/grants", &grants).expect(200);
    refused(beta.client.post_json(foreign, &body), 403);
    load(&beta.client, &file).expect(200);
    assert_eq!((versions(&tenant), versions(&beta)), (json!(["1", "2"]), json!(["1"])));
}

#[test]
fn a_file_beyond_the_limit_is_refused_whether_its_length_is_told_or_not() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "free");
    // `free` has 64 MiB for a model.
    let long = BASE64_STANDARD.encode(vec![8; (64 << 20) + 1]);
    let body = json!({ "parameters": { "file:1/model.onnx": long } }).to_string();
    let before = server.memory_peak_mib();
    let send = || tenant.client.call("POST", LOAD);
    assert!(refused(send().body(&body).send(), 413).contains("64 MiB"));
    // The text, a third longer than the file, and the file.
    let peak = server.memory_peak_mib();
    assert!(peak < before + 190, "the server went from {before} to {peak} MiB");
    assert!(refused(send().chunked(&body).send(), 413).contains("64 MiB"));
    // So is a body that holds no file of any length.
    let mut connection = server.connect();
    connection.send(format!(
        "POST {LOAD} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
        tenant.key,
        100 << 20,
    ));
    assert_eq!(connection.head().status, 413);
    server.still_runs();
}

#[test]
fn loads_take_the_places_of_uploads() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    // Two that have announced a file and not sent it are two uploads.
    let mut slow = [server.connect(), server.connect()];
    for connection in &mut slow {
        connection.send(format!(
            "POST {LOAD} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\nexpect: \
             100-continue\r\n\r\n",
            tenant.key,
            1 << 20,
        ));
        // Whoever is told to go on has a place.
        assert!(connection.line().contains("100"));
    }
    let file = json!({ "file:1/model.onnx": base64("mul-add.onnx") });
    let answer = load(&tenant.client, &file);
    assert!(answer.header("retry-after").is_some(), "{answer:?}");
    refused(answer, 429);
    tenant.put_model("adder", &model("mul-add.onnx")).refused(429, "upload_limit");
    drop(slow);
    sandpiper_tests::until("a place is free again", || {
        (load(&tenant.client, &file).status == 200).then_some(())
    });
}

#[test]
fn a_body_in_chunks_of_one_byte_takes_the_memory_of_its_bytes() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let before = server.memory_peak_mib();
    for (method, path) in [("PUT", "/api/v1/models/adder"), ("POST", LOAD)] {
        let mut connection = server.connect();
        connection.send(format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ntransfer-encoding: chunked\r\n\r\n",
            tenant.key,
        ));
        connection.send("1\r\nx\r\n".repeat(1 << 20)).send("0\r\n\r\n");
        assert!([400, 422].contains(&connection.head().status));
    }
    let peak = server.memory_peak_mib();
    assert!(peak < before + 28, "the server went from {before} to {peak} MiB");
    server.still_runs();
}
