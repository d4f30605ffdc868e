//! What a tenant has used, and its budget: `/api/v1/usage` and the operator's `/api/v1/tenants/{tenant}/budget`.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path, Query, Request, State},
    response::IntoResponse,
    routing::get,
};
use sandpiper_control::{Amounts, Counted, Month, Owner, Tenant};
use sandpiper_domain::{Budget, Scope, TenantName};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;

use super::{Reply, auth::Caller, upload, versions::timestamp};
use crate::{app::App, respond::Problem};

/// Stands where a function's name would; none can be called so.
const DIRECT: &str = "direct_inference";
/// No budget is larger; sums in smaller units then stay far from overflow.
const BUDGET_MAX: u64 = 1 << 40;

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/usage", get(show))
        .route("/tenants/{tenant}/budget", get(show_budget).put(set_budget).delete(delete_budget))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UsageQuery {
    month: Option<String>,
}

fn amounts_json(amounts: &Amounts) -> Map<String, Value> {
    Counted::ALL.iter().map(|item| (item.name().to_owned(), amounts[*item].into())).collect()
}

fn budget_json(budget: &Budget, used: &Amounts) -> Value {
    let parts = used.against(budget);
    parts
        .map(|(name, limit, used)| (name.to_owned(), json!({ "limit": limit, "used": used })))
        .collect()
}

async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Query(query): Query<UsageQuery>,
) -> Reply {
    let tenant = caller.tenant(&app, Scope::Logs)?;
    let now = OffsetDateTime::now_utc();
    let present = Month::of(now);
    let month = match query.month {
        None => present,
        Some(text) => text.parse().map_err(|error| Problem::bad_request(format!("{error}")))?,
    };
    let owner = owner(&tenant);
    let of = owner.clone();
    let used = app.blocking(move |app| app.usage.month(&of, month, now)).await?;
    let used = used.map_err(Problem::internal)?;
    let mut total = Amounts::default();
    let mut functions = Vec::with_capacity(used.len());
    for (function, amounts) in used {
        total += amounts;
        let mut row = Map::new();
        let name = if function.is_empty() { DIRECT } else { &function };
        row.insert("function".to_owned(), name.into());
        row.append(&mut amounts_json(&amounts));
        functions.push(Value::Object(row));
    }
    let mut answer = json!({
        "month": month.to_string(),
        "functions": functions,
        "total": amounts_json(&total),
    });
    if month == present {
        let ledger = app.usage.of(&owner, now);
        answer["budget"] = budget_json(&ledger.budget(tenant.limits.budget), &total);
        answer["renewed_at"] = timestamp(month.end()).into();
    }
    Ok(Json(answer).into_response())
}

fn owner(tenant: &Tenant) -> Owner {
    Owner::new(tenant.name.clone(), tenant.created_at)
}

/// The tenant in the path, for the operator alone.
fn named(app: &App, caller: &Caller, name: &str) -> Result<Arc<Tenant>, Problem> {
    caller.must_be_operator()?;
    let name: TenantName = name.parse().map_err(|_| Problem::not_found())?;
    app.catalog.snapshot().tenant(&name).cloned().ok_or_else(Problem::not_found)
}

fn in_force(app: &App, tenant: &Tenant) -> Value {
    let ledger = app.usage.of(&owner(tenant), OffsetDateTime::now_utc());
    let of_tenant = ledger.own_budget().is_some();
    json!({
        "budget": ledger.budget(tenant.limits.budget),
        "from": if of_tenant { "tenant" } else { "tier" },
    })
}

async fn show_budget(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = named(&app, &caller, &name)?;
    Ok(Json(in_force(&app, &tenant)).into_response())
}

async fn set_budget(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
    request: Request,
) -> Reply {
    let tenant = named(&app, &caller, &name)?;
    let budget: Budget = upload::json(request).await?;
    let parts = [budget.requests, budget.cpu_s, budget.memory_gib_s, budget.inference_s];
    if parts.into_iter().flatten().any(|limit| limit > BUDGET_MAX) {
        return Err(Problem::bad_request(format!("no part of a budget may be above {BUDGET_MAX}"))
            .hint("leave a part out, or send null, for no limit"));
    }
    change(app, tenant, Some(budget)).await
}

async fn delete_budget(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(name): Path<String>,
) -> Reply {
    let tenant = named(&app, &caller, &name)?;
    change(app, tenant, None).await
}

async fn change(app: Arc<App>, tenant: Arc<Tenant>, budget: Option<Budget>) -> Reply {
    let of = owner(&tenant);
    let now = OffsetDateTime::now_utc();
    let changed = app.blocking(move |app| app.usage.set_budget(&of, budget, now)).await?;
    changed.map_err(Problem::internal)?;
    Ok(Json(in_force(&app, &tenant)).into_response())
}
