//! What is told of models, to whom, at which cost, and of those that cannot be loaded.

use sandpiper_tests::{Client, Server, Start, Tenant, model, repository, until};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::oip::{IRIS, iris, question, refused};

fn row() -> Value {
    question(&[json!([5.1, 3.5, 1.4, 0.2])], json!({}))
}

fn index(tenant: &Tenant) -> Value {
    tenant.client.post("/v2/repository/index").expect(200).json()
}

fn in_memory(server: &Server) -> f64 {
    server.metrics().sum("sandpiper_model_memory_bytes", &[])
}

/// A server whose free tier has three requests at once and one more in a second, so that a machine that is busy with
/// other things is still faster.
pub(crate) fn slow_free_tier() -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let ours = repository().join("policies");
    std::fs::create_dir(folder.path().join("tiers")).unwrap();
    for file in ["platform.toml", "tiers/free.toml", "tiers/standard.toml", "tiers/dedicated.toml"]
    {
        let text = std::fs::read_to_string(ours.join(file)).unwrap();
        let text = text.replace("per_s = 20, burst = 40", "per_s = 1, burst = 3");
        std::fs::write(folder.path().join(file), text).unwrap();
    }
    let policies = Some(folder.path().to_owned());
    (Server::start_with(Start { policies, ..Start::default() }), folder)
}

#[test]
fn describing_a_model_neither_loads_it_nor_makes_series_of_it() {
    let mut server = Server::start();
    let tenant = iris(&server);
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    tenant.client.put("/api/v1/models/iris?batching=false", model("iris")).expect(201);
    let paths = [
        "/v2/models/iris/versions/1/config",
        "/v2/models/iris/versions/2/config",
        "/v2/models/mul-add/config",
    ];
    let read = || paths.map(|path| tenant.client.get(path).expect(200).json());
    let before = read();
    assert!(in_memory(&server) > 0.0);
    server.restart();
    assert_eq!(read(), before);
    assert_eq!(before[1]["max_batch_size"], 0);
    let all = tenant.client.get("/v2/models/stats").expect(200).json();
    assert_eq!(all["model_stats"].as_array().unwrap().len(), 3);
    let one = tenant.client.get("/v2/models/iris/versions/2/stats").expect(200).json();
    assert_eq!(one["model_stats"][0]["inference_count"], 0);
    assert_eq!(index(&tenant).as_array().unwrap().len(), 3);
    let metrics = server.metrics();
    assert!(!metrics.text().contains("model=\"iris\""), "{}", metrics.text());
    assert!(!metrics.text().contains("model=\"mul-add\""), "{}", metrics.text());
}

#[test]
fn what_reads_much_has_the_rate_of_its_tenant() {
    let (server, _policies) = slow_free_tier();
    let tenant = server.tenant("small", "free");
    tenant.put_model("iris", &model("iris")).expect(201);
    let client = &tenant.client;
    let asks: [(&str, &str); 6] = [
        ("GET", "/v2/models/stats"),
        ("GET", "/v2/models/iris/stats"),
        ("GET", "/v2/models/iris/config"),
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/iris/load"),
        ("POST", IRIS),
    ];
    for (method, path) in asks {
        let turned_away = (0..100).find_map(|_| {
            let answer = client.call(method, path).send();
            (answer.status == 429).then_some(answer)
        });
        let answer = turned_away.unwrap_or_else(|| panic!("{path} has no rate"));
        assert_eq!(answer.header("retry-after"), Some("1"));
        assert!(refused(answer, 429).contains("faster"));
    }
    // Probes and what a client asks before it calls are cheap, and free.
    for _ in 0..100 {
        client.get("/v2/models/iris/ready").expect(200);
        client.get("/v2/models/iris").expect(200);
    }
}

#[test]
fn a_guest_of_a_model_sees_neither_its_statistics_nor_its_other_versions() {
    let server = Server::start();
    let tenant = iris(&server);
    tenant.client.put("/api/v1/models/iris?activate=false", model("digits")).expect(201);
    let beta = server.tenant("beta", "standard");
    let grants = json!({ "tenants": ["beta"] });
    tenant.client.put_json("/api/v1/models/iris/grants", &grants).expect(200);
    beta.client.post_json("/v2/models/acme%2Firis/infer", &row()).expect(200);
    let versions = |client: &Client, path: &str| {
        client.get(path).expect(200).json()["versions"].as_array().unwrap().clone()
    };
    assert_eq!(versions(&beta.client, "/v2/models/acme%2Firis"), ["1"]);
    assert_eq!(versions(&tenant.client, "/v2/models/iris"), ["1", "2"]);
    assert_eq!(versions(&tenant.client, "/v2/models/acme%2Firis"), ["1", "2"]);
    for path in ["/v2/models/acme%2Firis/stats", "/v2/models/acme%2Firis/versions/1/stats"] {
        assert!(refused(beta.client.get(path), 403).contains("owner"));
        tenant.client.get(path).expect(200);
    }
    assert_eq!(beta.client.get("/v2/models/stats").expect(200).json(), json!({"model_stats": []}));
    // A model that was not granted is still one that is not there.
    let gamma = server.tenant("gamma", "standard");
    refused(gamma.client.get("/v2/models/acme%2Firis/stats"), 404);
}

#[test]
fn a_model_that_finds_no_room_is_not_ready_and_says_why() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "standard");
    tenant.put_model("magika", &model("magika")).expect(201);
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    server.settings("models_mib = 1");
    server.restart();
    let tokens = json!({ "inputs": [{ "name": "bytes", "datatype": "INT32", "shape": [1, 2048],
        "data": vec![0; 2048] }] });
    let infer = || tenant.client.post_json("/v2/models/magika/infer", &tokens);
    let ready = || tenant.client.get("/v2/models/magika/ready");
    ready().expect(200);
    let answer = infer();
    assert_eq!(answer.header("retry-after"), Some("1"), "{answer:?}");
    assert!(refused(answer, 503).contains("MiB"));
    assert!(refused(ready(), 503).contains("MiB"));
    let all = index(&tenant);
    assert_eq!((&all[0]["name"], &all[0]["state"]), (&json!("magika"), &json!("UNAVAILABLE")));
    assert!(all[0]["reason"].as_str().unwrap().contains("MiB"), "{all}");
    assert_eq!(all[1], json!({ "name": "mul-add", "version": "1", "state": "READY" }));
    let load = tenant.client.post("/v2/repository/models/magika/load");
    assert!(refused(load, 503).contains("MiB"));
    server.settings("");
    server.restart();
    infer().expect(200);
    ready().expect(200);
}

#[test]
fn a_store_that_fails_is_the_nodes_fault_and_the_model_comes_back_with_it() {
    let mut server = Server::start();
    let tenant = iris(&server);
    server.stop();
    let [blob] = &server.blobs()[..] else { panic!("one model is one blob") };
    let blob = server.data().join("blobs").join(blob);
    let good = std::fs::read(&blob).unwrap();
    std::fs::remove_file(&blob).unwrap();
    server.start_again();
    let infer = || tenant.client.post_json(IRIS, &row());
    tenant.client.get("/v2/models/iris/ready").expect(200);
    let said = refused(infer(), 500);
    assert!(said.contains("operator") && !said.contains('/'), "{said}");
    refused(tenant.client.get("/v2/models/iris/ready"), 500);
    let all = index(&tenant);
    assert_eq!(all[0]["state"], "UNAVAILABLE");
    assert_eq!(all[0]["reason"], said);
    // It comes back with the next call.
    std::fs::write(&blob, good).unwrap();
    infer().expect(200);
    tenant.client.get("/v2/models/iris/ready").expect(200);
    assert_eq!(index(&tenant)[0]["state"], "READY");
}

#[test]
fn a_model_that_is_unloaded_while_it_loads_does_not_stay() {
    let mut server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_model("magika", &model("magika")).expect(201);
    let tokens = json!({ "inputs": [{ "name": "bytes", "datatype": "INT32", "shape": [1, 2048],
        "data": vec![0; 2048] }] });
    // A load may be over before anybody looks.
    let caught = (0..20).any(|_| {
        server.restart();
        std::thread::scope(|scope| {
            let call = scope.spawn(|| tenant.client.post_json("/v2/models/magika/infer", &tokens));
            let is_loading = loop {
                let state = index(&tenant)[0]["state"].as_str().unwrap().to_owned();
                if state == "LOADING" || call.is_finished() {
                    break state == "LOADING";
                }
            };
            if is_loading {
                tenant.client.post("/v2/repository/models/magika/unload").expect(200);
            }
            let status = call.join().unwrap().status;
            assert!(status == 200 || is_loading && status == 503, "{status}");
            status == 503
        })
    });
    assert!(caught, "no load took long enough");
    until("the model is out of memory", || (in_memory(&server) == 0.0).then_some(()));
    assert_eq!(index(&tenant)[0]["state"], "UNAVAILABLE");
}

#[test]
fn answers_are_kept_where_their_owner_says_so_for_each_tenant_apart() {
    let server = Server::start();
    let (acme, beta) = (server.tenant("acme", "standard"), server.tenant("beta", "standard"));
    acme.client.put("/api/v1/models/iris?cache=true", model("iris")).expect(201);
    let grants = json!({ "tenants": ["beta"] });
    acme.client.put_json("/api/v1/models/iris/grants", &grants).expect(200);
    let counts = || {
        let stats = acme.client.get("/v2/models/iris/stats").expect(200).json();
        let stats = stats["model_stats"][0].clone();
        let count = |name: &str| stats["inference_stats"][name]["count"].as_u64().unwrap();
        let executions = stats["execution_count"].as_u64().unwrap();
        (count("cache_hit"), count("cache_miss"), count("success"), executions)
    };
    let first = acme.client.post_json(IRIS, &row()).expect(200).json();
    assert_eq!(counts(), (0, 1, 1, 1));
    assert_eq!(acme.client.post_json(IRIS, &row()).expect(200).json(), first);
    assert_eq!(counts(), (1, 1, 2, 1));
    let other = question(&[json!([6.3, 3.3, 6.0, 2.5])], json!({}));
    assert_ne!(acme.client.post_json(IRIS, &other).expect(200).json(), first);
    assert_eq!(counts(), (1, 2, 3, 2));
    // Whether another tenant has asked the same cannot be told from the time that an answer takes.
    let theirs = beta.client.post_json("/v2/models/acme%2Firis/infer", &row()).expect(200).json();
    assert_eq!(theirs["outputs"], first["outputs"]);
    assert_eq!(counts(), (1, 3, 4, 3));
    beta.client.post_json("/v2/models/acme%2Firis/infer", &row()).expect(200);
    assert_eq!(counts(), (2, 3, 5, 3));
    let metrics = server.metrics();
    let sum = |name: &str| metrics.sum(name, &[("model", "iris"), ("tenant", "acme")]);
    assert_eq!(sum("nv_cache_num_hits_per_model"), 2.0);
    assert_eq!(sum("nv_cache_num_misses_per_model"), 3.0);
    assert_eq!(sum("nv_inference_exec_count"), 3.0);
    assert_eq!(
        acme.client.get("/v2/models/iris/config").expect(200).json()["response_cache"],
        json!({ "enable": true })
    );
}
