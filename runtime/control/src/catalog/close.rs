//! Giving the data folder to another process, and taking it back.

use super::Catalog;
use crate::{DataFolder, OpenError};

impl Catalog {
    /// Takes no more changes and lets the folder go, once the change that is under way is stored. Readers go on with
    /// what is in memory. Blocks.
    pub fn close(&self) {
        let mut writer = self.lock();
        writer.closed = true;
        if let Some(folder) = writer.folder.take() {
            writer.closed_folder = Some(folder.path().to_owned());
        }
    }

    /// Whether it takes no changes.
    pub fn is_closed(&self) -> bool {
        self.lock().closed
    }

    /// Takes changes again, with the folder locked as before. What another process has stored meanwhile is read before
    /// the next change. Blocks.
    pub fn reopen(&self) -> Result<(), OpenError> {
        let mut writer = self.lock();
        if let Some(path) = &writer.closed_folder {
            writer.folder = Some(DataFolder::open(path)?);
            writer.closed_folder = None;
        }
        writer.closed = false;
        writer.stale = true;
        Ok(())
    }
}
