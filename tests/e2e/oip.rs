//! The Open Inference Protocol over REST: the documents and the exchanges, letter by letter where that matters.

use sandpiper_tests::{Answer, Client, Server, Tenant, expectations, model};
use serde_json::{Value, json};

pub(crate) const IRIS: &str = "/v2/models/iris/infer";

pub(crate) fn iris(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("iris", &model("iris")).expect(201);
    tenant
}

/// Fails unless this is one of the protocol's errors: nothing but words, as JSON. Gives the words.
#[track_caller]
pub(crate) fn refused(answer: Answer, status: u16) -> String {
    assert_eq!(answer.status, status, "{answer:?}");
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    assert!(answer.header("x-request-id").is_some(), "{answer:?}");
    let json = answer.json();
    assert_eq!(json.as_object().map(|error| error.len()), Some(1), "{answer:?}");
    let words = json["error"].as_str().unwrap_or_else(|| panic!("{answer:?}")).to_owned();
    assert!(!words.is_empty() && words.len() < 600, "{answer:?}");
    words
}

/// A request for rows of iris, with more members.
pub(crate) fn question(rows: &[Value], more: Value) -> Value {
    let mut body = json!({
        "inputs": [{ "name": "X", "shape": [rows.len(), 4], "datatype": "FP32", "data": rows }],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

fn rows() -> (Vec<Value>, Vec<i64>, Vec<f64>) {
    let all = expectations("iris");
    let rows = all.iter().map(|one| one["row"].clone()).collect();
    let labels = all.iter().map(|one| one["label"].as_i64().unwrap()).collect();
    let numbers = |one: &Value| -> Vec<f64> {
        one["probabilities"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect()
    };
    (rows, labels, all.iter().flat_map(numbers).collect())
}

fn close(given: &[f64], expected: &[f64]) {
    assert_eq!(given.len(), expected.len());
    for (given, expected) in given.iter().zip(expected) {
        assert!((given - expected).abs() < 1e-5, "{given} {expected}");
    }
}

#[test]
fn an_inference_as_json_is_answered_with_onnxruntimes_values() {
    let server = Server::start();
    let tenant = iris(&server);
    let (rows, labels, probabilities) = rows();
    let answer = tenant.client.post_json(IRIS, &question(&rows, json!({ "id": "42" }))).expect(200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    assert!(answer.header("inference-header-content-length").is_none());
    let json = answer.json();
    assert_eq!(json["id"], "42");
    assert_eq!(json["model_name"], "iris");
    assert_eq!(json["model_version"], "1");
    let [label, probability] = &json["outputs"].as_array().unwrap()[..] else {
        panic!("{json}");
    };
    assert_eq!(
        *label,
        json!({ "name": "label", "datatype": "INT64", "shape": [rows.len()], "data": labels })
    );
    assert_eq!(probability["name"], "probabilities");
    assert_eq!(probability["shape"], json!([rows.len(), 3]));
    let given: Vec<f64> =
        probability["data"].as_array().unwrap().iter().map(|p| p.as_f64().unwrap()).collect();
    close(&given, &probabilities);
}

#[test]
fn an_inference_in_bytes_is_answered_with_onnxruntimes_values() {
    let server = Server::start();
    let tenant = iris(&server);
    let (rows, labels, probabilities) = rows();
    let numbers = rows.iter().flat_map(|row| row.as_array().unwrap().clone());
    let data: Vec<u8> =
        numbers.flat_map(|number| (number.as_f64().unwrap() as f32).to_le_bytes()).collect();
    let head = json!({
        "parameters": { "binary_data_output": true },
        "inputs": [{ "name": "X", "shape": [rows.len(), 4], "datatype": "FP32",
            "parameters": { "binary_data_size": data.len() } }],
    });
    let head = head.to_string();
    let call = tenant.client.call("POST", IRIS);
    let call = call.header("inference-header-content-length", &head.len().to_string());
    let answer = call.body([head.as_bytes(), &data].concat()).send().expect(200);
    assert_eq!(answer.header("content-type"), Some("application/octet-stream"));
    let length = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (head, data) = answer.body.split_at(length);
    let count = rows.len();
    assert_eq!(
        serde_json::from_slice::<Value>(head).unwrap(),
        json!({ "model_name": "iris", "model_version": "1", "outputs": [
            { "name": "label", "datatype": "INT64", "shape": [count], "parameters": { "binary_data_size": count * 8 } },
            { "name": "probabilities", "datatype": "FP32", "shape": [count, 3], "parameters": { "binary_data_size": count * 12 } },
        ] })
    );
    let (label, probability) = data.split_at(count * 8);
    let label: Vec<i64> =
        label.chunks(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(label, labels);
    let probability: Vec<f64> = probability
        .chunks(4)
        .map(|bytes| f64::from(f32::from_le_bytes(bytes.try_into().unwrap())))
        .collect();
    close(&probability, &probabilities);
}

#[test]
fn outputs_come_in_the_order_and_the_form_that_was_asked_for() {
    let server = Server::start();
    let tenant = iris(&server);
    let row = [json!([5.1, 3.5, 1.4, 0.2])];
    let outputs = json!({ "outputs": [
        { "name": "probabilities", "parameters": { "binary_data": true } }, { "name": "label" },
    ] });
    let answer = tenant.client.post_json(IRIS, &question(&row, outputs)).expect(200);
    let length = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (head, data) = answer.body.split_at(length);
    let head: Value = serde_json::from_slice(head).unwrap();
    assert_eq!(head["outputs"][0]["parameters"], json!({ "binary_data_size": 12 }));
    assert_eq!(
        head["outputs"][1],
        json!({ "name": "label", "datatype": "INT64", "shape": [1], "data": [0] })
    );
    assert_eq!(data.len(), 12);
    let one = json!({ "outputs": [{ "name": "label" }] });
    let json = tenant.client.post_json(IRIS, &question(&row, one)).expect(200).json();
    assert_eq!(json["outputs"].as_array().unwrap().len(), 1);
}

#[test]
fn a_model_tells_of_itself() {
    let server = Server::start();
    let tenant = iris(&server);
    let get = |path: &str| tenant.client.get(path).expect(200).json();
    let metadata = json!({
        "name": "iris", "versions": ["1"], "platform": "tract_onnx",
        "inputs": [{ "name": "X", "datatype": "FP32", "shape": [-1, 4] }],
        "outputs": [
            { "name": "label", "datatype": "INT64", "shape": [-1] },
            { "name": "probabilities", "datatype": "FP32", "shape": [-1, 3] },
        ],
    });
    assert_eq!(get("/v2/models/iris"), metadata);
    assert_eq!(get("/v2/models/iris/versions/1"), metadata);
    assert_eq!(get("/v2/models/iris/ready"), json!({ "name": "iris", "ready": true }));
    assert_eq!(get("/v2/models"), json!({ "models": ["iris"] }));
    let config = get("/v2/models/iris/config");
    for (key, value) in [
        ("name", json!("iris")),
        ("platform", json!("tract_onnx")),
        ("backend", json!("tract")),
        ("version_policy", json!({ "all": {} })),
        ("response_cache", json!({ "enable": false })),
    ] {
        assert_eq!(config[key], value, "{config}");
    }
    assert_eq!(config["input"][0]["data_type"], "TYPE_FP32");
    let dims = if config["max_batch_size"] == 0 { json!([-1, 4]) } else { json!([4]) };
    assert_eq!(config["input"][0]["dims"], dims, "{config}");
}

#[test]
fn the_server_tells_of_itself_to_everybody() {
    let server = Server::start();
    let client = server.client();
    let about = client.get("/v2").expect(200).json();
    assert_eq!(about["name"], "sandpiper");
    assert!(about["extensions"].as_array().unwrap().contains(&json!("binary_tensor_data")));
    for (path, body) in [
        ("/v2/health/live", json!({ "live": true })),
        ("/v2/health/ready", json!({ "ready": true })),
    ] {
        let answer = client.get(path).expect(200);
        assert_eq!(answer.json(), body);
        assert_eq!(answer.header("content-type"), Some("application/json"));
        assert!(client.call("HEAD", path).send().expect(200).body.is_empty());
    }
}

#[test]
fn statistics_count_every_call() {
    let server = Server::start();
    let tenant = iris(&server);
    let stats = |path: &str| tenant.client.get(path).expect(200).json()["model_stats"].clone();
    let fresh = stats("/v2/models/iris/stats");
    assert_eq!(fresh[0]["inference_stats"]["success"], json!({ "count": 0, "ns": 0 }));
    assert_eq!(fresh[0]["last_inference"], 0);
    for _ in 0..3 {
        let body = question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}));
        tenant.client.post_json(IRIS, &body).expect(200);
    }
    let after = stats("/v2/models/iris/versions/1/stats");
    assert_eq!((&after[0]["name"], &after[0]["version"]), (&json!("iris"), &json!("1")));
    assert_eq!(after[0]["inference_stats"]["success"]["count"], 3, "{after}");
    assert_eq!(after[0]["inference_stats"]["compute_infer"]["count"], 3, "{after}");
    assert_eq!(
        (&after[0]["inference_count"], &after[0]["execution_count"]),
        (&json!(3), &json!(3))
    );
    assert_eq!(after[0]["batch_stats"][0]["batch_size"], 1, "{after}");
    assert!(after[0]["last_inference"].as_u64().unwrap() > 1_700_000_000_000, "{after}");
    assert_eq!(stats("/v2/models/stats")[0]["inference_count"], 3);
}

#[test]
fn versions_and_aliases_are_chosen_in_the_path() {
    let server = Server::start();
    let tenant = iris(&server);
    tenant.client.put("/api/v1/models/iris?activate=false", model("digits")).expect(201);
    let alias = json!({ "version": 2 });
    tenant.client.put_json("/api/v1/models/iris/aliases/canary", &alias).expect(200);
    let client = &tenant.client;
    assert_eq!(client.get("/v2/models/iris").expect(200).json()["versions"], json!(["1", "2"]));
    for (path, version, input) in [
        ("/v2/models/iris/versions/1", "1", "X"),
        ("/v2/models/iris/versions/2", "2", "image"),
        ("/v2/models/iris@canary", "2", "image"),
        ("/v2/models/iris%40canary", "2", "image"),
        ("/v2/models/acme%2Firis@2", "2", "image"),
    ] {
        let json = client.get(path).expect(200).json();
        assert_eq!(json["inputs"][0]["name"], input, "{path}");
        if path.contains("versions") {
            assert_eq!(json["versions"], json!([version]));
        }
    }
    let pixels = json!({ "inputs": [{ "name": "image", "shape": [1, 1, 8, 8], "datatype": "FP32",
        "data": vec![0; 64] }] });
    let answer = client.post_json("/v2/models/iris@canary/infer", &pixels).expect(200).json();
    assert_eq!((&answer["model_name"], &answer["model_version"]), (&json!("iris"), &json!("2")));
    assert!(refused(client.get("/v2/models/iris@2/versions/1"), 400).contains("twice"));
    refused(client.get("/v2/models/iris/versions/3"), 404);
    refused(client.get("/v2/models/iris@nothing"), 404);
    refused(client.get("/v2/models/iris/versions/x"), 400);
    refused(client.get("/v2/models/iris/versions/0"), 400);
}

#[test]
fn keys_and_scopes_count() {
    let server = Server::start();
    let tenant = iris(&server);
    let body = question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}));
    let infer = |client: &Client| client.post_json(IRIS, &body);
    let answer = infer(&server.client());
    assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
    assert!(refused(answer, 401).contains("Bearer"));
    refused(infer(&server.client().with_key("sp_nonsense")), 401);
    infer(&tenant.with_scopes(&["invoke"])).expect(200);
    let models = tenant.with_scopes(&["models"]);
    assert!(refused(infer(&models), 403).contains("`invoke`"));
    models.get("/v2/models/iris").expect(200);
    let invoke = tenant.with_scopes(&["invoke"]);
    assert!(refused(invoke.post("/v2/repository/index"), 403).contains("`models`"));
    assert!(refused(invoke.post("/v2/repository/models/iris/unload"), 403).contains("`models`"));
    let logs = tenant.with_scopes(&["logs"]);
    refused(logs.get("/v2/models/iris"), 403);
    let operator = server.operator();
    assert!(refused(infer(&operator), 400).contains("x-sandpiper-tenant"));
    infer(&operator.with_header("x-sandpiper-tenant", "acme")).expect(200);
    refused(infer(&operator.with_header("x-sandpiper-tenant", "nobody")), 404);
    // Another tenant's model looks like one that is not there.
    let other = server.tenant("beta", "standard");
    let foreign = refused(other.client.get("/v2/models/acme%2Firis"), 404);
    let missing = refused(other.client.get("/v2/models/acme%2Fnone"), 404);
    assert_eq!(foreign.replace("iris", "none"), missing);
}

#[test]
fn what_says_that_there_is_no_sequence_is_passed_over() {
    let server = Server::start();
    let tenant = iris(&server);
    let ask = |parameters: Value| {
        let row = [json!([5.1, 3.5, 1.4, 0.2])];
        tenant.client.post_json(IRIS, &question(&row, json!({ "parameters": parameters })))
    };
    ask(json!({ "sequence_id": 0, "sequence_start": false, "sequence_end": false })).expect(200);
    for parameters in [json!({ "sequence_id": 4 }), json!({ "sequence_start": true })] {
        assert!(refused(ask(parameters), 501).contains("sequences"));
    }
}

#[test]
fn a_request_id_is_kept_and_one_is_made() {
    let server = Server::start();
    let tenant = iris(&server);
    let answer = tenant.client.call("GET", "/v2").header("x-request-id", "mine-1").send();
    assert_eq!(answer.header("x-request-id"), Some("mine-1"));
    assert_eq!(tenant.client.get("/v2/models/iris").header("x-request-id").unwrap().len(), 32);
}

#[test]
fn an_access_line_is_written_for_every_inference() {
    let server = Server::with_settings("access_log = true");
    let tenant = iris(&server);
    let call = tenant.client.call("POST", IRIS).header("x-request-id", "line-7");
    call.json(&question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}))).send().expect(200);
    let line = sandpiper_tests::until("the line is there", || {
        server.log().lines().find(|line| line.contains("line-7")).map(str::to_owned)
    });
    for word in ["inference", "acme", "iris", "completed", "took_us"] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
}

#[test]
fn a_burst_beyond_the_rate_is_told_to_come_later() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    tenant.put_model("iris", &model("iris")).expect(201);
    let body = question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}));
    let answers: Vec<Answer> = (0..80).map(|_| tenant.client.post_json(IRIS, &body)).collect();
    let (taken, turned_away): (Vec<_>, Vec<_>) =
        answers.into_iter().partition(|answer| answer.status == 200);
    // The free tier's burst is 40, and 20 more come in a second.
    assert!(taken.len() >= 40, "{} were taken", taken.len());
    for answer in turned_away {
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(refused(answer, 429).contains("faster"));
    }
}

#[test]
fn as_many_inferences_as_the_tier_allows_run_and_wait() {
    let server = Server::start();
    let tenant = server.tenant("small", "free");
    tenant.put_model("iris", &model("iris")).expect(201);
    let other = server.tenant("other", "free");
    other.put_model("iris", &model("iris")).expect(201);
    let body = question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}));
    // A request that has been let in keeps its place while its body is on the way: 4 run and 16 wait.
    let held: Vec<_> = (0..24)
        .map(|_| {
            let head = format!(
                "POST {IRIS} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 500\r\n\r\n{{",
                tenant.key
            );
            let mut connection = server.connect();
            connection.send(head);
            connection
        })
        .collect();
    let mut free = tenant.client.call("POST", IRIS).json(&body).send();
    // One that comes before the last of the others is answered, or waits in vain.
    while free.status == 200 {
        free = tenant.client.call("POST", IRIS).json(&body).send();
    }
    assert_eq!(free.header("retry-after"), Some("1"));
    let said = refused(free, 429);
    assert!(said.contains("run and wait") || said.contains("waited too long"), "{said}");
    other.client.post_json(IRIS, &body).expect(200);
    drop(held);
    sandpiper_tests::until("the places are free again", || {
        (tenant.client.post_json(IRIS, &body).status == 200).then_some(())
    });
}
