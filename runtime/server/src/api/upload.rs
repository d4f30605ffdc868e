//! Reading what a client sends, never more of it than it may send.

use axum::extract::{FromRequest, Multipart, Request};
use bytes::Bytes;
use http::{StatusCode, header};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;

use crate::respond::Problem;

const JSON_BYTES_MAX: usize = 64 * 1024;
/// What a manifest and the framing of multipart may add to a component.
const MULTIPART_EXTRA_BYTES: u64 = 256 * 1024;

/// A whole body of at most `limit_mib`.
pub(super) async fn read(request: Request, what: &str, limit_mib: u64) -> Result<Bytes, Problem> {
    let limit = limit_mib << 20;
    if request.body().size_hint().lower() > limit {
        return Err(Problem::too_large(what, limit_mib));
    }
    match Limited::new(request.into_body(), limit as usize).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if is_too_large(&*error) => Err(Problem::too_large(what, limit_mib)),
        Err(_) => Err(Problem::bad_request("the body broke off")),
    }
}

/// A small JSON body.
pub(super) async fn json<T: DeserializeOwned>(request: Request) -> Result<T, Problem> {
    let body = Limited::new(request.into_body(), JSON_BYTES_MAX).collect().await;
    let body = body.map_err(|error| match is_too_large(&*error) {
        true => {
            Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the JSON body is too large")
        }
        false => Problem::bad_request("the body broke off"),
    })?;
    serde_json::from_slice(&body.to_bytes())
        .map_err(|error| Problem::bad_request(format!("the JSON body is not as expected: {error}")))
}

/// A function's upload: the component alone, or as multipart with its manifest.
pub(super) async fn component(
    request: Request,
    limit_mib: u64,
) -> Result<(Bytes, Option<String>), Problem> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // curl sends a form's type with any body, so only multipart says something.
    if !kind.is_some_and(|kind| {
        kind.trim_start().to_ascii_lowercase().starts_with("multipart/form-data")
    }) {
        return Ok((read(request, "component", limit_mib).await?, None));
    }
    let limit = (limit_mib << 20) + MULTIPART_EXTRA_BYTES;
    if request.body().size_hint().lower() > limit {
        return Err(Problem::too_large("component", limit_mib));
    }
    let request = request.map(|body| axum::body::Body::new(Limited::new(body, limit as usize)));
    let refuse = |error: axum::extract::multipart::MultipartError| match is_too_large(&error) {
        true => Problem::too_large("component", limit_mib),
        false => Problem::bad_request("the multipart body is malformed"),
    };
    let mut parts = Multipart::from_request(request, &())
        .await
        .map_err(|_| Problem::bad_request("the multipart body is malformed"))?;
    let (mut component, mut manifest) = (None, None);
    while let Some(part) = parts.next_field().await.map_err(refuse)? {
        match part.name() {
            Some("component") if component.is_none() => {
                component = Some(part.bytes().await.map_err(refuse)?);
            }
            Some("manifest") if manifest.is_none() => {
                manifest = Some(part.text().await.map_err(refuse)?);
            }
            _ => {
                return Err(Problem::bad_request(
                    "the multipart body may hold the parts `component` and `manifest`, each once",
                ));
            }
        }
    }
    let component =
        component.ok_or_else(|| Problem::bad_request("the part `component` is missing"))?;
    if component.len() as u64 > limit_mib << 20 {
        return Err(Problem::too_large("component", limit_mib));
    }
    Ok((component, manifest))
}

fn is_too_large(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| error.source())
        .any(|error| error.is::<LengthLimitError>())
}
