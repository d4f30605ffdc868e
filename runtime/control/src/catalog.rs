//! The catalog: tenants, keys, functions and models.
//!
//! Readers load a [`Snapshot`], which never changes and takes no lock. A mutation holds the writer's mutex and
//! 1. drafts the next snapshot from the present one, with the operations that store the difference,
//! 2. commits the operations, each under the expectation that nobody else has changed its record,
//! 3. publishes the snapshot, so that what a caller was told is what the next reader sees.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
};

use arc_swap::{ArcSwap, Guard};
use sandpiper_domain::{BlobStore, MetadataStore};
use time::OffsetDateTime;

use crate::{
    CatalogError, DataFolder, KeyError, OpenError, OperatorKey, Pepper, Policies,
    key::{self, KeyMac},
};

mod alias_record;
mod bindings;
mod close;
mod draft;
mod functions;
mod garbage;
mod keys;
mod load;
mod models;
mod placement;
mod record;
mod resolve;
mod rollouts;
mod snapshot;
mod tenants;
#[cfg(test)]
mod tests;
mod versions;

use draft::Draft;
pub use functions::NewFunction;
pub use garbage::PinnedBlob;
use garbage::Pins;
pub use keys::NewKey;
pub use models::NewModel;
pub use placement::{Alias, AliasChange, Cause, Placement, Sticky};
pub use snapshot::{
    Found, Function, FunctionVersion, Key, ModelEntry, ModelGrants, ModelVersion, Principal,
    Retention, Snapshot, Tenant,
};
pub use versions::{Target, Versions};

/// What a `put` did.
#[derive(Debug, Clone)]
pub enum PutOutcome<V> {
    /// It made this version.
    Created(Arc<V>),
    /// The newest version holds the same bytes and options already.
    Unchanged(Arc<V>),
}

impl<V> PutOutcome<V> {
    /// The version, made or found.
    pub fn version(&self) -> &Arc<V> {
        match self {
            PutOutcome::Created(version) | PutOutcome::Unchanged(version) => version,
        }
    }
}

/// The control plane's state: in memory for readers, in the store for good.
pub struct Catalog {
    snapshot: ArcSwap<Snapshot>,
    writer: Mutex<Writer>,
    metadata: Arc<dyn MetadataStore>,
    blobs: Arc<dyn BlobStore>,
    pins: Arc<Pins>,
    policies: Policies,
    pepper: Pepper,
    operator: KeyMac,
    /// Another process may write to the store. It changes while the writer is locked.
    closed: AtomicBool,
}

/// What only the holder of the mutex may see and change.
struct Writer {
    /// The revision of every record, for the expectations.
    revisions: HashMap<String, u64>,
    /// A transaction failed, so the store may hold something else than the snapshot: read it again first.
    stale: bool,
    /// Keeps the lock on the folder for as long as the catalog is open.
    folder: Option<DataFolder>,
    /// Where that folder is, once it was let go.
    closed_folder: Option<PathBuf>,
}

impl Catalog {
    /// Opens what `folder` holds, and keeps the folder locked.
    pub fn open(
        folder: DataFolder,
        policies: Policies,
        operator: &OperatorKey,
    ) -> Result<Self, OpenError> {
        let metadata = Arc::new(folder.metadata()?);
        let blobs = Arc::new(folder.blobs()?);
        let catalog = Self::new(metadata, blobs, policies, folder.pepper()?, operator)?;
        catalog.lock().folder = Some(folder);
        Ok(catalog)
    }

    /// A catalog over any store. It must be the store's only writer of these records, and the blobs' only user:
    /// blobs that no record names are deleted here.
    pub fn new(
        metadata: Arc<dyn MetadataStore>,
        blobs: Arc<dyn BlobStore>,
        policies: Policies,
        pepper: Pepper,
        operator: &OperatorKey,
    ) -> Result<Self, OpenError> {
        load::check_pepper(&*metadata, &pepper)?;
        let loaded = load::load(&*metadata, &policies)?;
        let operator = pepper.mac(operator.expose());
        let catalog = Catalog {
            snapshot: ArcSwap::from_pointee(loaded.snapshot),
            writer: Mutex::new(Writer {
                revisions: loaded.revisions,
                stale: false,
                folder: None,
                closed_folder: None,
            }),
            metadata,
            blobs,
            pins: Arc::default(),
            policies,
            pepper,
            operator,
            closed: AtomicBool::new(false),
        };
        catalog.report_missing_blobs()?;
        catalog.sweep(&catalog.lock())?;
        Ok(catalog)
    }

    /// The present state. It takes no lock; hold the guard for a look, and `Arc::clone` it to keep it.
    pub fn snapshot(&self) -> Guard<Arc<Snapshot>> {
        self.snapshot.load()
    }

    /// The policies in force.
    pub fn policies(&self) -> &Policies {
        &self.policies
    }

    /// Who presents this key. Reads memory alone, and takes as long for a key that does not exist.
    pub fn find_key(&self, text: &str, now: OffsetDateTime) -> Result<Principal, KeyError> {
        let mac = self.pepper.mac(text);
        if mac.matches(&self.operator) {
            return Ok(Principal::Operator);
        }
        let id = key::id_of(text).ok_or(KeyError::Malformed)?;
        let snapshot = self.snapshot.load();
        let key = snapshot.key(&id);
        let known = mac.matches(&key.map_or(KeyMac::NONE, |key| key.mac));
        let key = key.filter(|_| known).ok_or(KeyError::Unknown)?;
        if key.has_expired(now) {
            return Err(KeyError::Expired);
        }
        Ok(Principal::Tenant { tenant: key.tenant.clone(), key_id: id, scopes: key.scopes })
    }

    fn lock(&self) -> MutexGuard<'_, Writer> {
        // A mutation that panicked has published nothing and left the writer as it was.
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn mutate<T>(
        &self,
        work: impl FnOnce(&mut Draft<'_>) -> Result<T, CatalogError>,
    ) -> Result<T, CatalogError> {
        let mut writer = self.lock();
        if self.is_closed() {
            return Err(CatalogError::Closed);
        }
        if writer.stale {
            let loaded = load::load(&*self.metadata, &self.policies).map_err(OpenError::later)?;
            self.snapshot.store(Arc::new(loaded.snapshot));
            writer.revisions = loaded.revisions;
            writer.stale = false;
        }
        let present = self.snapshot.load_full();
        let mut draft = Draft::new(&present, &writer.revisions, &*self.metadata, &self.policies);
        let outcome = work(&mut draft)?;
        let (next, operations) = draft.finish();
        if operations.is_empty() {
            return Ok(outcome);
        }
        match self.metadata.transact(&operations) {
            Ok(revision) => {
                draft::note(&mut writer.revisions, operations, revision);
                self.snapshot.store(Arc::new(next));
                Ok(outcome)
            }
            Err(error) => {
                writer.stale = true;
                Err(error.into())
            }
        }
    }
}

impl std::fmt::Debug for Catalog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Catalog").finish_non_exhaustive()
    }
}
