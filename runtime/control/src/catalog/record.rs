//! What the store holds: JSON values in an envelope with a schema. These structs are the format on disk: a change here
//! that old data does not fit needs a new schema and a migration.
//!
//! ```text
//! node/pepper                      tells whether the pepper is the right one
//! tenant/<t>                       key/<id>
//! function/<t>/<f>                 function/<t>/<f>/v/<number, 10 digits>
//! model/<t>/<m>                    model/<t>/<m>/v/<number, 10 digits>
//! retired/<t>                      the version numbers of what was deleted
//! ```

use std::collections::{BTreeMap, BTreeSet};

use sandpiper_domain::{
    AliasName, Digest, FunctionName, Manifest, ModelName, ModelSignature, Record, ScopeSet,
    StoreError, TenantName,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned, de::IgnoredAny};
use time::OffsetDateTime;

use super::{
    Function, FunctionVersion, Key, ModelEntry, ModelGrants, ModelVersion, Retention, Tenant,
    Versions, alias_record::AliasRecord,
};
use crate::{KeyId, OpenError, TierName};

const SCHEMA: u32 = 1;

pub(super) const PEPPER_KEY: &str = "node/pepper";

pub(super) fn tenant_key(tenant: &TenantName) -> String {
    format!("tenant/{tenant}")
}

pub(super) fn key_key(id: &KeyId) -> String {
    format!("key/{id}")
}

pub(super) fn function_key(tenant: &TenantName, name: &FunctionName) -> String {
    format!("function/{tenant}/{name}")
}

pub(super) fn function_version_key(tenant: &TenantName, name: &FunctionName, v: u32) -> String {
    format!("function/{tenant}/{name}/v/{v:010}")
}

pub(super) fn model_key(tenant: &TenantName, name: &ModelName) -> String {
    format!("model/{tenant}/{name}")
}

pub(super) fn model_version_key(tenant: &TenantName, name: &ModelName, v: u32) -> String {
    format!("model/{tenant}/{name}/v/{v:010}")
}

pub(super) fn retired_key(tenant: &TenantName) -> String {
    format!("retired/{tenant}")
}

#[derive(Serialize, Deserialize)]
struct Envelope<R> {
    schema: u32,
    value: R,
}

pub(super) fn write(value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    serde_json::to_vec(&Envelope { schema: SCHEMA, value })
        .map_err(|error| StoreError::Failed(format!("cannot write a record: {error}")))
}

pub(super) fn read<R: DeserializeOwned>(record: &Record) -> Result<R, OpenError> {
    let damaged = |error| OpenError::Damaged(format!("record `{}`: {error}", record.key));
    // The schema is read first: the value of a newer one may have any shape.
    let envelope: Envelope<IgnoredAny> = serde_json::from_slice(&record.value).map_err(damaged)?;
    if envelope.schema > SCHEMA {
        return Err(OpenError::Newer { found: envelope.schema, known: SCHEMA });
    }
    let envelope: Envelope<R> = serde_json::from_slice(&record.value).map_err(damaged)?;
    Ok(envelope.value)
}

#[derive(Serialize, Deserialize)]
pub(super) struct TenantRecord {
    pub(super) tier: TierName,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
}

impl From<&Tenant> for TenantRecord {
    fn from(tenant: &Tenant) -> Self {
        TenantRecord { tier: tenant.tier.clone(), created_at: tenant.created_at }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct KeyRecord {
    pub(super) tenant: TenantName,
    pub(super) scopes: ScopeSet,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339::option")]
    pub(super) expires_at: Option<OffsetDateTime>,
    /// HMAC-SHA-256 of the key's text under the pepper.
    pub(super) mac: Digest,
}

impl From<&Key> for KeyRecord {
    fn from(key: &Key) -> Self {
        KeyRecord {
            tenant: key.tenant.clone(),
            scopes: key.scopes,
            created_at: key.created_at,
            expires_at: key.expires_at,
            mac: Digest(*key.mac.as_bytes()),
        }
    }
}

pub(super) type AliasRecords = BTreeMap<AliasName, AliasRecord>;

fn alias_records<V>(versions: &Versions<V>) -> AliasRecords {
    versions.aliases().map(|(name, alias)| (name.clone(), alias.into())).collect()
}

#[derive(Serialize, Deserialize)]
pub(super) struct FunctionRecord {
    pub(super) next_version: u32,
    pub(super) aliases: AliasRecords,
    #[serde(default, skip_serializing_if = "RetentionRecord::is_tier")]
    pub(super) retention: RetentionRecord,
}

impl From<&Function> for FunctionRecord {
    fn from(function: &Function) -> Self {
        FunctionRecord {
            next_version: function.versions.next_number(),
            aliases: alias_records(&function.versions),
            retention: (&function.retention).into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct FunctionVersionRecord {
    pub(super) digest: Digest,
    pub(super) source_digest: Digest,
    pub(super) size: u64,
    pub(super) manifest: Manifest,
    pub(super) imports: Vec<String>,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) failed: Option<String>,
}

impl From<&FunctionVersion> for FunctionVersionRecord {
    fn from(version: &FunctionVersion) -> Self {
        FunctionVersionRecord {
            digest: version.digest,
            source_digest: version.source_digest,
            size: version.size,
            manifest: version.manifest.clone(),
            imports: version.imports.clone(),
            created_at: version.created_at,
            failed: version.failed.clone(),
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum GrantsRecord {
    None,
    All,
    Tenants(BTreeSet<TenantName>),
}

impl From<&ModelGrants> for GrantsRecord {
    fn from(grants: &ModelGrants) -> Self {
        match grants {
            ModelGrants::None => GrantsRecord::None,
            ModelGrants::All => GrantsRecord::All,
            ModelGrants::Tenants(tenants) => GrantsRecord::Tenants(tenants.clone()),
        }
    }
}

impl From<GrantsRecord> for ModelGrants {
    fn from(record: GrantsRecord) -> Self {
        match record {
            GrantsRecord::None => ModelGrants::None,
            GrantsRecord::All => ModelGrants::All,
            GrantsRecord::Tenants(tenants) => ModelGrants::Tenants(tenants),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct ModelRecord {
    pub(super) next_version: u32,
    pub(super) aliases: AliasRecords,
    pub(super) grants: GrantsRecord,
    /// Not in the records of old.
    #[serde(default = "yes")]
    pub(super) batch_with_others: bool,
    #[serde(default, skip_serializing_if = "RetentionRecord::is_tier")]
    pub(super) retention: RetentionRecord,
}

fn yes() -> bool {
    true
}

/// Absent in records of before there was a choice.
#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum RetentionRecord {
    #[default]
    Tier,
    Latest(u32),
    Versions(BTreeSet<u32>),
}

impl RetentionRecord {
    fn is_tier(&self) -> bool {
        matches!(self, RetentionRecord::Tier)
    }
}

impl From<&Retention> for RetentionRecord {
    fn from(retention: &Retention) -> Self {
        match retention {
            Retention::Tier => RetentionRecord::Tier,
            Retention::Latest(count) => RetentionRecord::Latest(*count),
            Retention::Versions(numbers) => RetentionRecord::Versions(numbers.clone()),
        }
    }
}

impl From<RetentionRecord> for Retention {
    fn from(record: RetentionRecord) -> Self {
        match record {
            RetentionRecord::Tier => Retention::Tier,
            RetentionRecord::Latest(count) => Retention::Latest(count),
            RetentionRecord::Versions(numbers) => Retention::Versions(numbers),
        }
    }
}

impl From<&ModelEntry> for ModelRecord {
    fn from(model: &ModelEntry) -> Self {
        ModelRecord {
            next_version: model.versions.next_number(),
            aliases: alias_records(&model.versions),
            grants: (&model.grants).into(),
            batch_with_others: model.batch_with_others,
            retention: (&model.retention).into(),
        }
    }
}

#[derive(Serialize, Deserialize)]
pub(super) struct ModelVersionRecord {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) signature: ModelSignature,
    pub(super) options: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) samples: Option<Digest>,
    /// Null in records of before it was kept.
    #[serde(default)]
    pub(super) measurement: serde_json::Value,
    #[serde(with = "time::serde::rfc3339")]
    pub(super) created_at: OffsetDateTime,
}

impl From<&ModelVersion> for ModelVersionRecord {
    fn from(version: &ModelVersion) -> Self {
        ModelVersionRecord {
            digest: version.digest,
            size: version.size,
            signature: version.signature.clone(),
            options: version.options.clone(),
            samples: version.samples,
            measurement: version.measurement.clone(),
            created_at: version.created_at,
        }
    }
}

/// Where the numbering of deleted functions and models of a tenant stopped. What is made again under an old name
/// goes on from there: caches and clients know a version by its number, which must never come to mean other bytes.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct RetiredRecord {
    pub(super) functions: RetiredNumbers,
    pub(super) models: RetiredNumbers,
}

#[derive(Default, Serialize, Deserialize)]
pub(super) struct RetiredNumbers {
    /// Where every name starts that is not remembered.
    floor: u32,
    names: BTreeMap<String, u32>,
}

/// Names remembered. Beyond, the lowest is forgotten and the floor raised to it, which costs nothing but low numbers.
const RETIRED_NAMES_MAX: usize = 1_000;

impl RetiredNumbers {
    pub(super) fn next_version(&self, name: &str) -> u32 {
        self.names.get(name).copied().unwrap_or(0).max(self.floor).max(1)
    }

    pub(super) fn retire(&mut self, name: &str, next: u32) {
        self.names.insert(name.to_owned(), next);
        while self.names.len() > RETIRED_NAMES_MAX {
            let lowest = self.names.iter().min_by_key(|(_, next)| **next);
            let Some((name, next)) = lowest.map(|(name, next)| (name.clone(), *next)) else {
                return;
            };
            self.floor = self.floor.max(next);
            self.names.remove(&name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgotten_names_raise_the_floor() {
        let mut numbers = RetiredNumbers::default();
        assert_eq!(numbers.next_version("a"), 1);
        numbers.retire("a", 7);
        for name in 0..RETIRED_NAMES_MAX {
            numbers.retire(&format!("b{name}"), 3);
        }
        assert_eq!(numbers.names.len(), RETIRED_NAMES_MAX);
        assert_eq!(numbers.next_version("a"), 7);
        assert_eq!(numbers.next_version("new"), 3);
    }

    #[test]
    fn a_newer_record_is_refused_and_a_broken_one_named() {
        let record = |value: &'static str| Record {
            key: "tenant/a".to_owned(),
            value: value.into(),
            revision: 1,
        };
        let newer = read::<TenantRecord>(&record(r#"{"schema": 2, "value": [1]}"#));
        assert!(matches!(newer, Err(OpenError::Newer { found: 2, known: 1 })));
        let Err(error) = read::<TenantRecord>(&record(r#"{"schema": 1, "value": {}}"#)) else {
            panic!("it was read");
        };
        assert!(error.to_string().contains("`tenant/a`"), "{error}");
    }
}
