//! `/api/v1/models`: upload, look, grant, move, delete.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::StatusCode;
use sandpiper_control::{
    ModelEntry, ModelGrants, ModelVersion, NewModel, PutOutcome, Tenant, Versions,
};
use sandpiper_domain::{Model, ModelKey, ModelName, Scope, TenantName};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Reply,
    auth::Caller,
    deployments,
    functions::take_upload,
    upload,
    versions::{
        PutQuery, TargetBody, alias_name, aliases_json, aliases_of, live_version, target_json,
        timestamp, version_number,
    },
};
use crate::{app::App, respond::Problem};

fn version_json(
    name: &ModelName,
    version: &ModelVersion,
    versions: &Versions<ModelVersion>,
) -> Value {
    json!({
        "name": name,
        "version": version.version,
        "digest": version.digest,
        "size_bytes": version.size,
        "state": "ready",
        "inputs": version.signature.inputs,
        "outputs": version.signature.outputs,
        "aliases": aliases_of(versions, version.version),
        "created_at": timestamp(version.created_at),
    })
}

fn model_json(app: &App, tenant: &TenantName, model: &ModelEntry) -> Value {
    let live = live_version(&model.versions).and_then(|number| model.versions.get(number));
    let shown = live.or(model.versions.newest().map(|(_, version)| version));
    let mut json = match shown {
        Some(version) => version_json(&model.name, version, &model.versions),
        None => json!({ "name": model.name }),
    };
    json["aliases"] = aliases_json(&model.versions);
    json["latest_version"] = model.versions.newest().map(|(number, _)| number).into();
    json["grants"] = grants_json(&model.grants);
    if let Some(deployment) = app.deployments.json(&subject(tenant, &model.name)) {
        json["deployment"] = deployment;
    }
    json
}

fn grants_json(grants: &ModelGrants) -> Value {
    match grants {
        ModelGrants::None => json!([]),
        ModelGrants::All => json!("*"),
        ModelGrants::Tenants(tenants) => json!(tenants),
    }
}

fn subject(tenant: &TenantName, name: &ModelName) -> deployments::Subject {
    (tenant.clone(), "model", name.to_string())
}

fn find(
    app: &App,
    caller: &Caller,
    scope: Scope,
    name: &str,
) -> Result<(Arc<Tenant>, Arc<ModelEntry>), Problem> {
    let tenant = caller.tenant(app, scope)?;
    let model = tenant.models.get(name).cloned().ok_or_else(Problem::not_found)?;
    Ok((tenant, model))
}

pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    let tenant = caller.tenant(&app, Scope::Models)?;
    let mut models: Vec<_> = tenant.models.values().collect();
    models.sort_by(|a, b| a.name.cmp(&b.name));
    let models: Vec<_> =
        models.into_iter().map(|model| model_json(&app, &tenant.name, model)).collect();
    Ok(Json(json!({ "models": models })).into_response())
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Models)?;
    if let Some(model) = tenant.models.get(name.as_str()) {
        return Ok(Json(model_json(&app, &tenant.name, model)).into_response());
    }
    let name: ModelName = name.parse().map_err(|_| Problem::not_found())?;
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
    let tenant = caller.tenant(&app, Scope::Models)?;
    let name: ModelName = name.parse().map_err(Problem::invalid_name)?;
    let permits = take_upload(&app, &tenant)?;
    let bytes = upload::read(request, "model", tenant.limits.model_mib).await?;
    if bytes.is_empty() {
        let message = "the upload is empty";
        return Err(Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "empty_upload", message)
            .hint("send the ONNX file as the request's body"));
    }
    let work = upload_model(app.clone(), tenant.clone(), name.clone(), bytes, query.activate);
    let work = async move {
        let _permits = permits;
        work.await
    };
    deployments::run(&app, subject(&tenant.name, &name), query.wait, work).await
}

async fn upload_model(
    app: Arc<App>,
    tenant: Arc<Tenant>,
    name: ModelName,
    bytes: Bytes,
    activate: bool,
) -> Reply {
    let loaded = app.inference.inspect(bytes.clone()).await?;
    let (owner, model, now) = (tenant.name.clone(), name.clone(), OffsetDateTime::now_utc());
    let signature = loaded.signature().clone();
    let outcome = app.blocking(move |app| {
        let blob = app.catalog.put_blob(&bytes)?;
        let new = NewModel { blob, signature, options: BTreeMap::new() };
        app.catalog.put_model(&owner, &model, &new, activate, now).map_err(Problem::from)
    });
    let outcome = outcome.await??;
    let version = outcome.version();
    let key =
        ModelKey { tenant: tenant.name.clone(), model: name.clone(), version: version.version };
    let status = match &outcome {
        PutOutcome::Created(_) => {
            // A version that nothing points to yet takes the place of none that is in use.
            if activate {
                app.inference.register(key, loaded);
            }
            StatusCode::CREATED
        }
        PutOutcome::Unchanged(_) => StatusCode::OK,
    };
    let snapshot = app.catalog.snapshot();
    let model = snapshot.model(&tenant.name, &name).ok_or_else(Problem::not_found)?;
    Ok((status, Json(version_json(&name, version, &model.versions))).into_response())
}

/// `{"tenants": ["beta"]}` or `{"tenants": "*"}`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantBody {
    tenants: Grantees,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Grantees {
    All(String),
    Tenants(Vec<String>),
}

pub(super) async fn grant(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Reply {
    let (tenant, model) = find(&app, &caller, Scope::Models, &name)?;
    let grants = match upload::json::<GrantBody>(request).await?.tenants {
        Grantees::All(star) if star == "*" => ModelGrants::All,
        Grantees::All(_) => {
            return Err(Problem::bad_request("`tenants` is a list of names, or \"*\""));
        }
        Grantees::Tenants(names) if names.is_empty() => ModelGrants::None,
        Grantees::Tenants(names) => ModelGrants::Tenants(
            names
                .iter()
                .map(|name| name.parse())
                .collect::<Result<_, _>>()
                .map_err(Problem::invalid_name)?,
        ),
    };
    let body = json!({ "name": model.name, "tenants": grants_json(&grants) });
    app.blocking(move |app| app.catalog.set_model_grants(&tenant.name, &model.name, grants))
        .await??;
    Ok(Json(body).into_response())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Delete)?;
    let model = tenant.models.get(name.as_str()).cloned().ok_or_else(Problem::not_found)?;
    app.blocking(move |app| {
        app.catalog.delete_model(&tenant.name, &model.name)?;
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
    let (_, model) = find(&app, &caller, Scope::Models, &name)?;
    let versions: Vec<_> = model
        .versions
        .iter()
        .map(|(_, version)| version_json(&model.name, version, &model.versions))
        .collect();
    Ok(Json(json!({ "versions": versions })).into_response())
}

pub(super) async fn version(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (_, model) = find(&app, &caller, Scope::Models, &name)?;
    let version = model.versions.get(version_number(&version)?).ok_or_else(Problem::not_found)?;
    Ok(Json(version_json(&model.name, version, &model.versions)).into_response())
}

pub(super) async fn delete_version(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (tenant, model) = find(&app, &caller, Scope::Delete, &name)?;
    let version = version_number(&version)?;
    app.blocking(move |app| {
        app.catalog.delete_model_version(&tenant.name, &model.name, version)?;
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
    let (tenant, model) = find(&app, &caller, Scope::Models, &name)?;
    let alias = alias_name(&alias)?;
    let target = upload::json::<TargetBody>(request).await?.target()?;
    let mut body = target_json(&target);
    body["alias"] = alias.to_string().into();
    app.blocking(move |app| app.catalog.set_model_alias(&tenant.name, &model.name, &alias, target))
        .await??;
    Ok(Json(body).into_response())
}

pub(super) async fn roll_back(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, model) = find(&app, &caller, Scope::Models, &name)?;
    let name = alias_name(&alias)?;
    let target = app
        .blocking(move |app| app.catalog.roll_back_model_alias(&tenant.name, &model.name, &name))
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
    let (tenant, model) = find(&app, &caller, Scope::Models, &name)?;
    let alias = alias_name(&alias)?;
    app.blocking(move |app| app.catalog.delete_model_alias(&tenant.name, &model.name, &alias))
        .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}
