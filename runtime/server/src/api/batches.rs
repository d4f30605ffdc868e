//! `/api/v1/functions/{name}/batches` and `/api/v1/batches`: many lines for one function, and what came of them.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    response::{
        IntoResponse, Response,
        sse::{Event, KeepAlive, Sse},
    },
    routing::{get, post},
};
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body_util::BodyExt;
use sandpiper_control::{BatchView, NewBatch, NewShard, PinnedWork, Tenant};
use sandpiper_domain::{FunctionName, JobId, JobState, Scope, Selector};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{
    Reply,
    auth::Caller,
    blobs::one_upload,
    disk,
    jobs::{id_of, is_of, time_text},
    upload,
};
use crate::{
    app::App,
    batches::{
        self, Cut, Cutter, LINE_BYTES_MAX, LINES_MAX, blob_of, blocking, cut, end_cancelled, write,
    },
    edge::Paced,
    jobs::{bytes_max, now_ms},
    respond::Problem,
};

const PIECE_BYTES: usize = 1 << 20;
const EVENTS_WAITING_MAX: usize = 16;
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);
const SHARD_ATTEMPTS: u32 = 5;
const DEADLINE_MS: u64 = 24 * 3_600_000;
const LIST_MAX: u32 = 100;
/// How much of the newest rate goes into the one that is told.
const SMOOTHING: f64 = 0.2;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/functions/{name}/batches", post(create))
        .route("/batches", get(list))
        .route("/batches/{id}", get(show).delete(cancel))
        .route("/batches/{id}/events", get(events))
        .route("/batches/{id}/output", get(output))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateQuery {
    shard_lines: Option<u64>,
    path: Option<String>,
    selector: Option<String>,
}

async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<CreateQuery>,
    request: Request,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let function: FunctionName = name.parse().map_err(|_| Problem::not_found())?;
    let selector: Selector =
        query.selector.as_deref().unwrap_or("live").parse().map_err(Problem::invalid_name)?;
    let found = tenant.functions.get(&function).ok_or_else(Problem::not_found)?;
    found.versions.resolve(&selector, 0).ok_or_else(Problem::not_found)?;
    let path = query.path.unwrap_or_else(|| "/".to_owned());
    if !path.starts_with('/') || path.parse::<http::uri::PathAndQuery>().is_err() {
        return Err(Problem::bad_request("`path` must be a path such as /predict?x=1"));
    }
    if query.shard_lines.is_some_and(|lines| !(1..=500).contains(&lines)) {
        return Err(Problem::bad_request("`shard_lines` must be from 1 to 500"));
    }
    let _upload = one_upload(&app, &tenant)?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let of_blobs = match kind.unwrap_or_default().split(';').next().unwrap_or_default().trim() {
        "application/x-ndjson" | "application/jsonl" | "application/x-jsonlines" => false,
        "application/json" => true,
        _ => return Err(unsupported()),
    };
    let input = match of_blobs {
        true => read_list(&app, &tenant, request).await?,
        false => read_lines(&app, &tenant, request).await?,
    };
    let now_ms = now_ms();
    let part = |(first_line, lines, offset, bytes)| {
        let job = JobId::at(now_ms, rand::random());
        NewShard { job, first_line, lines, offset, bytes }
    };
    let shards: Vec<_> =
        cut(&input.starts, input.end, query.shard_lines).into_iter().map(part).collect();
    let id = JobId::at(now_ms, rand::random());
    let answer = json!({
        "id": id,
        "lines": input.starts.len(),
        "shards": shards.len(),
        "state": if shards.is_empty() { JobState::Done } else { JobState::Pending },
        "url": format!("/api/v1/batches/{id}"),
    });
    let batch = NewBatch {
        id,
        tenant: tenant.name.clone(),
        function,
        selector,
        path,
        of_blobs,
        lines: input.starts.len() as u64,
        input: input.blob,
        input_bytes: input.end,
        shards,
        created_ms: now_ms,
        attempts_max: SHARD_ATTEMPTS,
        timeout_ms: DEADLINE_MS,
        deadline_ms: now_ms + DEADLINE_MS,
        waiting_max: tenant.limits.jobs,
        bytes_max: bytes_max(&tenant.limits),
    };
    write_down(&app, batch).await?;
    Ok((StatusCode::ACCEPTED, Json(answer)).into_response())
}

/// A client that goes away must not leave half a batch behind.
async fn write_down(app: &Arc<App>, batch: NewBatch) -> Result<(), Problem> {
    let created = tokio::spawn({
        let app = app.clone();
        async move { batches::create(&app, batch).await }
    });
    created.await.map_err(Problem::internal)??;
    app.jobs.wake.notify_one();
    Ok(())
}

fn unsupported() -> Problem {
    let message = "a batch is JSON Lines, or a JSON array of the addresses of blobs";
    Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type", message)
        .hint("set content-type to application/x-ndjson or to application/json")
}

/// A batch's lines, on the disk.
struct Input {
    blob: PinnedWork,
    starts: Vec<u64>,
    end: u64,
}

fn refused(cut: Cut) -> Problem {
    let message = match cut {
        Cut::LineTooLong(line) => {
            format!("line {line} is longer than {} MiB", LINE_BYTES_MAX >> 20)
        }
        Cut::TooManyLines => format!("the batch has more than {LINES_MAX} lines"),
    };
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", message)
        .hint("cut the batch into several, or name blobs in place of long lines")
}

async fn read_lines(app: &Arc<App>, tenant: &Tenant, request: Request) -> Result<Input, Problem> {
    let limit_mib = tenant.limits.batch_mib;
    let too_large = || Problem::too_large("batch", limit_mib);
    let mut body = Paced::new(request.into_body());
    let mut writer = blocking(app, |app| app.jobs.queue.blob_writer()).await?;
    let (mut cutter, mut piece, mut size) = (Cutter::default(), Vec::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| upload::refusal(&*error, too_large()))?;
        let Ok(data) = frame.into_data() else { continue };
        size += data.len() as u64;
        if size > limit_mib << 20 {
            return Err(too_large());
        }
        cutter.take(&data).map_err(refused)?;
        piece.extend_from_slice(&data);
        if piece.len() >= PIECE_BYTES {
            writer = write(app, writer, std::mem::take(&mut piece)).await?;
        }
    }
    let writer = write(app, writer, piece).await?;
    let blob = blocking(app, move |_| writer.finish()).await?;
    let (starts, end) = cutter.finish();
    Ok(Input { blob, starts, end })
}

/// A list of blobs becomes one line for each.
async fn read_list(app: &Arc<App>, tenant: &Tenant, request: Request) -> Result<Input, Problem> {
    let bytes = upload::read(request, "list of blobs", tenant.limits.batch_mib.min(64)).await?;
    let urls: Vec<String> = serde_json::from_slice(&bytes).map_err(|error| {
        Problem::bad_request(format!("the list of blobs is not as expected: {error}"))
    })?;
    if let Some(at) = urls.iter().position(|url| blob_of(url).is_none()) {
        let message = format!("entry {} of the list is not the address of a blob", at + 1);
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", message)
            .hint("an address looks like /api/v1/blobs/ and 64 hexadecimal digits"));
    }
    let lines: String = urls.iter().map(|url| format!("\"{url}\"\n")).collect();
    let mut cutter = Cutter::default();
    cutter.take(lines.as_bytes()).map_err(refused)?;
    let (starts, end) = cutter.finish();
    let blob = blocking(app, move |app| app.jobs.queue.put_work(lines.as_bytes())).await?;
    Ok(Input { blob, starts, end })
}

/// `rate` is in lines per second.
fn batch_json(batch: &BatchView, rate: f64) -> Value {
    let state = match batch.state {
        JobState::Pending if batch.done_shards > 0 => JobState::Running,
        state => state,
    };
    let mut json = json!({
        "id": batch.id,
        "function": batch.function,
        "state": state,
        "lines": batch.lines,
        "done_lines": batch.done_lines,
        "failed_lines": batch.failed_lines,
        "shards": batch.shards,
        "done_shards": batch.done_shards,
        "lines_per_s": (rate * 10.0).round() / 10.0,
        "created_at": time_text(batch.created_ms),
    });
    if let Some(finished) = batch.finished_ms {
        json["finished_at"] = time_text(finished).into();
    } else if rate > 0.0 {
        let left = batch.lines.saturating_sub(batch.done_lines);
        json["eta_s"] = (left as f64 / rate).ceil().into();
    }
    json
}

/// Lines per second since the batch came.
fn mean_rate(batch: &BatchView) -> f64 {
    let end_ms = batch.finished_ms.unwrap_or_else(now_ms);
    let took_ms = end_ms.saturating_sub(batch.created_ms).max(1);
    batch.done_lines as f64 * 1e3 / took_ms as f64
}

async fn find(app: &Arc<App>, tenant: &Arc<Tenant>, id: JobId) -> Result<BatchView, Problem> {
    let owner = tenant.clone();
    let batch = blocking(app, move |app| app.jobs.queue.batch(&owner.name, id)).await?;
    batch.filter(|batch| is_of(tenant, batch.created_ms)).ok_or_else(Problem::not_found)
}

async fn list(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let owner = tenant.clone();
    let batches = blocking(&app, move |app| app.jobs.queue.batches(&owner.name, LIST_MAX)).await?;
    let own = batches.iter().filter(|batch| is_of(&tenant, batch.created_ms));
    let batches: Vec<_> = own.map(|batch| batch_json(batch, mean_rate(batch))).collect();
    Ok(Json(json!({ "batches": batches })).into_response())
}

async fn show(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let batch = find(&app, &tenant, id_of(&id)?).await?;
    Ok(Json(batch_json(&batch, mean_rate(&batch))).into_response())
}

async fn cancel(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let batch = find(&app, &tenant, id_of(&id)?).await?;
    app.jobs.queue.cancel_batch(tenant.name.clone(), batch.id, now_ms()).await?;
    // Those of a large batch end in the background.
    end_cancelled(&app).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn events(State(app): State<Arc<App>>, caller: Caller, Path(id): Path<String>) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let batch = find(&app, &tenant, id_of(&id)?).await?;
    let follower = app.admission(&tenant).follower("batches")?;
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(follow(app, tenant, batch, follower)).keep_alive(keep_alive).into_response())
}

/// A `progress` whenever something has changed, and `done` at the end.
fn follow(
    app: Arc<App>,
    tenant: Arc<Tenant>,
    first: BatchView,
    follower: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    tokio::spawn(async move {
        let _follower = follower;
        let (mut last, mut last_ms, mut rate) = (None::<BatchView>, now_ms(), mean_rate(&first));
        while !app.is_draining() {
            let Ok(batch) = find(&app, &tenant, first.id).await else { return };
            if let Some(last) = last.as_ref().filter(|last| last.done_lines < batch.done_lines) {
                let now = now_ms();
                let newest = (batch.done_lines - last.done_lines) as f64 * 1e3;
                let newest = newest / now.saturating_sub(last_ms).max(1) as f64;
                (rate, last_ms) = (rate + SMOOTHING * (newest - rate), now);
            }
            if last.as_ref() != Some(&batch) {
                let has_ended = batch.finished_ms.is_some();
                let told = if has_ended { mean_rate(&batch) } else { rate };
                let name = if has_ended { "done" } else { "progress" };
                let event = Event::default().event(name).data(batch_json(&batch, told).to_string());
                if events.send(Ok(event)).await.is_err() || has_ended {
                    return;
                }
                last = Some(batch);
            }
            tokio::select! {
                () = events.closed() => return,
                () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
            }
        }
    });
    ReceiverStream::new(receiver)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct OutputQuery {
    #[serde(default)]
    partial: bool,
}

async fn output(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(id): Path<String>,
    Query(query): Query<OutputQuery>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Invoke)?;
    let batch = find(&app, &tenant, id_of(&id)?).await?;
    if batch.finished_ms.is_none() && !query.partial {
        let message = "the batch has not ended";
        return Err(Problem::new(StatusCode::CONFLICT, "batch_running", message)
            .hint("follow its events, or ask for ?partial=true"));
    }
    let follower = app.admission(&tenant).follower("batches")?;
    let mut response = Response::new(disk::output(app, batch.id, follower));
    let kind = HeaderValue::from_static("application/x-ndjson");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    Ok(response)
}
