//! `/api/v1/functions`: deploy, look, move, delete.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::StatusCode;
use sandpiper_control::{Function, FunctionVersion, NewFunction, PutOutcome, Tenant, Versions};
use sandpiper_domain::{FunctionName, Manifest, Scope, TenantName};
use sandpiper_sandbox::{Purpose, UploadError, check};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

use super::{
    Reply,
    auth::Caller,
    deployments, upload,
    versions::{
        PutQuery, TargetBody, alias_name, aliases_json, aliases_of, live_version, target_json,
        timestamp, version_number,
    },
};
use crate::{app::App, respond::Problem};

fn url(tenant: &TenantName, function: &FunctionName) -> String {
    format!("/fn/{tenant}/{function}")
}

fn version_json(
    tenant: &TenantName,
    version: &FunctionVersion,
    versions: &Versions<FunctionVersion>,
) -> Value {
    let name = &version.manifest.name;
    json!({
        "name": name,
        "version": version.version,
        "digest": version.digest,
        "source_digest": version.source_digest,
        "size_bytes": version.size,
        "url": url(tenant, name),
        "auth": version.manifest.auth,
        "imports": version.imports,
        "aliases": aliases_of(versions, version.version),
        "limits": version.grant.sandbox,
        "created_at": timestamp(version.created_at),
    })
}

fn function_json(app: &App, tenant: &TenantName, function: &Function) -> Value {
    let live = live_version(&function.versions).and_then(|number| function.versions.get(number));
    let shown = live.or(function.versions.newest().map(|(_, version)| version));
    let mut json = match shown {
        Some(version) => version_json(tenant, version, &function.versions),
        None => json!({ "name": function.name }),
    };
    json["aliases"] = aliases_json(&function.versions);
    json["latest_version"] = function.versions.newest().map(|(number, _)| number).into();
    if let Some(deployment) = app.deployments.json(&subject(tenant, &function.name)) {
        json["deployment"] = deployment;
    }
    json
}

fn subject(tenant: &TenantName, name: &FunctionName) -> deployments::Subject {
    (tenant.clone(), "function", name.to_string())
}

/// The function of that name, for a caller that has `scope`.
fn find(
    app: &App,
    caller: &Caller,
    scope: Scope,
    name: &str,
) -> Result<(Arc<Tenant>, Arc<Function>), Problem> {
    let tenant = caller.tenant(app, scope)?;
    let function = tenant.functions.get(name).cloned().ok_or_else(Problem::not_found)?;
    Ok((tenant, function))
}

pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    let tenant = caller.tenant(&app, Scope::Deploy)?;
    let mut functions: Vec<_> = tenant.functions.values().collect();
    functions.sort_by(|a, b| a.name.cmp(&b.name));
    let functions: Vec<_> =
        functions.into_iter().map(|function| function_json(&app, &tenant.name, function)).collect();
    Ok(Json(json!({ "functions": functions })).into_response())
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Deploy)?;
    if let Some(function) = tenant.functions.get(name.as_str()) {
        return Ok(Json(function_json(&app, &tenant.name, function)).into_response());
    }
    // A first deployment that nobody waited for is not in the catalog yet, or never will be.
    let name: FunctionName = name.parse().map_err(|_| Problem::not_found())?;
    let deployment = app.deployments.json(&subject(&tenant.name, &name));
    let deployment = deployment.ok_or_else(Problem::not_found)?;
    Ok(Json(json!({ "name": name, "deployment": deployment })).into_response())
}

pub(super) async fn put(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    Query(query): Query<PutQuery>,
    request: Request,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Deploy)?;
    let name: FunctionName = name.parse().map_err(Problem::invalid_name)?;
    let permits = take_upload(&app, &tenant)?;
    let (source, manifest) = upload::component(request, tenant.limits.component_mib).await?;
    let manifest = match manifest {
        None => Manifest::of(name.clone()),
        Some(text) => Manifest::parse(&text).map_err(|error| {
            Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_manifest", error.to_string())
        })?,
    };
    if manifest.name != name {
        let message = "the manifest names another function than the request's path";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_manifest", message));
    }
    let work = deploy(app.clone(), tenant.clone(), source, manifest, query.activate);
    let work = async move {
        let _permits = permits;
        work.await
    };
    deployments::run(&app, subject(&tenant.name, &name), query.wait, work).await
}

/// A place among the tenant's uploads and one among the node's. They are held until the upload's bytes are gone.
pub(super) fn take_upload(
    app: &App,
    tenant: &Tenant,
) -> Result<[OwnedSemaphorePermit; 2], Problem> {
    let of_tenant = app.admission(tenant).uploads.clone().try_acquire_owned().map_err(|_| {
        Problem::too_many(
            "upload_limit",
            "as many uploads of this tenant are being worked on as may be",
        )
    })?;
    let of_node = app.uploads.clone().try_acquire_owned().map_err(|_| {
        Problem::busy("node_saturated", "the node is busy with other uploads; try again shortly")
    })?;
    Ok([of_tenant, of_node])
}

/// Judge, compile, store, publish; only then does anybody hear of it.
async fn deploy(
    app: Arc<App>,
    tenant: Arc<Tenant>,
    source: Bytes,
    manifest: Manifest,
    activate: bool,
) -> Reply {
    let judged = source.clone();
    let component = app.blocking(move |_| check(judged)).await??;
    let bytes = component.bytes.clone();
    let code = app.sandboxes.load(Purpose::Deploy, component.digest, move || Ok(bytes)).await?;
    check_memory(&app, &tenant, &manifest, &code)?;
    let (owner, now) = (tenant.name.clone(), OffsetDateTime::now_utc());
    let name = manifest.name.clone();
    let outcome = app.blocking(move |app| {
        let stored = app.catalog.put_blob(&component.bytes)?;
        let is_same = source == component.bytes;
        let source = if is_same { stored.clone() } else { app.catalog.put_blob(&source)? };
        let imports = component.imports;
        let new = NewFunction { component: stored, source, manifest, imports };
        app.catalog.put_function(&owner, &new, activate, now).map_err(Problem::from)
    });
    let outcome = outcome.await??;
    let status = match outcome {
        PutOutcome::Created(_) => StatusCode::CREATED,
        PutOutcome::Unchanged(_) => StatusCode::OK,
    };
    let snapshot = app.catalog.snapshot();
    let function = snapshot.function(&tenant.name, &name).ok_or_else(Problem::not_found)?;
    let version = outcome.version();
    let runtime = app.functions.get(&tenant.name, &name, version, || app.admission(&tenant));
    runtime.seed(code);
    let body = version_json(&tenant.name, version, &function.versions);
    Ok((status, Json(body)).into_response())
}

/// Refuses what could never start under its own grant.
fn check_memory(
    app: &App,
    tenant: &Tenant,
    manifest: &Manifest,
    code: &sandpiper_sandbox::FunctionCode,
) -> Result<(), Problem> {
    let grant = app.catalog.policies().grant(&tenant.tier, manifest, &tenant.name);
    let grant = grant.map_err(Problem::internal)?;
    code.check_memory(grant.sandbox.memory_mib).map_err(|error: UploadError| error.into())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Delete, &name)?;
    app.blocking(move |app| {
        app.catalog.delete_function(&tenant.name, &function.name)?;
        app.sweep_soon();
        Ok::<_, Problem>(())
    })
    .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn versions(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Deploy, &name)?;
    let versions: Vec<_> = function
        .versions
        .iter()
        .map(|(_, version)| version_json(&tenant.name, version, &function.versions))
        .collect();
    Ok(Json(json!({ "versions": versions })).into_response())
}

pub(super) async fn version(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Deploy, &name)?;
    let version =
        function.versions.get(version_number(&version)?).ok_or_else(Problem::not_found)?;
    Ok(Json(version_json(&tenant.name, version, &function.versions)).into_response())
}

pub(super) async fn delete_version(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Delete, &name)?;
    let version = version_number(&version)?;
    app.blocking(move |app| {
        app.catalog.delete_function_version(&tenant.name, &function.name, version)?;
        app.sweep_soon();
        Ok::<_, Problem>(())
    })
    .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn set_alias(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    request: Request,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Deploy, &name)?;
    let alias = alias_name(&alias)?;
    let target = upload::json::<TargetBody>(request).await?.target()?;
    let mut body = target_json(&target);
    body["alias"] = alias.to_string().into();
    app.blocking(move |app| {
        app.catalog.set_function_alias(&tenant.name, &function.name, &alias, target)
    })
    .await??;
    Ok(Json(body).into_response())
}

pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Deploy, &name)?;
    let name = alias_name(&alias)?;
    let target = app
        .blocking(move |app| {
            app.catalog.roll_back_function_alias(&tenant.name, &function.name, &name)
        })
        .await??;
    let mut body = target_json(&target);
    body["alias"] = alias.into();
    Ok(Json(body).into_response())
}

pub(super) async fn delete_alias(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, function) = find(&app, &caller, Scope::Deploy, &name)?;
    let alias = alias_name(&alias)?;
    app.blocking(move |app| {
        app.catalog.delete_function_alias(&tenant.name, &function.name, &alias)
    })
    .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}
