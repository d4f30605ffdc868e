//! The blobs of jobs and batches. Which of them are needed, the database says, and the pins of those who are about to
//! write that into it.

use std::{
    collections::{HashMap, HashSet},
    fs::File,
    io::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use rusqlite::{Connection, OptionalExtension, params};
use sandpiper_domain::{BlobStore, BoxFuture, Digest, JobError, StoreError, TenantName};
use sha2::{Digest as _, Sha256};
use tempfile::NamedTempFile;

use super::{SqliteJobs, failed, row::digest_of, steps::run};
use crate::FolderBlobs;

pub(super) struct Work {
    blobs: FolderBlobs,
    pins: Mutex<HashMap<Digest, usize>>,
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
}

impl Drop for PinnedWork {
    fn drop(&mut self) {
        let mut pins = self.work.pins();
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

impl Work {
    pub(super) fn new(blobs: FolderBlobs) -> Self {
        Work { blobs, pins: Mutex::default() }
    }

    fn pins(&self) -> MutexGuard<'_, HashMap<Digest, usize>> {
        self.pins.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pin(self: &Arc<Self>, digest: Digest) -> PinnedWork {
        *self.pins().entry(digest).or_default() += 1;
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

    /// Deletes the files that nothing names. The writer alone calls it, so that no new name can come meanwhile but
    /// those that are pinned.
    pub(super) fn sweep(&self, connection: &Connection) -> Result<usize, JobError> {
        const NAMES: &str = "SELECT body_blob FROM payloads WHERE body_blob IS NOT NULL \
            UNION SELECT body_blob FROM results WHERE body_blob IS NOT NULL UNION SELECT input FROM batches \
            UNION SELECT output FROM shards WHERE output IS NOT NULL UNION SELECT digest FROM blobs";
        let mut statement = connection.prepare_cached(NAMES).map_err(failed)?;
        let names = statement.query_map([], |row| row.get::<_, Vec<u8>>(0)).map_err(failed)?;
        let mut needed = HashSet::new();
        for name in names {
            needed.insert(digest_of(&name.map_err(failed)?)?);
        }
        let mut deleted = 0;
        for digest in self.blobs.list()? {
            let pins = self.pins();
            if !needed.contains(&digest) && !pins.contains_key(&digest) {
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

    /// Gives a tenant a blob of its own until `expires_ms`. Its blobs together may be `bytes_max` long.
    pub fn own_blob(
        &self,
        tenant: TenantName,
        blob: PinnedWork,
        size: u64,
        expires_ms: u64,
        bytes_max: u64,
    ) -> BoxFuture<'static, Result<(), JobError>> {
        self.inner.submit(move |connection| {
            let (name, digest) = (tenant.as_str(), blob.digest().0);
            let others: Option<i64> = connection
                .query_row(
                    "SELECT sum(size) FROM blobs WHERE tenant = ?1 AND digest <> ?2",
                    params![name, digest],
                    |row| row.get(0),
                )
                .map_err(failed)?;
            if others.unwrap_or(0).cast_unsigned() + size > bytes_max {
                return Err(JobError::TenantFull);
            }
            run(
                connection,
                "INSERT OR REPLACE INTO blobs VALUES (?1, ?2, ?3, ?4)",
                params![name, digest, size.cast_signed(), expires_ms.cast_signed()],
            )?;
            Ok(())
        })
    }

    /// Takes a tenant's blob away.
    pub fn disown_blob(
        &self,
        tenant: TenantName,
        digest: Digest,
    ) -> BoxFuture<'static, Result<(), JobError>> {
        self.inner.submit(move |connection| {
            let sql = "DELETE FROM blobs WHERE tenant = ?1 AND digest = ?2";
            match run(connection, sql, params![tenant.as_str(), digest.0])? {
                0 => Err(JobError::NotFound),
                _ => Ok(()),
            }
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
