//! Bodies as streams in both directions.

mod exchange;
mod memory;
mod unread;

use std::time::Duration;

use bytes::Bytes;
use h2::{RecvStream, client::SendRequest};
use sandpiper_tests::{Server, Tenant, guest};
use ureq::http::{HeaderMap, Request, Response, Version};

const MIB: u64 = 1 << 20;
const PIECE: usize = 1 << 16;

fn tenant(server: &Server) -> Tenant {
    let tenant = server.tenant("acme", "dedicated");
    tenant.put_function("m", &guest("misbehave"), "").expect(201);
    tenant
}

/// A request's head for HTTP/1.1, without its end.
fn head(tenant: &Tenant, path: &str) -> String {
    let path = tenant.path("m", path);
    format!("POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", tenant.key)
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::timeout(Duration::from_secs(300), work).await.expect("it ends")
    })
}

async fn h2(server: &Server) -> SendRequest<Bytes> {
    h2_with_window(server, PIECE as u32 * 4).await
}

async fn h2_with_window(server: &Server, bytes: u32) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(server.address()).await.unwrap();
    let (requests, connection) =
        h2::client::Builder::new().initial_window_size(bytes).handshake(stream).await.unwrap();
    tokio::spawn(connection);
    requests.ready().await.unwrap()
}

fn h2_request(tenant: &Tenant, path: &str) -> Request<()> {
    Request::post(format!("http://sandpiper{}", tenant.path("m", path)))
        .version(Version::HTTP_2)
        .header("authorization", format!("Bearer {}", tenant.key))
        .body(())
        .unwrap()
}

async fn next_h2(body: &mut RecvStream) -> Option<Bytes> {
    let data = body.data().await?.expect("the body goes on to its end");
    body.flow_control().release_capacity(data.len()).unwrap();
    Some(data)
}

async fn text_h2(response: Response<RecvStream>) -> (Vec<u8>, Option<HeaderMap>) {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(data) = next_h2(&mut body).await {
        bytes.extend_from_slice(&data);
    }
    (bytes, body.trailers().await.expect("the body ends well"))
}
