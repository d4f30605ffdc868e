//! The model repository: which models there are, and taking them out of service and back.
//!
//! Models are uploaded through the control plane and loaded by their first call; so `load` and `unload` are a switch of
//! the owner's. An unloaded model takes no calls, from anybody, until it is loaded or a new version is deployed.

use std::{sync::Arc, time::Duration};

use sandpiper_control::ModelEntry;
use sandpiper_domain::{AliasName, InferenceError, ModelKey, ModelRef, Scope, Selector};

use super::{Caller, OipError, service::reference};
use crate::{app::App, models::ResolvedModel};

/// How long a load is waited for. It goes on beyond.
const LOAD_WAIT_MAX: Duration = Duration::from_secs(120);

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

/// What came with a load: everything in it asks for something that this server does another way.
#[derive(Debug, Default)]
pub(crate) struct LoadParameters {
    /// A model configuration was given.
    pub(crate) has_config: bool,
    /// Files of a model were given.
    pub(crate) has_files: bool,
    /// Others, by name.
    pub(crate) unknown: Option<String>,
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

/// Brings a model into service, and answers when its versions are in memory: the one that is named, or those that
/// `live` points at. A model in quarantine leaves it.
pub(crate) async fn load(
    app: &App,
    caller: &Caller,
    name: &str,
    parameters: &LoadParameters,
) -> Result<(), OipError> {
    caller.must_have(&[Scope::Models])?;
    let (reference, model) = own_model(app, caller, name)?;
    parameters.refuse()?;
    let withdrawal = app.models.withdrawal(&caller.tenant.name, &model.name);
    let versions = versions_to_load(&model, reference.selector);
    if versions.is_empty() {
        return Err(OipError::unknown_model(name, None));
    }
    for number in versions {
        let version = model.versions.get(number).cloned();
        let version = version.ok_or_else(|| OipError::unknown_model(name, None))?;
        let (tenant, model) = (caller.tenant.name.clone(), model.name.clone());
        let key = ModelKey { tenant, model, version: number };
        let found = ResolvedModel { key, version, asker: caller.tenant.name.clone() };
        let loaded = tokio::time::timeout(LOAD_WAIT_MAX, app.models.load_afresh(&found)).await;
        let loaded = loaded.map_err(|_| {
            OipError::unavailable("the model is still being loaded; ask again whether it is ready")
        })?;
        // It is the owner who asks, and may know more than callers do.
        loaded.map_err(|error| match app.models.load_failure(&found.key) {
            Some(failure) if matches!(error, InferenceError::Unavailable(_)) => {
                OipError::unavailable(failure)
            }
            _ => error.into(),
        })?;
    }
    if !app.models.restore_from(&caller.tenant.name, &model.name, withdrawal) {
        return Err(OipError::unavailable("the model was unloaded while it was being loaded"));
    }
    Ok(())
}

/// Takes a model out of service and out of memory. No model depends on another here, so that there are no dependents.
pub(crate) fn unload(app: &App, caller: &Caller, name: &str) -> Result<(), OipError> {
    caller.must_have(&[Scope::Models])?;
    let (reference, model) = own_model(app, caller, name)?;
    if reference.selector.is_some() {
        let text = "a model is unloaded as a whole: name it without a version or alias";
        return Err(OipError::invalid(text));
    }
    app.models.withdraw(&caller.tenant.name, &model.name);
    Ok(())
}

impl LoadParameters {
    /// Notes a parameter by its name.
    pub(crate) fn note(&mut self, name: String) {
        if name.starts_with("file:") {
            self.has_files = true;
        } else if name == "config" {
            self.has_config = true;
        } else {
            self.unknown = Some(name);
        }
    }

    fn refuse(&self) -> Result<(), OipError> {
        let text = if self.has_files {
            "a load cannot bring files: upload the model with PUT /api/v1/models/{name}".to_owned()
        } else if self.has_config {
            "a load cannot change a model's configuration: its options belong to a version, and are given with PUT \
             /api/v1/models/{name}"
                .to_owned()
        } else if let Some(name) = &self.unknown {
            let name = super::error::shown(name);
            return Err(OipError::invalid(format!("a load has no parameter `{name}`")));
        } else {
            return Ok(());
        };
        Err(OipError::Unsupported(text))
    }
}

/// A model that the caller's tenant owns.
fn own_model(
    app: &App,
    caller: &Caller,
    name: &str,
) -> Result<(ModelRef, Arc<ModelEntry>), OipError> {
    let reference = reference(name, None)?;
    let tenant = &caller.tenant.name;
    let snapshot = app.catalog.snapshot();
    let owner = reference.owner.as_ref().unwrap_or(tenant);
    let model = snapshot.model(owner, &reference.name);
    let model = model.filter(|model| owner == tenant || model.grants.include(tenant));
    let model = model.ok_or_else(|| OipError::unknown_model(name, None))?;
    if owner != tenant {
        let text = "only its owner may load and unload this model";
        return Err(OipError::PermissionDenied(text.to_owned()));
    }
    Ok((reference, model.clone()))
}

fn versions_to_load(model: &ModelEntry, selector: Option<Selector>) -> Vec<u32> {
    let alias = match selector {
        Some(Selector::Version(number)) => return vec![number],
        Some(Selector::Alias(alias)) => alias,
        None => AliasName::live(),
    };
    model.versions.alias(&alias).map(|alias| alias.target().versions()).unwrap_or_default()
}
