//! `/api/v1/functions`: what is particular to functions, and deploying them.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::StatusCode;
use sandpiper_control::{
    AliasChange, Catalog, CatalogError, Function, FunctionVersion, NewFunction, Placement,
    PutOutcome, Tenant, Versions,
};
use sandpiper_domain::{AliasName, FunctionName, Manifest, Scope, TenantName};
use sandpiper_sandbox::{Purpose, UploadError, check};
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Reply,
    auth::Caller,
    deployments,
    resource::{Resource, subject},
    upload,
    versions::{PutQuery, aliases_of, retention_json, target_json, timestamp},
};
use crate::{app::App, respond::Problem, uploads};

fn url(tenant: &TenantName, function: &FunctionName) -> String {
    format!("/fn/{tenant}/{function}")
}

impl Resource for Function {
    type Name = FunctionName;
    type Version = FunctionVersion;

    const NOUNS: (&'static str, &'static str) = ("function", "functions");
    const SCOPE: Scope = Scope::Deploy;

    fn all(tenant: &Tenant) -> &HashMap<FunctionName, Arc<Self>> {
        &tenant.functions
    }

    fn name(&self) -> &FunctionName {
        &self.name
    }

    fn versions(&self) -> &Versions<FunctionVersion> {
        &self.versions
    }

    fn version_json(&self, _app: &App, tenant: &TenantName, version: &FunctionVersion) -> Value {
        let mut json = json!({
            "name": self.name,
            "version": version.version,
            "digest": version.digest,
            "source_digest": version.source_digest,
            "size_bytes": version.size,
            "url": url(tenant, &self.name),
            "auth": version.manifest.auth,
            "imports": version.imports,
            "aliases": aliases_of(&self.versions, version.version),
            "limits": version.grant.sandbox,
            "created_at": timestamp(version.created_at),
        });
        if let Some(reason) = &version.failed {
            json["failed"] = json!(reason);
        }
        json
    }

    fn own_json(&self) -> Vec<(&'static str, Value)> {
        vec![("retention", retention_json(&self.retention))]
    }

    fn delete(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &FunctionName,
    ) -> Result<(), CatalogError> {
        catalog.delete_function(tenant, name)
    }

    fn delete_version(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &FunctionName,
        version: u32,
    ) -> Result<(), CatalogError> {
        catalog.delete_function_version(tenant, name, version)
    }

    fn set_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        change: AliasChange,
    ) -> Result<(), CatalogError> {
        catalog.set_function_alias(tenant, name, alias, change, OffsetDateTime::now_utc())
    }

    fn roll_back(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<u32>,
    ) -> Result<Placement, CatalogError> {
        catalog.roll_back_function_alias(tenant, name, alias, to, OffsetDateTime::now_utc())
    }

    fn place_json(placement: &Placement) -> Value {
        let mut json = target_json(&placement.target);
        json["models"] = json!(*placement.models);
        json
    }

    fn delete_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
    ) -> Result<(), CatalogError> {
        catalog.delete_function_alias(tenant, name, alias)
    }
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
    let permits = uploads::enter(&app, &tenant)?;
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
    check_scale(&tenant, &manifest)?;
    let work = deploy(app.clone(), tenant.clone(), source, manifest, query.activate);
    deployments::run(&app, subject::<Function>(&tenant.name, &name), query.wait, permits, work)
        .await
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
    let body = function.version_json(&app, &tenant.name, version);
    Ok((status, Json(body)).into_response())
}

/// Refuses what could never be kept ready: the tenant may have fewer alive.
fn check_scale(tenant: &Tenant, manifest: &Manifest) -> Result<(), Problem> {
    let (min, most) = (manifest.scale.min, tenant.limits.sandboxes);
    if min <= most {
        return Ok(());
    }
    let message = format!(
        "the manifest's `scale.min` of {min} is more than the {most} sandboxes that the tenant may have at once"
    );
    let problem = Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid_manifest", message);
    Err(problem.hint("lower scale.min, or ask for a higher tier"))
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
