//! Names that want to be paths: a clear refusal, and not a file more or less.

use sandpiper_tests::{Server, Tenant, model};
use serde_json::json;

/// Names that break the rule of functions, each as a path segment.
fn hostile() -> Vec<String> {
    let mut names: Vec<String> = [
        "..%2f..%2fetc%2fpasswd",
        "%2e%2e",
        "a%2fb",
        "a%2Fb",
        "a%5cb",
        "a%00",
        "%00",
        "a%0d%0ax:y",
        "UPPER",
        "Digits",
        "1st",
        "-a",
        "a_b",
        "a%20b",
        "%c3%a9t%c3%a9",
        "%ff%fe",
        "%F0%9F%90%A6",
        "%",
        "%zz",
        "a;b",
        "a@1",
        "a:b",
        "con.",
    ]
    .map(str::to_owned)
    .into();
    names.push("a".repeat(64));
    names.push("a".repeat(10 * 1024));
    names
}

/// Each request has a connection of its own: what is refused before its body is read may end the connection.
fn deployed(server: &Server) -> Tenant {
    let mut tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    tenant.client = tenant.client.with_header("connection", "close");
    tenant
}

/// Nothing of a hostile name may show up in the data folder.
fn folder(server: &Server) -> Vec<String> {
    let mut names = Vec::new();
    let mut folders = vec![server.data()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            names.push(entry.path().display().to_string());
            if entry.file_type().unwrap().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

#[test]
fn a_hostile_function_name_is_refused() {
    let mut server = Server::start();
    let tenant = deployed(&server);
    let before = folder(&server);
    for name in hostile() {
        let path = format!("/api/v1/functions/{name}");
        let answer = tenant.client.put(&path, b"wasm");
        assert!((400..500).contains(&answer.status), "{name}: {answer:?}");
        assert!(answer.header("x-sandpiper-error").is_some(), "{name}: {answer:?}");
        assert!(answer.body.len() < 1000, "{name}: the name comes back: {answer:?}");
        let get = tenant.client.get(&path);
        assert!((400..500).contains(&get.status), "{name}: {get:?}");
    }
    assert_eq!(folder(&server), before);
    server.still_runs();
}

#[test]
fn a_function_name_in_upper_case_is_refused_with_the_rule() {
    let server = Server::start();
    let tenant = deployed(&server);
    let answer = tenant.client.put("/api/v1/functions/Digits", b"wasm");
    let answer = answer.refused(400, "invalid_name");
    assert!(answer.message().contains("^[a-z][a-z0-9-]{0,62}$"), "{answer:?}");
    tenant.client.get("/fn/acme/COUNTER/").refused(404, "not_found");
}

#[test]
fn a_hostile_model_name_is_refused() {
    let mut server = Server::start();
    let tenant = deployed(&server);
    let before = folder(&server);
    let digits = model("digits");
    let allowed = ["UPPER", "Digits", "1st", "a_b", "con."];
    for name in hostile() {
        if allowed.contains(&name.as_str()) || name.len() == 64 {
            continue;
        }
        // What is too short to be a model suffices: the name comes first.
        let answer = tenant.client.put(&format!("/api/v1/models/{name}"), b"onnx");
        assert!((400..500).contains(&answer.status), "{name}: {answer:?}");
    }
    assert_eq!(folder(&server), before);
    for name in allowed {
        tenant.client.put(&format!("/api/v1/models/{name}"), &digits).expect(201);
    }
    // One model under five names is one file, and its name is a digest.
    assert_eq!(server.blobs().len(), 2, "{:?}", server.blobs());
    assert!(server.blobs().iter().all(|name| name.len() == 64), "{:?}", server.blobs());
    server.still_runs();
}

#[test]
fn hostile_names_in_an_invocation_lead_nowhere() {
    let mut server = Server::start();
    let tenant = deployed(&server);
    for name in hostile() {
        // The selector and the version are part of the name's segment here.
        if name == "a@1" {
            continue;
        }
        let function = tenant.client.get(&format!("/fn/acme/{name}/"));
        assert!([400, 404, 414, 431].contains(&function.status), "{name}: {function:?}");
        let owner = tenant.client.get(&format!("/fn/{name}/counter/"));
        assert!([400, 404, 414, 431].contains(&owner.status), "{name}: {owner:?}");
        let selector = tenant.client.get(&format!("/fn/acme/counter@{name}/"));
        assert!([400, 404, 414, 431].contains(&selector.status), "{name}: {selector:?}");
    }
    assert_eq!(tenant.invoke("counter", "/").expect(200).text(), "1");
    server.still_runs();
}

#[test]
fn raw_bytes_in_a_path_are_answered_with_4xx() {
    let mut server = Server::start();
    let tenant = deployed(&server);
    let before = folder(&server);
    for name in [&b"../../etc"[..], b"..", b"a\0b", b"\0", b"\xff\xfe", b"a b", b"{}", b"<a>"] {
        let mut connection = server.connect();
        connection
            .send(b"PUT /api/v1/functions/")
            .send(name)
            .send(format!(
                " HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {}\r\ncontent-length: 0\r\n\r\n",
                tenant.key
            ));
        let status = connection.head().status;
        assert!((400..500).contains(&status), "{name:?}: {status}");
    }
    assert_eq!(folder(&server), before);
    server.still_runs();
}

#[test]
fn tenants_aliases_and_keys_have_rules_too() {
    let server = Server::start();
    let tenant = deployed(&server);
    let operator = server.operator();
    for name in ["", "Acme", "../x", "a/b", "a\0b", "é", "1a", &"a".repeat(64)] {
        let body = json!({ "name": name, "tier": "free" });
        operator.post_json("/api/v1/tenants", &body).refused(400, "invalid_name");
    }
    let body = json!({ "name": "a".repeat(10 << 10), "tier": "free" });
    operator.post_json("/api/v1/tenants", &body).refused(400, "invalid_name");
    for alias in ["Live", "1", "a%2fb", "%00", "a_b"] {
        let path = format!("/api/v1/functions/counter/aliases/{alias}");
        tenant.client.put_json(&path, &json!({ "version": 1 })).refused(400, "invalid_name");
    }
    for id in ["x", "..%2f", "%00", &"a".repeat(10 << 10)] {
        let path = format!("/api/v1/tenants/acme/keys/{id}");
        tenant.client.delete(&path).refused(404, "not_found");
    }
    for version in ["0", "-1", "x", "99999999999999999999", "%00"] {
        let path = format!("/api/v1/functions/counter/versions/{version}");
        tenant.client.get(&path).refused(404, "not_found");
    }
}

#[test]
fn a_long_path_and_many_headers_are_too_much() {
    let mut server = Server::start();
    let mut connection = server.connect();
    connection.send(format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "a".repeat(70_000)));
    let status = connection.head().status;
    assert!([400, 414, 431].contains(&status), "{status}");
    let mut connection = server.connect();
    let headers: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    connection.send(format!("GET /livez HTTP/1.1\r\nhost: x\r\n{headers}\r\n"));
    assert_eq!(connection.head().status, 431);
    server.client().get("/livez").expect(200);
    server.still_runs();
}
