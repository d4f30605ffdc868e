//! Who calls, and on behalf of which tenant.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_control::{KeyError, Principal, Tenant};
use sandpiper_domain::{ModelScope, Scope, ScopeSet};
use time::OffsetDateTime;

use super::{OipError, Place};
use crate::{admission::Refusal, app::App};

/// The holder of a valid key and the tenant that it speaks for.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) tenant: Arc<Tenant>,
    scopes: ScopeSet,
}

impl Caller {
    /// `key` is the bearer token. `named_tenant` is what `x-sandpiper-tenant` says; only the operator's is heeded, and
    /// the operator's key needs it.
    pub(crate) fn find(
        app: &App,
        key: Option<&str>,
        named_tenant: Option<&str>,
    ) -> Result<Self, OipError> {
        let key = key.ok_or_else(OipError::no_key)?;
        let principal = app.catalog.find_key(key, OffsetDateTime::now_utc())?;
        let snapshot = app.catalog.snapshot();
        let (tenant, scopes) = match principal {
            Principal::Tenant { tenant, scopes, .. } => (snapshot.tenant(&tenant), scopes),
            Principal::Operator => {
                let text = "with the operator's key, name the tenant in `x-sandpiper-tenant`";
                let named = named_tenant.ok_or_else(|| OipError::invalid(text))?;
                let tenant = named.parse().ok().and_then(|name| snapshot.tenant(&name));
                (tenant, ScopeSet::all())
            }
        };
        let no_tenant = || OipError::NotFound("there is no such tenant".to_owned());
        Ok(Caller { tenant: tenant.ok_or_else(no_tenant)?.clone(), scopes })
    }

    /// Fails unless the key has one of these scopes.
    pub(crate) fn must_have(&self, any: &[Scope]) -> Result<(), OipError> {
        match any.iter().any(|scope| self.scopes.contains(*scope)) {
            true => Ok(()),
            false => Err(OipError::missing_scope(any[0])),
        }
    }

    /// Whose names count: the tenant's own models, and `owner/name` where they are granted.
    pub(crate) fn scope(&self) -> ModelScope {
        ModelScope { tenant: self.tenant.name.clone(), bindings: None, pins: Default::default() }
    }

    /// Lets one inference in, under the tenant's rate and concurrency. The place must live until the answer is sent.
    pub(crate) async fn enter(&self, app: &App) -> Result<Place, OipError> {
        self.must_have(&[Scope::Invoke])?;
        self.enter_reading(app).await
    }

    /// The most bytes of an answer's tensors, and of a request's once they are read.
    pub(crate) fn tensor_bytes_max(&self) -> usize {
        (self.tenant.sandbox.tensor_mib as usize) << 20
    }

    /// Lets in what reads much, or loads a model, without an inference: it counts as one. The place must live until
    /// the answer is sent. What scope it needs is for what it does to say.
    pub(crate) async fn enter_reading(&self, app: &App) -> Result<Place, OipError> {
        let admission = app.admission(&self.tenant);
        let entry = admission.enter_inference().await?;
        Ok(Place::take(Some(entry), admission)?)
    }

    /// Lets in what costs next to nothing, at any rate: only its memory is charged.
    pub(crate) fn enter_free(&self, app: &App) -> Result<Place, OipError> {
        Ok(Place::take(None, app.admission(&self.tenant))?)
    }

    /// When a request that came at `began` must be answered, where it says so and where it does not.
    pub(crate) fn deadline(&self, began: Instant, timeout: Option<Duration>) -> Instant {
        let limit = Duration::from_millis(self.tenant.sandbox.wall_ms);
        began + timeout.map_or(limit, |timeout| timeout.min(limit))
    }

    /// The longest request body, in bytes.
    pub(crate) fn body_bytes_max(&self) -> usize {
        (self.tenant.sandbox.request_body_mib as usize) << 20
    }
}

impl From<KeyError> for OipError {
    fn from(error: KeyError) -> Self {
        OipError::Unauthenticated(error.to_string())
    }
}

impl From<Refusal> for OipError {
    fn from(refusal: Refusal) -> Self {
        let (message, retry_after_s) = (refusal.cause.text().to_owned(), refusal.retry_after_s());
        OipError::TooManyRequests { message, retry_after_s }
    }
}
