//! Giving the data folder to another process, and taking it back.

use std::sync::{
    Arc,
    atomic::Ordering::{Acquire, Release},
};

use super::{Catalog, load};
use crate::{DataFolder, OpenError};

impl Catalog {
    /// Takes no more changes and lets the folder go, once the change that is under way is stored. Readers go on with
    /// what is in memory. Blocks.
    pub fn close(&self) {
        let mut writer = self.lock();
        self.closed.store(true, Release);
        if let Some(folder) = writer.folder.take() {
            writer.closed_folder = Some(folder.path().to_owned());
        }
    }

    /// Whether it takes no changes.
    pub fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    /// Takes changes again, with the folder locked as before and with what another process has stored meanwhile.
    /// Blocks.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let mut writer = self.lock();
        if let Some(path) = &writer.closed_folder {
            writer.folder = Some(DataFolder::open(path)?);
            writer.closed_folder = None;
        }
        let loaded = load::load(&*self.metadata, &self.policies)?;
        self.snapshot.store(Arc::new(loaded.snapshot));
        writer.revisions = loaded.revisions;
        writer.stale = false;
        self.closed.store(false, Release);
        Ok(())
    }
}
