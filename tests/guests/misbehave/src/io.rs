//! What comes in and what goes out.

use serde_json::{Value, json};
use wasip2::{
    cli::stdout,
    clocks::{monotonic_clock, wall_clock},
    http::types::{Method, OutgoingBody, Scheme},
    random::random,
};

use crate::http::{self, Exchange, Query};

/// Everything that the guest sees of the request.
pub(crate) fn echo(exchange: Exchange) {
    let request = &exchange.request;
    let method = match request.method() {
        Method::Other(name) => name,
        known => format!("{known:?}").trim_start_matches("Method::").to_uppercase(),
    };
    let headers = request.headers().entries();
    let headers: Vec<Value> = headers
        .into_iter()
        .map(|(name, value)| json!([name, String::from_utf8_lossy(&value)]))
        .collect();
    let (body, end) = exchange.body();
    let seen = json!({
        "method": method,
        "path_with_query": request.path_with_query(),
        "scheme": request.scheme().map(|scheme| match scheme {
            Scheme::Http => "http".to_owned(),
            Scheme::Https => "https".to_owned(),
            Scheme::Other(name) => name,
        }),
        "authority": request.authority(),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
        "body_error": end.err(),
    });
    exchange.json(&seen);
}

/// Counts the body without keeping it.
pub(crate) fn body_size(exchange: Exchange) {
    let mut bytes = 0;
    let end = http::read_body(&exchange.request, &mut |chunk| bytes += chunk.len());
    match end {
        Ok(()) => exchange.text(&bytes.to_string()),
        Err(error) => exchange.respond(400, "text/plain", error.as_bytes()),
    }
}

/// `?chunks=10` chunks, `?ms=10` milliseconds apart.
pub(crate) fn stream(exchange: Exchange, query: &Query) {
    let headers = [("content-type".to_owned(), b"text/plain".to_vec())];
    let (body, stream) = http::start(exchange.out, 200, &headers);
    for chunk in 0..query.number("chunks", 10) {
        if http::write_all(&stream, format!("chunk {chunk}\n").as_bytes()).is_err() {
            eprintln!("the caller is gone after {chunk} chunks");
            return;
        }
        monotonic_clock::subscribe_duration(query.number("ms", 10) * 1_000_000).block();
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// A body of `?bytes=` bytes, of which little is ever in memory.
pub(crate) fn big(exchange: Exchange, query: &Query) {
    let mut left = query.number("bytes", 1 << 20);
    let headers = [("content-length".to_owned(), left.to_string().into_bytes())];
    let (body, stream) = http::start(exchange.out, 200, &headers);
    let piece = [b'.'; 1 << 16];
    while left > 0 {
        let now = left.min(piece.len() as u64);
        if http::write_all(&stream, &piece[..now as usize]).is_err() {
            return;
        }
        left -= now;
    }
    drop(stream);
    let _ = OutgoingBody::finish(body, None);
}

/// `?lines=` lines of `?bytes=` bytes each, to standard output and standard error.
pub(crate) fn log(exchange: Exchange, query: &Query) {
    let filler = "x".repeat(query.number("bytes", 0) as usize);
    for line in 0..query.number("lines", 1) {
        println!("out {line} {filler}");
        eprintln!("err {line} {filler}");
    }
    exchange.text("logged");
}

/// `?n=` writes of nothing: each is a call to the host and none is a byte of any budget.
pub(crate) fn log_empty(exchange: Exchange, query: &Query) {
    let stream = stdout::get_stdout();
    let mut refused = 0;
    for _ in 0..query.number("n", 1) {
        refused += u32::from(stream.check_write().is_err() || stream.write(&[]).is_err());
    }
    exchange.text(&format!("{refused} refused"));
}

pub(crate) fn env(exchange: Exchange) {
    let variables: serde_json::Map<String, Value> =
        std::env::vars().map(|(name, value)| (name, Value::from(value))).collect();
    exchange.json(&Value::from(variables));
}

pub(crate) fn random(exchange: Exchange) {
    let bytes: String =
        random::get_random_bytes(16).iter().map(|byte| format!("{byte:02x}")).collect();
    exchange.json(&json!({ "u64": random::get_random_u64().to_string(), "bytes": bytes }));
}

pub(crate) fn clock(exchange: Exchange) {
    let wall = wall_clock::now();
    exchange.json(&json!({
        "wall_seconds": wall.seconds,
        "wall_nanoseconds": wall.nanoseconds,
        "monotonic_nanoseconds": monotonic_clock::now(),
        "monotonic_resolution_nanoseconds": monotonic_clock::resolution(),
    }));
}
