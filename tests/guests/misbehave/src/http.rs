//! The little HTTP that the misdeeds need, without the SDK's safety net.

use serde_json::Value;
use wasip2::{
    http::types::{Fields, IncomingRequest, OutgoingBody, OutgoingResponse, ResponseOutparam},
    io::streams::{OutputStream, StreamError},
};

pub(crate) struct Exchange {
    pub(crate) request: IncomingRequest,
    pub(crate) out: ResponseOutparam,
}

impl Exchange {
    pub(crate) fn text(self, text: &str) {
        self.respond(200, "text/plain", text.as_bytes());
    }

    pub(crate) fn json(self, value: &Value) {
        self.respond(200, "application/json", value.to_string().as_bytes());
    }

    pub(crate) fn respond(self, status: u16, content_type: &str, content: &[u8]) {
        let headers = [
            ("content-type".to_owned(), content_type.as_bytes().to_vec()),
            ("content-length".to_owned(), content.len().to_string().into_bytes()),
        ];
        let (body, stream) = start(self.out, status, &headers);
        if write_all(&stream, content).is_ok() {
            drop(stream);
            let _ = OutgoingBody::finish(body, None);
        }
    }

    /// Reads the body to its end: its bytes so far, and how it ended.
    pub(crate) fn body(&self) -> (Vec<u8>, Result<(), String>) {
        let mut read = Vec::new();
        let end = read_body(&self.request, &mut |chunk| read.extend_from_slice(chunk));
        (read, end)
    }
}

pub(crate) fn read_body(
    request: &IncomingRequest,
    take: &mut dyn FnMut(&[u8]),
) -> Result<(), String> {
    let body = request.consume().map_err(|()| "the body is gone")?;
    let stream = body.stream().map_err(|()| "the stream is gone")?;
    loop {
        match stream.blocking_read(1 << 16) {
            Ok(chunk) => take(&chunk),
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
}

/// Hands over the head and gives the stream for the body.
pub(crate) fn start(
    out: ResponseOutparam,
    status: u16,
    headers: &[(String, Vec<u8>)],
) -> (OutgoingBody, OutputStream) {
    let fields = Fields::from_list(headers).expect("the headers are fine");
    let response = OutgoingResponse::new(fields);
    response.set_status_code(status).expect("the status is one");
    let body = response.body().expect("the body is taken once");
    let stream = body.write().expect("the stream is taken once");
    ResponseOutparam::set(out, Ok(response));
    (body, stream)
}

pub(crate) fn write_all(stream: &OutputStream, mut content: &[u8]) -> Result<(), StreamError> {
    while !content.is_empty() {
        let permit = stream.check_write()? as usize;
        if permit == 0 {
            stream.subscribe().block();
            continue;
        }
        let (now, later) = content.split_at(permit.min(content.len()));
        stream.write(now)?;
        content = later;
    }
    stream.blocking_flush()
}

/// The query, of which only `%XX` is decoded.
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: &str) -> Self {
        let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self(pairs.map(|(name, value)| (name.to_owned(), decode(value))).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> u64 {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or(default)
    }
}

fn decode(value: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = value.bytes();
    while let Some(byte) = rest.next() {
        let escape = rest.as_slice_of_two();
        match (byte, escape) {
            (b'%', Some(decoded)) => {
                bytes.push(decoded);
                rest.nth(1);
            }
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

trait Escape {
    fn as_slice_of_two(&self) -> Option<u8>;
}

impl Escape for std::str::Bytes<'_> {
    fn as_slice_of_two(&self) -> Option<u8> {
        let mut ahead = self.clone();
        let high = (ahead.next()? as char).to_digit(16)?;
        let low = (ahead.next()? as char).to_digit(16)?;
        u8::try_from(high * 16 + low).ok()
    }
}
