//! The corpus of small models: what loads answers as onnxruntime does, through a guest, and what cannot be is refused.

use std::collections::BTreeMap;

use sandpiper_tests::{Answer, Server, Tenant, expected, model, read};
use serde_json::{Value, json};

pub(crate) fn corpus() -> Vec<Value> {
    let all: Value = serde_json::from_slice(&read(expected("models/expected.json"))).unwrap();
    all["models"].as_array().unwrap().clone()
}

fn tenant(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("infer", "");
    tenant
}

/// The type of `wasi:nn` that carries one of the Open Inference Protocol.
fn carrier(datatype: &str) -> &'static str {
    match datatype {
        "FP16" => "FP16",
        "FP32" => "FP32",
        "FP64" => "FP64",
        "BOOL" | "UINT8" | "BYTES" => "U8",
        "INT8" | "INT16" | "UINT16" | "INT32" => "I32",
        "UINT32" | "UINT64" | "INT64" => "I64",
        other => panic!("{other}"),
    }
}

fn bytes_of(datatype: &str, value: &Value) -> Vec<u8> {
    let float = || value.as_f64().unwrap();
    let integer = || -> i128 {
        value.as_i64().map(i128::from).or(value.as_u64().map(i128::from)).unwrap_or_else(|| {
            i128::from(value.as_bool().unwrap_or_else(|| panic!("no number: {value}")))
        })
    };
    if datatype == "BYTES" {
        let text = value.as_str().unwrap();
        return [&(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    }
    match carrier(datatype) {
        "FP16" => half(float()).to_le_bytes().to_vec(),
        "FP32" => (float() as f32).to_le_bytes().to_vec(),
        "FP64" => float().to_le_bytes().to_vec(),
        "U8" => vec![integer() as u8],
        "I32" => (integer() as i32).to_le_bytes().to_vec(),
        _ => (integer() as i64).to_le_bytes().to_vec(),
    }
}

/// The bits of the 16-bit float nearest to `value`, which is one of them but for the last bits of a `f64`.
pub(crate) fn half(value: f64) -> u16 {
    let sign = if value.is_sign_negative() { 0x8000 } else { 0 };
    let magnitude = value.abs();
    // All finite halves are in order of their bits.
    let of = |bits: u16| {
        let (exponent, fraction) = (i32::from(bits >> 10), f64::from(bits & 0x3ff));
        match exponent {
            0 => fraction * 2f64.powi(-24),
            _ => (1.0 + fraction / 1024.0) * 2f64.powi(exponent - 15),
        }
    };
    let above = (0..0x7c00).find(|bits| of(*bits) >= magnitude).expect("no infinity here");
    let below = above.max(1) - 1;
    let nearest = if of(above) - magnitude <= magnitude - of(below) { above } else { below };
    sign | if magnitude == 0.0 { 0 } else { nearest }
}

fn tensor(name: &str, spec: &Value) -> Value {
    let datatype = spec["datatype"].as_str().unwrap();
    let data = spec["data"].as_array().unwrap();
    let bytes: Vec<u8> = data.iter().flat_map(|value| bytes_of(datatype, value)).collect();
    // Strings travel as the bytes that they are.
    let dims = if datatype == "BYTES" { json!([bytes.len()]) } else { spec["shape"].clone() };
    json!({ "name": name, "type": carrier(datatype), "dims": dims, "bytes": bytes })
}

fn infer(tenant: &Tenant, model: &str, inputs: &Value) -> Answer {
    let inputs: Vec<Value> =
        inputs.as_object().unwrap().iter().map(|(name, spec)| tensor(name, spec)).collect();
    let question = json!({ "model": model, "inputs": inputs });
    tenant.call("POST", "infer", "/").json(&question).send()
}

fn floats(ty: &str, bytes: &Value) -> Vec<f64> {
    let bytes: Vec<u8> =
        bytes.as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8).collect();
    match ty {
        "FP32" => {
            bytes.chunks(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
        }
        _ => bytes.chunks(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect(),
    }
}

fn check_output(what: &str, ours: &Value, spec: &Value) {
    let name = ours["name"].as_str().unwrap();
    let theirs = tensor(name, spec);
    assert_eq!(ours["type"], theirs["type"], "{what}, {name}");
    assert_eq!(ours["dims"], theirs["dims"], "{what}, {name}");
    let ty = theirs["type"].as_str().unwrap();
    if !["FP32", "FP64"].contains(&ty) {
        assert_eq!(ours["bytes"], theirs["bytes"], "{what}, {name}");
        return;
    }
    let (ours, theirs) = (floats(ty, &ours["bytes"]), floats(ty, &theirs["bytes"]));
    assert_eq!(ours.len(), theirs.len(), "{what}, {name}");
    for (ours, theirs) in ours.iter().zip(&theirs) {
        let close = (ours - theirs).abs() <= 1e-5 * theirs.abs().max(1.0);
        assert!(close, "{what}, {name}: {ours}, not {theirs}");
    }
}

/// Whether onnxruntime's answer can pass through `wasi:nn` at all: unsigned 64 bits beyond the signed ones cannot.
fn passes(case: &Value) -> bool {
    let fits = |tensors: &Value| {
        let tensors = tensors.as_object().into_iter().flatten();
        tensors
            .flat_map(|(_, spec)| spec["data"].as_array().unwrap())
            .all(|value| value.as_u64().is_none_or(|value| i64::try_from(value).is_ok()))
    };
    fits(&case["inputs"]) && fits(&case["outputs"])
}

fn run_cases(tenant: &Tenant, file: &str, name: &str, cases: &[Value]) {
    for (index, case) in cases.iter().enumerate() {
        let what = format!("{file}, case {index}");
        if !passes(case) {
            continue;
        }
        let answer = infer(tenant, name, &case["inputs"]);
        if case["error"] == true {
            // The guest's own words: the model refused, and the sandbox went on.
            assert_eq!(answer.status, 502, "{what}: {answer:?}");
            let json = answer.json();
            let code = json["error"]["code"].as_str().unwrap();
            assert!(["model_failed", "model_invalid_argument"].contains(&code), "{what}: {json}");
            // A call that ends well in between: three bad ones in a row would put the model in quarantine.
            let good = cases.iter().find(|case| case["error"] != true).expect("a good case");
            infer(tenant, name, &good["inputs"]).expect(200);
            continue;
        }
        let outputs = answer.expect(200).json();
        let outputs = outputs["outputs"].as_array().unwrap();
        let specs = case["outputs"].as_object().unwrap();
        assert_eq!(outputs.len(), specs.len(), "{what}");
        for output in outputs {
            check_output(&what, output, &specs[output["name"].as_str().unwrap()]);
        }
    }
}

#[test]
fn every_model_that_loads_answers_as_onnxruntime_does() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    let mut failures = Vec::new();
    for entry in corpus().iter().filter(|entry| entry["loads"] == true) {
        let file = entry["file"].as_str().unwrap();
        if file == "slow.onnx" {
            continue; // It is for those who leave before the answer.
        }
        let name = file.trim_end_matches(".onnx");
        let put = tenant.put_model(name, &model(file));
        if put.status != 201 {
            failures.push(format!("{file} is refused: {}", put.text()));
            continue;
        }
        check_signature(file, &put.json(), entry);
        run_cases(&tenant, file, name, entry["cases"].as_array().unwrap());
    }
    assert!(failures.is_empty(), "{failures:#?}");
    server.still_runs();
}

fn check_signature(file: &str, version: &Value, entry: &Value) {
    let shape = |dims: &Value| -> Vec<i64> {
        dims.as_array().unwrap().iter().map(|dim| dim.as_i64().unwrap_or(-1)).collect()
    };
    for side in ["inputs", "outputs"] {
        let (ours, theirs) = (version[side].as_array().unwrap(), entry[side].as_array().unwrap());
        assert_eq!(ours.len(), theirs.len(), "{file}: {side}");
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(ours["name"], theirs["name"], "{file}: {side}");
            assert_eq!(ours["datatype"], theirs["datatype"], "{file}: {side}");
            if side == "inputs" {
                assert_eq!(shape(&ours["shape"]), shape(&theirs["shape"]), "{file}: {side}");
            }
        }
    }
}

#[test]
fn labels_come_out_as_int64() {
    let server = Server::start();
    let tenant = tenant(&server);
    for file in ["argmax-labels.onnx", "argmax.onnx", "shape-output.onnx"] {
        let version = tenant.put_model("labels", &model(file)).expect(201).json();
        assert_eq!(version["outputs"][0]["datatype"], "INT64", "{file}");
    }
}

#[test]
fn every_model_that_cannot_be_is_refused() {
    let codes: BTreeMap<&str, &str> = [
        ("unsupported-unique.onnx", "unsupported_operator"),
        ("unsupported-use.onnx", "unsupported_variant"),
        ("unsupported-roialign.onnx", "unsupported_operator"),
        ("unsupported-contrib.onnx", "unsupported_operator"),
        ("strings-passed.onnx", "unsupported_type"),
        ("strings-compared.onnx", "unsupported_variant"),
        ("strings-cast.onnx", "unsupported_variant"),
        ("strings-folded.onnx", "unsupported_operator"),
        ("strings-made.onnx", "unsupported_variant"),
        ("unsupported-domain.onnx", "unsupported_operator"),
        ("string-identity.onnx", "unsupported_type"),
        ("external-parent.onnx", "external_data"),
        ("external-absolute.onnx", "external_data"),
        ("external-beside.onnx", "external_data"),
        ("truncated.onnx", "truncated_model"),
        ("truncated-end.onnx", "truncated_model"),
        ("empty.onnx", "empty_upload"),
        ("text.onnx", "not_onnx"),
        ("noise.onnx", "not_onnx"),
    ]
    .into();
    let mut server = Server::start();
    let tenant = tenant(&server);
    let blobs = server.blobs();
    let mut failures = Vec::new();
    for entry in corpus().iter().filter(|entry| entry["loads"] == false) {
        let file = entry["file"].as_str().unwrap();
        let answer = tenant.put_model("bad", &model(file));
        let code = answer.header("x-sandpiper-error").unwrap_or_default().to_owned();
        let wanted = codes.get(file).copied();
        if answer.status != 422 || wanted.is_some_and(|wanted| wanted != code) {
            failures.push(format!(
                "{file} ({}): {} {}",
                entry["about"],
                answer.status,
                answer.text()
            ));
        }
        server.still_runs();
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert_eq!(server.blobs(), blobs, "a refused model left something behind");
    tenant.client.get("/api/v1/models/bad").refused(404, "not_found");
}

#[test]
fn a_model_that_may_be_refused_is_right_where_it_is_not() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    for entry in corpus().iter().filter(|entry| entry["loads"].is_null()) {
        let file = entry["file"].as_str().unwrap();
        let name = file.trim_end_matches(".onnx");
        let answer = tenant.put_model(name, &model(file));
        match answer.status {
            201 => run_cases(&tenant, file, name, entry["cases"].as_array().unwrap()),
            _ => drop(answer.expect(422)),
        }
        server.still_runs();
    }
}

#[test]
fn a_memory_bomb_in_a_model_is_refused_before_it_goes_off() {
    let mut server = Server::start();
    let tenant = tenant(&server);
    for file in ["bomb-memory.onnx", "bomb-negative.onnx"] {
        let answer = tenant.put_model("bomb", &model(file)).expect(422);
        assert!(answer.header("x-sandpiper-error").is_some(), "{answer:?}");
        server.still_runs();
    }
    tenant.client.get("/api/v1/models/bomb").refused(404, "not_found");
    let peak = server.memory_peak_mib();
    assert!(peak < 2048, "the server took {peak} MiB");
}

#[test]
fn a_model_loads_once_for_all_who_use_it() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let component = sandpiper_tests::guest("infer");
    let inputs = json!({ "x": { "datatype": "FP32", "shape": [1, 3], "data": [0, 1, 2] } });
    for name in ["first", "second"] {
        tenant.put_function(name, &component, "").expect(201);
        for _ in 0..3 {
            let inputs: Vec<Value> =
                inputs.as_object().unwrap().iter().map(|(name, spec)| tensor(name, spec)).collect();
            let question = json!({ "model": "mul-add", "inputs": inputs });
            tenant.call("POST", name, "/").json(&question).send().expect(200);
        }
    }
    assert_eq!(server.metrics().sum("sandpiper_models_loaded", &[]), 1.0);
}
