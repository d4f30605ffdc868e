//! Where a function's traffic goes: rollouts, histories, differences between versions, and what is kept of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Path, Request, State},
    response::IntoResponse,
    routing::{get, post, put},
};
use http::StatusCode;
use sandpiper_control::{
    Alias, Cause, Function, Health, NewRollout, Placement, RolloutEnd, Tenant,
};
use sandpiper_domain::{AliasName, Manifest, Scope};
use serde::Deserialize;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::{
    Reply,
    auth::Caller,
    resource::{Resource, find},
    upload,
    versions::{RetentionBody, alias_name, retention_json, timestamp, version_number},
};
use crate::{app::App, respond::Problem};

pub(super) fn routes() -> Router<Arc<App>> {
    let alias = "/functions/{name}/aliases/{alias}";
    Router::new()
        .route(&format!("{alias}/rollouts"), post(begin).get(show).delete(abort))
        .route(&format!("{alias}/history"), get(history))
        .route("/functions/{name}/versions/{version}/diff/{to}", get(diff))
        .route("/functions/{name}/retention", put(retain))
}

/// `{"version": 4, "percent": 10, "bake_s": 300}`, and what the version must keep to where that is not the usual.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RolloutBody {
    version: u32,
    percent: u32,
    bake_s: u32,
    error_rate_max: Option<f64>,
    p99_ms_max: Option<u64>,
    requests_min: Option<u64>,
}

impl RolloutBody {
    fn rollout(&self) -> NewRollout {
        let usual = Health::default();
        NewRollout {
            candidate: self.version,
            percent: self.percent,
            bake: Duration::seconds(self.bake_s.into()),
            health: Health {
                error_rate_max: self.error_rate_max.unwrap_or(usual.error_rate_max),
                p99_ms_max: self.p99_ms_max,
                requests_min: self.requests_min.unwrap_or(usual.requests_min),
            },
        }
    }
}

async fn begin(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    request: Request,
) -> Reply {
    let (tenant, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let of = alias_name(&alias)?;
    let new = upload::json::<RolloutBody>(request).await?.rollout();
    let work = {
        let (tenant, of) = (tenant.clone(), of.clone());
        move |app: &App| {
            let now = OffsetDateTime::now_utc();
            app.catalog.begin_rollout(&tenant.name, &function.name, &of, new, now)
        }
    };
    app.blocking(work).await??;
    let (tenant, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let there = function.versions.alias(&of).ok_or_else(Problem::not_found)?;
    let body = rollout_json(&app, &tenant, &function, &of, there);
    Ok((StatusCode::CREATED, Json(body.ok_or_else(Problem::not_found)?)).into_response())
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let of = alias_name(&alias)?;
    let there = function.versions.alias(&of).ok_or_else(Problem::not_found)?;
    let body = rollout_json(&app, &tenant, &function, &of, there);
    Ok(Json(body.ok_or_else(Problem::not_found)?).into_response())
}

async fn abort(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let of = alias_name(&alias)?;
    let work = move |app: &App| {
        let (now, end) = (OffsetDateTime::now_utc(), RolloutEnd::Aborted);
        app.catalog.end_rollout(&tenant.name, &function.name, &of, None, end, now)
    };
    let mut body = Function::place_json(&app.blocking(work).await??);
    body["alias"] = alias.into();
    Ok(Json(body).into_response())
}

/// The rollout under way, or else the one before.
fn rollout_json(
    app: &App,
    tenant: &Tenant,
    function: &Function,
    alias: &AliasName,
    there: &Alias,
) -> Option<Value> {
    if let Some(rollout) = &there.rollout {
        let name = (tenant.name.clone(), function.name.clone(), alias.clone());
        let seen = app.rollouts.seen(name, rollout);
        let (candidate, stable) =
            seen.map(|seen| (seen.candidate, seen.stable)).unwrap_or_default();
        return Some(json!({
            "alias": alias,
            "state": "baking",
            "version": rollout.candidate,
            "stable": rollout.stable,
            "percent": rollout.percent,
            "began_at": timestamp(rollout.began_at),
            "bake_until": timestamp(rollout.bake_until),
            "error_rate_max": rollout.health.error_rate_max,
            "p99_ms_max": rollout.health.p99_ms_max,
            "requests_min": rollout.health.requests_min,
            "requests": candidate.requests,
            "errors": candidate.errors,
            "cancelled": candidate.cancelled,
            "p99_ms": candidate.p99_ms,
            "stable_seen": {
                "requests": stable.requests,
                "errors": stable.errors,
                "cancelled": stable.cancelled,
                "p99_ms": stable.p99_ms,
            },
        }));
    }
    let ended = there.last_rollout.as_ref()?;
    let (state, reason) = match &ended.end {
        RolloutEnd::Promoted => ("promoted", None),
        RolloutEnd::RolledBack { reason } => ("rolled_back", Some(reason)),
        RolloutEnd::Aborted => ("aborted", None),
    };
    let (version, ended_at) = (ended.candidate, timestamp(ended.at));
    let mut json =
        json!({ "alias": alias, "state": state, "version": version, "ended_at": ended_at });
    if let Some(reason) = reason {
        json["reason"] = json!(reason);
    }
    Some(json)
}

async fn history(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (_, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let there = function.versions.alias(&alias_name(&alias)?).ok_or_else(Problem::not_found)?;
    let earlier = there.history.iter().rev();
    let history: Vec<_> = std::iter::once(&there.now).chain(earlier).map(placement_json).collect();
    Ok(Json(json!({ "alias": alias, "history": history })).into_response())
}

fn placement_json(placement: &Placement) -> Value {
    let mut json = Function::place_json(placement);
    json["at"] = json!(placement.at.map(timestamp));
    let (cause, detail) = match &placement.cause {
        Cause::Deployed => ("deployed", None),
        Cause::Set => ("set", None),
        Cause::RolledBack => ("rolled_back", None),
        Cause::ModelMoved { model } => ("model_moved", Some(("model", model))),
        Cause::Canary => ("canary", None),
        Cause::Promoted => ("promoted", None),
        Cause::Failed { reason } => ("failed", Some(("reason", reason))),
    };
    json["cause"] = json!(cause);
    if let Some((key, value)) = detail {
        json[key] = json!(value);
    }
    json
}

async fn diff(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version, to)): Path<(String, String, String)>,
) -> Reply {
    let (_, function) = find::<Function>(&app, &caller, Scope::Deploy, &name)?;
    let get = |text: &str| {
        let version = function.versions.get(version_number(text)?);
        version.cloned().ok_or_else(Problem::not_found)
    };
    let (from, to) = (get(&version)?, get(&to)?);
    let only = |these: &[String], those: &[String]| {
        let those: BTreeSet<&String> = those.iter().collect();
        let only = these.iter().filter(|import| !those.contains(import));
        only.cloned().collect::<BTreeSet<String>>()
    };
    let body = json!({
        "from": from.version,
        "to": to.version,
        "imports": {
            "added": only(&to.imports, &from.imports),
            "removed": only(&from.imports, &to.imports),
        },
        "size_bytes": [from.size, to.size],
        "manifest": manifest_diff(&from.manifest, &to.manifest),
        "digest_changed": from.source_digest != to.source_digest,
    });
    Ok(Json(body).into_response())
}

/// The keys, such as `limits.cpu_ms`, whose values differ; a value that is not there is null.
fn manifest_diff(from: &Manifest, to: &Manifest) -> Vec<Value> {
    let flat = |manifest: &Manifest| {
        let mut values = BTreeMap::new();
        // A manifest that was read can be written: it holds text and numbers alone.
        flatten(&serde_json::to_value(manifest).unwrap_or_default(), "", &mut values);
        values
    };
    let (from, to) = (flat(from), flat(to));
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let differing = keys.into_iter().filter(|key| from.get(*key) != to.get(*key));
    let row = |key: &String| json!({ "key": key, "from": from.get(key), "to": to.get(key) });
    differing.map(row).collect()
}

fn flatten(value: &Value, path: &str, values: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                flatten(value, &path, values);
            }
        }
        Value::Null => {}
        value => {
            values.insert(path.to_owned(), value.clone());
        }
    }
}

async fn retain(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Reply {
    let (tenant, function) = find::<Function>(&app, &caller, Scope::Delete, &name)?;
    let retention = upload::json::<RetentionBody>(request).await?.retention()?;
    let mut body = json!({ "name": function.name, "retention": retention_json(&retention) });
    let work = move |app: &App| {
        app.catalog.set_function_retention(&tenant.name, &function.name, retention)
    };
    body["removed"] = json!(app.blocking(work).await??);
    app.sweep_soon();
    Ok(Json(body).into_response())
}
