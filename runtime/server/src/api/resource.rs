//! What functions and models have in common: to be listed and shown with their versions and aliases, moved and deleted.

use std::{collections::HashMap, fmt::Display, hash::Hash, str::FromStr, sync::Arc};

use axum::{
    Json,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use http::StatusCode;
use sandpiper_control::{AliasChange, Catalog, CatalogError, Placement, Tenant, Versions};
use sandpiper_domain::{AliasName, Scope, TenantName};
use serde_json::{Value, json};

use super::{
    Reply,
    auth::Caller,
    deployments::Subject,
    upload,
    versions::{
        AliasBody, RollbackBody, alias_name, aliases_json, live_version, target_json,
        version_number,
    },
};
use crate::{app::App, respond::Problem};

/// A function or a model.
pub(super) trait Resource: Send + Sync + Sized + 'static {
    type Name: Clone
        + Ord
        + Hash
        + Eq
        + Display
        + FromStr
        + serde::Serialize
        + Send
        + Sync
        + 'static;
    type Version: Send + Sync;

    /// The noun in the singular, and in the plural as the key of a list.
    const NOUNS: (&'static str, &'static str);
    /// What a key needs to see it and to move its aliases.
    const SCOPE: Scope;

    fn all(tenant: &Tenant) -> &HashMap<Self::Name, Arc<Self>>;
    fn name(&self) -> &Self::Name;
    fn versions(&self) -> &Versions<Self::Version>;
    /// A version, and what the node knows of it beside what the catalog has.
    fn version_json(&self, app: &App, tenant: &TenantName, version: &Self::Version) -> Value;
    /// What the resource shows beside its version.
    fn own_json(&self) -> Vec<(&'static str, Value)>;

    fn delete(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &Self::Name,
    ) -> Result<(), CatalogError>;
    fn delete_version(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &Self::Name,
        version: u32,
    ) -> Result<(), CatalogError>;
    fn set_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &Self::Name,
        alias: &AliasName,
        change: AliasChange,
    ) -> Result<(), CatalogError>;
    fn roll_back(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &Self::Name,
        alias: &AliasName,
        to: Option<u32>,
    ) -> Result<Placement, CatalogError>;
    /// Where an alias points.
    fn place_json(placement: &Placement) -> Value {
        target_json(&placement.target)
    }
    fn delete_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &Self::Name,
        alias: &AliasName,
    ) -> Result<(), CatalogError>;
}

/// Under which its deployments that nobody waited for are known.
pub(super) fn subject<R: Resource>(tenant: &TenantName, name: &R::Name) -> Subject {
    (tenant.clone(), R::NOUNS.0, name.to_string())
}

/// The resource of that name, for a caller that has `scope`.
pub(super) fn find<R: Resource>(
    app: &App,
    caller: &Caller,
    scope: Scope,
    name: &str,
) -> Result<(Arc<Tenant>, Arc<R>), Problem> {
    let tenant = caller.tenant(app, scope)?;
    let name: R::Name = name.parse().map_err(|_| Problem::not_found())?;
    let resource = R::all(&tenant).get(&name).cloned().ok_or_else(Problem::not_found)?;
    Ok((tenant, resource))
}

fn to_json<R: Resource>(app: &App, tenant: &TenantName, resource: &R) -> Value {
    let versions = resource.versions();
    let live = live_version(versions).and_then(|number| versions.get(number));
    let shown = live.or(versions.newest().map(|(_, version)| version));
    let mut json = match shown {
        Some(version) => resource.version_json(app, tenant, version),
        None => json!({ "name": resource.name() }),
    };
    json["aliases"] = aliases_json(versions);
    json["latest_version"] = versions.newest().map(|(number, _)| number).into();
    for (key, value) in resource.own_json() {
        json[key] = value;
    }
    if let Some(deployment) = app.deployments.json(&subject::<R>(tenant, resource.name())) {
        json["deployment"] = deployment;
    }
    json
}

pub(super) async fn list<R: Resource>(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    let tenant = caller.tenant(&app, R::SCOPE)?;
    let mut all: Vec<_> = R::all(&tenant).values().collect();
    all.sort_by(|a, b| a.name().cmp(b.name()));
    let all: Vec<_> = all.into_iter().map(|one| to_json(&app, &tenant.name, &**one)).collect();
    Ok(Json(json!({ R::NOUNS.1: all })).into_response())
}

pub(super) async fn show<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = caller.tenant(&app, R::SCOPE)?;
    let name: R::Name = name.parse().map_err(|_| Problem::not_found())?;
    if let Some(resource) = R::all(&tenant).get(&name) {
        return Ok(Json(to_json(&app, &tenant.name, &**resource)).into_response());
    }
    // A first deployment that nobody waited for is not in the catalog yet, or never will be.
    let deployment = app.deployments.json(&subject::<R>(&tenant.name, &name));
    let deployment = deployment.ok_or_else(Problem::not_found)?;
    Ok(Json(json!({ "name": name, "deployment": deployment })).into_response())
}

pub(super) async fn delete<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, Scope::Delete, &name)?;
    app.blocking(move |app| R::delete(&app.catalog, &tenant.name, resource.name())).await??;
    app.sweep_soon();
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn versions<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, R::SCOPE, &name)?;
    let versions = resource.versions().iter();
    let versions: Vec<_> =
        versions.map(|(_, version)| resource.version_json(&app, &tenant.name, version)).collect();
    Ok(Json(json!({ "versions": versions })).into_response())
}

pub(super) async fn version<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, R::SCOPE, &name)?;
    let version = resource.versions().get(version_number(&version)?);
    let version = version.ok_or_else(Problem::not_found)?;
    Ok(Json(resource.version_json(&app, &tenant.name, version)).into_response())
}

pub(super) async fn delete_version<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, version)): Path<(String, String)>,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, Scope::Delete, &name)?;
    let version = version_number(&version)?;
    let work =
        move |app: &App| R::delete_version(&app.catalog, &tenant.name, resource.name(), version);
    app.blocking(work).await??;
    app.sweep_soon();
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn set_alias<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    request: Request,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, R::SCOPE, &name)?;
    let alias = alias_name(&alias)?;
    let change = upload::json::<AliasBody>(request).await?.change()?;
    let mut body = target_json(&change.target);
    body["alias"] = alias.to_string().into();
    let work =
        move |app: &App| R::set_alias(&app.catalog, &tenant.name, resource.name(), &alias, change);
    app.blocking(work).await??;
    app.settle_pins();
    Ok(Json(body).into_response())
}

pub(super) async fn roll_back<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
    request: Request,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, R::SCOPE, &name)?;
    let of = alias_name(&alias)?;
    let to = upload::json::<RollbackBody>(request).await?.to;
    let work = move |app: &App| R::roll_back(&app.catalog, &tenant.name, resource.name(), &of, to);
    let mut body = R::place_json(&app.blocking(work).await??);
    app.settle_pins();
    body["alias"] = alias.into();
    Ok(Json(body).into_response())
}

pub(super) async fn delete_alias<R: Resource>(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((name, alias)): Path<(String, String)>,
) -> Reply {
    let (tenant, resource) = find::<R>(&app, &caller, R::SCOPE, &name)?;
    let alias = alias_name(&alias)?;
    let work =
        move |app: &App| R::delete_alias(&app.catalog, &tenant.name, resource.name(), &alias);
    app.blocking(work).await??;
    app.settle_pins();
    Ok(StatusCode::NO_CONTENT.into_response())
}
