//! From the name of a model, as a guest or a caller gives it, to one version of one model.

use std::{collections::BTreeMap, sync::Arc};

use sandpiper_domain::{
    InferenceError, ModelKey, ModelName, ModelRef, ModelScope, Selector, TenantName,
};

use super::{ModelVersion, Snapshot, bindings::name_of};

impl Snapshot {
    /// The model that `reference` (`[owner/]name[@selector]`) means in `scope`. One that is missing, foreign and not
    /// granted, or not bound gives the same error. `pick` is any random number: it decides where an alias splits.
    pub fn resolve_model(
        &self,
        scope: &ModelScope,
        reference: &str,
        pick: u32,
    ) -> Result<(ModelKey, Arc<ModelVersion>), InferenceError> {
        let reference: ModelRef = reference.parse().map_err(|error| {
            InferenceError::InvalidArgument(format!("the model's name: {error}"))
        })?;
        self.find_model(scope, reference, pick).ok_or(InferenceError::NotFound)
    }

    /// Whether calls of `tenant` may run in one batch with calls of others: always for the owner, and for those to whom
    /// the model was granted as the owner has said.
    pub fn batches_with_others(&self, key: &ModelKey, tenant: &TenantName) -> bool {
        let model = self.model(&key.tenant, &key.model);
        key.tenant == *tenant || model.is_some_and(|model| model.batch_with_others)
    }

    /// As [`Snapshot::resolve_model`], for a reference that has been read already.
    pub fn find_model(
        &self,
        scope: &ModelScope,
        reference: ModelRef,
        pick: u32,
    ) -> Option<(ModelKey, Arc<ModelVersion>)> {
        let ModelRef { owner, name, selector } = reference;
        let owner = owner.unwrap_or_else(|| scope.tenant.clone());
        let bound = match &scope.bindings {
            Some(bindings) => {
                Some(binding(bindings, &scope.tenant, &owner, name.as_str())?.clone())
            }
            None => None,
        };
        let model = self.model(&owner, &name)?;
        if owner != scope.tenant && !model.grants.include(&scope.tenant) {
            return None;
        }
        // A pin chooses a version and gives no right. One whose version is gone chooses nothing.
        let pinned = match selector {
            None => pin(scope, &owner, &name).and_then(|version| model.versions.get(version)),
            Some(_) => None,
        };
        let version = match pinned {
            Some(version) => version,
            None => model.versions.resolve(&selector.or(bound).unwrap_or_default(), pick)?,
        };
        let version = Arc::clone(version);
        Some((ModelKey { tenant: owner, model: name, version: version.version }, version))
    }
}

/// The version that the name meant when the function's alias last moved.
fn pin(scope: &ModelScope, owner: &TenantName, name: &ModelName) -> Option<u32> {
    if scope.pins.is_empty() {
        return None;
    }
    let pin = match *owner == scope.tenant {
        true => scope.pins.get(name.as_str()),
        false => scope.pins.get(&name_of(owner, name, &scope.tenant)),
    };
    pin.copied()
}

/// What the manifest binds the model to. A model of the tenant's own may be written with or without its owner there,
/// whichever way the guest writes it.
fn binding<'a>(
    bindings: &'a BTreeMap<String, Selector>,
    tenant: &TenantName,
    owner: &TenantName,
    name: &str,
) -> Option<&'a Selector> {
    let short = if owner == tenant { bindings.get(name) } else { None };
    short.or_else(|| bindings.get(&format!("{owner}/{name}")))
}
