//! Models on the node's compute threads, as functions and the API see them: batches, quarantine, and full queues.

use std::thread;

use sandpiper_tests::{Answer, Server, Tenant, guest, model, onnx::brittle, until};
use serde_json::{Value, json};

fn tenant(server: &Server, name: &str) -> Tenant {
    let tenant = server.tenant(name, "dedicated");
    tenant.deploy("infer", "");
    tenant
}

/// Asks the gather model, which has 16 rows, for one of them.
fn gather(tenant: &Tenant, name: &str, index: i64) -> Answer {
    let bytes = index.to_le_bytes();
    let input = json!({ "name": "indices", "type": "I64", "dims": [1], "bytes": bytes });
    let question = json!({ "model": name, "inputs": [input] });
    tenant.call("POST", "infer", "/").json(&question).send()
}

fn show(tenant: &Tenant, name: &str) -> Value {
    tenant.client.get(&format!("/api/v1/models/{name}")).expect(200).json()
}

#[test]
fn a_model_shows_what_is_in_it_and_what_batches_take() {
    let server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("digits", &model("digits")).expect(201);
    let shown = show(&tenant, "digits");
    assert_eq!(shown["state"], "ready");
    assert!(shown["operators"].as_object().is_some_and(|operators| !operators.is_empty()));
    assert!(
        shown["parameters"].as_u64().unwrap() > 0 && shown["memory_bytes"].as_u64().unwrap() > 0
    );
    let sizes: Vec<u64> = shown["batching"]["curve"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["size"].as_u64().unwrap())
        .collect();
    // How far it gets in its time depends on how busy the machine is.
    assert!(sizes.len() > 1 && [1, 2, 4, 8, 16, 32].starts_with(&sizes), "{sizes:?}");
    assert!(shown["batching"]["curve"][0]["us"].as_f64().unwrap() > 0.0);
    assert_eq!(shown["batching"]["sizes"][0], 1);
    // A model whose first axis is fixed says why it is not batched.
    tenant.put_model("slow", &model("slow.onnx")).expect(201);
    let batching = show(&tenant, "slow")["batching"].clone();
    assert_eq!(batching["sizes"], json!([1]));
    assert_eq!(batching["reason"], "axis 0 of an input has a fixed size");
    let version = tenant.client.get("/api/v1/models/digits/versions/1").expect(200).json();
    assert_eq!(version["batching"], shown["batching"]);
}

#[test]
fn many_callers_of_a_shared_model_get_their_own_rows() {
    let server = Server::with_settings("inference_threads = 1");
    let (acme, beta) = (tenant(&server, "acme"), tenant(&server, "beta"));
    acme.put_model("gather", &model("gather.onnx")).expect(201);
    acme.client
        .put_json("/api/v1/models/gather/grants", &json!({ "tenants": ["beta"] }))
        .expect(200);
    let expected: Vec<Value> = (0..16).map(|row| outputs(&gather(&acme, "gather", row))).collect();
    assert!(expected.windows(2).all(|pair| pair[0] != pair[1]));
    thread::scope(|scope| {
        for caller in 0..8 {
            let (acme, beta, expected) = (&acme, &beta, &expected);
            scope.spawn(move || {
                for round in 0..25 {
                    let row = (caller * 7 + round) % 16;
                    let answer = match caller % 2 {
                        0 => gather(acme, "gather", row),
                        _ => gather(beta, "acme/gather", row),
                    };
                    assert_eq!(outputs(&answer), expected[row as usize]);
                }
            });
        }
    });
}

fn outputs(answer: &Answer) -> Value {
    answer.clone().expect(200).json()["outputs"].clone()
}

#[test]
fn a_model_that_panics_three_times_in_a_row_is_failed_until_a_new_version_comes() {
    let mut server = Server::start();
    let acme = tenant(&server, "acme");
    acme.put_model("gather", &brittle()).expect(201);
    acme.put_model("other", &brittle()).expect(201);
    for _ in 0..3 {
        assert_eq!(gather(&acme, "gather", 999).status, 502);
    }
    let refused = gather(&acme, "gather", 3).expect(503);
    assert_eq!(refused.json()["error"]["code"], "model_unavailable");
    assert!(refused.message().starts_with("unavailable: "), "{refused:?}");
    let shown = show(&acme, "gather");
    assert_eq!(shown["state"], "failed");
    assert!(shown["reason"].as_str().unwrap().contains("Pow"), "{shown}");
    // Its neighbour is of the same bytes and none the worse.
    gather(&acme, "other", 3).expect(200);
    assert_eq!(show(&acme, "other")["state"], "ready");
    acme.put_model("gather", &model("iris")).expect(201);
    acme.put_model("gather", &brittle()).expect(201);
    assert_eq!(show(&acme, "gather")["state"], "ready");
    gather(&acme, "gather", 3).expect(200);
    server.still_runs();
}

#[test]
fn a_guest_of_a_model_closes_it_to_itself_alone() {
    let server = Server::start();
    let (acme, beta) = (tenant(&server, "acme"), tenant(&server, "beta"));
    acme.put_model("gather", &brittle()).expect(201);
    acme.client.put_json("/api/v1/models/gather/grants", &json!({ "tenants": "*" })).expect(200);
    for _ in 0..3 {
        assert_eq!(gather(&beta, "acme/gather", 999).status, 502);
        gather(&acme, "gather", 3).expect(200);
    }
    gather(&beta, "acme/gather", 3).expect(503);
    gather(&acme, "gather", 3).expect(200);
    assert_eq!(show(&acme, "gather")["state"], "ready");
}

#[test]
fn a_grant_says_whether_calls_share_batches() {
    let mut server = Server::start();
    let (acme, beta) = (tenant(&server, "acme"), tenant(&server, "beta"));
    acme.put_model("gather", &model("gather.onnx")).expect(201);
    assert_eq!(show(&acme, "gather")["batch_with_others"], true);
    let path = "/api/v1/models/gather/grants";
    let body = json!({ "tenants": ["beta"], "batch_with_others": false });
    let answer = acme.client.put_json(path, &body).expect(200).json();
    assert_eq!(
        answer,
        json!({ "name": "gather", "tenants": ["beta"], "batch_with_others": false })
    );
    server.restart();
    assert_eq!(show(&acme, "gather")["batch_with_others"], false);
    assert_eq!(outputs(&gather(&beta, "acme/gather", 3)), outputs(&gather(&acme, "gather", 3)));
    // What is not said is as it was at first.
    acme.client.put_json(path, &json!({ "tenants": ["beta"] })).expect(200);
    assert_eq!(show(&acme, "gather")["batch_with_others"], true);
    let body = json!({ "tenants": ["beta"], "batch_with_others": "no" });
    acme.client.put_json(path, &body).refused(400, "bad_request");
}

#[test]
fn a_full_queue_is_503_and_says_busy() {
    let server = Server::with_settings("inference_threads = 1\ninference_queue = 2");
    let acme = server.tenant("acme", "dedicated");
    acme.put_function("m", &guest("misbehave"), "").expect(201);
    acme.deploy("infer", "");
    acme.put_model("slow", &model("slow.onnx")).expect(201);
    acme.put_model("gather", &model("gather.onnx")).expect(201);
    const SLOW: &str = "/slow-infer?model=slow&input=x&shape=1,1&times=3";
    let depth = || server.metrics().sum("sandpiper_inference_queue_depth", &[]);
    thread::scope(|scope| {
        // One runs, one waits: half of the places are a tenant's.
        let slow: Vec<_> = (0..2).map(|_| scope.spawn(|| acme.invoke("m", SLOW))).collect();
        let done = || slow.iter().any(thread::ScopedJoinHandle::is_finished);
        until("one waits", || (depth() >= 1.0 || done()).then_some(()));
        assert!(!done(), "the slow model is not slow enough for this test");
        let refused = gather(&acme, "gather", 3).expect(503);
        assert_eq!(refused.json()["error"]["code"], "model_unavailable");
        assert!(refused.message().starts_with("busy: "), "{refused:?}");
    });
}

#[test]
fn calls_that_lower_their_priority_wait_in_the_low_band() {
    let server = Server::with_settings("inference_threads = 1");
    let (acme, beta) = (server.tenant("acme", "dedicated"), server.tenant("beta", "dedicated"));
    for tenant in [&acme, &beta] {
        tenant.put_model("slow", &model("slow.onnx")).expect(201);
    }
    let ask = |tenant: &Tenant, priority: u64| {
        let input = json!({ "name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1] });
        let body = json!({ "parameters": { "priority": priority }, "inputs": [input] });
        tenant.client.post_json("/v2/models/slow/infer", &body)
    };
    let waiting =
        |band: &str| server.metrics().sum("sandpiper_inference_waiting", &[("band", band)]);
    std::thread::scope(|scope| {
        for (tenant, priority) in
            [(&acme, 0), (&acme, 1), (&acme, 1), (&beta, 2), (&beta, 2), (&beta, 7)]
        {
            let ask = &ask;
            scope.spawn(move || ask(tenant, priority));
        }
        // One of them runs.
        sandpiper_tests::until("each waits in its band", || {
            (waiting("low") >= 2.0 && waiting("normal") >= 2.0).then_some(())
        });
    });
    assert_eq!((waiting("low"), waiting("normal")), (0.0, 0.0));
}
