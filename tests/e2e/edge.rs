//! What every response has in common: ids, the shape of errors, methods, health and metrics.

use sandpiper_tests::{Server, guest};

#[test]
fn health_is_open_and_metrics_are_the_operators() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("counter", "");
    tenant.invoke("counter", "/").expect(200);
    let stranger = server.client();
    assert_eq!(stranger.get("/livez").expect(200).json()["status"], "live");
    assert_eq!(stranger.get("/readyz").expect(200).json()["status"], "ready");
    stranger.get("/metrics").refused(401, "unauthenticated");
    tenant.client.get("/metrics").refused(403, "operator_only");
    let answer = server.operator().get("/metrics").expect(200);
    assert!(answer.header("content-type").unwrap().starts_with("text/plain; version=0.0.4"));
    let metrics = server.metrics();
    let labels = [("tenant", "acme"), ("function", "counter"), ("outcome", "completed")];
    assert_eq!(metrics.sum("sandpiper_invocations_total", &labels), 1.0, "{}", metrics.text());
    assert_eq!(metrics.sum("sandpiper_invocation_seconds_count", &labels[..2]), 1.0);
}

#[test]
fn every_response_has_a_request_id() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("misbehave", "");
    let paths = [
        "/livez",
        "/nothing",
        "/api/v1/functions",
        "/api/v1/functions/nothing",
        "/fn/acme/misbehave/ok",
        "/fn/acme/misbehave/trap",
        "/fn/acme/misbehave/nothing",
        "/fn/acme/nothing/",
        "/fn/",
        "/metrics",
    ];
    let mut seen = std::collections::BTreeSet::new();
    for path in paths {
        let own = tenant.client.get(path);
        let id = own.header("x-request-id").unwrap_or_else(|| panic!("{own:?}")).to_owned();
        assert!(id.len() >= 16 && seen.insert(id), "{own:?}");
        let call = tenant.client.call("GET", path).header("x-request-id", "my-id_1.2");
        assert_eq!(call.send().header("x-request-id"), Some("my-id_1.2"), "{path}");
        for unfit in ["with space", "a\"b", "<script>", "é", &"x".repeat(65)] {
            let call = tenant.client.call("GET", path).header("x-request-id", unfit).send();
            assert_ne!(call.header("x-request-id"), Some(unfit), "{path}");
        }
    }
}

#[test]
fn our_errors_are_told_from_the_functions_own() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.deploy("misbehave", "");
    tenant.invoke("misbehave", "/trap").refused(502, "trap");
    for code in [400, 404, 500, 502, 504] {
        let own = tenant.invoke("misbehave", &format!("/status?code={code}")).expect(code);
        assert_eq!(own.header("x-sandpiper-error"), None, "{own:?}");
    }
    // A function cannot pass its error off as ours.
    let forged = tenant.invoke("misbehave", "/bad-header?name=x-sandpiper-error&value=trap");
    assert_eq!(forged.header("x-sandpiper-error"), None, "{forged:?}");
}

#[test]
fn what_is_unknown_foreign_or_private_looks_the_same() {
    let server = Server::start();
    let acme = server.tenant("acme", "standard");
    let beta = server.tenant("beta", "standard");
    acme.deploy("counter", "");
    let mut bodies = std::collections::BTreeSet::new();
    let mut see = |answer: sandpiper_tests::Answer| {
        let answer = answer.refused(404, "not_found");
        let mut error = answer.json()["error"].clone();
        error["request_id"] = "".into();
        bodies.insert(error.to_string());
    };
    for path in [
        "/fn/acme/counter/",
        "/fn/acme/nothing/",
        "/fn/nobody/counter/",
        "/fn/acme/counter@9/",
        "/fn/x",
        "/fn/beta/counter@/",
        "/api/v1/functions/counter",
        "/api/v1/models/counter",
        "/api/v1/tenants/acme/keys",
        "/api/v1/tenants/nobody/keys",
        "/api/v1/nothing",
        "/nothing",
        "/",
    ] {
        see(beta.client.get(path));
    }
    assert_eq!(bodies.len(), 1, "{bodies:#?}");
    // Without any key: 401 for all of them.
    for path in ["/fn/acme/counter/", "/fn/acme/nothing/", "/fn/nobody/counter/"] {
        server.client().get(path).refused(401, "unauthenticated");
    }
}

#[test]
fn a_method_that_is_not_answered_is_405() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for (method, path) in [
        ("POST", "/livez"),
        ("DELETE", "/api/v1/functions"),
        ("POST", "/api/v1/functions/x"),
        ("PATCH", "/api/v1/tenants"),
        ("GET", "/api/v1/models/x/grants"),
    ] {
        let answer = tenant.client.call(method, path).body(b"").send();
        let answer = answer.refused(405, "method_not_allowed");
        assert!(answer.header("allow").is_some(), "{answer:?}");
    }
}

#[test]
fn requests_that_are_no_http_are_refused() {
    let mut server = Server::start();
    for request in [
        &b"hello\r\n\r\n"[..],
        b"GET /livez\r\n\r\n",
        b"GET /livez HTTP/9.9\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /livez HTTP/1.1\r\nbad header\r\n\r\n",
    ] {
        let mut connection = server.connect();
        connection.send(request);
        let answer = connection.head();
        assert_eq!(answer.status, 400, "{:?}", String::from_utf8_lossy(request));
    }
    server.client().get("/livez").expect(200);
    server.still_runs();
}

#[test]
fn a_json_body_that_is_wrong_or_too_large_is_refused() {
    let server = Server::start();
    let operator = server.operator();
    let post = |body: &[u8]| operator.call("POST", "/api/v1/tenants").body(body).send();
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"{\"name\":1}",
        b"\xff",
        b"{\"name\":\"a\",\"tier\":\"free\",\"x\":1}",
    ] {
        post(body).refused(400, "bad_request");
    }
    let nested = "[".repeat(60_000);
    post(nested.as_bytes()).refused(400, "bad_request");
    let long = format!("{{\"name\":\"{}\"}}", "a".repeat(70_000));
    post(long.as_bytes()).refused(413, "too_large");
    operator.get("/api/v1/whoami").expect(200);
}

#[test]
fn a_good_end_lets_running_requests_finish() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_function("f", &guest("misbehave"), "").expect(201);
    let mut connection = server.connect();
    connection.send(format!(
        "GET /fn/acme/f/stream?chunks=10&ms=50 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    assert_eq!(connection.head().status, 200);
    let ended = server.stop();
    assert!(ended.success(), "{ended}\n{}", server.log());
    let mut body = Vec::new();
    while let Some(chunk) = connection.chunk() {
        body.extend_from_slice(&chunk);
    }
    assert!(String::from_utf8_lossy(&body).ends_with("chunk 9\n"), "{body:?}");
}

#[test]
fn an_answer_that_does_not_wait_for_the_body_arrives() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("f", &guest("misbehave"), "").expect(201);
    let body = vec![b'x'; 900_000];
    for round in 0..20 {
        let mut connection = server.connect();
        connection.send(format!(
            "POST /fn/acme/f/status?code=403 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            tenant.key,
            body.len()
        ));
        // This client sends all that it has before it looks.
        for piece in body.chunks(60_000) {
            connection.send(piece);
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let line = connection.try_line();
        assert!(line.starts_with("HTTP/1.1 403"), "round {round}: {line:?}");
    }
    // Where the body is read, the connection goes on.
    let mut connection = server.connect();
    for _ in 0..3 {
        connection.send(format!(
            "POST /fn/acme/f/body-size HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: {}\r\n\r\n",
            tenant.key,
            body.len()
        ));
        connection.send(&body).answer().expect(200);
    }
}

#[test]
fn a_refusal_before_the_body_is_read_keeps_the_connection_or_says_that_it_ends() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    for (path, status) in [
        ("/api/v1/functions/x", 405),
        ("/api/v1/nothing", 404),
        ("/api/v1/tenants", 403),
        ("/fn/acme/nothing/", 404),
    ] {
        let mut connection = server.connect();
        connection.send(format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 4\r\n\r\n",
            tenant.key
        ));
        let answer = connection.answer().expect(status);
        if answer.header("connection") == Some("close") {
            continue;
        }
        // A client with a pool believes that it can go on, so it must be able to.
        let next = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n";
        connection.send("body").send(next);
        let line = connection.try_line();
        assert!(
            line.starts_with("HTTP/1.1 200"),
            "{path}: the connection ended unannounced: {line:?}"
        );
    }
}
