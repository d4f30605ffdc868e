//! Work for the queue of jobs.

use serde_json::json;
use wasip2::clocks::monotonic_clock;

use crate::http::{Exchange, Query};

/// Waits `?ms=`, if there is `?only=` only where that is the body, fails with `?code=` (500)
/// in its first `?fail_until=` attempts, and then tells what it saw.
pub(crate) fn job(exchange: Exchange, query: &Query) {
    let header = |name: &str| {
        let values = exchange.request.headers().get(name);
        values.first().map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let attempt: u64 =
        header("x-sandpiper-attempt").and_then(|text| text.parse().ok()).unwrap_or(0);
    let job = header("x-sandpiper-job");
    let prefer = header("prefer");
    let note = header("x-note");
    let (body, _) = exchange.body();
    println!(
        "job {} attempt {attempt} body {}",
        job.as_deref().unwrap_or("-"),
        String::from_utf8_lossy(&body)
    );
    let waits = query.get("only").is_none_or(|only| only.as_bytes() == body);
    if let Some(ms) = query.get("ms").and_then(|ms| ms.parse::<u64>().ok()).filter(|_| waits) {
        monotonic_clock::subscribe_duration(ms * 1_000_000).block();
    }
    if (1..=query.number("fail_until", 0)).contains(&attempt) {
        return exchange.respond(query.number("code", 500) as u16, "text/plain", b"not yet");
    }
    let body = String::from_utf8_lossy(&body).into_owned();
    exchange.json(
        &json!({ "attempt": attempt, "job": job, "prefer": prefer, "note": note, "body": body }),
    );
}
