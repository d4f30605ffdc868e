//! The data folder: made private, locked against a second server, and home of the node's secrets.
//!
//! ```text
//! lock            held while a server runs
//! pepper          32 random bytes that keys are hashed with
//! operator.key    only when the operator brings no key
//! sandpiper.db    the metadata (with -wal and -shm beside it)
//! blobs/          components and models, named by their sha256
//! jobs.db         the queue of jobs
//! webhook.key     32 random bytes that webhooks are signed with
//! work/           what jobs and batches take and give, named likewise
//! ```

use std::{
    fs::{self, DirBuilder, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use super::{FolderBlobs, SqliteStore};
use crate::{OpenError, OperatorKey, Pepper};

/// Secrets are short; a longer file is something else.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// A data folder that this process alone may use until the value is dropped.
#[derive(Debug)]
pub struct DataFolder {
    path: PathBuf,
    // The lock goes with the process, however it ends.
    _lock: File,
}

impl DataFolder {
    /// Makes the folder if need be, and locks it.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, OpenError> {
        let path = path.into();
        if !path.exists() {
            make_private_folder(&path).map_err(OpenError::io("make the data folder"))?;
            // Without this a power loss could take the whole new folder. A parent that may not be read stays as it is.
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let _ = sync_folder(parent.unwrap_or(Path::new(".")));
        }
        let lock = private_file(&path.join("lock")).map_err(OpenError::io("open the lock file"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::Locked),
            Err(TryLockError::Error(error)) => return Err(OpenError::io("lock the folder")(error)),
        }
        let mode = fs::metadata(&path).map_err(OpenError::io("read the data folder"))?;
        if mode.permissions().mode() & 0o077 != 0 {
            // It may be a folder that is shared on purpose: its mode is the operator's, not ours to change.
            tracing::warn!("other users can look into the data folder; `chmod 700` is advised");
        }
        Ok(DataFolder { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata kept in it.
    pub fn metadata(&self) -> Result<SqliteStore, OpenError> {
        SqliteStore::open(&self.database("sandpiper.db")?)
    }

    /// The path of a database in it, whose file is there and private.
    pub fn database(&self, name: &'static str) -> Result<PathBuf, OpenError> {
        let path = self.path.join(name);
        // SQLite gives its -wal and -shm files the mode of the database, so that mode is set before SQLite comes.
        private_file(&path).map_err(OpenError::io("open the database"))?;
        sync_folder(&self.path).map_err(OpenError::io("sync the data folder"))?;
        Ok(path)
    }

    /// The blobs kept in it.
    pub fn blobs(&self) -> Result<FolderBlobs, OpenError> {
        self.folder_of_blobs("blobs")
    }

    /// The blobs of jobs and batches. They are apart from the others because nothing in the catalog names them.
    pub fn work_blobs(&self) -> Result<FolderBlobs, OpenError> {
        self.folder_of_blobs("work")
    }

    fn folder_of_blobs(&self, name: &str) -> Result<FolderBlobs, OpenError> {
        let path = self.path.join(name);
        make_private_folder(&path).map_err(OpenError::io("make the folder of blobs"))?;
        sync_folder(&self.path).map_err(OpenError::io("sync the data folder"))?;
        FolderBlobs::open(path).map_err(OpenError::io("open the folder of blobs"))
    }

    /// The pepper, made at the first start.
    pub fn pepper(&self) -> Result<Pepper, OpenError> {
        let bytes = self.secret("pepper", || Ok(Pepper::random_bytes()?.to_vec()))?;
        let bytes = bytes
            .as_slice()
            .try_into()
            .map_err(|_| OpenError::Damaged("`pepper` is not 32 bytes long".to_owned()))?;
        Ok(Pepper::new(bytes))
    }

    /// The secret in `cache.key` that marks cached machine code as this node's own, made at the first start.
    pub fn cache_key(&self) -> Result<[u8; Pepper::LENGTH], OpenError> {
        let bytes = self.secret("cache.key", || Ok(Pepper::random_bytes()?.to_vec()))?;
        let damaged = |_| OpenError::Damaged("`cache.key` is not 32 bytes long".to_owned());
        bytes.as_slice().try_into().map_err(damaged)
    }

    /// The secret in `webhook.key` that the tenants' secrets for webhooks come from, made at the first start.
    pub fn webhook_key(&self) -> Result<[u8; Pepper::LENGTH], OpenError> {
        let bytes = self.secret("webhook.key", || Ok(Pepper::random_bytes()?.to_vec()))?;
        let damaged = |_| OpenError::Damaged("`webhook.key` is not 32 bytes long".to_owned());
        bytes.as_slice().try_into().map_err(damaged)
    }

    /// The operator's key in `operator.key`, made at the first start; for an operator who brings none.
    pub fn operator_key(&self) -> Result<OperatorKey, OpenError> {
        let make = || Ok(format!("{}\n", OperatorKey::generate()?.expose()).into_bytes());
        let bytes = self.secret("operator.key", make)?;
        let text = String::from_utf8(bytes)
            .map_err(|_| OpenError::Damaged("`operator.key` is no text".to_owned()))?;
        text.trim_end()
            .parse()
            .map_err(|error| OpenError::Damaged(format!("`operator.key`: {error}")))
    }

    fn secret(
        &self,
        name: &str,
        make: impl FnOnce() -> io::Result<Vec<u8>>,
    ) -> Result<Vec<u8>, OpenError> {
        let path = self.path.join(name);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let bytes = make().map_err(OpenError::io("draw random numbers"))?;
                self.write(name, &bytes).map_err(OpenError::io(format!("write `{name}`")))?;
                return Ok(bytes);
            }
            Err(error) => return Err(OpenError::io(format!("read `{name}`"))(error)),
        };
        let metadata = file.metadata().map_err(OpenError::io(format!("read `{name}`")))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(OpenError::Exposed { path: path.display().to_string() });
        }
        let mut bytes = Vec::new();
        file.take(SECRET_BYTES_MAX)
            .read_to_end(&mut bytes)
            .map_err(OpenError::io(format!("read `{name}`")))?;
        Ok(bytes)
    }

    /// The file is there whole or not at all. `tempfile` gives it mode 0600.
    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.path)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(self.path.join(name))?;
        sync_folder(&self.path)
    }
}

fn make_private_folder(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

fn private_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Makes the names in a folder, not only what they name, survive a power loss.
pub(super) fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn everything_in_it_is_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/data");
        let folder = DataFolder::open(&path).unwrap();
        folder.pepper().unwrap();
        folder.operator_key().unwrap();
        folder.metadata().unwrap();
        folder.blobs().unwrap();
        folder.work_blobs().unwrap();
        folder.database("jobs.db").unwrap();
        assert_eq!(mode(&path), 0o700);
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(mode(&entry.path()) & 0o077, 0, "{:?}", entry.file_name());
        }
    }

    #[test]
    fn two_servers_cannot_share_it() {
        let home = tempfile::tempdir().unwrap();
        let first = DataFolder::open(home.path()).unwrap();
        let error = DataFolder::open(home.path()).unwrap_err();
        assert_eq!(error.to_string(), "another sandpiper uses this data folder");
        drop(first);
        DataFolder::open(home.path()).unwrap();
    }

    #[test]
    fn secrets_are_made_once_and_kept() {
        let home = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(home.path()).unwrap();
        let (pepper, operator) = (folder.pepper().unwrap(), folder.operator_key().unwrap());
        drop(folder);
        let folder = DataFolder::open(home.path()).unwrap();
        assert!(folder.pepper().unwrap().mac("x").matches(&pepper.mac("x")));
        assert_eq!(folder.operator_key().unwrap().expose(), operator.expose());
    }

    #[test]
    fn a_secret_that_others_can_read_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(home.path()).unwrap();
        folder.pepper().unwrap();
        let path = home.path().join("pepper");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(folder.pepper(), Err(OpenError::Exposed { .. })));
    }

    #[test]
    fn a_cut_secret_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = DataFolder::open(home.path()).unwrap();
        folder.write("pepper", b"short").unwrap();
        folder.write("operator.key", b"short\n").unwrap();
        assert!(matches!(folder.pepper(), Err(OpenError::Damaged(_))));
        assert!(matches!(folder.operator_key(), Err(OpenError::Damaged(_))));
    }
}
