//! The model repository of the protocol: the index, and taking models out of service and back.

use std::thread;

use sandpiper_tests::{Server, model, onnx::brittle, until};
use serde_json::{Value, json};

use crate::oip::{IRIS, iris, question, refused};

fn row() -> Value {
    question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}))
}

#[test]
fn an_unloaded_model_takes_no_calls_until_it_is_loaded_again() {
    let server = Server::start();
    let tenant = iris(&server);
    tenant.put_model("digits", &model("digits")).expect(201);
    let client = &tenant.client;
    let index = |body: &Value| client.post_json("/v2/repository/index", body).expect(200).json();
    let ready = |name: &str| json!({ "name": name, "version": "1", "state": "READY" });
    assert_eq!(
        client.post("/v2/repository/index").expect(200).json(),
        json!([ready("digits"), ready("iris")])
    );
    let unload = json!({ "parameters": { "unload_dependents": false } });
    let path = "/v2/repository/models/iris/unload";
    let answer = client.post_json(path, &unload).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let reason = "the model is not ready: its owner has unloaded it";
    let unavailable =
        json!({ "name": "iris", "version": "1", "state": "UNAVAILABLE", "reason": reason });
    assert_eq!(index(&json!({})), json!([ready("digits"), unavailable]));
    assert_eq!(index(&json!({ "ready": true })), json!([ready("digits")]));
    for answer in [
        client.get("/v2/models/iris/ready"),
        client.get("/v2/models/iris/versions/1/ready"),
        client.post_json(IRIS, &row()),
        client.get("/v2/models/iris/config"),
    ] {
        assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
        assert!(refused(answer, 503).contains("not ready"));
    }
    // What is known of it is known still; other models are as they were.
    client.get("/v2/models/iris").expect(200);
    client.get("/v2/models/digits/ready").expect(200);
    assert_eq!(client.post("/v2/repository/models/iris/load").expect(200).json(), json!({}));
    client.post_json(IRIS, &row()).expect(200);
    assert_eq!(index(&json!({ "ready": true })), json!([ready("digits"), ready("iris")]));
}

#[test]
fn a_new_version_puts_an_unloaded_model_back_into_service() {
    let server = Server::start();
    let tenant = iris(&server);
    tenant.client.post("/v2/repository/models/iris/unload").expect(200);
    refused(tenant.client.post_json(IRIS, &row()), 503);
    tenant.client.put("/api/v1/models/iris?activate=false", model("digits")).expect(201);
    refused(tenant.client.post_json(IRIS, &row()), 503);
    tenant.put_model("iris", &model("mul-add.onnx")).expect(201);
    tenant.client.get("/v2/models/iris/ready").expect(200);
}

#[test]
fn a_model_that_is_unloaded_while_it_is_being_loaded_stays_so() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    // After a start it is in service, and not in memory.
    server.restart();
    let client = &tenant.client;
    thread::scope(|scope| {
        let load = scope.spawn(|| client.post("/v2/repository/models/slow/load"));
        until("it is being loaded", || {
            let index = client.post("/v2/repository/index").expect(200).json();
            assert!(!load.is_finished(), "the model is not slow enough");
            (index[0]["state"] == "LOADING").then_some(())
        });
        client.post("/v2/repository/models/slow/unload").expect(200);
        refused(load.join().unwrap(), 503);
    });
    refused(client.get("/v2/models/slow/ready"), 503);
    let loaded = server.metrics().sum("sandpiper_models_loaded", &[]);
    assert_eq!(loaded, 0.0);
    client.post("/v2/repository/models/slow/load").expect(200);
    client.get("/v2/models/slow/ready").expect(200);
}

#[test]
fn an_unloaded_model_is_out_of_service_for_functions_and_guests_too() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("digits", &model("digits")).expect(201);
    tenant.deploy("misbehave", "");
    let beta = server.tenant("beta", "standard");
    let grants = json!({ "tenants": ["beta"] });
    tenant.client.put_json("/api/v1/models/digits/grants", &grants).expect(200);
    let ask = || tenant.invoke("misbehave", "/tensor?case=ok").expect(200).json();
    assert!(ask()["outputs"].is_array());
    beta.client.get("/v2/models/acme%2Fdigits/ready").expect(200);
    tenant.client.post("/v2/repository/models/digits/unload").expect(200);
    assert!(ask()["error_code"].is_string());
    refused(beta.client.get("/v2/models/acme%2Fdigits/ready"), 503);
    // Only the owner loads it.
    refused(beta.client.post("/v2/repository/models/acme%2Fdigits/load"), 403);
    refused(beta.client.post("/v2/repository/models/digits/load"), 404);
    tenant.client.post("/v2/repository/models/digits/load").expect(200);
    assert!(ask()["outputs"].is_array());
}

#[test]
fn what_is_no_load_and_no_unload_is_refused() {
    let server = Server::start();
    let tenant = iris(&server);
    let load = |body: Value| tenant.client.post_json("/v2/repository/models/iris/load", &body);
    load(json!({})).expect(200);
    load(json!({ "parameters": {} })).expect(200);
    let odd = json!({ "parameters": { "speed": 3 } });
    assert!(refused(load(odd), 400).contains("`speed`"));
    refused(load(json!({ "parameters": 3 })), 400);
    let client = &tenant.client;
    refused(client.post("/v2/repository/models/nobody/load"), 404);
    refused(client.post("/v2/repository/models/nobody/unload"), 404);
    refused(client.post("/v2/repository/models/iris@7/load"), 404);
    refused(client.post("/v2/repository/models/iris@1/unload"), 400);
    let unload = json!({ "parameters": { "unload_dependents": "yes" } });
    refused(client.post_json("/v2/repository/models/iris/unload", &unload), 400);
    client.get("/v2/models/iris/ready").expect(200);
}

#[test]
fn settings_of_traces_and_logs_are_shown_and_not_changed() {
    let server = Server::start();
    let tenant = iris(&server);
    let client = &tenant.client;
    let trace = client.get("/v2/trace/setting").expect(200).json();
    assert_eq!(trace["trace_level"], json!(["OFF"]));
    assert_eq!(client.get("/v2/models/iris/trace/setting").expect(200).json(), trace);
    let log = client.get("/v2/logging").expect(200).json();
    assert_eq!((&log["log_info"], &log["log_verbose_level"]), (&json!(true), &json!(0)));
    for path in ["/v2/trace/setting", "/v2/models/iris/trace/setting", "/v2/logging"] {
        refused(client.post_json(path, &json!({ "log_verbose_level": 1 })), 501);
    }
    refused(server.client().get("/v2/logging"), 401);
}

#[test]
fn a_model_in_quarantine_is_not_ready_until_it_is_loaded_again() {
    let mut server = Server::start();
    let tenant = iris(&server);
    tenant.put_model("gather", &brittle()).expect(201);
    let about = tenant.client.get("/v2/models/gather").expect(200).json();
    let input = &about["inputs"][0];
    let ask = |index: i64| {
        let sizes = input["shape"].as_array().unwrap().iter();
        let shape: Vec<i64> = sizes.map(|size| size.as_i64().unwrap().max(1)).collect();
        let data = vec![index; shape.iter().product::<i64>() as usize];
        let tensor = json!({ "name": input["name"], "datatype": input["datatype"], "shape": shape, "data": data });
        tenant.client.post_json("/v2/models/gather/infer", &json!({ "inputs": [tensor] }))
    };
    ask(3).expect(200);
    for _ in 0..3 {
        let said = refused(ask(999), 500);
        assert!(!said.contains("999") && !said.contains(".rs"), "{said}");
    }
    assert!(refused(ask(3), 503).contains("quarantine"));
    assert!(refused(tenant.client.get("/v2/models/gather/ready"), 503).contains("quarantine"));
    let index = tenant.client.post("/v2/repository/index").expect(200).json();
    assert_eq!(index[0]["state"], "UNAVAILABLE", "{index}");
    assert!(index[0]["reason"].as_str().unwrap().contains("quarantine"), "{index}");
    tenant.client.post_json(IRIS, &row()).expect(200);
    tenant.client.post("/v2/repository/models/gather/load").expect(200);
    ask(3).expect(200);
    server.still_runs();
}
