//! `/api/v1/jobs`: where jobs stand, their results, and what their owner may do with them.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderName, HeaderValue, StatusCode, header};
use sandpiper_control::{JobFilter, JobView, ResultView, Tenant};
use sandpiper_domain::{FunctionName, JobError, JobId, JobQueue, JobState, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Reply, TheirAnswer, auth::Caller, disk, upload, versions::timestamp};
use crate::{app::App, batches::blocking, jobs::now_ms, respond::Problem};

const LIMIT: u32 = 100;
const LIMIT_MAX: u32 = 1_000;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/jobs", get(list))
        .route("/jobs/redrive", post(redrive_all))
        .route("/jobs/{id}", get(show).delete(cancel))
        .route("/jobs/{id}/result", get(result))
        .route("/jobs/{id}/redrive", post(redrive_one))
        .route("/webhooks/secret", get(secret))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ListQuery {
    state: Option<JobState>,
    function: Option<FunctionName>,
    after: Option<JobId>,
    limit: Option<u32>,
}

pub(super) fn time_text(ms: u64) -> String {
    let nanos = i128::from(ms) * 1_000_000;
    OffsetDateTime::from_unix_timestamp_nanos(nanos).map(timestamp).unwrap_or_default()
}

/// Whether something from before is this tenant's, and not that of another who had the name once.
pub(super) fn is_of(tenant: &Tenant, created_ms: u64) -> bool {
    tenant.created_at.unix_timestamp_nanos() / 1_000_000 <= i128::from(created_ms)
}

fn job_json(job: &JobView) -> Value {
    let mut json = json!({
        "id": job.id,
        "function": job.function,
        "state": job.state,
        "attempts": job.attempts,
        "attempts_max": job.attempts_max,
        "created_at": time_text(job.created_ms),
    });
    if let Some(version) = job.version {
        json["version"] = version.into();
    }
    if let Some(error) = &job.error {
        json["error"] = error.as_str().into();
    }
    if job.state == JobState::Pending {
        json["ready_at"] = time_text(job.ready_ms).into();
    }
    if let Some(finished) = job.finished_ms {
        json["finished_at"] = time_text(finished).into();
    }
    if let Some(expires) = job.expires_ms.filter(|_| job.state == JobState::Done) {
        json["result_expires_at"] = time_text(expires).into();
    }
    if let Some(url) = &job.webhook {
        let state = match job.webhook_state {
            2 => "delivered",
            3 => "given_up",
            _ => "waiting",
        };
        json["webhook"] = json!({ "url": url, "state": state });
    }
    json
}

pub(super) fn id_of(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|_| Problem::not_found())
}

async fn find(app: &Arc<App>, tenant: &Arc<Tenant>, id: JobId) -> Result<JobView, Problem> {
    let owner = tenant.clone();
    let job = blocking(app, move |app| app.jobs.queue.get(&owner.name, id)).await?;
    job.filter(|job| is_of(tenant, job.created_ms)).ok_or_else(Problem::not_found)
}

async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<ListQuery>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let filter = JobFilter {
        state: query.state,
        function: query.function,
        before: query.after,
        limit: query.limit.unwrap_or(LIMIT).clamp(1, LIMIT_MAX),
    };
    let owner = tenant.clone();
    let jobs = blocking(&app, move |app| app.jobs.queue.list(&owner.name, &filter)).await?;
    let jobs = jobs.iter().filter(|job| is_of(&tenant, job.created_ms)).map(job_json);
    Ok(Json(json!({ "jobs": jobs.collect::<Vec<_>>() })).into_response())
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let job = find(&app, &tenant, id_of(&id)?).await?;
    Ok(Json(job_json(&job)).into_response())
}

async fn result(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let job = find(&app, &tenant, id_of(&id)?).await?;
    let gone = |code, message: &str| Problem::new(StatusCode::GONE, code, message);
    match job.state {
        JobState::Pending | JobState::Running => {
            Ok((StatusCode::ACCEPTED, Json(job_json(&job))).into_response())
        }
        JobState::Cancelled => Err(gone("job_cancelled", "the job was taken back")),
        JobState::Dead => {
            let message = job.error.unwrap_or_else(|| "the job was given up".to_owned());
            Err(Problem::new(StatusCode::FAILED_DEPENDENCY, "job_dead", message)
                .hint("mend the cause, then POST to the job's `redrive`"))
        }
        JobState::Done => {
            let expired = || {
                gone("result_expired", "the result was kept as long as was asked for, and is gone")
                    .hint("ask for longer with the header `x-sandpiper-result-ttl`")
            };
            if job.expires_ms.is_some_and(|at| at <= now_ms()) {
                return Err(expired());
            }
            let found = blocking(&app, move |app| app.jobs.queue.result(job.id)).await?;
            replay(&app, &tenant, found.ok_or_else(expired)?).await
        }
    }
}

/// The function's answer as it came.
async fn replay(app: &Arc<App>, tenant: &Tenant, result: ResultView) -> Reply {
    let mut response = match result.blob {
        Some(digest) => disk::blob(app, tenant, digest).await?,
        None => Response::new(Body::from(result.body)),
    };
    *response.status_mut() =
        StatusCode::from_u16(result.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let of_connection = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
    for (name, value) in &result.headers {
        let header = (name.parse::<HeaderName>(), HeaderValue::from_bytes(value));
        if let (Ok(name), Ok(value)) = header
            && !of_connection.contains(&name)
        {
            response.headers_mut().append(name, value);
        }
    }
    response.extensions_mut().insert(TheirAnswer);
    Ok(response)
}

async fn cancel(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let job = find(&app, &tenant, id_of(&id)?).await?;
    app.jobs.queue.cancel(tenant.name.clone(), job.id, now_ms()).await?;
    app.jobs.abort(job.id);
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn redrive_one(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let job = find(&app, &tenant, id_of(&id)?).await?;
    redrive(&app, &tenant, Some(job.id), None).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RedriveBody {
    function: Option<FunctionName>,
}

async fn redrive_all(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let body: RedriveBody = upload::json(request).await?;
    redrive(&app, &tenant, None, body.function).await
}

async fn redrive(
    app: &Arc<App>,
    tenant: &Tenant,
    job: Option<JobId>,
    function: Option<FunctionName>,
) -> Reply {
    let (mut count, waiting_max) = (0, tenant.limits.jobs);
    loop {
        let (name, function) = (tenant.name.clone(), function.clone());
        let more = app.jobs.queue.redrive(name, job, function, waiting_max, now_ms()).await;
        app.jobs.wake.notify_one();
        match more {
            Ok(more) => count += more,
            Err(JobError::TenantFull) if count > 0 => break,
            Err(error) => return Err(error.into()),
        }
        if job.is_some() || matches!(more, Ok(0)) {
            break;
        }
    }
    Ok(Json(json!({ "redriven": count })).into_response())
}

async fn secret(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    let tenant = caller.tenant(&app, Scope::Keys)?;
    Ok(Json(json!({ "secret": app.jobs.secrets.of(&tenant) })).into_response())
}
