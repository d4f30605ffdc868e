//! A request with `Prefer: respond-async` becomes a job.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use http_body_util::BodyExt;
use sandpiper_control::FunctionVersion;
use sandpiper_domain::{
    Digest, Enqueued, Grant, JobId, JobQueue, JobRequest, Lane, NewJob, Selector,
};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    BODY_UNIT_BYTES, BODY_UNITS, bytes_max, now_ms,
    options::{OURS, Options},
};
use crate::{
    app::App,
    edge::EdgeBody,
    respond::{Problem, REQUEST_ID},
};

/// How long a large body waits for room in memory, and how long any may take to come.
const ROOM_WAIT_MAX: Duration = Duration::from_secs(10);
const BODY_WAIT_MAX: Duration = Duration::from_secs(300);

/// Headers of the connection, which say nothing about a request that is kept.
const OF_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    REQUEST_ID,
];

const REPLAYED: HeaderName = HeaderName::from_static("x-sandpiper-replayed");
const APPLIED: HeaderName = HeaderName::from_static("preference-applied");

/// What a job is for, once its caller may have it.
pub(crate) struct Accepted {
    pub(crate) version: Arc<FunctionVersion>,
    pub(crate) grant: Arc<Grant>,
    pub(crate) selector: Selector,
}

/// Whether the caller prefers an answer at once and the result later (RFC 7240).
pub(crate) fn prefers_async(headers: &HeaderMap) -> bool {
    let values = headers.get_all("prefer").iter().filter_map(|value| value.to_str().ok());
    let mut preferences = values.flat_map(|value| value.split(','));
    preferences.any(|preference| {
        let name = preference.split([';', '=']).next().unwrap_or_default();
        name.trim().eq_ignore_ascii_case("respond-async")
    })
}

/// Writes the request down. When this answers 202, the job survives whatever becomes of the node.
pub(crate) async fn accept<B>(
    app: &Arc<App>,
    accepted: Accepted,
    request: Request<B>,
) -> Result<Response<EdgeBody>, Problem>
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error,
{
    let Accepted { version, grant, selector } = accepted;
    let options = Options::read(request.headers(), &app.settings)?;
    let (parts, body) = request.into_parts();
    let (body, _room) = read(app, body, grant.sandbox.request_body_mib << 20).await?;
    let now_ms = now_ms();
    let path_and_query = parts.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let kept = JobRequest {
        method: parts.method.as_str().to_owned(),
        path_and_query,
        headers: kept_headers(&parts.headers, body.len()),
    };
    let content_type = parts.headers.get(header::CONTENT_TYPE);
    let fingerprint = fingerprint(&kept, &selector, content_type, &body);
    let wall_ms = grant.sandbox.wall_ms;
    // Whoever had the tenant's name before had other keys.
    let tenant = app.catalog.snapshot().tenant(&grant.models.tenant).cloned();
    let tenant = tenant.ok_or_else(Problem::not_found)?;
    let born_ms = tenant.created_at.unix_timestamp_nanos() / 1_000_000;
    let id = JobId::at(now_ms, rand::random());
    let job = NewJob {
        id,
        tenant: grant.models.tenant.clone(),
        function: version.manifest.name.clone(),
        selector,
        request: kept,
        body,
        lane: Lane::Job,
        priority: options.priority,
        created_ms: now_ms,
        ready_ms: now_ms + options.delay_ms,
        deadline_ms: now_ms + options.delay_ms + options.deadline_ms,
        attempts_max: options.attempts,
        timeout_ms: options.timeout_ms.unwrap_or(wall_ms).min(wall_ms),
        result_ttl_ms: options.result_ttl_ms,
        webhook: options.webhook,
        idempotency: options.key.map(|key| (format!("{born_ms}/{key}"), fingerprint)),
        waiting_max: grant.tenant.jobs,
        bytes_max: bytes_max(&grant.tenant),
    };
    match app.jobs.queue.enqueue(job).await? {
        Enqueued::New => {
            app.jobs.wake.notify_one();
            Ok(answer(id, false))
        }
        Enqueued::Known(id) => Ok(answer(id, true)),
    }
}

fn answer(id: JobId, replayed: bool) -> Response<EdgeBody> {
    let url = format!("/api/v1/jobs/{id}");
    let mut text = json!({ "id": id, "url": url });
    if !replayed {
        text["state"] = "pending".into();
    }
    let mut response = Response::new(EdgeBody::full(text.to_string()));
    *response.status_mut() = StatusCode::ACCEPTED;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(APPLIED, HeaderValue::from_static("respond-async"));
    if let Ok(url) = HeaderValue::from_str(&url) {
        headers.insert(header::LOCATION, url);
    }
    if replayed {
        headers.insert(REPLAYED, HeaderValue::from_static("true"));
    }
    response
}

/// The whole body, and the room it takes in memory until it is on the disk.
async fn read<B>(app: &App, body: B, limit: u64) -> Result<(Bytes, OwnedSemaphorePermit), Problem>
where
    B: Body<Data = Bytes>,
    B::Error: std::error::Error,
{
    let size = body.size_hint().upper().unwrap_or(limit).min(limit);
    let units = u32::try_from(size.div_ceil(BODY_UNIT_BYTES)).unwrap_or(BODY_UNITS).min(BODY_UNITS);
    let room = app.jobs.bodies.clone().acquire_many_owned(units);
    let busy = |_| Problem::busy("node_saturated", "too many bodies of jobs are being read");
    let room = tokio::time::timeout(ROOM_WAIT_MAX, room).await.map_err(busy)?;
    let room = room.map_err(Problem::internal)?;
    match tokio::time::timeout(BODY_WAIT_MAX, body.collect()).await {
        Ok(Ok(whole)) => Ok((whole.to_bytes(), room)),
        Ok(Err(_)) => Err(Problem::bad_request("the body broke off")),
        Err(_) => {
            let message = "the body came too slowly; send it again over a faster connection";
            Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message))
        }
    }
}

fn kept_headers(headers: &HeaderMap, length: usize) -> Vec<(String, Vec<u8>)> {
    let is_kept =
        |name: &HeaderName| !OURS.contains(&name.as_str()) && !OF_CONNECTION.contains(name);
    let kept = headers.iter().filter(|(name, _)| is_kept(name));
    let mut kept: Vec<_> =
        kept.map(|(name, value)| (name.to_string(), value.as_bytes().to_vec())).collect();
    if length > 0 {
        kept.push((header::CONTENT_LENGTH.to_string(), length.to_string().into_bytes()));
    }
    kept
}

/// What an idempotency key stands for.
fn fingerprint(
    request: &JobRequest,
    selector: &Selector,
    content_type: Option<&HeaderValue>,
    body: &[u8],
) -> Digest {
    let mut hash = Sha256::new();
    for part in [
        request.method.as_bytes(),
        selector.to_string().as_bytes(),
        request.path_and_query.as_bytes(),
        content_type.map_or(&b""[..], |value| value.as_bytes()),
    ] {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    }
    hash.update(Sha256::digest(body));
    Digest(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_preference_is_found_among_others() {
        for (value, expected) in [
            ("respond-async", true),
            ("wait=10, Respond-Async ; x=1", true),
            ("return=minimal", false),
            ("respond-asynchronously", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("prefer", HeaderValue::from_static(value));
            assert_eq!(prefers_async(&headers), expected, "{value:?}");
        }
        assert!(!prefers_async(&HeaderMap::new()));
    }
}
