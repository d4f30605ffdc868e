//! The metrics of models under Triton's names.

use sandpiper_tests::{Metrics, Server, Tenant, model, onnx::brittle};
use serde_json::json;

fn infer(tenant: &Tenant, model: &str, data: &[f32], status: u16) {
    let shape = [data.len() / 3, 3];
    let input = json!({ "name": "x", "datatype": "FP32", "shape": shape, "data": data });
    let path = format!("/v2/models/{model}/infer");
    tenant.client.post_json(&path, &json!({ "inputs": [input] })).expect(status);
}

fn of(metrics: &Metrics, name: &str, tenant: &str, version: &str) -> f64 {
    metrics.sum(name, &[("model", "mul-add"), ("tenant", tenant), ("version", version)])
}

#[test]
fn calls_are_counted_by_model_version_and_tenant() {
    let server = Server::start();
    let (acme, beta) = (server.tenant("acme", "dedicated"), server.tenant("beta", "dedicated"));
    for tenant in [&acme, &beta] {
        tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    }
    for _ in 0..3 {
        infer(&acme, "mul-add", &[1.0, 2.0, 3.0], 200);
    }
    infer(&beta, "mul-add", &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 200);
    // What does not fit the model was never a call of it.
    infer(&beta, "mul-add", &[1.0; 4], 400);
    let metrics = server.metrics();
    let expected = [("acme", 3.0), ("beta", 1.0)];
    for (tenant, calls) in expected {
        for name in ["nv_inference_request_success", "nv_inference_exec_count"] {
            assert_eq!(of(&metrics, name, tenant, "1"), calls, "{name} of {tenant}");
        }
        assert_eq!(of(&metrics, "nv_inference_pending_request_count", tenant, "1"), 0.0);
        assert_eq!(of(&metrics, "nv_inference_request_failure", tenant, "1"), 0.0);
        let us =
            |name: &str| of(&metrics, &format!("nv_inference_{name}_duration_us"), tenant, "1");
        assert!(us("request") > 0.0 && us("compute_infer") > 0.0, "{}", metrics.text());
        assert!(us("request") + 1.0 >= us("compute_infer"), "{}", metrics.text());
    }
    assert_eq!(of(&metrics, "nv_inference_count", "acme", "1"), 3.0);
    // A call of a batch of two.
    assert_eq!(of(&metrics, "nv_inference_count", "beta", "1"), 2.0);
    for reason in ["REJECTED", "CANCELED", "BACKEND", "OTHER"] {
        let line = format!(
            "nv_inference_request_failure{{model=\"mul-add\",version=\"1\",tenant=\"acme\",reason=\"{reason}\"}} 0"
        );
        assert!(metrics.text().lines().any(|other| other == line), "{line}");
    }
}

#[test]
fn the_counters_stay_when_a_model_is_unloaded_and_go_with_its_version() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    infer(&tenant, "mul-add", &[1.0, 2.0, 3.0], 200);
    let loads = of(&server.metrics(), "sandpiper_model_loads_total", "acme", "1");
    for (verb, is_loaded) in [("unload", false), ("load", true)] {
        let path = format!("/v2/repository/models/mul-add/{verb}");
        tenant.client.post(&path).expect(200);
        let metrics = server.metrics();
        assert_eq!(of(&metrics, "nv_inference_count", "acme", "1"), 1.0, "{verb}");
        let memory = of(&metrics, "sandpiper_model_memory_bytes", "acme", "1");
        assert_eq!(memory > 0.0, is_loaded, "{verb}: {memory}");
    }
    let metrics = server.metrics();
    assert_eq!(of(&metrics, "sandpiper_model_loads_total", "acme", "1"), loads + 1.0);
    assert_eq!(of(&metrics, "sandpiper_model_evictions_total", "acme", "1"), 0.0);
    infer(&tenant, "mul-add", &[1.0, 2.0, 3.0], 200);
    assert_eq!(of(&server.metrics(), "nv_inference_count", "acme", "1"), 2.0);
    tenant.client.delete("/api/v1/models/mul-add").expect(204);
    sandpiper_tests::until("the series is gone", || {
        let text = server.metrics().text().to_owned();
        (!text.contains("model=\"mul-add\"")).then_some(())
    });
}

#[test]
fn every_metric_says_what_it_is_once_and_its_series_stand_together() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    infer(&tenant, "mul-add", &[1.0, 2.0, 3.0], 200);
    server.metrics();
    let metrics = server.metrics();
    let mut seen = Vec::new();
    let mut current = "";
    for line in metrics.text().lines().filter(|line| !line.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(!seen.contains(&name), "{name} is there twice");
            assert!(["counter", "gauge", "histogram", "summary"].contains(&kind), "{line}");
            seen.push(name);
            current = name;
        } else if !line.starts_with('#') {
            let name = line.split(['{', ' ']).next().unwrap();
            let is_part = name.strip_prefix(current);
            let suffixes = ["", "_bucket", "_sum", "_count"];
            assert!(
                is_part.is_some_and(|suffix| suffixes.contains(&suffix)),
                "{line} under {current}"
            );
        }
    }
    for band in ["low", "normal"] {
        assert_eq!(metrics.sum("sandpiper_inference_waiting", &[("band", band)]), 0.0);
    }
    assert_eq!(metrics.sum("sandpiper_models_bytes_max", &[]), 4096.0 * 1_048_576.0);
    for name in ["nv_cpu_utilization", "nv_cpu_memory_total_bytes", "nv_cpu_memory_used_bytes"] {
        assert!(metrics.sum(name, &[]) >= 0.0 && seen.contains(&name), "{name}");
    }
    let (total, used) = (
        metrics.sum("nv_cpu_memory_total_bytes", &[]),
        metrics.sum("nv_cpu_memory_used_bytes", &[]),
    );
    assert!(0.0 < used && used < total, "{used} of {total}");
    assert!(metrics.sum("nv_cpu_utilization", &[]) <= 1.0);
}

#[test]
fn a_model_that_makes_room_is_counted() {
    let server = Server::with_settings("models_mib = 16");
    let tenant = server.tenant("acme", "dedicated");
    let evictions = || server.metrics().sum("sandpiper_model_evictions_total", &[]);
    // One fits, and six do not.
    let mut models = 0;
    while evictions() == 0.0 {
        assert!(models < 6, "{}", server.metrics().text());
        models += 1;
        tenant.put_model(&format!("m{models}"), &model("magika")).expect(201);
    }
    assert!(models > 1);
    let memory = server.metrics().sum("sandpiper_model_memory_bytes", &[]);
    assert!(0.0 < memory && memory <= 16.0 * 1_048_576.0, "{memory}");
}

#[test]
fn calls_that_did_not_end_well_are_counted_by_their_reason() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("gather", &brittle()).expect(201);
    let about = tenant.client.get("/v2/models/gather").expect(200).json();
    let input = &about["inputs"][0];
    let ask = |status: u16| {
        let sizes = input["shape"].as_array().unwrap().iter();
        let shape: Vec<i64> = sizes.map(|size| size.as_i64().unwrap().max(1)).collect();
        // The model overflows with this: the backend panics.
        let data = vec![999; shape.iter().product::<i64>() as usize];
        let tensor = json!({ "name": input["name"], "datatype": input["datatype"], "shape": shape, "data": data });
        let body = json!({ "inputs": [tensor] });
        tenant.client.post_json("/v2/models/gather/infer", &body).expect(status);
    };
    let failures = |reason: &str| {
        let labels = [("model", "gather"), ("reason", reason)];
        server.metrics().sum("nv_inference_request_failure", &labels)
    };
    for _ in 0..3 {
        ask(500);
    }
    assert_eq!((failures("BACKEND"), failures("REJECTED")), (3.0, 0.0));
    // It is in quarantine now.
    for _ in 0..2 {
        ask(503);
    }
    assert_eq!((failures("BACKEND"), failures("REJECTED")), (3.0, 2.0));
    assert_eq!((failures("CANCELED"), failures("OTHER")), (0.0, 0.0));
}

#[test]
fn answers_are_in_a_histogram() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    for _ in 0..5 {
        infer(&tenant, "mul-add", &[1.0, 2.0, 3.0], 200);
    }
    infer(&tenant, "mul-add", &[1.0], 400);
    let metrics = server.metrics();
    let name = "nv_inference_first_response_histogram_ms";
    let bucket = |le: &str| {
        let labels = [("model", "mul-add"), ("tenant", "acme"), ("le", le)];
        metrics.sum(&format!("{name}_bucket"), &labels)
    };
    let buckets = ["1", "10", "100", "500", "2000", "5000", "+Inf"].map(bucket);
    assert!(buckets.is_sorted(), "{buckets:?}");
    assert_eq!((buckets[6], of(&metrics, &format!("{name}_count"), "acme", "1")), (5.0, 5.0));
    let sum = of(&metrics, &format!("{name}_sum"), "acme", "1");
    let us = of(&metrics, "nv_inference_request_duration_us", "acme", "1");
    assert_eq!(sum, (us / 1000.0).floor());
    assert!(metrics.text().contains(&format!("# TYPE {name} histogram")));
}

#[test]
fn versions_beyond_a_tenants_series_are_summed() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let file = model("mul-add.onnx");
    // One tenant has a hundred series.
    for number in 0..103 {
        let (name, delay) = (format!("m{}", number % 3), number / 3);
        let path = format!("/api/v1/models/{name}?batching=false&max_delay_us={delay}");
        tenant.client.put(&path, &file).expect(201);
    }
    let series = || {
        let metrics = server.metrics();
        let lines = metrics.text().lines();
        lines.filter(|line| line.starts_with("nv_inference_count{")).count()
    };
    assert_eq!(series(), 101);
    for number in 0..3 {
        infer(&tenant, &format!("m{number}"), &[1.0, 2.0, 3.0], 200);
    }
    let metrics = server.metrics();
    let labels = [("model", "other"), ("version", "other"), ("tenant", "other")];
    let others = metrics.sum("nv_inference_count", &labels);
    let named = metrics.sum("nv_inference_count", &[("tenant", "acme")]);
    assert_eq!((others + named, series()), (3.0, 101));
    assert!(metrics.sum("sandpiper_model_loads_total", &labels) > 0.0);
}
