//! A gRPC client as bare as a test needs it: frames over one HTTP/2 connection, and the status that came back.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream, client::SendRequest};
use prost::Message;
use tokio::{net::TcpStream, runtime::Runtime};
use ureq::http::{HeaderMap, Method, Request, Version};

/// Longer than anything takes on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// How a call failed: gRPC's code and text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GrpcStatus {
    /// Such as 5 for NOT_FOUND.
    pub code: u32,
    /// The text, decoded.
    pub message: String,
    /// Headers and trailers together.
    pub metadata: Box<HeaderMap>,
}

/// One connection, with one key or none.
pub struct GrpcClient {
    runtime: Runtime,
    requests: SendRequest<Bytes>,
    headers: Vec<(String, String)>,
}

/// A message as a frame: not compressed, its length, its bytes.
pub fn frame(message: &[u8]) -> Bytes {
    let mut frame = BytesMut::with_capacity(message.len() + 5);
    frame.put_u8(0);
    frame.put_u32(message.len().try_into().unwrap());
    frame.put_slice(message);
    frame.freeze()
}

impl GrpcClient {
    pub(crate) fn connect(address: &str) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let requests = runtime.block_on(async {
            let stream = TcpStream::connect(address).await.expect("the server accepts connections");
            let (requests, connection) = h2::client::handshake(stream).await.unwrap();
            tokio::spawn(connection);
            requests
        });
        GrpcClient { runtime, requests, headers: Vec::new() }
    }

    /// With one more header in every call.
    pub fn with_header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// With this key in every call.
    pub fn with_key(self, key: &str) -> Self {
        self.with_header("authorization", &format!("Bearer {key}"))
    }

    /// Opens a call of `/package.Service/Method`.
    pub fn open(&self, path: &str) -> GrpcCall<'_> {
        let mut request = Request::builder()
            .method(Method::POST)
            .version(Version::HTTP_2)
            .uri(format!("http://sandpiper{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let request = request.body(()).unwrap();
        let (response, send) = self.runtime.block_on(async {
            let mut requests = self.requests.clone().ready().await.unwrap();
            requests.send_request(request, false).unwrap()
        });
        GrpcCall {
            runtime: &self.runtime,
            send,
            receive: Receive::Waits(response),
            unread: BytesMut::new(),
            metadata: HeaderMap::new(),
        }
    }

    /// One message each way.
    pub fn unary<A: Message + Default>(
        &self,
        path: &str,
        question: &impl Message,
    ) -> Result<A, GrpcStatus> {
        self.unary_bytes(path, frame(&question.encode_to_vec()))
    }

    /// The same with a body that need be no message.
    pub fn unary_bytes<A: Message + Default>(
        &self,
        path: &str,
        body: Bytes,
    ) -> Result<A, GrpcStatus> {
        let mut call = self.open(path);
        call.send_bytes(body, true);
        let answer = call.message();
        let status = call.end();
        match status.code {
            0 => Ok(A::decode(answer.expect("an answer comes with success")).unwrap()),
            _ => Err(status),
        }
    }

    /// Waits while the connection does whatever it does.
    pub fn idle(&self, time: Duration) {
        self.runtime.block_on(async { tokio::time::sleep(time).await });
    }
}

enum Receive {
    Waits(h2::client::ResponseFuture),
    Flows(RecvStream),
}

/// A call in the making. Dropping it cancels it.
pub struct GrpcCall<'a> {
    runtime: &'a Runtime,
    send: SendStream<Bytes>,
    receive: Receive,
    unread: BytesMut,
    metadata: HeaderMap,
}

impl GrpcCall<'_> {
    /// Sends a message.
    pub fn send(&mut self, message: &impl Message) {
        self.send_bytes(frame(&message.encode_to_vec()), false);
    }

    /// Sends bytes, as far as the server takes them: it may refuse the call before it has read them.
    pub fn send_bytes(&mut self, mut bytes: Bytes, is_last: bool) {
        if bytes.is_empty() && is_last {
            return self.finish();
        }
        let send = &mut self.send;
        self.runtime.block_on(async {
            while !bytes.is_empty() {
                send.reserve_capacity(bytes.len());
                let capacity = std::future::poll_fn(|context| send.poll_capacity(context));
                let Some(Ok(capacity)) = tokio::time::timeout(PATIENCE, capacity).await.unwrap()
                else {
                    return;
                };
                let part = bytes.split_to(capacity.min(bytes.len()));
                if send.send_data(part, is_last && bytes.is_empty()).is_err() {
                    return;
                }
            }
        });
    }

    /// Says that no more messages come.
    pub fn finish(&mut self) {
        let _ = self.send.send_data(Bytes::new(), true);
    }

    /// The next message; `None` at the end.
    pub fn message(&mut self) -> Option<Bytes> {
        let (runtime, patience) = (self.runtime, PATIENCE);
        runtime.block_on(async { tokio::time::timeout(patience, self.receive()).await }).unwrap()
    }

    async fn receive(&mut self) -> Option<Bytes> {
        if let Receive::Waits(response) = &mut self.receive {
            let (head, body) = response.await.expect("the call is answered").into_parts();
            assert_eq!(head.status, 200, "{head:?}");
            self.metadata.extend(head.headers);
            self.receive = Receive::Flows(body);
        }
        let Receive::Flows(body) = &mut self.receive else { return None };
        loop {
            if let Some((head, _)) = self.unread.split_first_chunk::<5>() {
                let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
                if self.unread.len() >= 5 + length {
                    let mut frame = self.unread.split_to(5 + length).freeze();
                    return Some(frame.split_off(5));
                }
            }
            match body.data().await {
                Some(data) => {
                    let data = data.expect("the body goes on to its end");
                    let _ = body.flow_control().release_capacity(data.len());
                    self.unread.put(data);
                }
                None => {
                    let trailers = body.trailers().await.expect("the body ends well");
                    self.metadata.extend(trailers.unwrap_or_default());
                    return None;
                }
            }
        }
    }

    /// Reads to the end, and says how the call went.
    pub fn end(&mut self) -> GrpcStatus {
        while self.message().is_some() {}
        let text = |name| self.metadata.get(name).map(|value| value.to_str().unwrap().to_owned());
        let code = text("grpc-status").expect("every call ends with a status").parse().unwrap();
        let message = percent_decoded(&text("grpc-message").unwrap_or_default());
        GrpcStatus { code, message, metadata: Box::new(self.metadata.clone()) }
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(decoded) if byte == b'%' => {
                bytes.push(decoded);
                rest = &after[2..];
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}
