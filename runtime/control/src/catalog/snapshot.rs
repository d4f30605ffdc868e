//! The state as readers see it: immutable, and shared piece by piece with the states before and after it.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use sandpiper_domain::{
    Digest, FunctionName, Grant, Manifest, ModelName, ModelSignature, SandboxLimits, ScopeSet,
    Selector, TenantLimits, TenantName,
};
use time::OffsetDateTime;

use super::{Alias, Target, Versions};
use crate::{
    Rollout, TierName,
    key::{KeyId, KeyMac},
};

/// Everything the catalog holds, at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    pub(super) tenants: Arc<HashMap<TenantName, Arc<Tenant>>>,
    pub(super) keys: Arc<HashMap<KeyId, Arc<Key>>>,
}

impl Snapshot {
    /// One tenant.
    pub fn tenant(&self, name: &TenantName) -> Option<&Arc<Tenant>> {
        self.tenants.get(name)
    }

    /// All tenants, in no order.
    pub fn tenants(&self) -> impl Iterator<Item = &Arc<Tenant>> {
        self.tenants.values()
    }

    /// One key by its id. To check a key that somebody presents, use [`crate::Catalog::find_key`].
    pub fn key(&self, id: &KeyId) -> Option<&Arc<Key>> {
        self.keys.get(id)
    }

    /// The keys of one tenant, oldest first.
    pub fn keys_of(&self, tenant: &TenantName) -> Vec<Arc<Key>> {
        let mut keys: Vec<_> =
            self.keys.values().filter(|key| key.tenant == *tenant).cloned().collect();
        keys.sort_by_key(|key| (key.created_at, key.id));
        keys
    }

    /// One function of a tenant.
    pub fn function(&self, tenant: &TenantName, name: &FunctionName) -> Option<&Arc<Function>> {
        self.tenants.get(tenant)?.functions.get(name)
    }

    /// The version of a function that a request is for, by names as they came: what is no valid name names nothing.
    /// `pick` gives a number that decides where an alias splits, and is asked only there.
    pub fn find_function(
        &self,
        tenant: &str,
        name: &str,
        selector: &Selector,
        pick: impl FnOnce(&Alias) -> u32,
    ) -> Option<Found<'_>> {
        let tenant = self.tenants.get(tenant)?;
        let versions = &tenant.functions.get(name)?.versions;
        let alias = match selector {
            Selector::Version(number) => {
                let version = versions.get(*number)?;
                let (grant, rollout) = (&version.grant, None);
                return Some(Found { tenant, version, grant, rollout });
            }
            Selector::Alias(alias) => versions.alias(alias)?,
        };
        let number = match alias.target() {
            Target::Version(version) => *version,
            split @ Target::Weights(_) => split.pick(pick(alias))?,
        };
        let version = versions.get(number)?;
        let grant = alias.grants.get(&number).unwrap_or(&version.grant);
        Some(Found { tenant, version, grant, rollout: alias.rollout.as_ref() })
    }

    /// One model of a tenant.
    pub fn model(&self, tenant: &TenantName, name: &ModelName) -> Option<&Arc<ModelEntry>> {
        self.tenants.get(tenant)?.models.get(name)
    }
}

/// What a request for a function is answered with.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Whose function it is.
    pub tenant: &'a Arc<Tenant>,
    /// The version that runs.
    pub version: &'a Arc<FunctionVersion>,
    /// What it may do when it is called under this name.
    pub grant: &'a Arc<Grant>,
    /// The rollout under way of the alias that led there.
    pub rollout: Option<&'a Rollout>,
}

/// A tenant and all it owns but its keys.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// Its tier.
    pub tier: TierName,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// What the tier grants it as a whole.
    pub limits: TenantLimits,
    /// What the tier grants each of its sandboxes.
    pub sandbox: SandboxLimits,
    /// Its functions.
    pub functions: HashMap<FunctionName, Arc<Function>>,
    /// Its models.
    pub models: HashMap<ModelName, Arc<ModelEntry>>,
}

/// A function.
#[derive(Debug, Clone)]
pub struct Function {
    /// Its name.
    pub name: FunctionName,
    /// Its versions and aliases.
    pub versions: Versions<FunctionVersion>,
    /// Which versions are kept.
    pub retention: Retention,
}

/// One version of a function.
#[derive(Debug, Clone)]
pub struct FunctionVersion {
    /// Its number.
    pub version: u32,
    /// The component as it runs.
    pub digest: Digest,
    /// The bytes as they were uploaded; the same unless a core module was made a component.
    pub source_digest: Digest,
    /// Bytes of the upload.
    pub size: u64,
    /// Its manifest.
    pub manifest: Manifest,
    /// What it imports.
    pub imports: Vec<String>,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// Why a rollout took it back, if one did.
    pub failed: Option<String>,
    /// What it may do: from today's policy, never stored.
    pub grant: Arc<Grant>,
}

/// A model.
#[derive(Debug, Clone)]
pub struct ModelEntry {
    /// Its name.
    pub name: ModelName,
    /// Its versions and aliases.
    pub versions: Versions<ModelVersion>,
    /// Who else may load it.
    pub grants: ModelGrants,
    /// Whether calls of those may run in one batch with calls of other tenants.
    pub batch_with_others: bool,
    /// Which versions are kept.
    pub retention: Retention,
}

/// Which versions of a function or model are kept, within what the tier allows. The newest, and whatever an alias
/// points at, stay.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Retention {
    /// As many as the tier allows.
    #[default]
    Tier,
    /// So many of the newest, at least one.
    Latest(u32),
    /// These.
    Versions(BTreeSet<u32>),
}

/// One version of a model.
#[derive(Debug)]
pub struct ModelVersion {
    /// Its number.
    pub version: u32,
    /// Its bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// What it takes and gives.
    pub signature: ModelSignature,
    /// How it is loaded.
    pub options: BTreeMap<String, String>,
    /// The sample inputs that came with it.
    pub samples: Option<Digest>,
    /// What the inference plane measured of it when it was uploaded.
    pub measurement: serde_json::Value,
    /// When it was made.
    pub created_at: OffsetDateTime,
}

/// Which other tenants may load a model, as `owner/name`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ModelGrants {
    /// None.
    #[default]
    None,
    /// Every tenant.
    All,
    /// These.
    Tenants(BTreeSet<TenantName>),
}

impl ModelGrants {
    /// Whether `tenant` is among them.
    pub fn include(&self, tenant: &TenantName) -> bool {
        match self {
            ModelGrants::None => false,
            ModelGrants::All => true,
            ModelGrants::Tenants(tenants) => tenants.contains(tenant),
        }
    }
}

/// A key of a tenant, without its secret.
#[derive(Debug)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantName,
    /// What it may do.
    pub scopes: ScopeSet,
    /// When it was made.
    pub created_at: OffsetDateTime,
    /// When it stops working, if ever.
    pub expires_at: Option<OffsetDateTime>,
    pub(crate) mac: KeyMac,
}

impl Key {
    /// Whether it has stopped working.
    pub fn has_expired(&self, now: OffsetDateTime) -> bool {
        self.expires_at.is_some_and(|end| end <= now)
    }
}

/// Who presented a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A tenant.
    Tenant {
        /// Which.
        tenant: TenantName,
        /// With which key.
        key_id: KeyId,
        /// What that key may do.
        scopes: ScopeSet,
    },
    /// The operator, who may do everything.
    Operator,
}
