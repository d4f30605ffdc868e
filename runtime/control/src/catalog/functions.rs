//! Deploying, moving and deleting functions.

use std::{collections::BTreeSet, iter, sync::Arc};

use sandpiper_domain::{AliasName, Build, FunctionName, Manifest, TenantName};
use time::OffsetDateTime;

use super::{
    AliasChange, Catalog, Cause, Function, FunctionVersion, PinnedBlob, Placement, PutOutcome,
    Retention, Target, Versions,
    bindings::settle,
    draft::Draft,
    load,
    record::{self, FunctionVersionRecord, RetiredRecord},
};
use crate::{CatalogError, RolloutEnd};

/// A function version to be.
#[derive(Debug)]
pub struct NewFunction {
    /// The component as it will run.
    pub component: PinnedBlob,
    /// The bytes as they were uploaded; a clone of `component` when they are the same.
    pub source: PinnedBlob,
    /// Its manifest, which carries the function's name.
    pub manifest: Manifest,
    /// What it imports.
    pub imports: Vec<String>,
}

impl Catalog {
    /// Adds a version of the function that the manifest names, and the function with its first. `activate` moves `live`
    /// to the version.
    pub fn put_function(
        &self,
        tenant: &TenantName,
        new: &NewFunction,
        activate: bool,
        now: OffsetDateTime,
    ) -> Result<PutOutcome<FunctionVersion>, CatalogError> {
        let name = &new.manifest.name;
        self.mutate(|draft| {
            let limits = draft.tenant(tenant)?.limits;
            check_size(new, limits.component_mib)?;
            if let Some(newest) = unchanged(draft, tenant, new) {
                if activate {
                    activate_newest(draft, tenant, name, &newest, now)?;
                }
                return Ok(PutOutcome::Unchanged(newest));
            }
            ensure_function(draft, tenant, name)?;
            let tier = draft.tenant(tenant)?.tier.clone();
            let policies = draft.policies;
            let models = Arc::new(settle(&draft.next, tenant, iter::once(&new.manifest)));
            let (version, pruned) = draft.edit_function(tenant, name, |function| {
                let versions = &mut function.versions;
                let record = FunctionVersionRecord {
                    digest: new.component.digest(),
                    source_digest: new.source.digest(),
                    size: new.source.size(),
                    manifest: new.manifest.clone(),
                    imports: new.imports.clone(),
                    created_at: now,
                    failed: None,
                };
                let number = versions.next_number();
                let version = load::function_version(number, record, tenant, &tier, policies)?;
                let version = versions.add(|_| version)?;
                if activate {
                    let target = Target::Version(version.version);
                    let (at, cause) = (Some(now), Cause::Deployed);
                    let to = Placement { target, models, at, cause };
                    versions.end_rollout(&AliasName::live(), now);
                    versions.point(&AliasName::live(), to)?;
                }
                let mut pruned = versions.retire(&function.retention, |_| false)?;
                pruned.extend(versions.prune(limits.versions, |_| false)?);
                Ok((version, pruned))
            })?;
            let key = record::function_version_key(tenant, name, version.version);
            draft.put(key, &FunctionVersionRecord::from(&*version))?;
            for number in pruned {
                draft.delete(record::function_version_key(tenant, name, number));
            }
            Ok(PutOutcome::Created(version))
        })
    }

    /// Deletes a function with its versions. Made again, it goes on counting where it stopped.
    pub fn delete_function(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            let removed = draft.tenant(tenant)?.functions.remove(name);
            let function = removed.ok_or(CatalogError::NotFound { what: "function" })?;
            draft.delete(record::function_key(tenant, name));
            for (number, _) in function.versions.iter() {
                draft.delete(record::function_version_key(tenant, name, number));
            }
            let retired_key = record::retired_key(tenant);
            let mut retired: RetiredRecord = draft.read(&retired_key)?.unwrap_or_default();
            retired.functions.retire(name.as_str(), function.versions.next_number());
            draft.put(retired_key, &retired)
        })
    }

    /// Deletes a version that no alias points at.
    pub fn delete_function_version(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        version: u32,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            draft.edit_function(tenant, name, |function| function.versions.remove(version))?;
            draft.delete(record::function_version_key(tenant, name, version));
            Ok(())
        })
    }

    /// Makes or moves an alias. That ends its rollout.
    pub fn set_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        change: impl Into<AliasChange>,
        now: OffsetDateTime,
    ) -> Result<(), CatalogError> {
        let AliasChange { target, sticky, force } = change.into();
        self.mutate(|draft| {
            let models = draft.settle(tenant, name, &target);
            let to = Placement { target, models, at: Some(now), cause: Cause::Set };
            draft.edit_function(tenant, name, |function| {
                let versions = &mut function.versions;
                if !force && let Some(version) = versions.failed_of(&to.target) {
                    return Err(CatalogError::Failed { version });
                }
                versions.end_rollout(alias, now);
                versions.point(alias, to)?;
                if let Some(sticky) = sticky {
                    versions.stick(alias, sticky);
                }
                Ok(())
            })
        })
    }

    /// Moves an alias back to where it pointed before, or to where it last pointed at `to` alone, with the models that
    /// its names meant there, and says where that is. A rollout under way is ended by this and taken for the last move.
    pub fn roll_back_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        to: Option<u32>,
        now: OffsetDateTime,
    ) -> Result<Placement, CatalogError> {
        self.mutate(|draft| {
            let gone = draft.gone_models(tenant, name, alias);
            draft.edit_function(tenant, name, |function| {
                let versions = &mut function.versions;
                if let Some(there) = versions.alias_mut(alias) {
                    there.mend(&gone);
                }
                if let Some(stable) = versions.end_rollout(alias, now)
                    && to.is_none_or(|to| to == stable)
                    && let Some(there) = versions.alias_mut(alias)
                {
                    let (at, cause) = (Some(now), Cause::RolledBack);
                    there.now = Placement { at, cause, ..there.now.clone() };
                    return Ok(there.now.clone());
                }
                let failed = versions.failed();
                let is_meant = |target: &Target| match to {
                    Some(to) => *target == Target::Version(to),
                    None => !target.versions().iter().any(|version| failed.contains(version)),
                };
                versions.roll_back(alias, Some(now), is_meant)
            })
        })
    }

    /// Says which versions are kept, now and at every further deployment, and gives those that are gone with this.
    pub fn set_function_retention(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        retention: Retention,
    ) -> Result<Vec<u32>, CatalogError> {
        retention.check()?;
        self.mutate(|draft| {
            let retired = draft.edit_function(tenant, name, |function| {
                retention.check_versions(&function.versions)?;
                function.retention = retention;
                function.versions.retire(&function.retention, |_| false)
            })?;
            for number in &retired {
                draft.delete(record::function_version_key(tenant, name, *number));
            }
            Ok(retired)
        })
    }

    /// Deletes an alias; the versions stay.
    pub fn delete_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            draft.edit_function(tenant, name, |function| function.versions.remove_alias(alias))
        })
    }
}

fn check_size(new: &NewFunction, limit_mib: u64) -> Result<(), CatalogError> {
    if new.source.size() > limit_mib << 20 {
        return Err(CatalogError::TooLarge { what: "component", limit_mib });
    }
    Ok(())
}

/// The newest version, when it is what is being put again.
fn unchanged(
    draft: &Draft<'_>,
    tenant: &TenantName,
    new: &NewFunction,
) -> Option<Arc<FunctionVersion>> {
    let function = draft.next.function(tenant, &new.manifest.name)?;
    let (_, newest) = function.versions.newest()?;
    // How it was built does not change what runs.
    let runs = |manifest: &Manifest| Manifest { build: Build::default(), ..manifest.clone() };
    let same = newest.source_digest == new.source.digest()
        && runs(&newest.manifest) == runs(&new.manifest);
    same.then(|| Arc::clone(newest))
}

/// Deployed again, a version takes `live`, unless it has failed.
fn activate_newest(
    draft: &mut Draft<'_>,
    tenant: &TenantName,
    name: &FunctionName,
    newest: &FunctionVersion,
    now: OffsetDateTime,
) -> Result<(), CatalogError> {
    let (live, version) = (AliasName::live(), newest.version);
    let function = draft.next.function(tenant, name);
    if function.is_some_and(|function| function.versions.points_at(&live, version)) {
        return Ok(());
    }
    if newest.failed.is_some() {
        return Err(CatalogError::Failed { version });
    }
    let target = Target::Version(version);
    let models = draft.settle(tenant, name, &target);
    let to = Placement { target, models, at: Some(now), cause: Cause::Deployed };
    draft.edit_function(tenant, name, |function| {
        function.versions.end_rollout(&live, now);
        function.versions.point(&live, to)
    })
}

impl Versions<FunctionVersion> {
    /// Those that a rollout took back.
    fn failed(&self) -> BTreeSet<u32> {
        self.iter().filter(|(_, v)| v.failed.is_some()).map(|(number, _)| number).collect()
    }

    /// One of these that a rollout took back.
    fn failed_of(&self, target: &Target) -> Option<u32> {
        let has_failed =
            |number: &u32| self.get(*number).is_some_and(|version| version.failed.is_some());
        target.versions().into_iter().find(has_failed)
    }

    /// Ends the rollout of an alias that is to move, if it has one, and gives the version of before.
    fn end_rollout(&mut self, alias: &AliasName, now: OffsetDateTime) -> Option<u32> {
        let (rollout, _) = self.alias_mut(alias)?.end(RolloutEnd::Aborted, now)?;
        Some(rollout.stable)
    }
}

fn ensure_function(
    draft: &mut Draft<'_>,
    tenant: &TenantName,
    name: &FunctionName,
) -> Result<(), CatalogError> {
    let retired: Option<RetiredRecord> = match draft.next.function(tenant, name) {
        Some(_) => return Ok(()),
        None => draft.read(&record::retired_key(tenant))?,
    };
    let owner = draft.tenant(tenant)?;
    if owner.functions.len() >= owner.limits.functions as usize {
        let limit = owner.limits.functions.into();
        return Err(CatalogError::LimitReached { what: "functions", limit });
    }
    let first = retired.unwrap_or_default().functions.next_version(name.as_str());
    let (versions, retention) = (Versions::starting_at(first), Retention::default());
    let function = Function { name: name.clone(), versions, retention };
    owner.functions.insert(name.clone(), Arc::new(function));
    Ok(())
}
