//! What a function sees of a request, and what the caller sees of its response.

use std::{process::Command, thread};

use sandpiper_tests::{Answer, Server, Tenant, guest};
use serde_json::Value;

fn tenant(server: &Server, manifest: &str) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("m", &guest("misbehave"), manifest).expect(201);
    tenant
}

fn seen(answer: Answer) -> Value {
    answer.expect(200).json()
}

/// The values of a header as the function saw them.
fn header(seen: &Value, name: &str) -> Vec<String> {
    let headers = seen["headers"].as_array().unwrap().iter();
    let values = headers.filter(|pair| pair[0] == name).map(|pair| pair[1].as_str().unwrap());
    values.map(str::to_owned).collect()
}

#[test]
fn a_function_sees_its_own_path_and_query() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    for (path, expected) in [
        ("/echo?x", "/echo?x"),
        ("/echo?a=1&b=%2f%20&c=/y@z", "/echo?a=1&b=%2f%20&c=/y@z"),
        ("@1/echo?x", "/echo?x"),
        ("@live/echo", "/echo"),
    ] {
        let seen = seen(tenant.client.get(&format!("/fn/acme/m{path}")));
        assert_eq!(seen["path_with_query"], expected, "{path}");
        assert_eq!(seen["authority"], server.address(), "{path}");
    }
    // The guest answers 404 to these, which shows what it got.
    for path in ["", "/", "?x", "//echo", "/echo/", "/%65cho"] {
        let answer = tenant.client.get(&format!("/fn/acme/m{path}")).expect(404);
        assert_eq!(answer.text(), "no such misdeed", "{path}");
    }
}

#[test]
fn a_function_sees_method_headers_and_body() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    for method in ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "PURGE"] {
        let call = tenant.call(method, "m", "/echo").header("x-mine", "1").header("x-mine", "2");
        let seen = seen(call.body("the body").send());
        assert_eq!(seen["method"], method);
        assert_eq!(seen["body"], "the body", "{method}");
        assert_eq!(header(&seen, "x-mine"), ["1", "2"], "{method}");
    }
    let chunked = seen(tenant.call("POST", "m", "/echo").chunked("in chunks").send());
    assert_eq!(chunked["body"], "in chunks");
}

#[test]
fn a_function_never_sees_our_key() {
    let server = Server::start();
    for (name, auth) in [("acme", "key"), ("beta", "public")] {
        let tenant = server.tenant(name, "standard");
        tenant.put_function("m", &guest("misbehave"), &format!("auth = \"{auth}\"")).expect(201);
        let answer = tenant.invoke("m", "/echo").expect(200);
        assert!(!answer.text().contains(&tenant.key), "{answer:?}");
        assert_eq!(header(&answer.json(), "authorization"), [""; 0], "{name}");
        let operator = server.operator().get(&tenant.path("m", "/echo")).expect(200);
        assert_eq!(header(&operator.json(), "authorization"), [""; 0], "{name}");
    }
}

#[test]
fn another_authorization_passes_through_a_public_function() {
    let server = Server::start();
    let tenant = tenant(&server, "auth = \"public\"");
    let path = tenant.path("m", "/echo");
    let anybody = server.client();
    assert_eq!(header(&seen(anybody.get(&path)), "authorization"), [""; 0]);
    for value in ["Basic dXNlcjpwYXNz", "Bearer a.jwt.perhaps", "Digest x=y"] {
        let client = anybody.with_header("authorization", value);
        assert_eq!(header(&seen(client.get(&path)), "authorization"), [value]);
    }
}

#[test]
fn forwarded_headers_count_only_from_trusted_proxies() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let spoofed = [
        ("x-forwarded-for", "6.6.6.6"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "evil.example"),
        ("forwarded", "for=6.6.6.6"),
    ];
    let ask = |tenant: &Tenant| {
        let call = tenant.call("GET", "m", "/echo");
        seen(spoofed.iter().fold(call, |call, (name, value)| call.header(name, value)).send())
    };
    let echo = ask(&tenant);
    assert_eq!(header(&echo, "x-forwarded-for"), ["127.0.0.1"]);
    for name in ["x-forwarded-proto", "x-forwarded-host", "forwarded"] {
        assert_eq!(header(&echo, name), [""; 0], "{name}");
    }
    let server = Server::with_settings("trusted_proxies = [\"127.0.0.1\"]");
    let trusting = ask(&self::tenant(&server, ""));
    assert_eq!(header(&trusting, "x-forwarded-for").join(", "), "6.6.6.6, 127.0.0.1");
    assert_eq!(header(&trusting, "x-forwarded-proto"), ["https"]);
}

#[test]
fn the_request_id_reaches_the_function() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let call = tenant.call("GET", "m", "/echo").header("x-request-id", "trace-1");
    assert_eq!(header(&seen(call.send()), "x-request-id"), ["trace-1"]);
    let answer = tenant.invoke("m", "/echo");
    let id = answer.header("x-request-id").unwrap().to_owned();
    assert_eq!(header(&seen(answer), "x-request-id"), [id]);
}

#[test]
fn head_has_headers_and_no_body() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let mut connection = server.connect();
    let request = |method: &str| {
        format!(
            "{method} /fn/acme/m/ok HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            tenant.key
        )
    };
    let head = connection.send(request("HEAD")).head();
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-length"), Some("2"));
    // Had a body come, the next response would not be one.
    assert_eq!(connection.send(request("GET")).answer().expect(200).text(), "ok");
}

#[test]
fn a_response_streams_chunk_by_chunk() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let mut connection = server.connect();
    connection.send(format!(
        "GET /fn/acme/m/stream?chunks=5&ms=200 HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        tenant.key
    ));
    let head = connection.head();
    assert_eq!((head.status, head.header("transfer-encoding")), (200, Some("chunked")));
    assert_eq!(connection.chunk().unwrap(), b"chunk 0\n");
    // The first chunk is here while the guest still runs.
    assert_eq!(server.metrics().sum("sandpiper_sandboxes", &[]), 1.0);
    let mut rest = Vec::new();
    while let Some(chunk) = connection.chunk() {
        rest.extend_from_slice(&chunk);
    }
    assert_eq!(rest, b"chunk 1\nchunk 2\nchunk 3\nchunk 4\n");
}

#[test]
fn a_large_response_comes_whole() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let bytes = 20 << 20;
    let answer = tenant.invoke("m", &format!("/big?bytes={bytes}")).expect(200);
    assert_eq!(answer.body.len(), bytes);
    assert!(answer.body.iter().all(|byte| *byte == b'.'));
}

#[test]
fn a_request_body_over_the_limit_is_413() {
    let mut server = Server::start();
    let tenant = tenant(&server, "[limits]\nrequest_body_mib = 1");
    let whole = vec![b'x'; 1 << 20];
    let size = |call: sandpiper_tests::Call| call.send().expect(200).text();
    assert_eq!(size(tenant.call("POST", "m", "/body-size").body(&whole)), "1048576");
    assert_eq!(size(tenant.call("POST", "m", "/body-size").chunked(&whole)), "1048576");
    let request = |length: &str| {
        format!(
            "POST /fn/acme/m/body-size HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{length}\r\n\r\n",
            tenant.key
        )
    };
    // With a length: before one byte is read. The guest never starts.
    let mut connection = server.connect();
    connection.send(request("content-length: 1048577"));
    connection.answer().refused(413, "too_large");
    let mut connection = server.connect();
    connection.send(request("content-length: 18446744073709551615"));
    let answer = connection.head();
    assert!([400, 413, 431].contains(&answer.status), "{answer:?}");
    // In chunks: as soon as they are too many.
    let mut connection = server.connect();
    connection.send(request("transfer-encoding: chunked"));
    for _ in 0..2 {
        connection.send("90000\r\n").send(vec![b'x'; 0x90000]).send("\r\n");
    }
    connection.send("0\r\n\r\n");
    connection.answer().refused(413, "too_large");
    server.still_runs();
}

#[test]
fn every_request_has_a_fresh_sandbox() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..25 {
                    assert_eq!(tenant.invoke("m", "/counter").expect(200).text(), "1");
                }
            });
        }
    });
    let seen: std::collections::BTreeSet<String> =
        (0..10).map(|_| tenant.invoke("m", "/random").expect(200).text()).collect();
    assert_eq!(seen.len(), 10, "random numbers are not repeated");
    assert_eq!(server.metrics().sum("sandpiper_sandboxes", &[]), 0.0);
}

#[test]
fn the_environment_is_the_manifests_alone() {
    let server = Server::start();
    let tenant = tenant(&server, "[env]\nTHRESHOLD = \"0.5\"\nEMPTY = \"\"");
    let env = seen(tenant.invoke("m", "/env"));
    assert_eq!(env, serde_json::json!({ "THRESHOLD": "0.5", "EMPTY": "" }));
}

#[test]
fn a_connection_serves_many_requests() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let mut connection = server.connect();
    for n in 0..50 {
        connection.send(format!(
            "GET /fn/acme/m/status?code={} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
            200 + n,
            tenant.key
        ));
        assert_eq!(connection.answer().status, 200 + n);
    }
    // Also after one of ours, and pipelined.
    let bad = "GET /fn/acme/none/ HTTP/1.1\r\nhost: x\r\n\r\n";
    connection.send(bad.repeat(2));
    connection.answer().refused(401, "unauthenticated");
    connection.answer().refused(401, "unauthenticated");
    // HTTP/1.0 has no host and closes.
    let mut old = server.connect();
    old.send(format!("GET /fn/acme/m/ok HTTP/1.0\r\nauthorization: Bearer {}\r\n\r\n", tenant.key));
    assert!(String::from_utf8_lossy(&old.rest()).ends_with("ok"));
}

#[test]
fn http_2_is_spoken_without_an_upgrade() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    let output = Command::new("curl")
        .args(["--silent", "--show-error", "--noproxy", "*", "--http2-prior-knowledge"])
        .args(["--write-out", "\n%{http_version} %{http_code}", "--data", "two"])
        .args(["--header", &format!("authorization: Bearer {}", tenant.key)])
        .arg(format!("{}{}", server.url(), tenant.path("m", "/echo")))
        .output()
        .expect("curl is there: run `tests/run`, which installs it");
    let text = String::from_utf8_lossy(&output.stdout);
    let (body, version) = text.rsplit_once('\n').unwrap_or_else(|| panic!("{output:?}"));
    assert_eq!(version, "2 200", "{output:?}");
    let seen: Value = serde_json::from_str(body).unwrap();
    assert_eq!(seen["authority"], server.address());
    assert_eq!(seen["body"], "two");
    assert_eq!(header(&seen, "authorization"), [""; 0]);
}

#[test]
fn the_functions_status_and_headers_pass() {
    let server = Server::start();
    let tenant = tenant(&server, "");
    for code in [200, 201, 204, 304, 400, 418, 451, 500, 503, 599] {
        tenant.invoke("m", &format!("/status?code={code}")).expect(code);
    }
    let answer = tenant.invoke("m", "/bad-header?name=x-own&value=kept").expect(200);
    assert_eq!(answer.header("x-own"), Some("kept"));
    // Headers of the connection are not the function's to set: it hears so, or they are dropped.
    for name in ["transfer-encoding", "connection", "keep-alive", "upgrade", "host"] {
        let answer = tenant.invoke("m", &format!("/bad-header?name={name}&value=x")).expect(200);
        assert_ne!(answer.header(name), Some("x"), "{answer:?}");
    }
}
