//! What is malformed in the protocol: 400 in its own shape, and a server that goes on.

use std::{process::Command, time::Duration};

use sandpiper_tests::{
    Answer, Connection, Server, Tenant, model,
    onnx::{Dim, FLOAT, Onnx},
};
use serde_json::{Value, json};

use crate::oip::{IRIS, iris, question, refused};

/// A request of one input, with these members in place of good ones.
fn input(more: Value) -> Value {
    let mut input =
        json!({ "name": "X", "shape": [1, 4], "datatype": "FP32", "data": [5.1, 3.5, 1.4, 0.2] });
    input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({ "inputs": [input] })
}

fn good(tenant: &Tenant) {
    tenant.client.post_json(IRIS, &input(json!({}))).expect(200);
}

#[test]
fn every_malformed_input_is_refused_with_words() {
    let mut server = Server::start();
    let tenant = iris(&server);
    for (more, words) in [
        (json!({ "shape": [1, 5] }), "the model takes [-1, 4]"),
        (json!({ "shape": [2, 4] }), "8 elements; 4 were given"),
        (json!({ "data": [1, 2, 3, 4, 5] }), "4 elements; more were given"),
        (json!({ "shape": [2, 2] }), "shape"),
        (json!({ "shape": [4] }), "shape"),
        (json!({ "shape": [-1, 4] }), "negative"),
        (json!({ "shape": [1, -4] }), "negative"),
        (json!({ "shape": [1, 4, 1, 1, 1, 1, 1, 1, 1] }), "8 dimensions"),
        (json!({ "shape": [4294967296u64, 4294967296u64] }), "overflows"),
        (json!({ "shape": [1.5, 4] }), "not as expected"),
        (json!({ "shape": "1,4" }), "not as expected"),
        (json!({ "datatype": "FLOAT" }), "unknown datatype `FLOAT`"),
        (json!({ "datatype": "" }), "unknown datatype"),
        (json!({ "datatype": 7 }), "not as expected"),
        (json!({ "datatype": "FP64" }), "FP64"),
        (json!({ "datatype": "BF16" }), "BF16"),
        (json!({ "datatype": "INT64" }), "the model takes FP32"),
        (json!({ "datatype": "BYTES", "data": ["a", "b", "c", "d"] }), "BYTES"),
        (json!({ "datatype": "BYTES" }), "BYTES"),
        (json!({ "name": "Y" }), "no input `Y`"),
        (json!({ "name": "" }), "no input"),
        (json!({ "data": [1, 2, 3, "4"] }), "element 3 is a string"),
        (json!({ "data": [1, 2, 3, null] }), "element 3 is null"),
        (json!({ "data": [[1, 2], [3, 4]] }), "nested"),
        (json!({ "data": { "0": 1 } }), "nested"),
        (json!({ "data": 5 }), "nested"),
        (json!({ "data": null }), "neither"),
        (json!({ "parameters": { "binary_data_size": 16 } }), "both"),
        (json!({ "parameters": { "shared_memory_region": "r" } }), "shared memory"),
    ] {
        let answer = tenant.client.post_json(IRIS, &input(more.clone()));
        let status = if words == "shared memory" { 501 } else { 400 };
        let said = refused(answer, status);
        assert!(said.contains(words), "{more}: {said:?} does not say {words:?}");
    }
    good(&tenant);
    server.still_runs();
}

#[test]
fn every_malformed_body_is_refused_with_words() {
    let mut server = Server::start();
    let tenant = iris(&server);
    let one = input(json!({}))["inputs"][0].clone();
    let with = |more: Value| question(&[json!([5.1, 3.5, 1.4, 0.2])], more).to_string();
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "not as expected"),
        ("{".to_owned(), "not as expected"),
        ("[]".to_owned(), "not as expected"),
        ("{}".to_owned(), "inputs"),
        ("\u{0}".to_owned(), "not as expected"),
        ("[".repeat(50_000), "not as expected"),
        (json!({ "inputs": 5 }).to_string(), "not as expected"),
        (json!({ "inputs": [] }).to_string(), "`X` is missing"),
        (json!({ "inputs": [one, one] }).to_string(), "twice"),
        (json!({ "inputs": [{ "name": "X" }] }).to_string(), "not as expected"),
        (input(json!({})).to_string().replace("5.1", "NaN"), "not as expected"),
        (input(json!({})).to_string().replace("5.1", "Infinity"), "not as expected"),
        (input(json!({})).to_string().replace("5.1", "1e99"), "element 0"),
        (with(json!({ "id": 7 })), "not as expected"),
        (with(json!({ "parameters": { "timeout": -1 } })), "not as expected"),
        (with(json!({ "parameters": { "timeout": "soon" } })), "not as expected"),
        (with(json!({ "outputs": [{ "name": "zz" }] })), "no output `zz`"),
        (with(json!({ "outputs": [{ "name": "label" }, { "name": "label" }] })), "twice"),
        (
            with(
                json!({ "outputs": [{ "name": "label" }, { "name": "label" }, { "name": "label" }] }),
            ),
            "3 outputs",
        ),
        (with(json!({ "outputs": [{}] })), "not as expected"),
    ];
    for (body, words) in cases {
        let said = refused(tenant.client.call("POST", IRIS).body(&body).send(), 400);
        let body: String = body.chars().take(200).collect();
        assert!(said.contains(words), "{body}: {said:?} does not say {words:?}");
    }
    good(&tenant);
    server.still_runs();
}

fn binary(tenant: &Tenant, length: &str, body: &[u8]) -> Answer {
    let call = tenant.client.call("POST", IRIS);
    call.header("inference-header-content-length", length).body(body).send()
}

#[test]
fn lengths_of_binary_tensors_must_add_up() {
    let mut server = Server::start();
    let tenant = iris(&server);
    let head = |datatype: &str, shape: &str, size: u64| {
        format!(
            r#"{{"inputs":[{{"name":"X","shape":{shape},"datatype":"{datatype}","parameters":{{"binary_data_size":{size}}}}}]}}"#
        )
    };
    let fp32 = head("FP32", "[1,4]", 16);
    let length = fp32.len();
    let whole = |head: &str, data: &[u8]| [head.as_bytes(), data].concat();
    binary(&tenant, &length.to_string(), &whole(&fp32, &[0; 16])).expect(200);
    for (length, body, words) in [
        (format!("{}", length + 17), whole(&fp32, &[0; 16]), "the body has"),
        ("18446744073709551615".to_owned(), whole(&fp32, &[0; 16]), "the body has"),
        (length.to_string(), whole(&fp32, &[0; 15]), "15 are left"),
        (length.to_string(), whole(&fp32, &[0; 17]), "1 bytes more"),
        (format!("{}", length - 1), whole(&fp32, &[0; 16]), "not as expected"),
        ("-1".to_owned(), whole(&fp32, &[0; 16]), "no length"),
        ("99999999999999999999999".to_owned(), whole(&fp32, &[0; 16]), "no length"),
        ("x".to_owned(), whole(&fp32, &[0; 16]), "no length"),
    ] {
        let said = refused(binary(&tenant, &length, &body), 400);
        assert!(said.contains(words), "{length}: {said:?} does not say {words:?}");
    }
    for (head, data, words) in [
        (head("FP32", "[1,4]", 12), vec![0; 12], "16 bytes; 12 were given"),
        (head("FP32", "[1,4]", u64::MAX), vec![0; 16], "16 are left"),
        (head("FP32", "[4611686018427387904,4]", 0), vec![], "overflows"),
        (head("BYTES", "[1]", 6), b"\x09\0\0\0ab".to_vec(), "length is 9"),
        (head("BYTES", "[1]", 6), b"\xff\xff\xff\xffab".to_vec(), "length is 4294967295"),
        (head("BYTES", "[2]", 6), b"\x02\0\0\0ab".to_vec(), "2 elements; 1 were given"),
        (head("BYTES", "[1]", 2), b"ab".to_vec(), "no whole BYTES element"),
        (head("BYTES", "[1]", 6), b"\x02\0\0\0ab".to_vec(), "is BYTES; the model takes FP32"),
        (head("BF16", "[1,4]", 8), vec![0; 8], "BF16"),
    ] {
        let said = refused(binary(&tenant, &head.len().to_string(), &whole(&head, &data)), 400);
        assert!(said.contains(words), "{head}: {said:?} does not say {words:?}");
    }
    // A raw body, without any JSON.
    binary(&tenant, "0", &[0; 32]).expect(200);
    assert!(refused(binary(&tenant, "0", &[0; 15]), 400).contains("bytes"));
    good(&tenant);
    server.still_runs();
}

fn head_of_request(tenant: &Tenant, more: &str) -> String {
    format!("POST {IRIS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n{more}\r\n", tenant.key)
}

#[test]
fn chunks_of_one_byte_are_one_body() {
    let server = Server::start();
    let tenant = iris(&server);
    let body = input(json!({})).to_string();
    let mut connection = server.connect();
    connection.send(head_of_request(&tenant, "transfer-encoding: chunked\r\n"));
    for byte in body.as_bytes() {
        connection.send([b"1\r\n", &[*byte][..], b"\r\n"].concat());
    }
    connection.send("0\r\n\r\n");
    let answer = connection.answer().expect(200);
    assert_eq!(answer.json()["model_name"], "iris");
    // The same a byte at a time with the length told, on the same connection.
    connection.send(head_of_request(&tenant, &format!("content-length: {}\r\n", body.len())));
    for byte in body.as_bytes() {
        connection.send([*byte]);
    }
    assert_eq!(connection.answer().expect(200).body, answer.body);
}

#[test]
fn a_malformed_body_is_refused_in_chunks_of_one_byte_too() {
    let mut server = Server::start();
    let tenant = iris(&server);
    let mut connection = server.connect();
    let good = input(json!({})).to_string();
    for body in ["{\"inputs\":5}".to_owned(), good[..good.len() - 1].to_owned(), good.clone() + "}"]
    {
        connection.send(head_of_request(&tenant, "transfer-encoding: chunked\r\n"));
        for byte in body.as_bytes() {
            connection.send([b"1\r\n", &[*byte][..], b"\r\n"].concat());
        }
        connection.send("0\r\n\r\n");
        assert!(refused(connection.answer(), 400).contains("not as expected"), "{body}");
    }
    // What breaks the rule of chunks itself is no request at all.
    connection.send(head_of_request(&tenant, "transfer-encoding: chunked\r\n"));
    connection.send("1\r\n{\r\nx\r\n");
    assert_eq!(connection.answer().status, 400);
    self::good(&tenant);
    server.still_runs();
}

#[test]
fn an_id_that_is_too_long_is_refused_and_not_told_again() {
    let server = Server::start();
    let tenant = iris(&server);
    let ask = |id: &str| {
        let mut question = input(json!({}));
        question["id"] = id.into();
        tenant.client.post_json(IRIS, &question)
    };
    // Every character becomes six.
    let longest = "\u{1}".repeat(4096);
    assert_eq!(ask(&longest).expect(200).json()["id"], longest);
    for length in [4097, 1 << 20] {
        let text = refused(ask(&"x".repeat(length)), 400);
        assert_eq!(text, "the id is too long: it may have 4096 bytes");
    }
}

#[test]
fn a_body_that_comes_too_slowly_is_408_wherever_it_goes() {
    let server = Server::start();
    let tenant = iris(&server);
    let paths = [
        IRIS,
        "/v2/repository/index",
        "/v2/repository/models/iris/load",
        "/v2/repository/models/iris/unload",
    ];
    let mut connections = paths.map(|path| {
        let mut connection = server.connect();
        let head = head_of_request(&tenant, "content-length: 100\r\n").replace(IRIS, path);
        connection.send(head).send("{");
        connection
    });
    for (path, connection) in paths.iter().zip(&mut connections) {
        assert!(refused(connection.answer(), 408).contains("slowly"), "{path}");
    }
}

#[test]
fn a_connection_outlives_a_request_that_was_read_and_refused() {
    let server = Server::start();
    let tenant = iris(&server);
    let mut connection = server.connect();
    let send = |connection: &mut Connection, body: &str| {
        let length = format!("content-length: {}\r\n", body.len());
        connection.send(head_of_request(&tenant, &length)).send(body);
        connection.answer()
    };
    let answer = send(&mut connection, "{}");
    assert_eq!(answer.header("connection"), None);
    refused(answer, 400);
    send(&mut connection, &input(json!({})).to_string()).expect(200);
}

#[test]
fn a_body_that_breaks_off_harms_nobody() {
    let mut server = Server::start();
    let tenant = iris(&server);
    for more in ["content-length: 500\r\n", "transfer-encoding: chunked\r\n"] {
        let mut connection = server.connect();
        connection.send(head_of_request(&tenant, more)).send("5\r\n{\"inp");
        drop(connection);
    }
    good(&tenant);
    server.still_runs();
}

/// Packs bytes with Python's zlib, which is nobody's of this repository.
fn packed(encoding: &str, expression: &str) -> Vec<u8> {
    let wbits = if encoding == "gzip" { 31 } else { 15 };
    let code = format!(
        "import sys, zlib; c = zlib.compressobj(9, zlib.DEFLATED, {wbits}); sys.stdout.buffer.write(c.compress({expression}) + c.flush())"
    );
    let output = Command::new("python3").args(["-c", &code]).output().expect("there is a python3");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn packed_bodies_are_unpacked_and_bombs_are_not() {
    let mut server = Server::start();
    let tenant = iris(&server);
    let send = |encoding: &str, body: &[u8]| {
        tenant.client.call("POST", IRIS).header("content-encoding", encoding).body(body).send()
    };
    let body = input(json!({})).to_string();
    let plain = tenant.client.call("POST", IRIS).body(&body).send().expect(200);
    for encoding in ["gzip", "deflate"] {
        let good = packed(encoding, &format!("b'''{body}'''"));
        assert_eq!(send(encoding, &good).expect(200).body, plain.body);
        assert!(refused(send(encoding, &good[..good.len() / 2]), 400).contains("cut off"));
        refused(send(encoding, body.as_bytes()), 400);
        // Zeros: the standard tier takes 16 MiB.
        let bomb = packed(encoding, "bytes(1 << 27)");
        assert!(bomb.len() < 256 << 10);
        assert!(refused(send(encoding, &bomb), 400).contains("16 MiB"));
    }
    assert!(server.memory_peak_mib() < 500, "{} MiB", server.memory_peak_mib());
    refused(send("br", body.as_bytes()), 400);
    refused(send("gzip, gzip", body.as_bytes()), 400);
    good(&tenant);
    server.still_runs();
}

#[test]
fn a_body_over_the_tenants_limit_is_refused() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    tenant.put_model("iris", &model("iris")).expect(201);
    let long = vec![b' '; (1 << 20) + 1];
    refused(tenant.client.call("POST", IRIS).body(&long).send(), 413);
    refused(tenant.client.call("POST", IRIS).chunked(&long).send(), 413);
}

/// A model whose output is 1024 times as long as its input.
pub(crate) fn wide() -> Vec<u8> {
    let graph = Onnx::default().node("MatMul", &["x", "w"], &["y"]);
    let graph = graph.input("x", FLOAT, &[Dim::Named("n"), Dim::Fixed(1)]);
    let graph = graph.output("y", FLOAT, &[Dim::Named("n"), Dim::Fixed(1024)]);
    graph.floats("w", &[1, 1024], &[1.0; 1024]).build()
}

#[test]
fn outputs_beyond_the_tier_are_refused_before_they_are_written() {
    let mut server = Server::start();
    // `free` has 8 MiB of tensors.
    let tenant = server.tenant("small", "free");
    tenant.put_model("wide", &wide()).expect(201);
    let ask = |rows: usize, binary: bool| {
        let input =
            json!({ "name": "x", "shape": [rows, 1], "datatype": "FP32", "data": vec![0; rows] });
        let body = json!({ "inputs": [input], "parameters": { "binary_data_output": binary } });
        tenant.client.post_json("/v2/models/wide/infer", &body)
    };
    let before = server.memory_peak_mib();
    for binary in [false, true] {
        let said = refused(ask(2049, binary), 413);
        assert!(said.contains("8 MiB of tensors"), "{said}");
    }
    let peak = server.memory_peak_mib();
    assert!(peak < before + 64, "the server went from {before} to {peak} MiB");
    let answer = ask(2048, true).expect(200);
    assert!(answer.body.len() > 8 << 20);
    server.still_runs();
}

#[test]
fn a_request_that_outgrows_the_nodes_budget_is_refused() {
    let server = Server::with_settings("protocol_mib = 8");
    let tenant = iris(&server);
    // A tenant has half of it, and a byte of JSON may become four of tensors.
    let long = [input(json!({})).to_string().into_bytes(), vec![b' '; 1 << 20]].concat();
    let said = refused(tenant.client.call("POST", IRIS).body(&long).send(), 413);
    assert!(said.contains("more memory than a tenant may have"), "{said}");
    good(&tenant);
}

#[test]
fn paths_and_methods_that_are_not_there_are_told_in_the_protocols_shape() {
    let server = Server::start();
    let tenant = iris(&server);
    for path in ["/v2/", "/v2/nothing", "/v2/models/iris/generate", "/v2/systemsharedmemory/status"]
    {
        if path != "/v2/" {
            refused(tenant.client.get(path), 404);
        }
    }
    for (method, path, allow) in [
        ("GET", IRIS, "POST"),
        ("PUT", "/v2/models/iris", "GET, HEAD"),
        ("POST", "/v2/health/live", "GET, HEAD"),
        ("GET", "/v2/repository/index", "POST"),
        ("DELETE", "/v2/logging", "GET, HEAD, POST"),
    ] {
        let answer = tenant.client.call(method, path).send();
        assert_eq!(answer.header("allow"), Some(allow), "{method} {path}");
        refused(answer, 405);
    }
    for path in ["/v2/models/..%2Fx", "/v2/models/%00", "/v2/models/a%20b", "/v2/models/@1"] {
        refused(tenant.client.get(path), 400);
    }
    refused(tenant.client.get("/v2/models/nobody"), 404);
    refused(tenant.client.get("/v2/models/nobody/ready"), 404);
    refused(tenant.client.post_json("/v2/models/nobody/infer", &input(json!({}))), 404);
    refused(tenant.client.get(&format!("/v2/models/{}", "a".repeat(5_000))), 400);
}

#[test]
fn an_answer_that_json_cannot_say_is_told_so() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("same", &model("identity-fp32.onnx")).expect(201);
    let about = tenant.client.get("/v2/models/same").expect(200).json();
    let sizes = about["inputs"][0]["shape"].as_array().unwrap().iter();
    let shape: Vec<i64> = sizes.map(|size| size.as_i64().unwrap().max(1)).collect();
    let count = shape.iter().product::<i64>() as usize;
    let ask = |number: f32, binary: bool| {
        let head = json!({
            "parameters": { "binary_data_output": binary },
            "inputs": [{ "name": about["inputs"][0]["name"], "datatype": "FP32", "shape": shape,
                "parameters": { "binary_data_size": count * 4 } }],
        });
        let head = head.to_string();
        let data = number.to_le_bytes().repeat(count);
        let call = tenant.client.call("POST", "/v2/models/same/infer");
        let call = call.header("inference-header-content-length", &head.len().to_string());
        call.body([head.as_bytes(), &data].concat()).send()
    };
    assert!(ask(f32::NAN, false).expect(200).json()["outputs"][0]["data"][0].is_null());
    assert!(refused(ask(f32::INFINITY, false), 400).contains("binary_data"));
    let answer = ask(f32::INFINITY, true).expect(200);
    assert!(answer.body.ends_with(&f32::INFINITY.to_le_bytes().repeat(count)));
}

#[test]
fn a_deadline_that_passes_is_told_and_the_model_goes_on() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    let about = tenant.client.get("/v2/models/slow").expect(200).json();
    let input = &about["inputs"][0];
    let shape: Vec<i64> =
        input["shape"].as_array().unwrap().iter().map(|n| n.as_i64().unwrap().max(1)).collect();
    let data = vec![0; shape.iter().product::<i64>() as usize];
    let body = |timeout: Duration| {
        json!({ "parameters": { "timeout": timeout.as_micros() as u64 },
            "inputs": [{ "name": input["name"], "datatype": input["datatype"], "shape": shape, "data": data }] })
    };
    let path = "/v2/models/slow/infer";
    let answer = tenant.client.post_json(path, &body(Duration::from_millis(1)));
    assert!([503, 504].contains(&answer.status), "{answer:?}");
    let status = answer.status;
    assert!(refused(answer, status).contains("deadline"));
    tenant.client.post_json(path, &body(Duration::from_secs(60))).expect(200);
    server.still_runs();
}

#[test]
fn an_index_beyond_the_model_is_the_callers_fault() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("gather", &model("gather.onnx")).expect(201);
    let rows = |index: i64| {
        let input =
            json!({ "name": "indices", "shape": [1], "datatype": "INT64", "data": [index] });
        tenant.client.post_json("/v2/models/gather/infer", &json!({ "inputs": [input] }))
    };
    // More in a row than panics may be: nothing of it counts against the model.
    for index in [16, -17, 999_999, 1 << 40] {
        let said = refused(rows(index), 400);
        assert!(said.contains("an index that is out of its range"), "{said}");
        assert!(said.contains("Gather") && !said.contains(&index.to_string()), "{said}");
    }
    assert_eq!(rows(2).expect(200).json()["outputs"][0]["data"], json!([20.0, 21.0, 22.0, 23.0]));
    let about = tenant.client.get("/api/v1/models/gather").expect(200).json();
    assert_eq!(about["state"], "ready");
    server.still_runs();
}
