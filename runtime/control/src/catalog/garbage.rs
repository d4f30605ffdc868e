//! Blobs and when they may go.
//!
//! A blob is kept by a version that names it or by a [`PinnedBlob`] in somebody's hands. An upload is pinned before it
//! is written and until its version has been published; a sweep holds the writer's mutex, so no version is published
//! while it runs, and looks at the pins right before each deletion. So no order of events loses a blob that is needed.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use sandpiper_domain::{Digest, StoreError};
use sha2::{Digest as _, Sha256};

use super::{Catalog, Snapshot, Writer};
use crate::CatalogError;

/// How many hands hold each digest.
#[derive(Debug, Default)]
pub(super) struct Pins(Mutex<HashMap<Digest, usize>>);

impl Pins {
    fn lock(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A stored blob that no sweep removes while this value lives.
#[derive(Debug)]
pub struct PinnedBlob {
    digest: Digest,
    size: u64,
    pins: Arc<Pins>,
}

impl PinnedBlob {
    fn new(digest: Digest, size: u64, pins: &Arc<Pins>) -> Self {
        *pins.lock().entry(digest).or_default() += 1;
        PinnedBlob { digest, size, pins: Arc::clone(pins) }
    }

    /// Its sha256.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Clone for PinnedBlob {
    fn clone(&self) -> Self {
        PinnedBlob::new(self.digest, self.size, &self.pins)
    }
}

impl Drop for PinnedBlob {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

impl Catalog {
    /// Stores an upload. When this returns, the bytes are on the disk; they stay there for as long as the result lives
    /// or a version names them.
    pub fn put_blob(&self, bytes: &[u8]) -> Result<PinnedBlob, CatalogError> {
        // Hashed here as well as in the store: the pin has to be there before the file is.
        let digest = Digest(Sha256::digest(bytes).into());
        let pinned = PinnedBlob::new(digest, bytes.len() as u64, &self.pins);
        self.blobs.put(bytes)?;
        Ok(pinned)
    }

    /// The bytes of a blob, checked against their digest.
    pub fn blob(&self, digest: &Digest) -> Result<Option<Bytes>, CatalogError> {
        Ok(self.blobs.get(digest)?)
    }

    /// Deletes the blobs that nothing needs any more, and says how many. Mutations wait meanwhile; readers do not.
    pub fn collect_garbage(&self) -> Result<usize, CatalogError> {
        let writer = self.lock();
        // After a failed transaction the store may name more than the snapshot does: the next mutation finds out.
        // A closed store may be another process's.
        if writer.stale || self.is_closed() { Ok(0) } else { Ok(self.sweep(&writer)?) }
    }

    /// The writer is asked for as proof that the mutex is held.
    pub(super) fn sweep(&self, _held: &Writer) -> Result<usize, StoreError> {
        let needed = referenced(&self.snapshot.load());
        let mut deleted = 0;
        for digest in self.blobs.list()? {
            if needed.contains(&digest) {
                continue;
            }
            let pins = self.pins.lock();
            if !pins.contains_key(&digest) {
                self.blobs.delete(&digest)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }

    /// A missing blob breaks its version alone: that is told, and the others are served.
    pub(super) fn report_missing_blobs(&self) -> Result<(), StoreError> {
        let stored: HashSet<Digest> = self.blobs.list()?.into_iter().collect();
        for digest in referenced(&self.snapshot.load()).difference(&stored) {
            tracing::error!(%digest, "a blob that a version needs is missing");
        }
        Ok(())
    }
}

fn referenced(snapshot: &Snapshot) -> HashSet<Digest> {
    let mut digests = HashSet::new();
    for tenant in snapshot.tenants() {
        for function in tenant.functions.values() {
            for (_, version) in function.versions.iter() {
                digests.extend([version.digest, version.source_digest]);
            }
        }
        for model in tenant.models.values() {
            for (_, version) in model.versions.iter() {
                digests.extend([Some(version.digest), version.samples].into_iter().flatten());
            }
        }
    }
    digests
}
