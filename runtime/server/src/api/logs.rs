//! `/api/v1/functions/{name}/logs`: what a function printed, at once or as it comes.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json,
    extract::{Path, Query, State},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
};
use futures::Stream;
use sandpiper_control::Principal;
use sandpiper_domain::{FunctionName, Scope, TenantName};
use sandpiper_sandbox::{FunctionLog, LogLine, LogTail};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::{Reply, auth::Caller, versions::timestamp};
use crate::{app::App, respond::Problem};

/// Events that may wait for a slow reader; beyond that its reader's task waits, and the ring moves on without it.
const EVENTS_WAITING_MAX: usize = 64;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    #[serde(default)]
    follow: bool,
}

fn line_json(line: &LogLine) -> Value {
    json!({
        "time": timestamp(line.at),
        "stream": line.stream.name(),
        "request_id": &*line.request_id,
        "text": line.text,
    })
}

fn tail_json(tail: &LogTail) -> Value {
    json!({
        "lines": tail.lines.iter().map(line_json).collect::<Vec<_>>(),
        "dropped_lines": tail.dropped_lines,
        "dropped_bytes": tail.dropped_bytes,
    })
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Logs)?;
    let name: FunctionName = name.parse().map_err(|_| Problem::not_found())?;
    if !tenant.functions.contains_key(&name) {
        return Err(Problem::not_found());
    }
    let log = app.functions.log(&tenant.name, &name);
    if !query.follow {
        return Ok(Json(tail_json(&log.tail(0))).into_response());
    }
    let permit = app.admission(&tenant).follower("logs")?;
    let followed =
        Followed { tenant: tenant.name.clone(), function: name, principal: caller.principal };
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(follow(app, log, followed, permit)).keep_alive(keep_alive).into_response())
}

/// What must go on being true for a function to be followed.
pub(super) struct Followed {
    pub(super) tenant: TenantName,
    pub(super) function: FunctionName,
    pub(super) principal: Principal,
}

impl Followed {
    pub(super) fn is_allowed(&self, app: &App) -> bool {
        let snapshot = app.catalog.snapshot();
        let key_is_valid = match &self.principal {
            Principal::Operator => true,
            Principal::Tenant { key_id, .. } => {
                let now = OffsetDateTime::now_utc();
                snapshot.key(key_id).is_some_and(|key| !key.has_expired(now))
            }
        };
        key_is_valid && snapshot.function(&self.tenant, &self.function).is_some()
    }
}

/// The kept lines, then the new ones, until the reader leaves, its key or the function goes, or the node drains.
fn follow(
    app: Arc<App>,
    log: Arc<FunctionLog>,
    followed: Followed,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    tokio::spawn(async move {
        let _permit = permit;
        let mut news = log.watch();
        let mut next = 0;
        while !app.is_draining() && followed.is_allowed(&app) {
            news.mark_unchanged();
            let tail = log.tail(next);
            if tail.missed_lines > 0 && next > 0 {
                let event = Event::default().event("dropped");
                let event = event.data(json!({ "lines": tail.missed_lines }).to_string());
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            for line in &tail.lines {
                let event = Event::default().event("log").data(line_json(line).to_string());
                if events.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            next = tail.next;
            // The pause is for what ends it without a line in the log.
            tokio::select! {
                _ = news.changed() => {}
                _ = events.closed() => return,
                _ = tokio::time::sleep(Duration::from_secs(1)) => {}
            }
        }
    });
    ReceiverStream::new(receiver)
}
