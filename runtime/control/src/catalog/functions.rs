//! Deploying, moving and deleting functions.

use std::sync::Arc;

use sandpiper_domain::{AliasName, Build, FunctionName, Manifest, TenantName};
use time::OffsetDateTime;

use super::{
    Catalog, Function, FunctionVersion, PinnedBlob, PutOutcome, Target, Versions,
    draft::Draft,
    load,
    record::{self, FunctionVersionRecord, RetiredRecord},
};
use crate::CatalogError;

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
                activate_newest(draft, tenant, name, newest.version, activate)?;
                return Ok(PutOutcome::Unchanged(newest));
            }
            ensure_function(draft, tenant, name)?;
            let tier = draft.tenant(tenant)?.tier.clone();
            let policies = draft.policies;
            let (version, pruned) = draft.edit_function(tenant, name, |versions| {
                let record = FunctionVersionRecord {
                    digest: new.component.digest(),
                    source_digest: new.source.digest(),
                    size: new.source.size(),
                    manifest: new.manifest.clone(),
                    imports: new.imports.clone(),
                    created_at: now,
                };
                let number = versions.next_number();
                let version = load::function_version(number, record, tenant, &tier, policies)?;
                let version = versions.add(|_| version)?;
                if activate {
                    versions.point(&AliasName::live(), Target::Version(version.version))?;
                }
                Ok((version, versions.prune(limits.versions)?))
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
            draft.edit_function(tenant, name, |versions| versions.remove(version))?;
            draft.delete(record::function_version_key(tenant, name, version));
            Ok(())
        })
    }

    /// Makes or moves an alias.
    pub fn set_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
        target: Target,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| draft.edit_function(tenant, name, |v| v.point(alias, target)))
    }

    /// Moves an alias back to where it pointed before, and says where that is.
    pub fn roll_back_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
    ) -> Result<Target, CatalogError> {
        self.mutate(|draft| draft.edit_function(tenant, name, |v| v.roll_back(alias)))
    }

    /// Deletes an alias; the versions stay.
    pub fn delete_function_alias(
        &self,
        tenant: &TenantName,
        name: &FunctionName,
        alias: &AliasName,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| draft.edit_function(tenant, name, |v| v.remove_alias(alias)))
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

fn activate_newest(
    draft: &mut Draft<'_>,
    tenant: &TenantName,
    name: &FunctionName,
    version: u32,
    activate: bool,
) -> Result<(), CatalogError> {
    let live = AliasName::live();
    let function = draft.next.function(tenant, name);
    let there = function.is_some_and(|function| function.versions.points_at(&live, version));
    if there || !activate {
        return Ok(());
    }
    draft.edit_function(tenant, name, |v| v.point(&live, Target::Version(version)))
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
    let function = Function { name: name.clone(), versions: Versions::starting_at(first) };
    owner.functions.insert(name.clone(), Arc::new(function));
    Ok(())
}
