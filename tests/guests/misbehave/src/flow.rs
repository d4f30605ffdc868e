//! Bodies that stream, with trailers and without.

use serde_json::json;
use wasip2::{
    clocks::monotonic_clock,
    http::types::{Fields, IncomingBody, OutgoingBody},
    io::streams::{InputStream, StreamError},
};

use crate::http::{self, Exchange, Query};

const CHUNK_BYTES: u64 = 1 << 16;

/// A checksum of the bytes eight at a time, in their order, and their number.
struct Sum {
    hash: u64,
    bytes: u64,
    rest: Vec<u8>,
}

impl Sum {
    fn new() -> Self {
        Sum { hash: 0xcbf2_9ce4_8422_2325, bytes: 0, rest: Vec::new() }
    }

    fn add(&mut self, chunk: &[u8]) {
        self.bytes += chunk.len() as u64;
        let missing = (8 - self.rest.len()) % 8;
        let (first, whole) = chunk.split_at(missing.min(chunk.len()));
        self.rest.extend_from_slice(first);
        if let Ok(word) = <[u8; 8]>::try_from(self.rest.as_slice()) {
            self.word(word);
            self.rest.clear();
        }
        let words = whole.chunks_exact(8);
        self.rest.extend_from_slice(words.remainder());
        for word in words {
            self.word(word.try_into().unwrap_or_default());
        }
    }

    fn word(&mut self, word: [u8; 8]) {
        self.hash = (self.hash ^ u64::from_le_bytes(word)).wrapping_mul(0x0100_0000_01b3);
    }

    fn text(&self) -> String {
        format!("{:016x}", self.hash)
    }
}

/// Sends back what comes in, as it comes in.
pub(crate) fn pipe(exchange: Exchange) {
    let Exchange { request, out } = exchange;
    let (incoming, input) = open(request.consume().expect("the body is taken once"));
    let (body, output) = http::start(out, 200, &[]);
    let end = each(&input, |chunk| http::write_all(&output, chunk).is_ok());
    drop((input, incoming, output));
    if end.is_ok() {
        let _ = OutgoingBody::finish(body, None);
    }
}

/// Reads the body, and says how long it was and what its sum is.
pub(crate) fn drain(exchange: Exchange) {
    let mut sum = Sum::new();
    let end = http::read_body(&exchange.request, &mut |chunk| sum.add(chunk));
    exchange.json(&json!({ "bytes": sum.bytes, "sum": sum.text(), "error": end.err() }));
}

/// `?events=3` events, `?ms=100` milliseconds apart.
pub(crate) fn events(exchange: Exchange, query: &Query) {
    let headers = [
        ("content-type".to_owned(), b"text/event-stream".to_vec()),
        ("cache-control".to_owned(), b"no-store".to_vec()),
    ];
    let (body, stream) = http::start(exchange.out, 200, &headers);
    for event in 0..query.number("events", 3) {
        if event > 0 {
            sleep(query.number("ms", 100));
        }
        let event = format!("id: {event}\ndata: tick {event}\n\n");
        if http::write_all(&stream, event.as_bytes()).is_err() {
            return;
        }
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// Says what trailers the request had, and sends some: the checksum of the request's body, announced in the head, and
/// one that no head announces. With `?forbidden`, also some that are no function's to send.
pub(crate) fn trailers(exchange: Exchange, query: &Query) {
    let Exchange { request, out } = exchange;
    let (incoming, input) = open(request.consume().expect("the body is taken once"));
    let mut sum = Sum::new();
    let end = each(&input, |chunk| {
        sum.add(chunk);
        true
    });
    drop(input);
    let future = IncomingBody::finish(incoming);
    future.subscribe().block();
    let seen = match future.get() {
        Some(Ok(Ok(trailers))) => trailers.map(|fields| {
            let entries = fields.entries().into_iter();
            entries.map(|(name, value)| (name, text(&value))).collect::<Vec<_>>()
        }),
        _ => None,
    };
    let headers = [("trailer".to_owned(), b"x-checksum, x-sandpiper-error".to_vec())];
    let (body, output) = http::start(out, 200, &headers);
    let answer = json!({ "trailers": seen, "bytes": sum.bytes, "error": end.err() });
    if http::write_all(&output, answer.to_string().as_bytes()).is_err() {
        return;
    }
    drop(output);
    let mut fields = vec![
        ("x-checksum".to_owned(), sum.text().into_bytes()),
        ("x-unannounced".to_owned(), b"1".to_vec()),
    ];
    if query.get("forbidden").is_some() {
        fields.push(("x-sandpiper-error".to_owned(), b"trap".to_vec()));
    }
    let fields = Fields::from_list(&fields).expect("the trailers are fine");
    let _ = OutgoingBody::finish(body, Some(fields));
}

/// Answers first, and reads the request's body then.
pub(crate) fn late(exchange: Exchange) {
    let Exchange { request, out } = exchange;
    let (body, output) = http::start(out, 200, &[]);
    if http::write_all(&output, b"early\n").is_err() {
        return;
    }
    let mut bytes = 0;
    let end = http::read_body(&request, &mut |chunk| bytes += chunk.len());
    let text = match end {
        Ok(()) => format!("{bytes}\n"),
        Err(error) => format!("{error}\n"),
    };
    let _ = http::write_all(&output, text.as_bytes());
    drop(output);
    let _ = OutgoingBody::finish(body, None);
}

/// Reads the body with a pause of `?ms=` after each chunk; says how much it was.
pub(crate) fn slow_read(exchange: Exchange, query: &Query) {
    let mut bytes = 0;
    let end = http::read_body(&exchange.request, &mut |chunk| {
        bytes += chunk.len();
        sleep(query.number("ms", 10));
    });
    match end {
        Ok(()) => exchange.text(&bytes.to_string()),
        Err(error) => exchange.respond(400, "text/plain", error.as_bytes()),
    }
}

fn open(body: IncomingBody) -> (IncomingBody, InputStream) {
    let stream = body.stream().expect("the stream is taken once");
    (body, stream)
}

/// Reads to the end, or until `take` has had enough.
fn each(input: &InputStream, mut take: impl FnMut(&[u8]) -> bool) -> Result<(), String> {
    loop {
        match input.blocking_read(CHUNK_BYTES) {
            Ok(chunk) if take(&chunk) => {}
            Ok(_) => return Err("the other side is gone".to_owned()),
            Err(StreamError::Closed) => return Ok(()),
            Err(StreamError::LastOperationFailed(error)) => return Err(error.to_debug_string()),
        }
    }
}

fn sleep(ms: u64) {
    monotonic_clock::subscribe_duration(ms * 1_000_000).block();
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value).into_owned()
}

/// Answers, and is at work for `?ms=` after that.
pub(crate) fn work_on(exchange: Exchange, query: &Query) {
    exchange.text("done");
    sleep(query.number("ms", 10));
}
