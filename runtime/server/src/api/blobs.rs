//! `/api/v1/blobs`: bytes that a batch may name.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::IntoResponse,
    routing::{get, put},
};
use http::{HeaderValue, StatusCode, header};
use sandpiper_control::Tenant;
use sandpiper_domain::{Digest, Scope};
use serde_json::json;

use super::{Reply, auth::Caller, disk, jobs::time_text, upload};
use crate::{
    app::App,
    batches::blocking,
    jobs::{bytes_max, now_ms},
    respond::Problem,
};

const KEPT_MS: u64 = 24 * 3_600_000;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/blobs", put(store)).route("/blobs/{digest}", get(show).delete(delete))
}

async fn store(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let _upload = one_upload(&app, &tenant)?;
    // A blob is a request's body in the end.
    let bytes = upload::read(request, "blob", tenant.sandbox.request_body_mib).await?;
    let size = bytes.len() as u64;
    let blob = blocking(&app, move |app| app.jobs.queue.put_work(&bytes)).await?;
    let (digest, expires_ms) = (blob.digest(), now_ms() + KEPT_MS);
    let most = bytes_max(&tenant.limits);
    let owned = app.jobs.queue.own_blob(tenant.name.clone(), blob, size, expires_ms, most);
    owned.await.map_err(|error| match error {
        sandpiper_domain::JobError::TenantFull => {
            let message = "as much is kept of the tenant's blobs, jobs and batches as may be";
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "limit_reached", message)
                .hint("delete blobs that are no longer needed, or wait a day")
        }
        error => error.into(),
    })?;
    let url = format!("/api/v1/blobs/{digest}");
    let answer = json!({ "digest": digest, "url": url, "expires_at": time_text(expires_ms) });
    Ok((StatusCode::CREATED, Json(answer)).into_response())
}

/// The place of one upload among those that the tenant may have at once.
pub(super) fn one_upload(
    app: &App,
    tenant: &Tenant,
) -> Result<tokio::sync::OwnedSemaphorePermit, Problem> {
    let place = app.admission(tenant).uploads.clone().try_acquire_owned();
    place.map_err(|_| {
        Problem::too_many("upload_limit", "as many uploads of this tenant are under way as may be")
    })
}

fn digest_of(text: &str) -> Result<Digest, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(digest): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let digest = digest_of(&digest)?;
    let owner = tenant.clone();
    let size = blocking(&app, move |app| app.jobs.queue.blob_size(&owner.name, &digest, now_ms()));
    size.await?.ok_or_else(Problem::not_found)?;
    let mut response = disk::blob(&app, &tenant, digest).await?;
    let kind = HeaderValue::from_static("application/octet-stream");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}

async fn delete(State(app): State<Arc<App>>, caller: Caller, Path(digest): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    app.jobs.queue.disown_blob(tenant.name.clone(), digest_of(&digest)?).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
