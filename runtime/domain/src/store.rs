//! The ports of the store. Both block: callers run on a thread that may wait, and an implementation that talks to a
//! network brings its own runtime. An embedded store stands behind them today; a shared one can later.

use bytes::Bytes;

use crate::Digest;

/// Why the store could not do its work.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// An [`Expect`] did not hold: somebody else was faster.
    #[error("`{key}` has been changed by another request")]
    Conflict {
        /// The key whose expectation failed.
        key: String,
    },
    /// The disk or the database failed. The text is for the operator's log alone.
    #[error("the store failed: {0}")]
    Failed(String),
}

/// One stored value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key, `/`-separated.
    pub key: String,
    /// Its value, opaque to the store.
    pub value: Bytes,
    /// Grows with every change of the store.
    pub revision: u64,
}

/// What must hold for an operation to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// The key does not exist.
    Absent,
    /// The key is at this revision.
    Revision(u64),
}

/// One change within a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Put { key: String, value: Bytes, expect: Expect },
    Delete { key: String, expect: Expect },
}

/// Ordered key-value records with transactions. What a method returned `Ok` for survives kill -9 and power loss.
pub trait MetadataStore: Send + Sync {
    /// The record under `key`, if there is one.
    fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;
    /// Every record whose key begins with `prefix`, in the keys' order.
    fn list(&self, prefix: &str) -> Result<Vec<Record>, StoreError>;
    /// Does all operations or none; returns the new revision.
    fn transact(&self, operations: &[Operation]) -> Result<u64, StoreError>;
}

/// Content-addressed bytes. What `put` returned `Ok` for survives kill -9 and power loss.
pub trait BlobStore: Send + Sync {
    /// Stores `bytes` under their sha256. Storing the same bytes again is no error.
    fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError>;
    /// The bytes, checked against their digest, or `None`.
    fn get(&self, digest: &Digest) -> Result<Option<Bytes>, StoreError>;
    /// The size in bytes, or `None`.
    fn stat(&self, digest: &Digest) -> Result<Option<u64>, StoreError>;
    /// Removes a blob; a missing one is no error.
    fn delete(&self, digest: &Digest) -> Result<(), StoreError>;
    /// Every digest that is stored.
    fn list(&self) -> Result<Vec<Digest>, StoreError>;
}
