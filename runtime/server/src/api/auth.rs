//! Who is calling, and on whose behalf.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use http::{HeaderName, StatusCode, request::Parts};
use sandpiper_control::{Principal, Tenant};
use sandpiper_domain::{Scope, ScopeSet, TenantName};
use time::OffsetDateTime;

use crate::{app::App, dispatch::bearer, respond::Problem};

/// With the operator's key, names the tenant that is meant.
pub(crate) const TENANT: HeaderName = HeaderName::from_static("x-sandpiper-tenant");

/// The holder of a valid key.
pub(super) struct Caller {
    pub(super) principal: Principal,
    /// What the header names; only the operator's is heeded.
    named_tenant: Option<String>,
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let key = bearer(&parts.headers)?.ok_or_else(Problem::no_key)?;
        let principal = app.catalog.find_key(key, OffsetDateTime::now_utc())?;
        let named_tenant = parts.headers.get(TENANT).and_then(|name| name.to_str().ok());
        Ok(Caller { principal, named_tenant: named_tenant.map(str::to_owned) })
    }
}

impl Caller {
    pub(super) fn must_be_operator(&self) -> Result<(), Problem> {
        match self.principal {
            Principal::Operator => Ok(()),
            Principal::Tenant { .. } => Err(Problem::new(
                StatusCode::FORBIDDEN,
                "operator_only",
                "only the operator's key may do this",
            )
            .hint("the operator's key is in the data folder, in `operator.key`, or the operator has it")),
        }
    }

    /// The tenant whose things the request is about: the key's own, or the one that the operator names.
    pub(super) fn tenant(&self, app: &App, scope: Scope) -> Result<Arc<Tenant>, Problem> {
        let name = match &self.principal {
            Principal::Tenant { tenant, scopes, .. } => {
                if !scopes.contains(scope) {
                    return Err(Problem::missing_scope(scope));
                }
                tenant.clone()
            }
            Principal::Operator => {
                let named = self.named_tenant.as_deref().ok_or_else(|| {
                    Problem::new(StatusCode::BAD_REQUEST, "tenant_missing", "which tenant is meant is not said")
                        .hint("with the operator's key, name the tenant in the header `x-sandpiper-tenant`")
                })?;
                named.parse().map_err(|_| Problem::not_found())?
            }
        };
        find_tenant(app, &name)
    }

    /// The tenant in the path, for the operator and for its own keys with the scope `keys`.
    pub(super) fn keys_of(&self, app: &App, path: &str) -> Result<Arc<Tenant>, Problem> {
        let name: TenantName = path.parse().map_err(|_| Problem::not_found())?;
        if let Principal::Tenant { tenant, scopes, .. } = &self.principal {
            if *tenant != name {
                return Err(Problem::not_found());
            }
            if !scopes.contains(Scope::Keys) {
                return Err(Problem::missing_scope(Scope::Keys));
            }
        }
        find_tenant(app, &name)
    }

    /// When the caller's own key ends.
    pub(super) fn expires_at(&self, app: &App) -> Option<OffsetDateTime> {
        match &self.principal {
            Principal::Operator => None,
            Principal::Tenant { key_id, .. } => app.catalog.snapshot().key(key_id)?.expires_at,
        }
    }

    /// What the caller may pass on to a new key.
    pub(super) fn scopes(&self) -> ScopeSet {
        match &self.principal {
            Principal::Operator => ScopeSet::all(),
            Principal::Tenant { scopes, .. } => *scopes,
        }
    }
}

fn find_tenant(app: &App, name: &TenantName) -> Result<Arc<Tenant>, Problem> {
    app.catalog.snapshot().tenant(name).cloned().ok_or_else(Problem::not_found)
}
