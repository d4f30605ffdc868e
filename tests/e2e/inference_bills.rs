//! Inference is paid for, whether anybody has use for its answer or not.

use std::{thread, time::Duration};

use sandpiper_tests::{
    Server, Tenant, guest,
    onnx::{Dim, FLOAT, Onnx},
    until,
};
use serde_json::{Value, json};

use crate::oip::refused;

/// What was used: requests, and microseconds of inference.
fn used(tenant: &Tenant) -> (u64, u64) {
    let total = &tenant.client.get("/api/v1/usage").expect(200).json()["total"];
    (total["requests"].as_u64().unwrap(), total["inference_us"].as_u64().unwrap())
}

/// A vector as long as `n` says, through sixty steps: what it takes depends on the value of `n`.
fn steps() -> Vec<u8> {
    const STEPS: usize = 60;
    let mut file = Onnx::default().node("Range", &["zero", "n", "one"], &["v0"]);
    for step in 0..STEPS {
        file = file.node("Tanh", &[&format!("v{step}")], &[&format!("v{}", step + 1)]);
    }
    file.node("ReduceSum", &[&format!("v{STEPS}")], &["y"])
        .floats("zero", &[], &[0.])
        .floats("one", &[], &[1.])
        .input("n", FLOAT, &[])
        .output("y", FLOAT, &[Dim::Fixed(1)])
        .build()
}

fn question(n: u64, parameters: &Value) -> Value {
    let input = json!({ "name": "n", "shape": [], "datatype": "FP32", "data": [n] });
    json!({ "inputs": [input], "parameters": parameters })
}

#[test]
fn inference_that_is_late_or_given_up_is_billed() {
    const MANY: u64 = 20_000_000;
    const PATH: &str = "/v2/models/steps/infer";
    let mut server = Server::with_settings("inference_threads = 1");
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("steps", &steps()).expect(201);
    assert_eq!(used(&tenant), (0, 0));
    // What is turned away before anything runs is not billed.
    let past = question(1, &json!({ "timeout": 1 }));
    assert!(tenant.client.post_json(PATH, &past).status >= 400);
    assert_eq!(used(&tenant).1, 0);
    let (requests, _) = used(&tenant);
    tenant.client.post_json(PATH, &question(1000, &json!({}))).expect(200);
    let (one, short) = used(&tenant);
    assert!(one == requests + 1 && short > 0);
    let late = question(MANY, &json!({ "timeout": 300_000 }));
    refused(tenant.client.post_json(PATH, &late), 504);
    let (two, cut) = until("what ran is billed", || {
        Some(used(&tenant)).filter(|(_, computed)| *computed > short + 50_000)
    });
    assert_eq!(two, one + 1);
    // A client that leaves pays as well.
    let body = question(MANY, &json!({})).to_string();
    let mut connection = server.connect();
    connection.send(format!(
        "POST {PATH} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        tenant.key,
        body.len()
    ));
    let running = || server.metrics().sum("sandpiper_running", &[]);
    until("it runs", || (running() == 1.0).then_some(()));
    thread::sleep(Duration::from_millis(200));
    drop(connection);
    until("what ran is billed", || {
        let (requests, computed) = used(&tenant);
        (requests == two + 1 && computed > cut + 50_000).then_some(())
    });
    // Once, and no more.
    let all = used(&tenant);
    tenant.client.post_json(PATH, &question(1000, &json!({}))).expect(200);
    let (requests, computed) = used(&tenant);
    assert!(requests == all.0 + 1 && computed < all.1 + 50_000, "{all:?} {computed}");
    server.still_runs();
}

#[test]
fn inference_that_outlives_its_function_is_billed() {
    const SIDE: u64 = 1024;
    let mut server = Server::with_settings("inference_threads = 1");
    let tenant = server.tenant("acme", "dedicated");
    // One row takes no time; thousands take much more than the function has.
    let mut file = Onnx::default();
    for step in 0..100 {
        let from = if step == 0 { "x".to_owned() } else { format!("v{step}") };
        let to = if step == 99 { "y".to_owned() } else { format!("v{}", step + 1) };
        file = file.node("MatMul", &[&from, "w"], &[&to]);
    }
    let shape = [Dim::Named("N"), Dim::Fixed(SIDE)];
    let file = file
        .floats("w", &[SIDE, SIDE], &vec![0.001; (SIDE * SIDE) as usize])
        .input("x", FLOAT, &shape)
        .output("y", FLOAT, &shape)
        .build();
    tenant.put_model("long", &file).expect(201);
    tenant.put_function("m", &guest("misbehave"), "[limits]\nwall_ms = 2000").expect(201);
    let path = "/slow-infer?model=long&input=x&shape=4000,1024";
    let answer = tenant.invoke("m", path);
    let is_late = answer.status == 504 || answer.json()["error_code"].is_string();
    assert!(is_late, "{answer:?}");
    until("what ran is billed", || {
        let (requests, computed) = used(&tenant);
        (requests == 1 && computed > 100_000).then_some(())
    });
    server.still_runs();
}
