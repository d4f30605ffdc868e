//! Which versions of models the names of a function mean. That is settled when the function's alias moves or the
//! model's does, and kept with the place that the function's alias has: what goes back goes back with its models.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use sandpiper_domain::{
    AliasName, FunctionName, Grant, Manifest, ModelKey, ModelName, ModelRef, ModelScope, Selector,
    TenantName,
};
use time::OffsetDateTime;

use super::{
    Cause, FunctionVersion, Placement, Snapshot, Tenant, Versions, draft::Draft, versions::Target,
};
use crate::CatalogError;

/// Models that one place of an alias settles. What a function may load beyond those means what it means at each load.
const MODELS_MAX: usize = 256;

/// A model under an alias, as a function of some tenant is bound to it.
struct Binding {
    owner: TenantName,
    model: ModelName,
    alias: AliasName,
}

impl Binding {
    /// `[owner/]name`, with `@alias` where that is not `live`.
    fn key(&self, tenant: &TenantName) -> String {
        let name = name_of(&self.owner, &self.model, tenant);
        if self.alias == AliasName::live() { name } else { format!("{name}@{}", self.alias) }
    }

    /// The version that it means now, where that is one.
    fn version(&self, snapshot: &Snapshot, tenant: &TenantName) -> Option<u32> {
        let model = snapshot.model(&self.owner, &self.model)?;
        if self.owner != *tenant && !model.grants.include(tenant) {
            return None;
        }
        match model.versions.alias(&self.alias)?.target() {
            Target::Version(version) => Some(*version),
            Target::Weights(_) => None,
        }
    }
}

/// `[owner/]name`, without the owner where that is `tenant`.
pub(super) fn name_of(owner: &TenantName, model: &ModelName, tenant: &TenantName) -> String {
    if owner == tenant { model.to_string() } else { format!("{owner}/{model}") }
}

/// What a manifest binds through aliases. Without bindings, it may load all of its tenant's models.
fn bindings(tenant: &Tenant, manifest: &Manifest) -> Vec<Binding> {
    let Some(bound) = &manifest.models else {
        let own = |model: &ModelName| Binding {
            owner: tenant.name.clone(),
            model: model.clone(),
            alias: AliasName::live(),
        };
        return tenant.models.keys().map(own).collect();
    };
    let through_alias = |(name, selector): (&String, &Selector)| {
        let Selector::Alias(alias) = selector else { return None };
        let ModelRef { owner, name, .. } = name.parse().ok()?;
        let owner = owner.unwrap_or_else(|| tenant.name.clone());
        Some(Binding { owner, model: name, alias: alias.clone() })
    };
    bound.iter().filter_map(through_alias).collect()
}

/// The models of one place.
pub(super) fn settle<'a>(
    snapshot: &Snapshot,
    tenant: &TenantName,
    manifests: impl Iterator<Item = &'a Manifest>,
) -> BTreeMap<String, u32> {
    let Some(owner) = snapshot.tenant(tenant) else { return BTreeMap::new() };
    let mut models = BTreeMap::new();
    for binding in manifests.flat_map(|manifest| bindings(owner, manifest)) {
        if models.len() == MODELS_MAX {
            break;
        }
        if let Some(version) = binding.version(snapshot, tenant) {
            models.insert(binding.key(tenant), version);
        }
    }
    models
}

/// Of the models of a place, those that one version is bound to.
pub(super) fn only_of(
    models: &BTreeMap<String, u32>,
    tenant: &Tenant,
    manifest: &Manifest,
) -> BTreeMap<String, u32> {
    let own: BTreeSet<String> =
        bindings(tenant, manifest).iter().map(|binding| binding.key(&tenant.name)).collect();
    models.iter().filter(|(key, _)| own.contains(*key)).map(|(k, v)| (k.clone(), *v)).collect()
}

/// The grant of a version where its names mean these models.
fn pinned(grant: &Arc<Grant>, models: &BTreeMap<String, u32>) -> Arc<Grant> {
    let scope = &grant.models;
    let pins: BTreeMap<String, u32> = match &scope.bindings {
        None => models.clone(),
        Some(bindings) => {
            let own = format!("{}/", scope.tenant);
            let pin = |(name, selector): (&String, &Selector)| {
                let Selector::Alias(alias) = selector else { return None };
                let name = name.strip_prefix(&own).unwrap_or(name);
                let is_live = *alias == AliasName::live();
                let key = if is_live { name.to_owned() } else { format!("{name}@{alias}") };
                Some((name.to_owned(), *models.get(&key)?))
            };
            bindings.iter().filter_map(pin).collect()
        }
    };
    if pins.is_empty() {
        return Arc::clone(grant);
    }
    let models = Arc::new(ModelScope { pins: Arc::new(pins), ..ModelScope::clone(scope) });
    Arc::new(Grant { models, ..Grant::clone(grant) })
}

impl Versions<FunctionVersion> {
    /// Works out what the versions may do under each alias.
    pub(super) fn grant_again(&mut self) {
        let (versions, aliases) = self.parts();
        for alias in aliases.values_mut() {
            let granted = alias.now.target.versions().into_iter().filter_map(|number| {
                let version = versions.get(&number)?;
                Some((number, pinned(&version.grant, &alias.now.models)))
            });
            alias.grants = granted.collect();
        }
    }
}

impl Snapshot {
    /// The versions of models that a function would load today since its alias says so.
    pub fn placed_models(&self) -> HashSet<ModelKey> {
        let mut placed = HashSet::new();
        for tenant in self.tenants() {
            for function in tenant.functions.values() {
                for (_, alias) in function.versions.aliases() {
                    let models = alias.now.models.iter();
                    placed.extend(models.filter_map(|(key, v)| model_key(&tenant.name, key, *v)));
                }
            }
        }
        placed
    }
}

fn model_key(tenant: &TenantName, key: &str, version: u32) -> Option<ModelKey> {
    let ModelRef { owner, name, .. } = key.parse().ok()?;
    let tenant = owner.unwrap_or_else(|| tenant.clone());
    Some(ModelKey { tenant, model: name, version })
}

impl Draft<'_> {
    /// The models that the names of these versions mean now.
    pub(super) fn settle(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        target: &Target,
    ) -> Arc<BTreeMap<String, u32>> {
        let Some(function) = self.next.function(tenant, name) else { return Arc::default() };
        let numbers = target.versions();
        let versions = numbers.iter().filter_map(|number| function.versions.get(*number));
        Arc::new(settle(&self.next, tenant, versions.map(|version| &version.manifest)))
    }

    /// The models of an alias's earlier places that are no more, and what their names mean now.
    pub(super) fn gone_models(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
    ) -> BTreeMap<(String, u32), Option<u32>> {
        let function = self.next.function(tenant, name);
        let history = function
            .and_then(|function| function.versions.alias(alias))
            .map_or(&[][..], |alias| &alias.history);
        let meaning = |key: &String, version: &u32| {
            let ModelRef { owner, name, selector } = key.parse().ok()?;
            let owner = owner.unwrap_or_else(|| tenant.clone());
            let model = self.next.model(&owner, &name);
            if model.is_some_and(|model| model.versions.get(*version).is_some()) {
                return None;
            }
            let Selector::Alias(alias) = selector.unwrap_or_default() else { return None };
            let now = Binding { owner, model: name, alias }.version(&self.next, tenant);
            Some(((key.clone(), *version), now))
        };
        let models = history.iter().flat_map(|earlier| earlier.models.iter());
        models.filter_map(|(key, version)| meaning(key, version)).collect()
    }

    /// The versions of a model that functions of its owner would load today, but for those that they will no longer
    /// mean when this alias of the model has moved.
    pub(super) fn placed(
        &self,
        owner: &TenantName,
        model: &ModelName,
        moving: Option<&AliasName>,
    ) -> BTreeSet<u32> {
        let moving = moving.map(|alias| {
            let binding =
                Binding { owner: owner.clone(), model: model.clone(), alias: alias.clone() };
            binding.key(owner)
        });
        let functions = self.next.tenant(owner).into_iter().flat_map(|t| t.functions.values());
        let aliases = functions.flat_map(|function| function.versions.aliases());
        let of_model = |key: &str| key.split('@').next() == Some(model.as_str());
        aliases
            .flat_map(|(_, alias)| alias.now.models.iter())
            .filter(|(key, _)| of_model(key) && moving.as_ref() != Some(*key))
            .map(|(_, version)| *version)
            .collect()
    }

    /// Settles anew what the functions mean by a model whose alias has moved.
    pub(super) fn model_alias_moved(
        &mut self,
        owner: &TenantName,
        model: &ModelName,
        alias: &AliasName,
        now: OffsetDateTime,
    ) -> Result<(), CatalogError> {
        let binding = Binding { owner: owner.clone(), model: model.clone(), alias: alias.clone() };
        for (tenant, function, aliases) in self.bound_to(&binding) {
            let key = binding.key(&tenant);
            let version = binding.version(&self.next, &tenant);
            self.edit_function(&tenant, &function, |function| {
                for name in &aliases {
                    let Some(alias) = function.versions.alias_mut(name) else { continue };
                    let mut models = BTreeMap::clone(&alias.now.models);
                    match version {
                        Some(version) if models.len() < MODELS_MAX || models.contains_key(&key) => {
                            models.insert(key.clone(), version);
                        }
                        _ => drop(models.remove(&key)),
                    }
                    let cause = Cause::ModelMoved { model: key.clone() };
                    let (target, at) = (alias.now.target.clone(), Some(now));
                    alias.go(Placement { target, models: Arc::new(models), at, cause });
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The functions' aliases under which a version runs that is bound so, where they mean another version by it.
    fn bound_to(&self, binding: &Binding) -> Vec<(TenantName, FunctionName, Vec<AliasName>)> {
        let mut bound = Vec::new();
        for tenant in self.next.tenants() {
            let key = binding.key(&tenant.name);
            let version = binding.version(&self.next, &tenant.name);
            let is_bound = |manifest: &Manifest| match &manifest.models {
                None => binding.owner == tenant.name && binding.alias == AliasName::live(),
                Some(_) => bindings(tenant, manifest).iter().any(|b| b.key(&tenant.name) == key),
            };
            for function in tenant.functions.values() {
                let runs_bound = |target: &Target| {
                    let versions = target.versions().into_iter();
                    let mut versions = versions.filter_map(|number| function.versions.get(number));
                    versions.any(|version| is_bound(&version.manifest))
                };
                let moved = function.versions.aliases().filter(|(_, alias)| {
                    alias.now.models.get(&key).copied() != version && runs_bound(alias.target())
                });
                let moved: Vec<AliasName> = moved.map(|(name, _)| name.clone()).collect();
                if !moved.is_empty() {
                    bound.push((tenant.name.clone(), function.name.clone(), moved));
                }
            }
        }
        bound
    }
}
