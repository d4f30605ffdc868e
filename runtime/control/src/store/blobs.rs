//! Blobs in a folder, each in a file named by its sha256.
//!
//! A blob is written to a temporary file beside its place, synced, renamed, and the folder synced: after `put` has
//! returned it is there whole, and before that it is not there at all.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use sandpiper_domain::{BlobStore, Digest, StoreError};
use sha2::{Digest as _, Sha256};

use super::folder::sync_folder;

const TEMPORARY: &str = ".tmp-";

/// A folder of blobs.
#[derive(Debug)]
pub struct FolderBlobs {
    path: PathBuf,
    /// Set by a failed sync. The kernel may have dropped the pages it could not write and report the next sync as
    /// good, so nothing is accepted any more until a restart has looked at what is really there.
    broken: AtomicBool,
}

impl FolderBlobs {
    /// Opens a folder that exists and clears away what a crash left half-written. What another process still writes,
    /// which this one is to follow, stays.
    pub fn open(path: impl Into<PathBuf>) -> io::Result<Self> {
        let path = path.into();
        for entry in fs::read_dir(&path)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(TEMPORARY) {
                clear_away(&entry.path())?;
            }
        }
        Ok(FolderBlobs { path, broken: AtomicBool::new(false) })
    }

    /// A file for bytes that come bit by bit; [`FolderBlobs::keep`] makes a blob of it. It is locked, which tells
    /// others that somebody writes it.
    pub fn temporary(&self) -> io::Result<tempfile::NamedTempFile> {
        loop {
            let file = tempfile::Builder::new().prefix(TEMPORARY).tempfile_in(&self.path)?;
            file.as_file().lock()?;
            // A process that cleared up may have come first.
            if file.as_file().metadata()?.nlink() > 0 {
                return Ok(file);
            }
        }
    }

    /// Makes a blob of a file whose bytes have this digest.
    pub fn keep(&self, file: tempfile::NamedTempFile, digest: &Digest) -> Result<(), StoreError> {
        if self.broken.load(Ordering::Acquire) {
            let text = "a blob could not be synced; read-only until a restart";
            return Err(StoreError::Failed(text.to_owned()));
        }
        self.sync(file.as_file().sync_all()).map_err(failed("sync a blob"))?;
        file.persist(self.place(digest)).map_err(|error| failed("write a blob")(error.error))?;
        self.sync(sync_folder(&self.path)).map_err(failed("sync the folder of blobs"))
    }

    /// A blob's file, for reading parts of it. They are not checked against the digest.
    pub fn file(&self, digest: &Digest) -> Result<Option<File>, StoreError> {
        match File::open(self.place(digest)) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("open a blob")(error)),
        }
    }

    fn place(&self, digest: &Digest) -> PathBuf {
        self.path.join(digest.to_string())
    }

    fn write(&self, bytes: &[u8], place: &Path) -> io::Result<()> {
        let mut file = self.temporary()?;
        file.write_all(bytes)?;
        self.sync(file.as_file().sync_all())?;
        file.persist(place)?;
        Ok(())
    }

    fn sync(&self, outcome: io::Result<()>) -> io::Result<()> {
        if outcome.is_err() {
            self.broken.store(true, Ordering::Release);
        }
        outcome
    }
}

impl BlobStore for FolderBlobs {
    fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        if self.broken.load(Ordering::Acquire) {
            let text = "a blob could not be synced; read-only until a restart";
            return Err(StoreError::Failed(text.to_owned()));
        }
        let digest = Digest(Sha256::digest(bytes).into());
        let place = self.place(&digest);
        // A file that is there already is believed only after a look: a damaged one is mended by writing it anew.
        if !is_whole(&place, bytes.len(), &digest).map_err(failed("check a blob"))? {
            self.write(bytes, &place).map_err(failed("write a blob"))?;
        }
        // Also when it was there: another `put` may have renamed it but not yet synced the folder.
        self.sync(sync_folder(&self.path)).map_err(failed("sync the folder of blobs"))?;
        Ok(digest)
    }

    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError> {
        let bytes = match fs::read(self.place(digest)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("read a blob")(error)),
        };
        if Digest(Sha256::digest(&bytes).into()) != *digest {
            return Err(StoreError::Failed(format!("the blob {digest} is damaged")));
        }
        Ok(Some(bytes.into()))
    }

    fn stat(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        match fs::metadata(self.place(digest)) {
            Ok(metadata) => Ok(Some(metadata.len())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(failed("look at a blob")(error)),
        }
    }

    fn delete(&self, digest: &Digest) -> Result<(), StoreError> {
        match fs::remove_file(self.place(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(failed("delete a blob")(error))
            }
            // No sync: a blob that comes back after a power loss is swept again.
            _ => Ok(()),
        }
    }

    fn list(&self) -> Result<Vec<Digest>, StoreError> {
        let mut digests = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(failed("list the blobs"))? {
            let name = entry.map_err(failed("list the blobs"))?.file_name();
            digests.extend(name.to_str().and_then(|name| name.parse::<Digest>().ok()));
        }
        Ok(digests)
    }
}

/// Deletes a temporary file that nobody writes any more.
fn clear_away(path: &Path) -> io::Result<()> {
    let cleared = File::open(path).and_then(|file| match file.try_lock() {
        Ok(()) => fs::remove_file(path),
        Err(TryLockError::WouldBlock) => Ok(()),
        Err(TryLockError::Error(error)) => Err(error),
    });
    match cleared {
        // Its writer was done with it meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        cleared => cleared,
    }
}

fn is_whole(place: &Path, length: usize, digest: &Digest) -> io::Result<bool> {
    let mut file = match File::open(place) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if file.metadata()?.len() != length as u64 {
        return Ok(false);
    }
    let mut hash = Sha256::new();
    let mut chunk = vec![0; 64 * 1024];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(Digest(hash.finalize().into()) == *digest),
            count => hash.update(&chunk[..count]),
        }
    }
}

fn failed(action: &'static str) -> impl FnOnce(io::Error) -> StoreError {
    move |error| StoreError::Failed(format!("cannot {action}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(path: &Path) -> usize {
        fs::read_dir(path).unwrap().count()
    }

    #[test]
    fn what_is_put_can_be_got_listed_and_deleted() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        let digest = blobs.put(b"abc").unwrap();
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), expected);
        assert_eq!(blobs.put(b"abc").unwrap(), digest);
        assert_eq!(blobs.get(&digest).unwrap().unwrap(), "abc");
        assert_eq!(blobs.stat(&digest).unwrap(), Some(3));
        assert_eq!(blobs.list().unwrap(), [digest]);
        assert_eq!(files(home.path()), 1);
        blobs.delete(&digest).unwrap();
        blobs.delete(&digest).unwrap();
        assert_eq!(blobs.get(&digest).unwrap(), None);
        assert_eq!(blobs.stat(&digest).unwrap(), None);
    }

    #[test]
    fn half_written_files_go_and_strange_ones_stay() {
        let home = tempfile::tempdir().unwrap();
        fs::write(home.path().join(".tmp-aBcD"), "half").unwrap();
        fs::write(home.path().join("README"), "not ours").unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        assert_eq!(files(home.path()), 1);
        assert_eq!(blobs.list().unwrap(), []);
    }

    #[test]
    fn what_is_being_written_is_left_alone() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        let mut file = blobs.temporary().unwrap();
        file.write_all(b"abc").unwrap();
        FolderBlobs::open(home.path()).unwrap();
        let digest = Digest(Sha256::digest(b"abc").into());
        blobs.keep(file, &digest).unwrap();
        assert_eq!(blobs.get(&digest).unwrap().unwrap(), "abc");
        // Whoever ended without a word holds no lock.
        let (_, left) = blobs.temporary().unwrap().keep().unwrap();
        FolderBlobs::open(home.path()).unwrap();
        assert!(!left.exists());
        assert_eq!(blobs.list().unwrap(), [digest]);
    }

    #[test]
    fn many_may_come_and_go_while_others_write() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        std::thread::scope(|scope| {
            let writes = (0..4).map(|thread: u8| {
                let blobs = &blobs;
                scope.spawn(move || {
                    (0..50).for_each(|number| _ = blobs.put(&[thread, number]).unwrap());
                })
            });
            let writes: Vec<_> = writes.collect();
            while writes.iter().any(|write| !write.is_finished()) {
                FolderBlobs::open(home.path()).unwrap();
            }
        });
        assert_eq!(files(home.path()), 200);
    }

    #[test]
    fn damage_is_seen_and_mended_by_the_next_upload() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        let digest = blobs.put(b"abc").unwrap();
        for damage in ["abd", "ab", ""] {
            fs::write(blobs.place(&digest), damage).unwrap();
            let error = blobs.get(&digest).unwrap_err().to_string();
            assert!(error.contains("damaged"), "{error}");
            blobs.put(b"abc").unwrap();
            assert_eq!(blobs.get(&digest).unwrap().unwrap(), "abc");
        }
    }

    #[test]
    fn after_a_failed_sync_nothing_is_accepted() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        let digest = blobs.put(b"abc").unwrap();
        blobs.sync(Err(io::Error::other("EIO"))).unwrap_err();
        assert!(blobs.put(b"def").unwrap_err().to_string().contains("read-only"));
        assert_eq!(blobs.get(&digest).unwrap().unwrap(), "abc");
    }

    #[test]
    fn many_threads_may_put_the_same_bytes() {
        let home = tempfile::tempdir().unwrap();
        let blobs = FolderBlobs::open(home.path()).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| blobs.put(&[5; 100_000]).unwrap());
            }
        });
        assert_eq!(files(home.path()), 1);
    }
}
