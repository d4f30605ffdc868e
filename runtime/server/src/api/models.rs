//! `/api/v1/models`: what is particular to models, and uploading and granting them.

use std::{collections::HashMap, sync::Arc};

use axum::{
    Json,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
};
use http::StatusCode;
use sandpiper_control::{
    AliasChange, Catalog, CatalogError, ModelEntry, ModelGrants, ModelVersion, Placement,
    PutOutcome, Tenant, Versions,
};
use sandpiper_domain::{AliasName, ModelKey, ModelName, ModelOptions, Scope, TenantName};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{
    Reply,
    auth::Caller,
    deployments,
    model_upload::{self, Wanted},
    profile,
    resource::{Resource, find, subject},
    upload,
    versions::{RetentionBody, aliases_of, retention_json, timestamp},
};
use crate::{
    app::App,
    respond::Problem,
    uploads::{self, ModelUpload},
};

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

    fn version_json(&self, app: &App, tenant: &TenantName, version: &ModelVersion) -> Value {
        let mut json = json!({
            "name": self.name,
            "version": version.version,
            "digest": version.digest,
            "size_bytes": version.size,
            "inputs": version.signature.inputs,
            "outputs": version.signature.outputs,
            "options": ModelOptions::from_texts(&version.options).unwrap_or_default(),
            "samples_digest": version.samples,
            "aliases": aliases_of(&self.versions, version.version),
            "created_at": timestamp(version.created_at),
        });
        let (tenant, model) = (tenant.clone(), self.name.clone());
        let key = ModelKey { tenant, model, version: version.version };
        for (field, value) in profile::of_version(app, &key) {
            json[field] = value;
        }
        json
    }

    fn own_json(&self) -> Vec<(&'static str, Value)> {
        vec![
            ("grants", grants_json(&self.grants)),
            ("batch_with_others", self.batch_with_others.into()),
            ("retention", retention_json(&self.retention)),
        ]
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
        change: AliasChange,
    ) -> Result<(), CatalogError> {
        if change.sticky.is_some() || change.force {
            let text = "`sticky` and `force` are for the aliases of functions";
            return Err(CatalogError::Invalid(text.to_owned()));
        }
        let now = OffsetDateTime::now_utc();
        catalog.set_model_alias(tenant, name, alias, change.target, now)
    }

    fn roll_back(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
        to: Option<u32>,
    ) -> Result<Placement, CatalogError> {
        if to.is_some() {
            let text = "`to` is for the aliases of functions; point the alias at the version";
            return Err(CatalogError::Invalid(text.to_owned()));
        }
        catalog.roll_back_model_alias(tenant, name, alias, OffsetDateTime::now_utc())
    }

    fn delete_alias(
        catalog: &Catalog,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
    ) -> Result<(), CatalogError> {
        catalog.delete_model_alias(tenant, name, alias, OffsetDateTime::now_utc())
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
    Query(query): Query<Vec<(String, String)>>,
    request: Request,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Models)?;
    let name: ModelName = name.parse().map_err(Problem::invalid_name)?;
    let wanted = Wanted::of(query)?;
    let permits = uploads::enter(&app, &tenant)?;
    let upload = model_upload::read(request, &wanted, tenant.limits.model_mib).await?;
    let work = upload_model(app.clone(), tenant.clone(), name.clone(), upload, wanted.activate);
    deployments::run(&app, subject::<ModelEntry>(&tenant.name, &name), wanted.wait, permits, work)
        .await
}

async fn upload_model(
    app: Arc<App>,
    tenant: Arc<Tenant>,
    name: ModelName,
    upload: ModelUpload,
    activate: bool,
) -> Reply {
    let outcome = uploads::deploy_model(&app, &tenant, &name, upload, activate, |_| Ok(())).await?;
    let status = match &outcome {
        PutOutcome::Created(_) => StatusCode::CREATED,
        PutOutcome::Unchanged(_) => StatusCode::OK,
    };
    let snapshot = app.catalog.snapshot();
    let model = snapshot.model(&tenant.name, &name).ok_or_else(Problem::not_found)?;
    Ok((status, Json(model.version_json(&app, &tenant.name, outcome.version()))).into_response())
}

pub(super) async fn retain(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Reply {
    let (tenant, model) = find::<ModelEntry>(&app, &caller, Scope::Delete, &name)?;
    let retention = upload::json::<RetentionBody>(request).await?.retention()?;
    let mut body = json!({ "name": model.name, "retention": retention_json(&retention) });
    let work =
        move |app: &App| app.catalog.set_model_retention(&tenant.name, &model.name, retention);
    body["removed"] = json!(app.blocking(work).await??);
    app.sweep_soon();
    Ok(Json(body).into_response())
}

/// `{"tenants": ["beta"]}` or `{"tenants": "*"}`, with `"batch_with_others": false` where calls of these tenants must not
/// share a batch with anybody else's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct GrantBody {
    tenants: Grantees,
    batch_with_others: Option<bool>,
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
    let GrantBody { tenants, batch_with_others } = upload::json(request).await?;
    let batch_with_others = batch_with_others.unwrap_or(true);
    let grants = match tenants {
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
    let body = json!({
        "name": model.name,
        "tenants": grants_json(&grants),
        "batch_with_others": batch_with_others,
    });
    let work = move |app: &App| {
        app.catalog.set_model_grants(&tenant.name, &model.name, grants, batch_with_others)
    };
    app.blocking(work).await??;
    Ok(Json(body).into_response())
}
