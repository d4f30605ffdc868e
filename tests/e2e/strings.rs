//! Models with strings at their edges: labels that come out, and categories that go in, over REST. The corpus is asked
//! over gRPC and through a guest beside all other models, in `grpc` and `models`.

use std::thread;

use sandpiper_tests::{Answer, Server, Tenant, model, multipart, onnx};
use serde_json::{Value, json};

use crate::{models::corpus, oip::refused};

fn tenant(server: &Server) -> Tenant {
    server.tenant("acme", "dedicated")
}

fn ask(tenant: &Tenant, name: &str, request: &Value) -> Answer {
    tenant.client.post_json(&format!("/v2/models/{name}/infer"), request)
}

fn inputs(case: &Value) -> Vec<Value> {
    let input = |(name, spec): (&String, &Value)| json!({ "name": name, "datatype": spec["datatype"], "shape": spec["shape"], "data": spec["data"] });
    case["inputs"].as_object().unwrap().iter().map(input).collect()
}

fn check(what: &str, output: &Value, spec: &Value) {
    assert_eq!(output["datatype"], spec["datatype"], "{what}");
    assert_eq!(output["shape"], spec["shape"], "{what}");
    if output["datatype"] != "FP32" {
        assert_eq!(output["data"], spec["data"], "{what}");
        return;
    }
    let (ours, theirs) = (output["data"].as_array().unwrap(), spec["data"].as_array().unwrap());
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (ours, theirs) in ours.iter().zip(theirs) {
        let (ours, theirs) = (ours.as_f64().unwrap(), theirs.as_f64().unwrap());
        assert!((ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0), "{what}: {ours} {theirs}");
    }
}

/// Strings as tensors have them.
fn encoded(texts: &[&[u8]]) -> Vec<u8> {
    texts.iter().flat_map(|text| [&(text.len() as u32).to_le_bytes(), *text].concat()).collect()
}

#[test]
fn labels_and_categories_are_those_of_onnxruntime() {
    let server = Server::start();
    let tenant = tenant(&server);
    let (mut answered, mut failed) = (0, 0);
    let all = corpus();
    let files = all.iter().filter(|entry| entry["loads"] == true);
    for entry in files.filter(|entry| entry["file"].as_str().unwrap().starts_with("strings-")) {
        let file = entry["file"].as_str().unwrap();
        tenant.put_model("strings", &model(file)).expect(201);
        for (index, case) in entry["cases"].as_array().unwrap().iter().enumerate() {
            let what = format!("{file}, case {index}");
            let answer = ask(&tenant, "strings", &json!({ "inputs": inputs(case) }));
            if case["error"] == true {
                assert!(refused(answer, 400).contains("index"), "{what}");
                failed += 1;
                continue;
            }
            let json = answer.expect(200).json();
            for output in json["outputs"].as_array().unwrap() {
                check(&what, output, &case["outputs"][output["name"].as_str().unwrap()]);
            }
            answered += 1;
        }
    }
    assert!(answered > 50 && failed == 2, "{answered} answered, {failed} failed");
}

#[test]
fn a_model_says_that_it_has_strings() {
    let server = Server::start();
    let tenant = tenant(&server);
    let version = tenant.put_model("colours", &model("strings-one-hot.onnx")).expect(201).json();
    assert_eq!(version["inputs"], json!([{ "name": "x", "datatype": "BYTES", "shape": [-1, 2] }]));
    let get = |path: &str| tenant.client.get(path).expect(200).json();
    let metadata = get("/v2/models/colours");
    assert_eq!(metadata["inputs"], version["inputs"]);
    let outputs = json!([
        { "name": "output_label", "datatype": "BYTES", "shape": [-1] },
        { "name": "output_probability", "datatype": "FP32", "shape": [-1, 2] },
    ]);
    assert_eq!(metadata["outputs"], outputs);
    assert_eq!(get("/api/v1/models/colours/versions/1")["outputs"], outputs);
    let config = get("/v2/models/colours/config");
    assert_eq!(config["input"][0]["data_type"], "TYPE_STRING", "{config}");
    assert_eq!(config["output"][0]["data_type"], "TYPE_STRING", "{config}");
}

#[test]
fn strings_travel_as_binary_data_both_ways() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.put_model("colours", &model("strings-one-hot.onnx")).expect(201);
    let send = |shape: Value, data: &[u8]| {
        let head = json!({
            "parameters": { "binary_data_output": true },
            "inputs": [{ "name": "x", "shape": shape, "datatype": "BYTES",
                "parameters": { "binary_data_size": data.len() } }],
            "outputs": [{ "name": "output_label" }],
        });
        let head = head.to_string();
        let call = tenant.client.call("POST", "/v2/models/colours/infer");
        let call = call.header("inference-header-content-length", &head.len().to_string());
        call.body([head.as_bytes(), data].concat()).send()
    };
    let rows = encoded(&[b"red", b"s", b"blue", "grün".as_bytes(), b"\xff\0", b""]);
    let answer = send(json!([3, 2]), &rows).expect(200);
    let length = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (head, data) = answer.body.split_at(length);
    let labels = encoded(&[b"warm", b"cold", b"cold"]);
    assert_eq!(data, labels);
    let head: Value = serde_json::from_slice(head).unwrap();
    let output = json!({ "name": "output_label", "datatype": "BYTES", "shape": [3],
        "parameters": { "binary_data_size": labels.len() } });
    assert_eq!(head["outputs"], json!([output]));
    for (shape, data, words) in [
        (json!([3, 2]), &rows[..7], "6 elements; 1 were given"),
        (json!([3, 2]), &rows[..9], "no whole BYTES element"),
        (json!([1, 2]), &rows[..], "2 elements; 6 were given"),
        (json!([6]), &rows[..], "the model takes [-1, 2]"),
        (json!([1, 2]), b"\x09\0\0\0red", "length is 9"),
    ] {
        let said = refused(send(shape, data), 400);
        assert!(said.contains(words), "{said:?} does not say {words:?}");
    }
    let raw = tenant.client.call("POST", "/v2/models/colours/infer");
    let raw = raw.header("inference-header-content-length", "0").body(rows).send();
    assert!(refused(raw, 400).contains("cannot be BYTES"));
}

#[test]
fn what_is_no_string_is_no_category() {
    let server = Server::start();
    let tenant = tenant(&server);
    tenant.put_model("colours", &model("strings-one-hot.onnx")).expect(201);
    for (datatype, data, words) in [
        ("BYTES", r#"["red", 1]"#, "element 1 is a number"),
        ("BYTES", r#"["red", null]"#, "element 1 is null"),
        ("BYTES", r#"["red", "\ud800"]"#, "no Unicode"),
        ("BYTES", r#"["red"]"#, "2 elements; 1 were given"),
        ("BYTES", r#"["red", "s", "s"]"#, "more were given"),
        ("INT64", "[1, 2]", "is INT64; the model takes BYTES"),
    ] {
        let text = format!(
            r#"{{"inputs": [{{"name": "x", "shape": [1, 2], "datatype": "{datatype}", "data": {data}}}]}}"#
        );
        let call = tenant.client.call("POST", "/v2/models/colours/infer");
        let said = refused(call.body(text.into_bytes()).send(), 400);
        assert!(said.contains(words), "{data}: {said:?} does not say {words:?}");
        assert!(!said.contains("red"), "{said}");
    }
    // Escapes are read: this is `red` and `s`.
    let data = json!([["red", "s"]]).to_string().replace("red", r"r\u0065d");
    let text = format!(
        r#"{{"inputs": [{{"name": "x", "shape": [1, 2], "datatype": "BYTES", "data": {data}}}]}}"#
    );
    let call = tenant.client.call("POST", "/v2/models/colours/infer");
    let json = call.body(text.into_bytes()).send().expect(200).json();
    assert_eq!(json["outputs"][0]["data"], json!(["warm"]));
}

fn places(places: &[i64]) -> Value {
    json!({ "inputs": [{ "name": "x", "shape": [places.len()], "datatype": "INT64", "data": places }] })
}

#[test]
fn a_string_that_json_cannot_say_is_asked_for_in_bytes() {
    let server = Server::start();
    let tenant = tenant(&server);
    let texts: [&[u8]; 3] = ["\"grün\"\n\u{1}".as_bytes(), b"\xff\0", b""];
    tenant.put_model("texts", &onnx::texts(&texts)).expect(201);
    let json = ask(&tenant, "texts", &places(&[2, 0, -1])).expect(200).json();
    assert_eq!(json["outputs"][0]["data"], json!(["", "\"grün\"\n\u{1}", ""]));
    let said = refused(ask(&tenant, "texts", &places(&[0, 1])), 400);
    assert!(said.contains("`y` holds a string that is no UTF-8") && said.contains("binary_data"));
    let mut request = places(&[1, 0]);
    request["parameters"] = json!({ "binary_data_output": true });
    let answer = ask(&tenant, "texts", &request).expect(200);
    assert!(answer.body.ends_with(&encoded(&[texts[1], texts[0]])));
    assert!(refused(ask(&tenant, "texts", &places(&[3])), 400).contains("index"));
}

#[test]
fn callers_who_meet_in_a_batch_get_their_own_strings() {
    let server = Server::with_settings("inference_threads = 1");
    let tenant = tenant(&server);
    let texts: Vec<Vec<u8>> = (0..16).map(|length| vec![b'a' + length; length.into()]).collect();
    let texts: Vec<&[u8]> = texts.iter().map(Vec::as_slice).collect();
    let path = "/api/v1/models/texts?max_delay_us=2000&cache=true";
    tenant.client.put(path, onnx::texts(&texts)).expect(201);
    let said = |place: i64| String::from_utf8(texts[place as usize].to_vec()).unwrap();
    thread::scope(|scope| {
        for caller in 0..8i64 {
            let (tenant, said) = (&tenant, &said);
            scope.spawn(move || {
                for round in 0..25 {
                    let (one, two) = ((caller * 7 + round) % 16, (caller + round * 3) % 16);
                    let json = ask(tenant, "texts", &places(&[one, two])).expect(200).json();
                    assert_eq!(json["outputs"][0]["data"], json!([said(one), said(two)]));
                }
            });
        }
    });
    let stats = tenant.client.get("/v2/models/texts/stats").expect(200).json();
    let stats = &stats["model_stats"][0]["inference_stats"];
    assert!(stats["cache_hit"]["count"].as_u64().unwrap() > 0, "{stats}");
}

#[test]
fn long_strings_count_against_the_tenants_tensors() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    let text = vec![b'x'; 1 << 20];
    tenant.put_model("texts", &onnx::texts(&[&text])).expect(201);
    let mut request = places(&[0, 0]);
    let json = ask(&tenant, "texts", &request).expect(200).json();
    assert_eq!(json["outputs"][0]["data"][1].as_str().unwrap().len(), text.len());
    request = places(&[0; 600]);
    assert!(refused(ask(&tenant, "texts", &request), 413).contains("tier allows"));
    request = places(&[0; 1100]);
    let said = refused(ask(&tenant, "texts", &request), 413);
    assert!(said.contains("strings of the outputs would take more than 1 GiB"), "{said}");
    server.still_runs();
}

#[test]
fn samples_of_strings_are_run_when_a_model_is_deployed() {
    let server = Server::start();
    let tenant = tenant(&server);
    let samples = |data: Value| {
        let input = json!({ "name": "x", "shape": [1, 2], "datatype": "BYTES", "data": data });
        let samples = json!([{ "inputs": [input] }]).to_string().into_bytes();
        let file = model("strings-one-hot-strict.onnx");
        let (kind, body) = multipart(&[("model", &file), ("samples", &samples)]);
        let call = tenant.client.call("PUT", "/api/v1/models/colours");
        call.header("content-type", &kind).body(body).send()
    };
    samples(json!(["red", "s"])).expect(201);
    let refused = samples(json!(["red", "xl"])).expect(422);
    assert_eq!(refused.json()["error"]["code"], "invalid_sample", "{refused:?}");
}
