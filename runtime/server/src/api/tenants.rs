//! `/api/v1/tenants`: the operator's.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use http::StatusCode;
use sandpiper_control::{Tenant, TierName};
use sandpiper_domain::TenantName;
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Reply, auth::Caller, upload, versions::timestamp};
use crate::{app::App, respond::Problem};

fn tenant_json(tenant: &Tenant) -> Value {
    json!({
        "name": tenant.name,
        "tier": tenant.tier,
        "created_at": timestamp(tenant.created_at),
        "limits": tenant.limits,
        "sandbox_limits": tenant.sandbox,
        "functions": tenant.functions.len(),
        "models": tenant.models.len(),
    })
}

pub(super) async fn list(State(app): State<Arc<App>>, caller: Caller) -> Reply {
    caller.must_be_operator()?;
    let snapshot = app.catalog.snapshot().clone();
    let mut tenants: Vec<_> = snapshot.tenants().collect();
    tenants.sort_by(|a, b| a.name.cmp(&b.name));
    let tenants: Vec<_> = tenants.into_iter().map(|tenant| tenant_json(tenant)).collect();
    Ok(Json(json!({ "tenants": tenants })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewTenant {
    name: String,
    tier: String,
}

pub(super) async fn create(State(app): State<Arc<App>>, caller: Caller, request: Request) -> Reply {
    caller.must_be_operator()?;
    let new: NewTenant = upload::json(request).await?;
    let name: TenantName = new.name.parse().map_err(Problem::invalid_name)?;
    let tier: TierName = new.tier.parse().map_err(Problem::invalid_name)?;
    let now = OffsetDateTime::now_utc();
    let tenant = app.blocking(move |app| app.catalog.create_tenant(&name, &tier, now)).await??;
    Ok((StatusCode::CREATED, Json(tenant_json(&tenant))).into_response())
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    caller.must_be_operator()?;
    let name: TenantName = name.parse().map_err(|_| Problem::not_found())?;
    let snapshot = app.catalog.snapshot();
    let tenant = snapshot.tenant(&name).ok_or_else(Problem::not_found)?;
    Ok(Json(tenant_json(tenant)).into_response())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    caller.must_be_operator()?;
    let name: TenantName = name.parse().map_err(|_| Problem::not_found())?;
    app.blocking(move |app| {
        app.catalog.delete_tenant(&name)?;
        app.sweep_soon();
        Ok::<_, Problem>(())
    })
    .await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}
