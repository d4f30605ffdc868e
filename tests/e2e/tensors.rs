//! Tensors that do not fit: the guest hears `invalid-argument` or its like, and goes on.

use sandpiper_tests::{Answer, Server, Tenant, model};
use serde_json::Value;

fn tenant(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("digits", &model("digits")).expect(201);
    tenant.put_model("gather", &model("gather.onnx")).expect(201);
    tenant.deploy("misbehave", "");
    tenant
}

/// What the guest heard: the code, and the text.
fn heard(answer: Answer) -> (String, String) {
    let json = answer.expect(200).json();
    let text = |key: &str| json[key].as_str().unwrap_or_else(|| panic!("{json}")).to_owned();
    (text("error_code"), text("data"))
}

/// Runs the cases and checks the code, that the text names what it should, and that a good tensor works after it.
fn check(cases: &[(&str, &str, &str)]) {
    let mut server = Server::start();
    let tenant = tenant(&server);
    for (case, code, named) in cases {
        let (heard_code, text) = heard(tenant.invoke("misbehave", &format!("/tensor?case={case}")));
        assert_eq!(heard_code, *code, "{case}: {text}");
        assert!(text.contains(named), "{case}: {text:?} does not say {named:?}");
        assert!(text.len() < 1000, "{case}: {} bytes of text", text.len());
        assert!(!text.contains("panicked at"), "{case}: {text}");
    }
    good(&tenant);
    server.still_runs();
}

fn good(tenant: &Tenant) {
    let json = tenant.invoke("misbehave", "/tensor?case=ok").expect(200).json();
    assert_eq!(json["outputs"][0]["name"], "probs", "{json}");
    assert_eq!(json["outputs"][0]["dims"], Value::from(vec![1, 10]), "{json}");
    assert_eq!(json["outputs"][0]["bytes"], 40, "{json}");
}

#[test]
fn a_good_tensor_is_answered() {
    let server = Server::start();
    good(&tenant(&server));
}

#[test]
fn a_tensor_of_the_wrong_name_is_refused() {
    check(&[
        ("wrong-name", "invalid-argument", "no-such-input"),
        ("odd-name", "invalid-argument", "no input"),
        ("missing-input", "invalid-argument", "image"),
        ("duplicate-input", "invalid-argument", "twice"),
        ("surplus-input", "invalid-argument", "surplus"),
    ]);
}

#[test]
fn a_tensor_of_the_wrong_shape_is_refused() {
    check(&[
        ("wrong-shape", "invalid-argument", "shape"),
        ("rank9", "invalid-argument", "9 dimensions"),
        ("rank-many", "invalid-argument", "dimensions"),
        ("overflow-dims", "invalid-argument", "overflow"),
        ("overflow-to-zero", "invalid-argument", "overflow"),
    ]);
}

#[test]
fn a_tensor_of_the_wrong_type_is_refused() {
    check(&[
        ("wrong-type", "invalid-argument", "INT64"),
        ("bf16", "unsupported-operation", "BF16"),
    ]);
}

#[test]
fn a_tensor_of_the_wrong_length_is_refused() {
    check(&[
        ("wrong-length", "invalid-argument", "256"),
        ("too-long", "invalid-argument", "256"),
        ("half-an-element", "invalid-argument", "256"),
    ]);
}

#[test]
fn odd_but_valid_tensors_are_answered() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    for case in ["nan", "zero-dim"] {
        let json = tenant.invoke("misbehave", &format!("/tensor?case={case}")).expect(200).json();
        let answered = json["outputs"].is_array() || json["error_code"] == "invalid-argument";
        assert!(answered, "{case}: {json}");
    }
    good(&tenant);
    server.still_runs();
}

#[test]
fn an_out_of_range_gather_index_is_an_invalid_argument() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    for index in ["16", "999999", "1099511627776"] {
        let path = format!("/tensor?case=oob-gather&model=gather&index={index}");
        // More in a row than panics may be: it is the caller's fault, and no model is put in quarantine for it.
        for _ in 0..4 {
            let (code, text) = heard(tenant.invoke("misbehave", &path));
            assert_eq!(code, "invalid-argument", "{text}");
            // Neither the value, nor the place in the backend's source.
            assert!(!text.contains(index) && !text.contains(".rs"), "{text}");
        }
        let json = tenant.invoke("misbehave", "/tensor?case=oob-gather&model=gather&index=3");
        assert_eq!(json.expect(200).json()["outputs"][0]["name"], "rows");
    }
    good(&tenant);
    server.still_runs();
    assert!(!server.log().contains("1099511627776"), "{}", server.log());
}

#[test]
fn a_model_that_is_not_there_or_not_bound_is_not_found() {
    let server = Server::start();
    let tenant = tenant(&server);
    for (names, code) in [
        (&["nobody", "digits@2", "digits@canary", "acme/nobody", "beta/digits"][..], "not-found"),
        (&["", "../x", "digits@", "digits@0", "a/b/c"], "invalid-argument"),
    ] {
        for name in names {
            let path = format!("/tensor?case=unknown-model&model={name}");
            let (heard, _) = heard(tenant.invoke("misbehave", &path));
            assert_eq!(heard, code, "{name:?}");
        }
    }
    tenant.deploy("misbehave", "[models]\ngather = \"live\"");
    let (code, _) = heard(tenant.invoke("misbehave", "/tensor?case=ok"));
    assert_eq!(code, "not-found", "the manifest names other models alone");
    tenant.deploy("misbehave", "[models]\ndigits = \"1\"");
    good(&tenant);
}

#[test]
fn a_function_brings_no_model_of_its_own() {
    let server = Server::start();
    let tenant = tenant(&server);
    let (code, _) = heard(tenant.invoke("misbehave", "/tensor?case=load-bytes"));
    assert_eq!(code, "unsupported-operation");
}
