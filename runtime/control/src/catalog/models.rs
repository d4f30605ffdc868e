//! Uploading, moving, granting and deleting models.

use std::{collections::BTreeMap, sync::Arc};

use sandpiper_domain::{AliasName, ModelName, ModelSignature, TenantName};
use time::OffsetDateTime;

use super::{
    Catalog, ModelEntry, ModelGrants, ModelVersion, PinnedBlob, Placement, PutOutcome, Retention,
    Target, Versions,
    draft::Draft,
    record::{self, ModelVersionRecord, RetiredRecord},
};
use crate::CatalogError;

/// Tenants that one model may be granted to by name.
const GRANTS_MAX: usize = 1_000;

/// A model version to be.
#[derive(Debug)]
pub struct NewModel {
    /// Its bytes.
    pub blob: PinnedBlob,
    /// What it takes and gives.
    pub signature: ModelSignature,
    /// How it is to be loaded; what the names mean is the inference plane's business.
    pub options: BTreeMap<String, String>,
    /// Sample inputs to warm up and to measure with.
    pub samples: Option<PinnedBlob>,
    /// What the inference plane measured of it, which nobody else reads.
    pub measurement: serde_json::Value,
}

impl Catalog {
    /// Adds a version of a model, and the model with its first. `activate` moves `live` to the version.
    pub fn put_model(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        new: &NewModel,
        activate: bool,
        now: OffsetDateTime,
    ) -> Result<PutOutcome<ModelVersion>, CatalogError> {
        self.mutate(|draft| {
            let limits = draft.tenant(tenant)?.limits;
            if new.blob.size() > limits.model_mib << 20 {
                let limit_mib = limits.model_mib;
                return Err(CatalogError::TooLarge { what: "model", limit_mib });
            }
            if let Some(newest) = unchanged(draft, tenant, name, new) {
                if activate {
                    activate_newest(draft, tenant, name, newest.version, now)?;
                }
                return Ok(PutOutcome::Unchanged(newest));
            }
            ensure_model(draft, tenant, name)?;
            let live = AliasName::live();
            let placed = draft.placed(tenant, name, activate.then_some(&live));
            let is_placed = |number: u32| placed.contains(&number);
            let (version, pruned) = draft.edit_model(tenant, name, |model| {
                let versions = &mut model.versions;
                let version = versions.add(|version| ModelVersion {
                    version,
                    digest: new.blob.digest(),
                    size: new.blob.size(),
                    signature: new.signature.clone(),
                    options: new.options.clone(),
                    samples: new.samples.as_ref().map(PinnedBlob::digest),
                    measurement: new.measurement.clone(),
                    created_at: now,
                })?;
                if activate {
                    versions.point(&AliasName::live(), Target::Version(version.version))?;
                }
                let mut pruned = versions.retire(&model.retention, is_placed)?;
                pruned.extend(versions.prune(limits.versions, is_placed)?);
                Ok((version, pruned))
            })?;
            let key = record::model_version_key(tenant, name, version.version);
            draft.put(key, &ModelVersionRecord::from(&*version))?;
            for number in pruned {
                draft.delete(record::model_version_key(tenant, name, number));
            }
            if activate {
                draft.model_alias_moved(tenant, name, &AliasName::live(), now)?;
            }
            Ok(PutOutcome::Created(version))
        })
    }

    /// Says who else may load a model, and whether their calls may run in one batch with those of other tenants.
    /// Whether those tenants exist is not checked: it would tell who does.
    pub fn set_model_grants(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        grants: ModelGrants,
        batch_with_others: bool,
    ) -> Result<(), CatalogError> {
        if matches!(&grants, ModelGrants::Tenants(tenants) if tenants.len() > GRANTS_MAX) {
            let limit = GRANTS_MAX as u64;
            return Err(CatalogError::LimitReached { what: "grants of one model", limit });
        }
        self.mutate(|draft| {
            draft.edit_model(tenant, name, |model| {
                model.grants = grants;
                model.batch_with_others = batch_with_others;
                Ok(())
            })
        })
    }

    /// Says which versions are kept, now and at every further upload, and gives those that are gone with this.
    pub fn set_model_retention(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        retention: Retention,
    ) -> Result<Vec<u32>, CatalogError> {
        retention.check()?;
        self.mutate(|draft| {
            let placed = draft.placed(tenant, name, None);
            let retired = draft.edit_model(tenant, name, |model| {
                retention.check_versions(&model.versions)?;
                model.retention = retention;
                model.versions.retire(&model.retention, |number| placed.contains(&number))
            })?;
            for number in &retired {
                draft.delete(record::model_version_key(tenant, name, *number));
            }
            Ok(retired)
        })
    }

    /// Deletes a model with its versions. Made again, it goes on counting where it stopped.
    pub fn delete_model(&self, tenant: &TenantName, name: &ModelName) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            let removed = draft.tenant(tenant)?.models.remove(name);
            let model = removed.ok_or(CatalogError::NotFound { what: "model" })?;
            draft.delete(record::model_key(tenant, name));
            for (number, _) in model.versions.iter() {
                draft.delete(record::model_version_key(tenant, name, number));
            }
            let retired_key = record::retired_key(tenant);
            let mut retired: RetiredRecord = draft.read(&retired_key)?.unwrap_or_default();
            retired.models.retire(name.as_str(), model.versions.next_number());
            draft.put(retired_key, &retired)
        })
    }

    /// Deletes a version that no alias points at and no function of the tenant's has settled on.
    pub fn delete_model_version(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        version: u32,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            if draft.placed(tenant, name, None).contains(&version) {
                return Err(CatalogError::Placed { version });
            }
            draft.edit_model_versions(tenant, name, |versions| versions.remove(version))?;
            draft.delete(record::model_version_key(tenant, name, version));
            Ok(())
        })
    }

    /// Makes or moves an alias.
    pub fn set_model_alias(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
        target: Target,
        now: OffsetDateTime,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            draft.edit_model_versions(tenant, name, |v| v.point(alias, target))?;
            draft.model_alias_moved(tenant, name, alias, now)
        })
    }

    /// Moves an alias back to where it pointed before, and says where that is.
    pub fn roll_back_model_alias(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
        now: OffsetDateTime,
    ) -> Result<Placement, CatalogError> {
        self.mutate(|draft| {
            let placement = draft.edit_model_versions(tenant, name, |versions| {
                versions.roll_back(alias, Some(now), |_| true)
            })?;
            draft.model_alias_moved(tenant, name, alias, now)?;
            Ok(placement)
        })
    }

    /// Deletes an alias; the versions stay.
    pub fn delete_model_alias(
        &self,
        tenant: &TenantName,
        name: &ModelName,
        alias: &AliasName,
        now: OffsetDateTime,
    ) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            draft.edit_model_versions(tenant, name, |v| v.remove_alias(alias))?;
            draft.model_alias_moved(tenant, name, alias, now)
        })
    }
}

/// The newest version, when it is what is being put again.
fn unchanged(
    draft: &Draft<'_>,
    tenant: &TenantName,
    name: &ModelName,
    new: &NewModel,
) -> Option<Arc<ModelVersion>> {
    let (_, newest) = draft.next.model(tenant, name)?.versions.newest()?;
    let samples = new.samples.as_ref().map(PinnedBlob::digest);
    let same = newest.digest == new.blob.digest()
        && newest.options == new.options
        && newest.samples == samples;
    same.then(|| Arc::clone(newest))
}

fn activate_newest(
    draft: &mut Draft<'_>,
    tenant: &TenantName,
    name: &ModelName,
    version: u32,
    now: OffsetDateTime,
) -> Result<(), CatalogError> {
    let live = AliasName::live();
    let model = draft.next.model(tenant, name);
    let there = model.is_some_and(|model| model.versions.points_at(&live, version));
    if there {
        return Ok(());
    }
    draft.edit_model_versions(tenant, name, |v| v.point(&live, Target::Version(version)))?;
    draft.model_alias_moved(tenant, name, &live, now)
}

fn ensure_model(
    draft: &mut Draft<'_>,
    tenant: &TenantName,
    name: &ModelName,
) -> Result<(), CatalogError> {
    let retired: Option<RetiredRecord> = match draft.next.model(tenant, name) {
        Some(_) => return Ok(()),
        None => draft.read(&record::retired_key(tenant))?,
    };
    let owner = draft.tenant(tenant)?;
    if owner.models.len() >= owner.limits.models as usize {
        let limit = owner.limits.models.into();
        return Err(CatalogError::LimitReached { what: "models", limit });
    }
    let first = retired.unwrap_or_default().models.next_version(name.as_str());
    let (versions, grants) = (Versions::starting_at(first), ModelGrants::None);
    let model = ModelEntry {
        name: name.clone(),
        versions,
        grants,
        batch_with_others: true,
        retention: Retention::default(),
    };
    owner.models.insert(name.clone(), Arc::new(model));
    Ok(())
}
