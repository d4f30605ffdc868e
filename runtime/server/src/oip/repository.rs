//! The model repository: which models there are, and taking them out of service and back.
//!
//! Models are loaded by their first call; so `load` and `unload` are a switch of the owner's. An unloaded model takes
//! no calls, from anybody, until it is loaded or a new version is deployed. A load may bring that version itself, as
//! Triton's clients do; see [`load`](self::load()).

use std::sync::Arc;

use sandpiper_control::ModelEntry;
use sandpiper_domain::{ModelKey, ModelRef, Scope};

use super::{Caller, OipError, service::reference};
use crate::app::App;

mod config;
mod load;
mod parameters;

pub(crate) use load::{load, may_load};
pub(crate) use parameters::{Given, LoadParameters, PARAMETERS_MAX};

/// One version in the index.
pub(crate) struct IndexEntry {
    pub(crate) name: String,
    pub(crate) version: u32,
    pub(crate) state: State,
    /// Why it is not ready; empty where it is.
    pub(crate) reason: String,
}

/// Whether calls of a version are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// They are, though the first may have to wait until it is in memory.
    Ready,
    /// They wait.
    Loading,
    /// They are refused, or fail.
    Unavailable,
}

impl State {
    /// Triton's word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            State::Ready => "READY",
            State::Loading => "LOADING",
            State::Unavailable => "UNAVAILABLE",
        }
    }
}

/// Every version of every model that the tenant owns, by name and number. It may be long, and is not for a thread that
/// others wait for; see [`Caller::enter_reading`].
pub(crate) fn repository_index(
    app: &App,
    caller: &Caller,
    ready_only: bool,
) -> Result<Vec<IndexEntry>, OipError> {
    caller.must_have(&[Scope::Models])?;
    let snapshot = app.catalog.snapshot().clone();
    let tenant = snapshot.tenant(&caller.tenant.name);
    let mut entries = Vec::new();
    for model in tenant.into_iter().flat_map(|tenant| tenant.models.values()) {
        for (version, _) in model.versions.iter() {
            let (tenant, name) = (caller.tenant.name.clone(), model.name.clone());
            let key = ModelKey { tenant, model: name, version };
            let (state, reason) = state(app, &key);
            if state == State::Ready || !ready_only {
                entries.push(IndexEntry { name: model.name.to_string(), version, state, reason });
            }
        }
    }
    entries.sort_by(|a, b| (&a.name, a.version).cmp(&(&b.name, b.version)));
    Ok(entries)
}

fn state(app: &App, key: &ModelKey) -> (State, String) {
    if app.models.is_withdrawn(&key.tenant, &key.model) {
        let refused = app.models.check_ready(key).err();
        return (State::Unavailable, refused.map_or_else(String::new, |error| error.to_string()));
    }
    if app.inference.is_loading(key) {
        return (State::Loading, "the model is being loaded".to_owned());
    }
    match (app.models.load_failure(key), app.models.check_ready(key)) {
        (Some(failure), _) => (State::Unavailable, failure),
        (None, Err(refused)) => (State::Unavailable, refused.to_string()),
        (None, Ok(())) => (State::Ready, String::new()),
    }
}

/// Takes a model out of service and out of memory. No model depends on another here, so that there are no dependents.
pub(crate) fn unload(app: &App, caller: &Caller, name: &str) -> Result<(), OipError> {
    caller.must_have(&[Scope::Models])?;
    let (reference, model) = own_model(app, caller, name)?;
    let model = model.ok_or_else(|| OipError::unknown_model(name, None))?;
    if reference.selector.is_some() {
        let text = "a model is unloaded as a whole: name it without a version or alias";
        return Err(OipError::invalid(text));
    }
    app.models.withdraw(&caller.tenant.name, &model.name);
    Ok(())
}

/// A model that the caller's tenant owns, or the name of one that it may make.
fn own_model(
    app: &App,
    caller: &Caller,
    name: &str,
) -> Result<(ModelRef, Option<Arc<ModelEntry>>), OipError> {
    let reference = reference(name, None)?;
    let tenant = &caller.tenant.name;
    let snapshot = app.catalog.snapshot();
    let owner = reference.owner.as_ref().unwrap_or(tenant);
    let model = snapshot.model(owner, &reference.name).cloned();
    if owner == tenant {
        return Ok((reference, model));
    }
    if model.is_none_or(|model| !model.grants.include(tenant)) {
        return Err(OipError::unknown_model(name, None));
    }
    let text = "only its owner may load and unload this model";
    Err(OipError::PermissionDenied(text.to_owned()))
}
