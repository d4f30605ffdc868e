//! `/api/v1/models`: what is particular to models, and uploading and granting them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
};
use bytes::Bytes;
use http::StatusCode;
use sandpiper_control::{
    Catalog, CatalogError, ModelEntry, ModelGrants, ModelVersion, NewModel, PutOutcome, Target,
    Tenant, Versions,
};
use sandpiper_domain::{AliasName, Model, ModelKey, ModelName, Scope, TenantName};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Reply,
    auth::Caller,
    deployments,
    functions::take_upload,
    resource::{Resource, find, subject},
    upload,
    versions::{PutQuery, aliases_of, timestamp},
};
use crate::{app::App, respond::Problem};

impl Resource for ModelEntry {
    type Name = ModelName;
    type Version = ModelVersion;

    const NOUNS: (&'static str, &'static str) = ("model", "models");
    const SCOPE: Scope = Scope::Models;

    fn all(tenant: &Tenant) -> &HashMap<ModelName, Arc<Self>> {
        &tenant.models
    }

    fn name(&self) -> &ModelName {
        &self.name
    }

    fn versions(&self) -> &Versions<ModelVersion> {
        &self.versions
    }

    fn version_json(&self, _tenant: &TenantName, version: &ModelVersion) -> Value {
        json!({
            "name": self.name,
            "version": version.version,
            "digest": version.digest,
            "size_bytes": version.size,
            "state": "ready",
            "inputs": version.signature.inputs,
            "outputs": version.signature.outputs,
            "aliases": aliases_of(&self.versions, version.version),
            "created_at": timestamp(version.created_at),
        })
    }

    fn own_json(&self) -> Vec<(&'static str, Value)> {
        vec![("grants", grants_json(&self.grants))]
    }

    fn delete(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
    ) -> Result<(), CatalogError> {
        catalog.delete_model(tenant, name)
    }

    fn delete_version(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        version: u32,
    ) -> Result<(), CatalogError> {
        catalog.delete_model_version(tenant, name, version)
    }

    fn set_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
        target: Target,
    ) -> Result<(), CatalogError> {
        catalog.set_model_alias(tenant, name, alias, target)
    }

    fn roll_back(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
    ) -> Result<Target, CatalogError> {
        catalog.roll_back_model_alias(tenant, name, alias)
    }

    fn delete_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
    ) -> Result<(), CatalogError> {
        catalog.delete_model_alias(tenant, name, alias)
    }
}

fn grants_json(grants: &ModelGrants) -> Value {
    match grants {
        ModelGrants::None => json!([]),
        ModelGrants::All => json!("*"),
        ModelGrants::Tenants(tenants) => json!(tenants),
    }
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
    deployments::run(&app, subject::<ModelEntry>(&tenant.name, &name), query.wait, permits, work)
        .await
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
    if activate {
        app.models.restore(&tenant.name, &name);
    }
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
    Ok((status, Json(model.version_json(&tenant.name, version))).into_response())
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
    let (tenant, model) = find::<ModelEntry>(&app, &caller, Scope::Models, &name)?;
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
