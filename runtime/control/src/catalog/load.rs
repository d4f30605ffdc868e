//! From the records of the store to a snapshot.

use std::{
    collections::{BTreeMap, HashMap},
    str::FromStr,
    sync::Arc,
};

use sandpiper_domain::{
    Digest, Expect, FunctionName, MetadataStore, ModelName, Operation, Record, TenantName,
};

use super::{
    Function, FunctionVersion, Key, ModelEntry, ModelVersion, Snapshot, Tenant, Versions,
    record::{
        self, FunctionRecord, FunctionVersionRecord, KeyRecord, ModelRecord, ModelVersionRecord,
        TenantRecord,
    },
};
use crate::{KeyId, OpenError, Pepper, Policies, PolicyError, TierName, key::KeyMac};

pub(super) struct Loaded {
    pub(super) snapshot: Snapshot,
    pub(super) revisions: HashMap<String, u64>,
}

/// Refuses a pepper that is not the one this store has known: every key would look wrong, for no visible reason.
pub(super) fn check_pepper(metadata: &dyn MetadataStore, pepper: &Pepper) -> Result<(), OpenError> {
    let mac = pepper.mac("the pepper of this store");
    let key = record::PEPPER_KEY;
    match metadata.get(key)? {
        Some(record) => {
            let known: Digest = record::read(&record)?;
            let same = mac.matches(&KeyMac::from_bytes(known.0));
            if same { Ok(()) } else { Err(OpenError::Pepper) }
        }
        None => {
            let value = record::write(&Digest(*mac.as_bytes()))?.into();
            let key = key.to_owned();
            metadata.transact(&[Operation::Put { key, value, expect: Expect::Absent }])?;
            Ok(())
        }
    }
}

pub(super) fn load(metadata: &dyn MetadataStore, policies: &Policies) -> Result<Loaded, OpenError> {
    let mut parts = Parts::default();
    let mut revisions = HashMap::new();
    for record in metadata.list("")? {
        parts.sort(&record, policies)?;
        revisions.insert(record.key, record.revision);
    }
    Ok(Loaded { snapshot: parts.assemble(policies)?, revisions })
}

/// Records by what they describe. Their order in the store is no help: `b-c` comes between `b` and `b/v/1`.
#[derive(Default)]
struct Parts {
    tenants: HashMap<TenantName, Tenant>,
    keys: HashMap<KeyId, Arc<Key>>,
    functions: Vec<(TenantName, FunctionName, FunctionRecord)>,
    function_versions: HashMap<(TenantName, FunctionName), BTreeMap<u32, FunctionVersionRecord>>,
    models: Vec<(TenantName, ModelName, ModelRecord)>,
    model_versions: HashMap<(TenantName, ModelName), BTreeMap<u32, ModelVersionRecord>>,
}

impl Parts {
    fn sort(&mut self, record: &Record, policies: &Policies) -> Result<(), OpenError> {
        let path: Vec<&str> = record.key.split('/').collect();
        match path[..] {
            ["tenant", name] => {
                let name: TenantName = name_in(record, name)?;
                let tenant = tenant(name.clone(), record::read(record)?, policies)?;
                self.tenants.insert(name, tenant);
            }
            ["key", id] => {
                let id = name_in(record, id)?;
                self.keys.insert(id, Arc::new(key(id, record::read(record)?)));
            }
            ["function", tenant, name] => {
                let (tenant, name) = (name_in(record, tenant)?, name_in(record, name)?);
                self.functions.push((tenant, name, record::read(record)?));
            }
            ["function", tenant, name, "v", number] => {
                let owner = (name_in(record, tenant)?, name_in(record, name)?);
                let version = record::read(record)?;
                let versions = self.function_versions.entry(owner).or_default();
                versions.insert(name_in(record, number)?, version);
            }
            ["model", tenant, name] => {
                let (tenant, name) = (name_in(record, tenant)?, name_in(record, name)?);
                self.models.push((tenant, name, record::read(record)?));
            }
            ["model", tenant, name, "v", number] => {
                let owner = (name_in(record, tenant)?, name_in(record, name)?);
                let version = record::read(record)?;
                let versions = self.model_versions.entry(owner).or_default();
                versions.insert(name_in(record, number)?, version);
            }
            // Of the node itself, of deleted things, or of another part of the server.
            _ => {}
        }
        Ok(())
    }

    fn assemble(mut self, policies: &Policies) -> Result<Snapshot, OpenError> {
        for (tenant_name, name, record) in self.functions {
            let tenant = owner(&mut self.tenants, &tenant_name)?;
            let mut versions = BTreeMap::new();
            let owned = (tenant_name, name);
            for (number, record) in self.function_versions.remove(&owned).unwrap_or_default() {
                let version = function_version(number, record, &owned.0, &tenant.tier, policies)?;
                versions.insert(number, Arc::new(version));
            }
            let name = owned.1;
            let function = function(name.clone(), record, versions);
            tenant.functions.insert(name, Arc::new(function));
        }
        for (tenant_name, name, record) in self.models {
            let tenant = owner(&mut self.tenants, &tenant_name)?;
            let owned = (tenant_name, name);
            let versions = self.model_versions.remove(&owned).unwrap_or_default();
            let model = model(owned.1.clone(), record, versions);
            tenant.models.insert(owned.1, Arc::new(model));
        }
        let strays = self.function_versions.len() + self.model_versions.len();
        if strays > 0 || self.keys.values().any(|key| !self.tenants.contains_key(&key.tenant)) {
            return Err(OpenError::Damaged("versions or keys belong to nothing".to_owned()));
        }
        let tenants = self.tenants.into_iter().map(|(name, tenant)| (name, Arc::new(tenant)));
        Ok(Snapshot { tenants: Arc::new(tenants.collect()), keys: Arc::new(self.keys) })
    }
}

fn owner<'a>(
    tenants: &'a mut HashMap<TenantName, Tenant>,
    name: &TenantName,
) -> Result<&'a mut Tenant, OpenError> {
    tenants
        .get_mut(name)
        .ok_or_else(|| OpenError::Damaged("functions or models belong to no tenant".to_owned()))
}

fn name_in<T: FromStr>(record: &Record, text: &str) -> Result<T, OpenError> {
    text.parse().map_err(|_| OpenError::Damaged(format!("the record key `{}`", record.key)))
}

pub(super) fn tenant(
    name: TenantName,
    record: TenantRecord,
    policies: &Policies,
) -> Result<Tenant, PolicyError> {
    let limits = policies.limits(&record.tier)?;
    Ok(Tenant {
        name,
        tier: record.tier,
        created_at: record.created_at,
        limits: limits.tenant,
        sandbox: limits.sandbox,
        functions: HashMap::new(),
        models: HashMap::new(),
    })
}

fn key(id: KeyId, record: KeyRecord) -> Key {
    Key {
        id,
        tenant: record.tenant,
        scopes: record.scopes,
        created_at: record.created_at,
        expires_at: record.expires_at,
        mac: KeyMac::from_bytes(record.mac.0),
    }
}

/// The grant is computed here, so that a change of policy is in force after a restart for what was deployed before.
pub(super) fn function_version(
    version: u32,
    record: FunctionVersionRecord,
    tenant: &TenantName,
    tier: &TierName,
    policies: &Policies,
) -> Result<FunctionVersion, PolicyError> {
    let grant = policies.grant(tier, &record.manifest, tenant)?;
    Ok(FunctionVersion {
        version,
        digest: record.digest,
        source_digest: record.source_digest,
        size: record.size,
        manifest: record.manifest,
        imports: record.imports,
        created_at: record.created_at,
        failed: record.failed,
        grant: Arc::new(grant),
    })
}

fn function(
    name: FunctionName,
    record: FunctionRecord,
    versions: BTreeMap<u32, Arc<FunctionVersion>>,
) -> Function {
    let aliases = record.aliases.into_iter().map(|(name, alias)| (name, alias.into())).collect();
    let mut versions = Versions::restored(versions, aliases, record.next_version);
    versions.grant_again();
    Function { name, versions, retention: record.retention.into() }
}

fn model(
    name: ModelName,
    record: ModelRecord,
    versions: BTreeMap<u32, ModelVersionRecord>,
) -> ModelEntry {
    let versions = versions.into_iter().map(|(number, record)| {
        let version = ModelVersion {
            version: number,
            digest: record.digest,
            size: record.size,
            signature: record.signature,
            options: record.options,
            samples: record.samples,
            measurement: record.measurement,
            created_at: record.created_at,
        };
        (number, Arc::new(version))
    });
    let aliases = record.aliases.into_iter().map(|(name, alias)| (name, alias.into())).collect();
    ModelEntry {
        name,
        versions: Versions::restored(versions.collect(), aliases, record.next_version),
        grants: record.grants.into(),
        retention: record.retention.into(),
        batch_with_others: record.batch_with_others,
    }
}
