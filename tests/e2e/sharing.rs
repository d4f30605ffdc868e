//! Models: versions, aliases, limits, and grants between tenants.

use sandpiper_tests::{Server, Tenant, model};
use serde_json::{Value, json};

/// What `/tensor` of `misbehave` says about loading and running this model.
fn ask(tenant: &Tenant, name: &str) -> String {
    let json = tenant.invoke("misbehave", &format!("/tensor?case=ok&model={name}"));
    let json = json.expect(200).json();
    match json["outputs"].is_array() {
        true => "answers".to_owned(),
        false => json["error_code"].as_str().unwrap().to_owned(),
    }
}

fn grant(owner: &Tenant, tenants: &Value) {
    let body = json!({ "tenants": tenants });
    owner.client.put_json("/api/v1/models/digits/grants", &body).expect(200);
}

#[test]
fn a_model_tells_what_it_takes_and_gives() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let made = tenant.put_model("digits", &model("digits")).expect(201).json();
    assert_eq!(made["name"], "digits");
    assert_eq!(made["version"], 1);
    assert_eq!(made["state"], "ready");
    assert_eq!(made["size_bytes"], model("digits").len());
    let inputs = json!([{ "name": "image", "datatype": "FP32", "shape": [-1, 1, 8, 8] }]);
    assert_eq!(made["inputs"], inputs);
    let outputs = json!([{ "name": "probs", "datatype": "FP32", "shape": [-1, 10] }]);
    assert_eq!(made["outputs"], outputs);
    assert_eq!(server.blobs(), [made["digest"].as_str().unwrap()]);
    let again = tenant.put_model("digits", &model("digits")).expect(200).json();
    assert_eq!(again, made);
    let shown = tenant.client.get("/api/v1/models/digits").expect(200).json();
    assert_eq!(shown["aliases"], json!({ "live": { "version": 1 } }));
    assert_eq!(shown["grants"], json!([]));
    let list = tenant.client.get("/api/v1/models").expect(200).json();
    assert_eq!(list, json!({ "models": [shown] }));
}

#[test]
fn versions_of_a_model_are_chosen_by_alias_and_number() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("misbehave", "");
    tenant.put_model("m", &model("digits")).expect(201);
    let path = "/api/v1/models/m?activate=false";
    tenant.client.put(path, model("iris")).expect(201);
    assert_eq!(ask(&tenant, "m"), "answers");
    assert_eq!(ask(&tenant, "m@1"), "answers");
    // Version 2 takes other inputs, which shows that it is another model.
    assert_eq!(ask(&tenant, "m@2"), "invalid-argument");
    let alias = |name: &str, version: u32| {
        let path = format!("/api/v1/models/m/aliases/{name}");
        tenant.client.put_json(&path, &json!({ "version": version })).expect(200);
    };
    alias("canary", 2);
    assert_eq!(ask(&tenant, "m@canary"), "invalid-argument");
    alias("live", 2);
    assert_eq!(ask(&tenant, "m"), "invalid-argument");
    let back = tenant.client.post("/api/v1/models/m/aliases/live/rollback").expect(200).json();
    assert_eq!(back, json!({ "alias": "live", "version": 1 }));
    assert_eq!(ask(&tenant, "m"), "answers");
    tenant.client.delete("/api/v1/models/m/versions/2").refused(409, "in_use");
    tenant.client.delete("/api/v1/models/m/aliases/canary").expect(204);
    tenant.client.delete("/api/v1/models/m/versions/2").expect(204);
    assert_eq!(ask(&tenant, "m@2"), "not-found");
    tenant.client.delete("/api/v1/models/m").expect(204);
    assert_eq!(ask(&tenant, "m"), "not-found");
    // Only the function is left.
    server.sweeps_to(1);
}

#[test]
fn a_model_is_shared_by_grant_alone() {
    let server = Server::start();
    let (acme, beta) = (server.tenant("acme", "standard"), server.tenant("beta", "standard"));
    let gamma = server.tenant("gamma", "standard");
    acme.put_model("digits", &model("digits")).expect(201);
    for tenant in [&acme, &beta, &gamma] {
        tenant.deploy("misbehave", "");
    }
    assert_eq!(ask(&acme, "digits"), "answers");
    assert_eq!(ask(&acme, "acme/digits"), "answers");
    assert_eq!(ask(&beta, "acme/digits"), "not-found");
    grant(&acme, &json!(["beta"]));
    assert_eq!(ask(&beta, "acme/digits"), "answers");
    assert_eq!(ask(&beta, "digits"), "not-found", "the owner must be named");
    assert_eq!(ask(&gamma, "acme/digits"), "not-found");
    grant(&acme, &json!("*"));
    assert_eq!(ask(&gamma, "acme/digits"), "answers");
    grant(&acme, &json!([]));
    assert_eq!(ask(&beta, "acme/digits"), "not-found", "a grant taken back is taken back at once");
    assert_eq!(ask(&gamma, "acme/digits"), "not-found");
    assert_eq!(ask(&acme, "digits"), "answers");
    // A grant is for loading: the model is in no list of the grantee, nor can it be changed.
    grant(&acme, &json!(["beta"]));
    assert_eq!(beta.client.get("/api/v1/models").expect(200).json(), json!({ "models": [] }));
    beta.client.delete("/api/v1/models/digits").refused(404, "not_found");
    let shown = acme.client.get("/api/v1/models/digits").expect(200).json();
    assert_eq!(shown["grants"], json!(["beta"]));
}

#[test]
fn a_grant_that_makes_no_sense_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("digits", &model("digits")).expect(201);
    let path = "/api/v1/models/digits/grants";
    for body in
        [json!({}), json!({ "tenants": "beta" }), json!({ "tenants": 1 }), json!({ "tenant": [] })]
    {
        tenant.client.put_json(path, &body).refused(400, "bad_request");
    }
    let body = json!({ "tenants": ["../x"] });
    tenant.client.put_json(path, &body).refused(400, "invalid_name");
    let body = json!({ "tenants": ["beta"] });
    tenant.client.put_json("/api/v1/models/nothing/grants", &body).refused(404, "not_found");
}

#[test]
fn the_free_tier_has_five_models() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    let onnx = model("mul-add.onnx");
    for n in 0..5 {
        tenant.put_model(&format!("m{n}"), &onnx).expect(201);
    }
    let answer = tenant.put_model("m5", &onnx).refused(429, "limit_reached");
    assert!(answer.message().contains("5 models"), "{answer:?}");
}

#[test]
fn wait_false_works_for_models_too() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.client.put("/api/v1/models/digits?wait=false", model("digits")).expect(202);
    sandpiper_tests::until("the model is ready", || {
        let shown = tenant.client.get("/api/v1/models/digits").expect(200).json();
        (shown["state"] == "ready").then_some(())
    });
    tenant.client.put("/api/v1/models/bad?wait=false", model("text.onnx")).expect(202);
    let error = sandpiper_tests::until("the model has failed", || {
        let shown = tenant.client.get("/api/v1/models/bad").expect(200).json();
        (shown["deployment"]["state"] == "failed").then(|| shown["deployment"]["error"].clone())
    });
    assert_eq!(error["code"], "not_onnx");
}
