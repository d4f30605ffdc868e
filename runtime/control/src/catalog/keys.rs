//! Making and revoking keys.

use std::sync::Arc;

use sandpiper_domain::{ScopeSet, StoreError, TenantName};
use time::OffsetDateTime;

use super::{
    Catalog, Key,
    record::{self, KeyRecord},
};
use crate::{
    CatalogError,
    key::{KeyId, KeyText},
};

/// Keys of one tenant.
const KEYS_MAX: usize = 1_000;

/// A key that was just made: the only time its text is known.
#[derive(Debug)]
pub struct NewKey {
    /// What is kept.
    pub key: Arc<Key>,
    /// What its owner is shown once.
    pub text: KeyText,
}

impl Catalog {
    /// Makes a key. Whether the caller may give these scopes is the caller's to check.
    pub fn create_key(
        &self,
        tenant: &TenantName,
        scopes: ScopeSet,
        expires_at: Option<OffsetDateTime>,
        now: OffsetDateTime,
    ) -> Result<NewKey, CatalogError> {
        if scopes.is_empty() {
            return Err(CatalogError::Invalid("a key needs at least one scope".to_owned()));
        }
        if expires_at.is_some_and(|end| end <= now) {
            return Err(CatalogError::Invalid("`expires_at` is in the past".to_owned()));
        }
        let (id, text) = KeyText::generate()
            .map_err(|error| StoreError::Failed(format!("no random numbers: {error}")))?;
        let mac = self.pepper.mac(text.expose());
        let tenant = tenant.clone();
        let key = Arc::new(Key { id, tenant, scopes, created_at: now, expires_at, mac });
        self.mutate(|draft| {
            draft.tenant(&key.tenant)?;
            let mut owned = draft.next.keys_of(&key.tenant);
            if owned.len() >= KEYS_MAX {
                // Room is made of keys that no longer open anything, for those who rotate by expiry.
                owned.retain(|key| key.has_expired(now));
                if owned.is_empty() {
                    let limit = KEYS_MAX as u64;
                    return Err(CatalogError::LimitReached { what: "keys", limit });
                }
                for expired in owned {
                    Arc::make_mut(&mut draft.next.keys).remove(&expired.id);
                    draft.delete(record::key_key(&expired.id));
                }
            }
            draft.put(record::key_key(&id), &KeyRecord::from(&*key))?;
            Arc::make_mut(&mut draft.next.keys).insert(id, Arc::clone(&key));
            Ok(())
        })?;
        Ok(NewKey { key, text })
    }

    /// Revokes a key of this tenant. It is refused from the moment this returns.
    pub fn delete_key(&self, tenant: &TenantName, id: &KeyId) -> Result<(), CatalogError> {
        self.mutate(|draft| {
            if draft.next.key(id).is_none_or(|key| key.tenant != *tenant) {
                return Err(CatalogError::NotFound { what: "key" });
            }
            Arc::make_mut(&mut draft.next.keys).remove(id);
            draft.delete(record::key_key(id));
            Ok(())
        })
    }
}
