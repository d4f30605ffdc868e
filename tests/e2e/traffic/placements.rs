//! What a function's alias settles on where the models are another tenant's.

use sandpiper_tests::{Server, Tenant, example, guest, model};
use serde_json::{Value, json};

use super::{LIVE, history, model_answers};

const BOUND: &str = "[models]\n\"beta/m\" = \"live\"";

/// `beta` has the model `m`, and `acme` a function that is bound to it.
fn neighbours(server: &Server) -> (Tenant, Tenant) {
    let (acme, beta) = (server.tenant("acme", "dedicated"), server.tenant("beta", "dedicated"));
    beta.put_model("m", &model("digits")).expect(201);
    let grant = json!({"tenants": ["acme"]});
    beta.client.put_json("/api/v1/models/m/grants", &grant).expect(200);
    acme.put_function("f", &guest("misbehave"), BOUND).expect(201);
    (acme, beta)
}

fn back(tenant: &Tenant, body: &Value) -> Value {
    tenant.client.post_json(&format!("{LIVE}/rollback"), body).expect(200).json()
}

#[test]
fn models_of_others_that_move_leave_a_version_to_go_back_to() {
    let mut server = Server::start();
    let (acme, beta) = neighbours(&server);
    acme.put_function("f", &guest("misbehave"), &format!("{BOUND}\n[env]\nA = \"2\"")).expect(201);
    beta.put_model("m", &model("iris")).expect(201);
    for number in 0..120 {
        let version = json!({"version": number % 2 + 1});
        beta.client.put_json("/api/v1/models/m/aliases/live", &version).expect(200);
    }
    let places = history(&acme);
    assert!(places.len() <= 10, "{places:#?}");
    assert_eq!(places.last().unwrap()["version"], 1);
    server.crash();
    assert_eq!(back(&acme, &json!({"to": 1}))["version"], 1);
    assert!(acme.invoke("f", "/env").expect(200).json()["A"].is_null());
}

#[test]
fn a_model_that_its_owner_deletes_keeps_no_function_from_going_back() {
    let mut server = Server::start();
    let (acme, beta) = neighbours(&server);
    acme.put_function("f", &guest("misbehave"), &format!("{BOUND}\n[env]\nA = \"2\"")).expect(201);
    beta.put_model("m", &model("iris")).expect(201);
    // Nobody but the owner's own functions keeps him from deleting, and the history has settled on it.
    beta.client.delete("/api/v1/models/m/versions/1").expect(204);
    // The place that differs by what is gone is none to go back to any more; the one before has the model of today.
    let place = json!({"alias": "live", "version": 1, "models": {"beta/m": 2}});
    assert_eq!(back(&acme, &json!({})), place);
    assert!(!model_answers(&acme, "beta/m"), "it takes other inputs");
    acme.client.post(&format!("{LIVE}/rollback")).refused(422, "invalid");

    // With the whole model gone, a call is told so, and places lose it.
    acme.put_function("f", &example("hello"), BOUND).expect(201);
    beta.client.delete("/api/v1/models/m").expect(204);
    assert_eq!(acme.invoke("f", "/").expect(200).text(), "hello\n");
    let place = json!({"alias": "live", "version": 1, "models": {}});
    assert_eq!(back(&acme, &json!({})), place);
    for _ in 0..2 {
        let told = acme.invoke("f", "/tensor?case=ok&model=beta/m").expect(200).json();
        assert_eq!(told["error_code"], "not-found", "{told}");
        server.crash();
    }
}
