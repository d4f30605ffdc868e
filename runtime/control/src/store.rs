//! The embedded store: a folder with an SQLite database, blobs named by their sha256, and the node's secrets.

mod blobs;
mod folder;
mod sqlite;

pub use blobs::FolderBlobs;
pub use folder::DataFolder;
pub use sqlite::SqliteStore;
