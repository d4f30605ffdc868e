//! Tenants and keys: who may do what, from when, and until when.

use sandpiper_tests::{Client, OPERATOR_KEY, Server, Start, Tenant, guest};
use serde_json::{Value, json};

const SCOPES: [&str; 6] = ["deploy", "delete", "invoke", "models", "logs", "keys"];

fn new_key(tenant: &Tenant, body: &Value) -> Value {
    let path = format!("/api/v1/tenants/{}/keys", tenant.name);
    tenant.client.post_json(&path, body).expect(201).json()
}

fn client(server: &Server, key: &Value) -> Client {
    server.client().with_key(key["key"].as_str().unwrap())
}

#[test]
fn a_tenant_has_the_limits_of_its_tier() {
    let server = Server::start();
    let operator = server.operator();
    let body = json!({ "name": "acme", "tier": "free" });
    let made = operator.post_json("/api/v1/tenants", &body).expect(201).json();
    assert_eq!(made["name"], "acme");
    assert_eq!(made["tier"], "free");
    let limits = json!({
        "concurrency": 4, "queue": 16, "rate": { "per_s": 20, "burst": 40 }, "functions": 10,
        "sandboxes": 16, "jobs": 1000, "batch_mib": 16,
        "budget": { "requests": null, "cpu_s": null, "memory_gib_s": null, "inference_s": null },
        "models": 5, "versions": 10, "component_mib": 16, "model_mib": 64, "pinned_mib": 0, "weight": 1,
        "band": "low",
    });
    assert_eq!(made["limits"], limits);
    let sandbox = json!({
        "memory_mib": 64, "cpu_ms": 50, "wall_ms": 5000, "tensor_mib": 8, "request_body_mib": 1,
        "log_kib": 64,
    });
    assert_eq!(made["sandbox_limits"], sandbox);
    assert_eq!(operator.get("/api/v1/tenants/acme").expect(200).json(), made);
    assert_eq!(operator.get("/api/v1/tenants").expect(200).json(), json!({ "tenants": [made] }));
    operator.post_json("/api/v1/tenants", &body).refused(409, "already_exists");
    let body = json!({ "name": "beta", "tier": "golden" });
    assert_eq!(operator.post_json("/api/v1/tenants", &body).status, 422);
    operator.get("/api/v1/tenants/beta").refused(404, "not_found");
}

#[test]
fn tenants_are_the_operators_business() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let body = json!({ "name": "beta", "tier": "free" });
    tenant.client.post_json("/api/v1/tenants", &body).refused(403, "operator_only");
    tenant.client.get("/api/v1/tenants").refused(403, "operator_only");
    tenant.client.get("/api/v1/tenants/acme").refused(403, "operator_only");
    tenant.client.delete("/api/v1/tenants/acme").refused(403, "operator_only");
    server.client().post_json("/api/v1/tenants", &body).refused(401, "unauthenticated");
}

#[test]
fn a_deleted_tenant_takes_everything_with_it() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    tenant.invoke("counter", "/").expect(200);
    server.operator().delete("/api/v1/tenants/acme").expect(204);
    tenant.invoke("counter", "/").refused(401, "key_unknown");
    server.operator().get("/fn/acme/counter/").refused(404, "not_found");
    server.sweeps_to(0);
    // A tenant of the same name later inherits nothing.
    let again = server.tenant("acme", "standard");
    assert_eq!(
        again.client.get("/api/v1/functions").expect(200).json(),
        json!({ "functions": [] })
    );
}

#[test]
fn a_missing_key_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    let stranger = server.client();
    for path in [
        "/api/v1/functions",
        "/api/v1/whoami",
        "/fn/acme/counter/",
        "/fn/acme/nothing/",
        "/metrics",
    ] {
        let answer = stranger.get(path).refused(401, "unauthenticated");
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
        assert!(
            answer.json()["error"]["hint"].as_str().unwrap().contains("Authorization"),
            "{path}"
        );
    }
    let basic = stranger.with_header("authorization", "Basic dXNlcjpwYXNz");
    basic.get("/api/v1/functions").refused(401, "unauthenticated");
}

#[test]
fn a_malformed_key_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    let mut mistyped = tenant.key.clone().into_bytes();
    let last = mistyped.len() - 10;
    mistyped[last] = if mistyped[last] == b'a' { b'b' } else { b'a' };
    let mistyped = String::from_utf8(mistyped).unwrap();
    let too_long = "x".repeat(10_000);
    for key in [&mistyped, &tenant.key[..tenant.key.len() - 1], "sp_", "nonsense", &too_long] {
        for path in ["/api/v1/functions", "/fn/acme/counter/"] {
            let answer = server.client().with_key(key).get(path).refused(401, "key_malformed");
            assert!(!answer.text().contains(key), "the key comes back: {answer:?}");
        }
    }
    let twice = tenant.client.with_header("authorization", "Bearer x");
    twice.get("/api/v1/functions").refused(400, "bad_request");
}

#[test]
fn an_expired_key_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    let soon = new_key(&tenant, &json!({ "expires_at": rfc3339_in(2) }));
    let key = client(&server, &soon);
    key.get("/api/v1/whoami").expect(200);
    sandpiper_tests::until("the key expires", || {
        (key.get("/api/v1/whoami").status != 200).then_some(())
    });
    key.get("/api/v1/whoami").refused(401, "key_expired");
    key.get("/fn/acme/counter/").refused(401, "key_expired");
    let later = new_key(&tenant, &json!({ "expires_at": "2999-12-31T23:59:59Z" }));
    assert_eq!(later["expires_at"], "2999-12-31T23:59:59Z");
    client(&server, &later).get("/fn/acme/counter/").expect(200);
    let path = "/api/v1/tenants/acme/keys";
    let past = json!({ "expires_at": "2001-01-01T00:00:00Z" });
    assert_eq!(tenant.client.post_json(path, &past).status, 422);
    for nonsense in ["tomorrow", "2030-13-01T00:00:00Z"] {
        let body = json!({ "expires_at": nonsense });
        tenant.client.post_json(path, &body).refused(400, "bad_request");
    }
}

/// Now and some seconds, as RFC 3339.
fn rfc3339_in(seconds: u64) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let total = now.as_secs() + seconds;
    let (days, rest) = (total / 86_400, total % 86_400);
    // Howard Hinnant's civil_from_days, for days after 1970.
    let z = days as i64 + 719_468;
    let era = z / 146_097;
    let of_era = z - era * 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[test]
fn a_revoked_key_is_refused_at_once() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    for _ in 0..20 {
        let key = new_key(&tenant, &json!({}));
        let revoked = client(&server, &key);
        revoked.get("/fn/acme/counter/").expect(200);
        let path = format!("/api/v1/tenants/acme/keys/{}", key["id"].as_str().unwrap());
        tenant.client.get(&path).expect(200);
        tenant.client.delete(&path).expect(204);
        revoked.get("/fn/acme/counter/").refused(401, "key_unknown");
        revoked.get("/api/v1/functions").refused(401, "key_unknown");
        tenant.client.get(&path).refused(404, "not_found");
        tenant.client.delete(&path).refused(404, "not_found");
    }
}

#[test]
fn another_tenants_key_is_refused() {
    let server = Server::start();
    let acme = server.tenant("acme", "standard");
    let beta = server.tenant("beta", "standard");
    acme.deploy("counter", "");
    let foreign = beta.client.get("/fn/acme/counter/").refused(404, "not_found");
    let unknown = beta.client.get("/fn/acme/nothing/").refused(404, "not_found");
    let nobody = beta.client.get("/fn/nobody/nothing/").refused(404, "not_found");
    assert_eq!(foreign.message(), unknown.message());
    assert_eq!(foreign.message(), nobody.message());
    beta.client.get("/api/v1/tenants/acme/keys").refused(404, "not_found");
    beta.client.post_json("/api/v1/tenants/acme/keys", &json!({})).refused(404, "not_found");
    let key = new_key(&acme, &json!({}));
    let id = key["id"].as_str().unwrap();
    beta.client.delete(&format!("/api/v1/tenants/acme/keys/{id}")).refused(404, "not_found");
    beta.client.delete(&format!("/api/v1/tenants/beta/keys/{id}")).refused(404, "not_found");
    client(&server, &key).get("/fn/acme/counter/").expect(200);
    // Naming another tenant is for the operator alone.
    let claims = beta.client.with_header("x-sandpiper-tenant", "acme");
    assert_eq!(claims.get("/api/v1/functions").expect(200).json(), json!({ "functions": [] }));
}

#[test]
fn each_scope_opens_its_own_doors_and_no_other() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("counter", "");
    let doors: [(&str, &str, &str); 13] = [
        ("deploy", "GET", "/api/v1/functions"),
        ("deploy", "GET", "/api/v1/functions/counter"),
        ("deploy", "GET", "/api/v1/functions/counter/versions"),
        ("deploy", "PUT", "/api/v1/functions/other"),
        ("deploy", "PUT", "/api/v1/functions/counter/aliases/x"),
        ("deploy", "POST", "/api/v1/functions/counter/aliases/live/rollback"),
        ("delete", "DELETE", "/api/v1/functions/counter/versions/1"),
        ("delete", "DELETE", "/api/v1/models/nothing"),
        ("invoke", "GET", "/fn/acme/counter/"),
        ("models", "GET", "/api/v1/models"),
        ("models", "PUT", "/api/v1/models/x"),
        ("logs", "GET", "/api/v1/functions/counter/logs"),
        ("keys", "GET", "/api/v1/tenants/acme/keys"),
    ];
    for scope in SCOPES {
        let key = tenant.with_scopes(&[scope]);
        for (needed, method, path) in doors {
            let call = key.call(method, path);
            let answer = if method == "GET" { call.send() } else { call.body(b"").send() };
            if needed == scope {
                assert!(![401, 403].contains(&answer.status), "{scope}: {answer:?}");
            } else {
                let answer = answer.refused(403, "missing_scope");
                assert!(answer.message().contains(&format!("`{needed}`")), "{scope}: {answer:?}");
            }
        }
    }
}

#[test]
fn a_key_passes_on_no_more_than_it_has() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let limited = tenant.with_scopes(&["keys", "invoke"]);
    let path = "/api/v1/tenants/acme/keys";
    limited.post_json(path, &json!({ "scopes": ["deploy"] })).refused(403, "missing_scope");
    let made = limited.post_json(path, &json!({})).expect(201).json();
    assert_eq!(made["scopes"], json!(["invoke", "keys"]));
    for bad in
        [json!({ "scopes": ["root"] }), json!({ "scope": ["invoke"] }), json!([]), json!("x")]
    {
        limited.post_json(path, &bad).refused(400, "bad_request");
    }
}

#[test]
fn keys_are_listed_without_their_secrets() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let key = new_key(&tenant, &json!({ "scopes": ["invoke"] }));
    assert_eq!(key["scopes"], json!(["invoke"]));
    assert!(key["key"].as_str().unwrap().starts_with("sp_"));
    let list = tenant.client.get("/api/v1/tenants/acme/keys").expect(200);
    assert!(!list.text().contains("\"key\""), "{list:?}");
    let keys = list.json();
    assert_eq!(keys["keys"].as_array().unwrap().len(), 2);
    let mine = keys["keys"].as_array().unwrap().iter().find(|one| one["id"] == key["id"]).unwrap();
    assert_eq!(mine["tenant"], "acme");
    assert_eq!(mine["expires_at"], Value::Null);
    let database = std::fs::read(server.data().join("sandpiper.db")).unwrap();
    let wal = std::fs::read(server.data().join("sandpiper.db-wal")).unwrap_or_default();
    let secret = key["key"].as_str().unwrap().rsplit('_').next().unwrap().as_bytes();
    for file in [database, wal] {
        assert!(
            !file.windows(secret.len()).any(|window| window == secret),
            "a key lies in plain text"
        );
    }
}

#[test]
fn whoami_tells_whose_key_it_is() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let key = new_key(&tenant, &json!({ "scopes": ["logs"] }));
    assert_eq!(
        client(&server, &key).get("/api/v1/whoami").expect(200).json(),
        json!({ "operator": false, "tenant": "acme", "key_id": key["id"], "scopes": ["logs"] })
    );
    assert_eq!(
        server.operator().get("/api/v1/whoami").expect(200).json(),
        json!({ "operator": true, "tenant": null, "key_id": null, "scopes": SCOPES })
    );
}

#[test]
fn the_operator_names_the_tenant() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    let operator = server.operator();
    let answer = operator.get("/api/v1/functions").refused(400, "tenant_missing");
    assert!(answer.text().contains("x-sandpiper-tenant"), "{answer:?}");
    let named = operator.with_header("x-sandpiper-tenant", "acme");
    let list = named.get("/api/v1/functions").expect(200).json();
    assert_eq!(list["functions"][0]["name"], "counter");
    named.put("/api/v1/functions/second", guest("counter")).expect(201);
    operator.get("/fn/acme/second/").expect(200);
    for name in ["nobody", "../x", "ACME"] {
        let other = operator.with_header("x-sandpiper-tenant", name);
        other.get("/api/v1/functions").refused(404, "not_found");
    }
}

#[test]
fn without_one_from_the_environment_the_operators_key_is_made() {
    use std::os::unix::fs::PermissionsExt;

    let server = Server::start_with(Start { own_operator_key: true, ..Start::default() });
    let file = server.data().join("operator.key");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let key = std::fs::read_to_string(file).unwrap();
    let operator = server.client().with_key(key.trim());
    assert_eq!(operator.get("/api/v1/whoami").expect(200).json()["operator"], true);
    let other = server.client().with_key(OPERATOR_KEY).get("/api/v1/whoami");
    assert_eq!(other.status, 401, "{other:?}");
    assert!(!server.log().contains(key.trim()), "the key is in the log");
}
