//! Making and deleting tenants.

use std::sync::Arc;

use sandpiper_domain::TenantName;
use time::OffsetDateTime;

use super::{
    Catalog, ModelGrants, Tenant,
    draft::Draft,
    load,
    record::{self, RetiredRecord, TenantRecord},
};
use crate::{CatalogError, PolicyError, TierName};

impl Catalog {
    /// Makes a tenant.
    pub fn create_tenant(
        &self,
        name: &TenantName,
        tier: &TierName,
        now: OffsetDateTime,
    ) -> Result<Arc<Tenant>, CatalogError> {
        self.mutate(|draft| {
            if draft.next.tenants.contains_key(name) {
                return Err(CatalogError::AlreadyExists { what: "tenant" });
            }
            let record = TenantRecord { tier: tier.clone(), created_at: now };
            let tenant = Arc::new(load::tenant(name.clone(), record, draft.policies)?);
            draft.put(record::tenant_key(name), &TenantRecord::from(&*tenant))?;
            Arc::make_mut(&mut draft.next.tenants).insert(name.clone(), Arc::clone(&tenant));
            Ok(tenant)
        })
    }

    /// Deletes a tenant with all it owns. Its keys stop working at once; its blobs go with the next sweep.
    pub fn delete_tenant(&self, name: &TenantName) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            let tenant = Arc::make_mut(&mut draft.next.tenants)
                .remove(name)
                .ok_or(CatalogError::NotFound { what: "tenant" })?;
            draft.delete(record::tenant_key(name));
            retire_everything(draft, &tenant)?;
            let keys = Arc::make_mut(&mut draft.next.keys);
            for key in
                keys.extract_if(|_, key| key.tenant == *name).map(|(id, _)| id).collect::<Vec<_>>()
            {
                draft.delete(record::key_key(&key));
            }
            withdraw_grants(draft, name)
        })
    }
}

fn retire_everything(draft: &mut Draft<'_>, tenant: &Tenant) -> Result<(), CatalogError> {
    if tenant.functions.is_empty() && tenant.models.is_empty() {
        return Ok(());
    }
    let retired_key = record::retired_key(&tenant.name);
    let mut retired: RetiredRecord = draft.read(&retired_key)?.unwrap_or_default();
    for (name, function) in &tenant.functions {
        draft.delete(record::function_key(&tenant.name, name));
        for (number, _) in function.versions.iter() {
            draft.delete(record::function_version_key(&tenant.name, name, number));
        }
        retired.functions.retire(name.as_str(), function.versions.next_number());
    }
    for (name, model) in &tenant.models {
        draft.delete(record::model_key(&tenant.name, name));
        for (number, _) in model.versions.iter() {
            draft.delete(record::model_version_key(&tenant.name, name, number));
        }
        retired.models.retire(name.as_str(), model.versions.next_number());
    }
    draft.put(retired_key, &retired)
}

/// Whoever gets the name next must not inherit what others granted to this tenant.
fn withdraw_grants(draft: &mut Draft<'_>, name: &TenantName) -> Result<(), CatalogError> {
    let mut granting = Vec::new();
    for owner in draft.next.tenants() {
        for model in owner.models.values() {
            if matches!(&model.grants, ModelGrants::Tenants(names) if names.contains(name)) {
                granting.push((owner.name.clone(), model.name.clone()));
            }
        }
    }
    for (owner, model) in granting {
        draft.edit_model(&owner, &model, |model| {
            if let ModelGrants::Tenants(names) = &mut model.grants {
                names.remove(name);
            }
            Ok(())
        })?;
    }
    Ok(())
}

impl From<PolicyError> for CatalogError {
    fn from(error: PolicyError) -> Self {
        CatalogError::Invalid(error.to_string())
    }
}
