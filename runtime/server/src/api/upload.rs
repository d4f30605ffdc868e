//! Reading what a client sends, never more of it than it may send.

use std::collections::BTreeMap;

use axum::{
    body::Body,
    extract::{FromRequest, Multipart, Request},
};
use bytes::Bytes;
use http::{StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::{
    edge::{Paced, TooSlow, Whole},
    respond::Problem,
};

/// What became of a body that could not be read.
pub(super) fn refusal(error: &(dyn std::error::Error + 'static), too_large: Problem) -> Problem {
    if is::<LengthLimitError>(error) {
        return too_large;
    }
    if is::<TooSlow>(error) {
        let message = "the body came too slowly; send it again over a faster connection";
        return Problem::new(StatusCode::REQUEST_TIMEOUT, "too_slow", message);
    }
    Problem::bad_request("the body broke off")
}

fn is<T: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source()).any(|error| error.is::<T>())
}

const JSON_BYTES_MAX: usize = 64 * 1024;
/// What a manifest and the framing of multipart may add to a component.
const MULTIPART_EXTRA_BYTES: u64 = 256 * 1024;

/// A whole body of at most `limit_mib`.
pub(super) async fn read(request: Request, what: &str, limit_mib: u64) -> Result<Bytes, Problem> {
    let limit = limit_mib << 20;
    if request.body().size_hint().lower() > limit {
        return Err(Problem::too_large(what, limit_mib));
    }
    let mut whole = Whole::announced(&request.body().size_hint());
    let mut body = Limited::new(Paced::new(request.into_body()), limit as usize);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| refusal(&*e, Problem::too_large(what, limit_mib)))?;
        if let Ok(data) = frame.into_data() {
            whole.push(&data);
        }
    }
    Ok(whole.into_bytes())
}

/// A small JSON body; an empty one is an empty object.
pub(super) async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let body = Limited::new(Paced::new(request.into_body()), JSON_BYTES_MAX).collect().await;
    let body = body.map_err(|error| {
        let message = "the JSON body is too large";
        refusal(&*error, Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message))
    })?;
    let bytes = body.to_bytes();
    let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
    serde_json::from_slice(text)
        .map_err(|error| Problem::bad_request(format!("the JSON body is not as expected: {error}")))
}

/// A function's upload: the component alone, or as multipart with its manifest.
pub(super) async fn component(
    request: Request,
    limit_mib: u64,
) -> Result<(Bytes, Option<String>), Problem> {
    let mut parts =
        parts(request, &["component", "manifest"], limit_mib, MULTIPART_EXTRA_BYTES).await?;
    let component = parts.remove("component").unwrap_or_default();
    let manifest = parts.remove("manifest").map(|text| {
        String::from_utf8(text.into())
            .map_err(|_| Problem::bad_request("the part `manifest` is no UTF-8"))
    });
    Ok((component, manifest.transpose()?))
}

/// An upload: the first of `names` alone, or a multipart form of these parts, each at most once, the first always. The
/// others may take `extra` bytes together, with the framing.
pub(super) async fn parts(
    request: Request,
    names: &[&'static str],
    limit_mib: u64,
    extra: u64,
) -> Result<BTreeMap<&'static str, Bytes>, Problem> {
    let what = names.first().copied().unwrap_or_default();
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // curl sends a form's type with any body, so only multipart says something.
    if !kind.is_some_and(|kind| {
        kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
    }) {
        return Ok(BTreeMap::from([(what, read(request, what, limit_mib).await?)]));
    }
    let limit = (limit_mib << 20) + extra;
    if request.body().size_hint().lower() > limit {
        return Err(Problem::too_large(what, limit_mib));
    }
    let request = request.map(|body| Body::new(Limited::new(Paced::new(body), limit as usize)));
    let refuse = |error: axum::extract::multipart::MultipartError| {
        refusal(&error, Problem::too_large(what, limit_mib))
    };
    let mut form = Multipart::from_request(request, &())
        .await
        .map_err(|_| Problem::bad_request("the multipart body is malformed"))?;
    let mut parts = BTreeMap::new();
    let mut extra_left = extra as usize;
    while let Some(mut part) = form.next_field().await.map_err(refuse)? {
        let name = names.iter().copied().find(|name| part.name() == Some(name));
        let Some(name) = name.filter(|name| !parts.contains_key(name)) else {
            let known = names.join("`, `");
            return Err(Problem::bad_request(format!(
                "the multipart body may hold the parts `{known}`, each once"
            )));
        };
        let mut bytes = Whole::default();
        while let Some(chunk) = part.chunk().await.map_err(refuse)? {
            bytes.push(&chunk);
            if name == what && bytes.len() as u64 > limit_mib << 20 {
                return Err(Problem::too_large(what, limit_mib));
            }
            if name != what && bytes.len() > extra_left {
                let message = format!(
                    "the parts beside `{what}` take more than the {} KiB that they may take together",
                    extra >> 10
                );
                return Err(Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message));
            }
        }
        if name != what {
            extra_left -= bytes.len();
        }
        parts.insert(name, bytes.into_bytes());
    }
    if !parts.contains_key(what) {
        return Err(Problem::bad_request(format!("the part `{what}` is missing")));
    }
    Ok(parts)
}
