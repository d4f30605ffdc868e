//! `/api/v1/functions/{name}/instances`: the sandboxes of a function, now or as they change.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{Path, Query, State},
    response::{
        IntoResponse,
        sse::{Event, KeepAlive, Sse},
    },
    routing::get,
};
use futures::Stream;
use sandpiper_control::{Function, FunctionVersion};
use sandpiper_domain::{FunctionName, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::{
    OwnedSemaphorePermit,
    broadcast::{Receiver, error::RecvError},
    mpsc,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Reply, auth::Caller, logs::Followed};
use crate::{
    app::App,
    fleet::{Instance, Told},
    functions::FunctionRuntime,
    respond::Problem,
};

/// Sandboxes listed at most.
const LISTED_MAX: usize = 1_000;
/// Events that may wait for a slow reader here; more wait in the function's own bounded channel.
const EVENTS_WAITING_MAX: usize = 64;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new().route("/functions/{name}/instances", get(show))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InstancesQuery {
    #[serde(default)]
    follow: bool,
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<InstancesQuery>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Logs)?;
    let name: FunctionName = name.parse().map_err(|_| Problem::not_found())?;
    let function = tenant.functions.get(&name).ok_or_else(Problem::not_found)?;
    if !query.follow {
        let find = |version| app.functions.find(&tenant.name, &name, version);
        return Ok(Json(function_json(function, find)).into_response());
    }
    let permit = app.admission(&tenant).follower("functions")?;
    let changes = app.functions.events(&tenant.name, &name).follow();
    let followed =
        Followed { tenant: tenant.name.clone(), function: name, principal: caller.principal };
    let keep_alive = KeepAlive::new().interval(Duration::from_secs(15));
    Ok(Sse::new(follow(app, changes, followed, permit)).keep_alive(keep_alive).into_response())
}

/// The versions that are in use here or that an alias names, and the sandboxes of all of them.
fn function_json(function: &Function, find: impl Fn(u32) -> Option<Arc<FunctionRuntime>>) -> Value {
    let (mut versions, mut instances) = (Vec::new(), Vec::new());
    for (number, version) in function.versions.iter() {
        let runtime = find(number);
        if runtime.is_none() && !function.versions.is_aliased(number) {
            continue;
        }
        versions.push(version_json(version, runtime.as_deref()));
        if let Some(runtime) = runtime {
            let room = LISTED_MAX - instances.len();
            let all = runtime.fleet.instances(room);
            instances.extend(all.iter().map(|instance| instance_json(number, instance)));
        }
    }
    json!({ "versions": versions, "instances": instances })
}

fn version_json(version: &FunctionVersion, runtime: Option<&FunctionRuntime>) -> Value {
    let count = runtime.map(|runtime| runtime.fleet.count()).unwrap_or_default();
    let in_memory = runtime.is_some_and(FunctionRuntime::has_code);
    let scale = &version.manifest.scale;
    let mut value = json!({
        "version": version.version,
        "mode": scale.mode(),
        "scale": {
            "min": scale.min,
            "max": scale.max,
            "reuse": scale.reuse,
            "concurrency": scale.concurrency,
        },
        "code": if in_memory { "memory" } else { "disk" },
        "wanted": count.wanted,
        "ready": count.ready,
        "running": count.running,
        "suspended": count.suspended,
        "waiting": count.waiting,
    });
    if let Some(fault) = count.start_fault {
        value["start_fault"] = json!({ "code": fault.code(), "message": fault.to_string() });
    }
    value
}

fn instance_json(version: u32, instance: &Instance) -> Value {
    let mut value = json!({
        "id": instance.id.to_string(),
        "version": version,
        "state": instance.state,
        "age_ms": instance.age.as_millis() as u64,
        "served": instance.served,
    });
    if let Some(bytes) = instance.memory_bytes {
        value["memory_bytes"] = bytes.into();
    }
    value
}

fn event_of(told: &Told) -> Event {
    match told {
        Told::Instance { id, version, change, reason } => {
            let mut value = json!({ "id": id.to_string(), "version": version, "change": change });
            if let Some(reason) = reason {
                value["reason"] = (*reason).into();
            }
            Event::default().event("instance").data(value.to_string())
        }
        Told::StartFailed { version, fault } => {
            let value = json!({
                "version": version, "code": fault.code(), "message": fault.to_string(),
            });
            Event::default().event("start_failed").data(value.to_string())
        }
        Told::Scale { version, wanted, ready, panicking } => {
            let value = json!({
                "version": version, "wanted": wanted, "ready": ready, "panicking": panicking,
            });
            Event::default().event("scale").data(value.to_string())
        }
    }
}

/// What changes, until the reader leaves, its key or the function goes, or the node drains.
fn follow(
    app: Arc<App>,
    mut changes: Receiver<Told>,
    followed: Followed,
    permit: OwnedSemaphorePermit,
) -> impl Stream<Item = Result<Event, Infallible>> {
    let (events, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    tokio::spawn(async move {
        let _permit = permit;
        let mut checked = tokio::time::interval(Duration::from_secs(1));
        loop {
            let event = tokio::select! {
                change = changes.recv() => match change {
                    Ok(told) => event_of(&told),
                    Err(RecvError::Lagged(count)) => {
                        Event::default().event("dropped").data(json!({ "events": count }).to_string())
                    }
                    Err(RecvError::Closed) => return,
                },
                () = events.closed() => return,
                _ = checked.tick() => match !app.is_draining() && followed.is_allowed(&app) {
                    true => continue,
                    false => return,
                },
            };
            if events.send(Ok(event)).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(receiver)
}
