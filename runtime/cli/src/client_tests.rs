//! Tests of the client against a server of canned answers.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    thread::JoinHandle,
};

use serde_json::json;

use super::*;
use crate::output::Ui;

/// Answers one request with `response` and gives its head, in lower case.
fn stub(response: String) -> (String, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    let thread = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut reader = BufReader::new(&stream);
        let (mut head, mut length) = (String::new(), 0);
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap() == 0 || line == "\r\n" {
                break;
            }
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.trim().parse().unwrap();
            }
            head.push_str(&line);
        }
        // Without 100-continue the body is never sent when it is refused.
        if !head.contains("expect: 100-continue") {
            reader.by_ref().take(length).read_to_end(&mut Vec::new()).unwrap();
        }
        (&stream).write_all(response.as_bytes()).unwrap();
        head
    });
    (server, thread)
}

fn response(status: &str, headers: &str, body: &str) -> String {
    format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n{headers}\r\n{body}",
        body.len()
    )
}

fn client(server: &str) -> Client {
    Client::with(server, Some("sp_key".into()), Some("acme".parse().unwrap())).unwrap()
}

fn plain(path: &str) -> Invocation<'_> {
    Invocation { path, method: None, headers: &[], body: None }
}

#[test]
fn an_answer_is_json_and_the_request_carries_key_and_tenant() {
    let (server, thread) = stub(response("201 Created", "", r#"{"name":"a"}"#));
    assert_eq!(client(&server).post("/api/v1/x", &json!({})).unwrap(), json!({"name": "a"}));
    let head = thread.join().unwrap();
    assert!(head.starts_with("post /api/v1/x http/1.1\r\n"), "{head}");
    assert!(head.contains("authorization: bearer sp_key\r\n"), "{head}");
    assert!(head.contains("x-sandpiper-tenant: acme\r\n"), "{head}");
}

#[test]
fn an_empty_answer_is_null() {
    let (server, _thread) = stub("HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n".into());
    assert_eq!(client(&server).delete("/x").unwrap(), Value::Null);
}

#[test]
fn the_servers_error_is_kept_word_for_word() {
    let body = r#"{"error":{"code":"unknown_import","message":"the component imports a:b/c",
        "hint":"remove it","request_id":"r-7"}}"#;
    let (server, _thread) = stub(response("422 Unprocessable Entity", "", body));
    let error = client(&server).get("/x").unwrap_err();
    assert_eq!((error.exit_code(), error.what.as_str()), (6, "the component imports a:b/c"));
    assert_eq!(error.code.as_deref(), Some("unknown_import"));
    assert_eq!(error.next.as_deref(), Some("remove it"));
    assert_eq!(error.request_id.as_deref(), Some("r-7"));
}

#[test]
fn an_error_without_a_body_still_says_what_to_do() {
    let headers = "Retry-After: 3\r\nx-request-id: r-8\r\n";
    let (server, _thread) = stub(response("503 Service Unavailable", headers, "<html>"));
    let error = client(&server).get("/x").unwrap_err();
    assert_eq!((error.exit_code(), error.what.as_str()), (7, "the server answered 503"));
    assert_eq!(error.next.as_deref(), Some("try again in 3 s"));
    assert_eq!(error.request_id.as_deref(), Some("r-8"));
}

#[test]
fn a_refused_upload_is_an_error_of_the_servers_and_not_a_broken_pipe() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("model.onnx");
    std::fs::write(&file, vec![7; 4 << 20]).unwrap();
    let body = r#"{"error":{"code":"bad_key","message":"no such key"}}"#;
    let (server, thread) = stub(response("401 Unauthorized", "", body));
    let upload = Upload::file(&file).unwrap();
    let task = Ui::new(true).upload("x", upload.length);
    let error = client(&server).upload("/x", upload, &task).unwrap_err();
    assert_eq!((error.exit_code(), error.what.as_str()), (4, "no such key"));
    let head = thread.join().unwrap();
    assert!(head.contains("content-length: 4194304\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding"), "{head}");
}

#[test]
fn a_large_request_that_is_refused_is_no_broken_pipe_either() {
    let headers = "x-sandpiper-error: body_too_large\r\n";
    let (server, _thread) = stub(response("413 Payload Too Large", headers, ""));
    let invocation =
        Invocation { path: "/", method: None, headers: &[], body: Some(vec![0; 4 << 20]) };
    let error = client(&server).invoke("acme/f", invocation).unwrap_err();
    assert_eq!((error.exit_code(), error.code.as_deref()), (6, Some("body_too_large")));
}

#[test]
fn a_functions_own_502_is_an_answer_and_ours_is_an_error() {
    let (server, thread) = stub(response("502 Bad Gateway", "", "mine"));
    let mut own = client(&server).invoke("acme/f", plain("/a?b=c")).unwrap();
    assert_eq!(own.body_mut().read_to_string().unwrap(), "mine");
    let head = thread.join().unwrap();
    assert!(head.starts_with("get /fn/acme/f/a?b=c http/1.1"), "{head}");
    assert!(!head.contains("x-sandpiper-tenant"), "{head}");

    let (server, _thread) = stub(response("502 Bad Gateway", "x-sandpiper-error: trap\r\n", ""));
    let error = client(&server).invoke("acme/f", plain("/")).unwrap_err();
    assert_eq!((error.exit_code(), error.code.as_deref()), (8, Some("trap")));
}

#[test]
fn a_502_of_the_control_plane_is_no_functions() {
    for status in ["502 Bad Gateway", "504 Gateway Timeout"] {
        let (server, _thread) = stub(response(status, "", "<html>"));
        let error = client(&server).get("/api/v1/functions").unwrap_err();
        assert_eq!(error.exit_code(), 3, "{status}");
        assert!(error.next.unwrap().contains("doctor"));
    }
}

#[test]
fn a_redirect_of_the_functions_is_not_followed() {
    let (server, _thread) = stub(response("302 Found", "Location: /elsewhere\r\n", ""));
    assert_eq!(client(&server).invoke("acme/f", plain("/")).unwrap().status(), 302);
}

#[test]
fn a_header_of_the_callers_replaces_the_key() {
    let (server, thread) = stub(response("200 OK", "", ""));
    let headers = ["Authorization: Basic x".to_owned()];
    let invocation =
        Invocation { path: "/", method: Some("DELETE"), headers: &headers, body: Some(vec![1]) };
    client(&server).invoke("acme/f", invocation).unwrap();
    let head = thread.join().unwrap();
    assert!(head.starts_with("delete ") && head.contains("basic x"), "{head}");
    assert!(!head.contains("sp_key") && head.contains("content-length: 1\r\n"), "{head}");
}

#[test]
fn nobody_listening_has_its_own_exit_code() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let server = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let error = client(&server).get("/x").unwrap_err();
    assert_eq!(error.exit_code(), 3);
    assert!(error.next.unwrap().contains("sandpiper serve"));
}

#[test]
fn nonsense_is_refused_before_it_is_sent() {
    assert!(Client::with("http://h", Some("a\nb".into()), None).is_err());
    let client = Client::with("http://127.0.0.1:1", None, None).unwrap();
    for (path, method, header) in
        [("x", "GET", "a: b"), ("/ ", "GET", "a: b"), ("/", "G T", "a: b"), ("/", "GET", "ab")]
    {
        let headers = [header.to_owned()];
        let invocation = Invocation { path, method: Some(method), headers: &headers, body: None };
        assert_eq!(client.invoke("a/b", invocation).unwrap_err().exit_code(), 2, "{path} {method}");
    }
    assert_eq!(client.tenant().unwrap_err().exit_code(), 2);
}

#[test]
fn loopback_addresses_are_known() {
    for server in ["http://localhost:1", "http://127.3.0.1", "http://[::1]:8080/x"] {
        assert!(is_loopback(server), "{server}");
    }
    assert!(!is_loopback("https://localhost.example"));
}
