//! Clients that ask and never read: they leave the window of HTTP/2 shut, and nothing of an answer can be sent.

use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use sandpiper_tests::{Server, Tenant, frame, guest, model, until};
use serde_json::json;
use ureq::http::{Method, Request, Response, Version};

use super::{block_on, h2_request, h2_with_window};

/// Asks, and gives back the answer's head; nothing of its body has come.
async fn ask(
    requests: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: Bytes,
) -> Response<RecvStream> {
    let has_body = !body.is_empty();
    let (response, mut send) = requests.send_request(request, !has_body).unwrap();
    if has_body {
        send.send_data(body, true).unwrap();
    }
    response.await.unwrap()
}

fn request(tenant: &Tenant, method: Method, path: &str, kind: &str) -> Request<()> {
    Request::builder()
        .method(method)
        .uri(format!("http://sandpiper{path}"))
        .version(Version::HTTP_2)
        .header("authorization", format!("Bearer {}", tenant.key))
        .header("content-type", kind)
        .header("te", "trailers")
        .body(())
        .unwrap()
}

#[test]
fn answers_that_nobody_reads_keep_no_function_from_running() {
    let server = Server::start();
    // 4 may run and 16 may be alive.
    let tenant = server.tenant("acme", "free");
    tenant.put_function("m", &guest("misbehave"), "").expect(201);
    let unread = block_on(async {
        let mut requests = h2_with_window(&server, 0).await;
        let mut unread = Vec::new();
        for _ in 0..8 {
            let answer = ask(&mut requests, h2_request(&tenant, "/ok"), Bytes::new()).await;
            assert_eq!(answer.status(), 200);
            unread.push(answer);
        }
        assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
        unread
    });
    drop(unread);
}

/// It takes more than a minute: so long an answer may be left unread.
#[test]
fn answers_that_nobody_reads_give_their_places_back() {
    let server = Server::start();
    // 4 may run and 16 may be alive.
    let tenant = server.tenant("acme", "free");
    tenant.put_function("m", &guest("misbehave"), "").expect(201);
    tenant.put_model("mul-add", &model("mul-add.onnx")).expect(201);
    let x = json!({ "name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2, 3] });
    let question = json!({ "inputs": [x] });
    let infer = || tenant.client.post_json("/v2/models/mul-add/infer", &question);
    let crowd = || {
        let metrics = server.metrics();
        (metrics.sum("sandpiper_running", &[]), metrics.sum("sandpiper_suspended", &[]))
    };
    block_on(async {
        let mut requests = h2_with_window(&server, 0).await;
        let mut unread = Vec::new();
        for _ in 0..4 {
            unread.push(ask(&mut requests, h2_request(&tenant, "/ok"), Bytes::new()).await);
        }
        let rest = "/v2/models/mul-add/infer";
        let grpc = "/inference.GRPCInferenceService/RepositoryIndex";
        let body = Bytes::from(question.to_string());
        for (path, kind, body) in [
            (rest, "application/json", body.clone()),
            (rest, "application/json", body),
            ("/v2/repository/index", "application/json", Bytes::from_static(b"{}")),
            (grpc, "application/grpc", frame(b"")),
        ] {
            unread.push(ask(&mut requests, request(&tenant, Method::POST, path, kind), body).await);
        }
        assert!(unread.iter().all(|answer| answer.status() == 200), "{unread:?}");
        until("all places are taken", || (crowd() == (4.0, 4.0)).then_some(()));
        infer().expect(429);
        let began = Instant::now();
        while crowd() != (0.0, 0.0) {
            assert!(began.elapsed() < Duration::from_secs(150), "{:?}", crowd());
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        infer().expect(200);
        assert_eq!(tenant.invoke("m", "/ok").expect(200).text(), "ok");
        // What the connection had taken already is the client's still.
        assert_eq!(unread.len(), 8);
    });
}

#[test]
fn blobs_that_nobody_reads_take_no_memory() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    let length = 24 << 20;
    let bytes: Vec<u8> = (0..length as u32).map(|at| (at >> 10) as u8).collect();
    let blob = tenant.client.put("/api/v1/blobs", &bytes).expect(201).json();
    let path = blob["url"].as_str().unwrap();
    let whole = tenant.client.get(path).expect(200);
    assert_eq!(whole.header("content-length"), Some(&*length.to_string()));
    assert!(whole.body == bytes);
    drop((whole, bytes));
    block_on(async {
        let mut requests = h2_with_window(&server, 0).await;
        let before = server.memory_mib();
        let mut unread = Vec::new();
        for _ in 0..24 {
            let request = request(&tenant, Method::GET, path, "text/plain");
            unread.push(ask(&mut requests, request, Bytes::new()).await);
        }
        assert!(unread.iter().all(|answer| answer.status() == 200));
        let now = server.memory_mib();
        assert!(now < before + 128, "the server went from {before} to {now} MiB");
    });
}

#[test]
fn outputs_of_batches_are_read_by_so_many_at_once() {
    let server = Server::start();
    let tenant = server.tenant("acme", "dedicated");
    tenant.deploy("misbehave", "");
    let call = tenant.client.call("POST", "/api/v1/functions/misbehave/batches?path=/job");
    let call = call.header("content-type", "application/x-ndjson").body("1\n2\n");
    let batch = call.send().expect(202).json();
    let path = format!("/api/v1/batches/{}", batch["id"].as_str().unwrap());
    until("the batch is done", || {
        (tenant.client.get(&path).expect(200).json()["state"] == "done").then_some(())
    });
    let path = format!("{path}/output");
    block_on(async {
        let mut requests = h2_with_window(&server, 0).await;
        let mut unread = Vec::new();
        for _ in 0..16 {
            let request = request(&tenant, Method::GET, &path, "text/plain");
            unread.push(ask(&mut requests, request, Bytes::new()).await);
        }
        assert!(unread.iter().all(|answer| answer.status() == 200));
        tenant.client.get(&path).refused(429, "follower_limit");
        drop((unread, requests));
    });
    until("the readers are gone", || {
        let answer = tenant.client.get(&path);
        (answer.status == 200).then(|| assert_eq!(answer.text().lines().count(), 2))
    });
}
