//! The blobs of jobs and batches. Which of them are needed, the database says, and the pins of those who are about to
//! write that into it.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Write,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rusqlite::{OptionalExtension, params};
use sandpiper_domain::{BlobStore, BoxFuture, Digest, JobError, StoreError, TenantName};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{
    SqliteJobs, failed,
    row::digest_of,
    schema,
    shards::{charge_of, disown},
    steps::{add_bytes, held_by, run},
};
use crate::FolderBlobs;

pub(super) struct Work {
    blobs: FolderBlobs,
    /// The database, to ask what it names.
    database: PathBuf,
    pins: Mutex<Pins>,
    sweeping: Mutex<()>,
}

#[derive(Default)]
struct Pins {
    held: HashMap<Digest, Pin>,
    /// Those that were pinned at some time of the sweep that goes on now.
    seen: Option<HashSet<Digest>>,
}

#[derive(Default)]
struct Pin {
    count: usize,
    /// Somebody else had it too, or its file was there before: it may be named.
    is_shared: bool,
}

/// A blob that no sweep takes as long as this lives.
pub struct PinnedWork {
    digest: Digest,
    work: Arc<Work>,
}

impl PinnedWork {
    /// Its name.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// Deletes the file at once where nobody else can need it: what it was for was refused. Blocks.
    pub fn discard(self) {
        let pins = self.work.pins();
        let is_ours = pins.held.get(&self.digest).is_some_and(|pin| !pin.is_shared);
        if is_ours && let Err(error) = self.work.blobs.delete(&self.digest) {
            tracing::warn!(%error, "a blob that was refused could not be deleted");
        }
    }
}

impl Drop for PinnedWork {
    fn drop(&mut self) {
        let mut pins = self.work.pins();
        if let Some(pin) = pins.held.get_mut(&self.digest) {
            pin.count -= 1;
            if pin.count == 0 {
                pins.held.remove(&self.digest);
            }
        }
    }
}

impl Work {
    pub(super) fn new(blobs: FolderBlobs, database: PathBuf) -> Self {
        Work { blobs, database, pins: Mutex::default(), sweeping: Mutex::default() }
    }

    fn pins(&self) -> MutexGuard<'_, Pins> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(self: &Arc<Self>, digest: Digest) -> PinnedWork {
        // Asked under the lock: whoever deletes it holds that.
        let mut pins = self.pins();
        let is_there = !matches!(self.blobs.stat(&digest), Ok(None));
        let pin = pins.held.entry(digest).or_default();
        pin.count += 1;
        pin.is_shared |= is_there || pin.count > 1;
        if let Some(seen) = &mut pins.seen {
            seen.insert(digest);
        }
        drop(pins);
        PinnedWork { digest, work: self.clone() }
    }

    pub(super) fn put(self: &Arc<Self>, bytes: &[u8]) -> Result<PinnedWork, StoreError> {
        let pinned = self.pin(Digest(Sha256::digest(bytes).into()));
        self.blobs.put(bytes)?;
        Ok(pinned)
    }

    pub(super) fn get(&self, digest: &Digest) -> Result<Bytes, JobError> {
        let bytes = self.blobs.get(digest)?;
        bytes.ok_or_else(|| StoreError::Failed(format!("the blob {digest} is missing")).into())
    }

    /// Deletes the files that nothing names. What is on its way into the database is pinned until it is on the disk;
    /// a name that goes within a transaction is there for others until then, so that nothing is deleted that a
    /// transaction may yet fail to let go. Whatever was pinned at any time of the sweep stays. Blocks.
    pub(super) fn sweep(&self) -> Result<usize, JobError> {
        let _one = self.sweeping.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut pins = self.pins();
            pins.seen = Some(pins.held.keys().copied().collect());
        }
        let swept = self.names().and_then(|needed| self.delete_others(&needed));
        self.pins().seen = None;
        swept
    }

    /// What the database names, as far as it is committed.
    fn names(&self) -> Result<HashSet<Digest>, JobError> {
        const NAMES: &str = "SELECT body_blob FROM payloads WHERE body_blob IS NOT NULL \
            UNION SELECT body_blob FROM results WHERE body_blob IS NOT NULL UNION SELECT input FROM batches \
            UNION SELECT output FROM shards WHERE output IS NOT NULL UNION SELECT digest FROM blobs";
        let failure = |error: crate::OpenError| StoreError::Failed(error.to_string());
        // A connection of its own: this reads long, and others want to look.
        let connection = schema::open_reader(&self.database).map_err(failure)?;
        let mut statement = connection.prepare(NAMES).map_err(failed)?;
        let names = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(failed)?;
        let mut needed = HashSet::new();
        for name in names {
            needed.insert(digest_of(&name.map_err(failed)?)?);
        }
        Ok(needed)
    }

    fn delete_others(&self, needed: &HashSet<Digest>) -> Result<usize, JobError> {
        let mut deleted = 0;
        for digest in self.blobs.list()? {
            let pins = self.pins();
            let was_pinned = pins.seen.as_ref().is_some_and(|seen| seen.contains(&digest));
            if !needed.contains(&digest) && !was_pinned {
                self.blobs.delete(&digest)?;
                deleted += 1;
            }
        }
        Ok(deleted)
    }
}

/// A blob in the making, written bit by bit.
pub struct BlobWriter {
    file: NamedTempFile,
    hash: Sha256,
    size: u64,
    work: Arc<Work>,
}

impl BlobWriter {
    /// Appends bytes. Blocks.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), JobError> {
        let written = self.file.write_all(bytes);
        written.map_err(|error| StoreError::Failed(format!("cannot write a blob: {error}")))?;
        self.hash.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Bytes so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Makes it last. Blocks.
    pub fn finish(self) -> Result<PinnedWork, JobError> {
        let pinned = self.work.pin(Digest(self.hash.finalize().into()));
        self.work.blobs.keep(self.file, &pinned.digest)?;
        Ok(pinned)
    }
}

impl SqliteJobs {
    /// Begins a blob. Blocks.
    pub fn blob_writer(&self) -> Result<BlobWriter, JobError> {
        let work = self.inner.work.clone();
        let file = work.blobs.temporary();
        let file =
            file.map_err(|error| StoreError::Failed(format!("cannot make a blob: {error}")))?;
        Ok(BlobWriter { file, hash: Sha256::new(), size: 0, work })
    }

    /// Stores whole bytes. Blocks.
    pub fn put_work(&self, bytes: &[u8]) -> Result<PinnedWork, JobError> {
        Ok(self.inner.work.put(bytes)?)
    }

    /// The bytes of a blob. Blocks.
    pub fn work(&self, digest: &Digest) -> Result<Bytes, JobError> {
        self.inner.work.get(digest)
    }

    /// The file of a blob, for reading a part of it. Blocks.
    pub fn work_file(&self, digest: &Digest) -> Result<File, JobError> {
        self.inner.work.blobs.file(digest)?.ok_or(JobError::NotFound)
    }

    /// Deletes the files that nothing names any more; gives how many. Blocks.
    pub fn sweep(&self) -> Result<usize, JobError> {
        self.inner.work.sweep()
    }

    /// Gives a tenant a blob of its own until `expires_ms`. All that is kept of it may take `bytes_max`.
    pub fn own_blob(
        &self,
        tenant: TenantName,
        blob: PinnedWork,
        size: u64,
        expires_ms: u64,
        bytes_max: u64,
    ) -> BoxFuture<'static, Result<(), JobError>> {
        let digest = blob.digest().0;
        self.inner.submit_pinned(Some(blob), move |connection| {
            let (name, expires) = (tenant.as_str(), expires_ms.cast_signed());
            let sql = "UPDATE blobs SET expires_ms = ?3 WHERE tenant = ?1 AND digest = ?2";
            if run(connection, sql, params![name, digest, expires])? > 0 {
                return Ok(());
            }
            let charge = charge_of(size);
            if held_by(connection, &tenant)?.1 + charge.cast_unsigned() > bytes_max {
                return Err(JobError::TenantFull);
            }
            let sql = "INSERT INTO blobs VALUES (?1, ?2, ?3, ?4)";
            run(connection, sql, params![name, digest, size.cast_signed(), expires])?;
            add_bytes(connection, &tenant, charge)
        })
    }

    /// Takes a tenant's blob away.
    pub fn disown_blob(
        &self,
        tenant: TenantName,
        digest: Digest,
    ) -> BoxFuture<'static, Result<(), JobError>> {
        self.inner.submit(move |connection| {
            disown(connection, &tenant, &digest)?.then_some(()).ok_or(JobError::NotFound)
        })
    }

    /// Whether the tenant has that blob still; gives its size. Blocks.
    pub fn blob_size(
        &self,
        tenant: &TenantName,
        digest: &Digest,
        now_ms: u64,
    ) -> Result<Option<u64>, JobError> {
        self.read(|connection| {
            let sql =
                "SELECT size FROM blobs WHERE tenant = ?1 AND digest = ?2 AND expires_ms > ?3";
            let key = params![tenant.as_str(), digest.0, now_ms.cast_signed()];
            let size = connection.query_row(sql, key, |row| row.get::<_, i64>(0)).optional();
            Ok(size.map_err(failed)?.map(i64::cast_unsigned))
        })
    }
}
