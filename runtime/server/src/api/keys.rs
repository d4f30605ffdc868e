//! `/api/v1/tenants/{tenant}/keys` and `/api/v1/whoami`.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, Request, State},
    response::IntoResponse,
};
use http::StatusCode;
use sandpiper_control::{Key, KeyId, Principal};
use sandpiper_domain::{Scope, ScopeSet};
use serde::Deserialize;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::{Reply, auth::Caller, upload, versions::timestamp};
use crate::{app::App, respond::Problem};

fn key_json(key: &Key) -> Value {
    json!({
        "id": key.id.to_string(),
        "tenant": key.tenant,
        "scopes": key.scopes,
        "created_at": timestamp(key.created_at),
        "expires_at": key.expires_at.map(timestamp),
    })
}

pub(super) async fn whoami(caller: Caller) -> Reply {
    let body = match &caller.principal {
        Principal::Operator => {
            json!({ "operator": true, "tenant": null, "key_id": null, "scopes": ScopeSet::all() })
        }
        Principal::Tenant { tenant, key_id, scopes } => json!({
            "operator": false,
            "tenant": tenant,
            "key_id": key_id.to_string(),
            "scopes": scopes,
        }),
    };
    Ok(Json(body).into_response())
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(tenant): Path<String>,
) -> Reply {
    let tenant = caller.keys_of(&app, &tenant)?;
    let keys = app.catalog.snapshot().keys_of(&tenant.name);
    let keys: Vec<_> = keys.iter().map(|key| key_json(key)).collect();
    Ok(Json(json!({ "keys": keys })).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewKeyBody {
    scopes: Option<Vec<String>>,
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
}

pub(super) async fn create(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path(tenant): Path<String>,
    request: Request,
) -> Reply {
    let tenant = caller.keys_of(&app, &tenant)?;
    let new: NewKeyBody = upload::json(request).await?;
    let scopes = match new.scopes {
        None => caller.scopes(),
        Some(names) => names
            .iter()
            .map(|name| name.parse::<Scope>())
            .collect::<Result<_, _>>()
            .map_err(|error| Problem::bad_request(error.to_string()))?,
    };
    if !caller.scopes().covers(scopes) {
        return Err(Problem::new(
            StatusCode::FORBIDDEN,
            "missing_scope",
            "a key cannot give a new key scopes that it does not have itself",
        ));
    }
    let (name, now) = (tenant.name.clone(), OffsetDateTime::now_utc());
    // A key that ends cannot make one that outlives it.
    let expires_at = match (new.expires_at, caller.expires_at(&app)) {
        (Some(asked), Some(own)) => Some(asked.min(own)),
        (asked, own) => asked.or(own),
    };
    let new =
        app.blocking(move |app| app.catalog.create_key(&name, scopes, expires_at, now)).await??;
    let mut body = key_json(&new.key);
    body["key"] = new.text.expose().into();
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

pub(super) async fn show(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
) -> Reply {
    let tenant = caller.keys_of(&app, &tenant)?;
    let id: KeyId = id.parse().map_err(|_| Problem::not_found())?;
    let snapshot = app.catalog.snapshot();
    let key = snapshot.key(&id).filter(|key| key.tenant == tenant.name);
    Ok(Json(key_json(key.ok_or_else(Problem::not_found)?)).into_response())
}

pub(super) async fn delete(
    State(app): State<Arc<App>>,
    caller: Caller,
    Path((tenant, id)): Path<(String, String)>,
) -> Reply {
    let tenant = caller.keys_of(&app, &tenant)?;
    let id: KeyId = id.parse().map_err(|_| Problem::not_found())?;
    let name = tenant.name.clone();
    app.blocking(move |app| app.catalog.delete_key(&name, &id)).await??;
    Ok(StatusCode::NO_CONTENT.into_response())
}
