//! The control plane: tenants and their limits, keys, and the catalog of functions and models, kept in an embedded
//! store. Everything here blocks and is synchronous. Mutations go to the disk before they return; reads on the hot
//! path come from an in-memory snapshot and take no lock.

mod autoscaler;
mod catalog;
mod error;
mod jobs;
mod key;
mod policy;
mod rollout;
mod store;
mod usage;

pub use catalog::{
    Alias, Catalog, Found, Function, FunctionVersion, Key, ModelEntry, ModelGrants, ModelVersion,
    NewFunction, NewKey, NewModel, PinnedBlob, Principal, PutOutcome, Retention, Snapshot, Target,
    Tenant, Versions,
};
pub use error::{CatalogError, KeyError, OpenError};
pub use key::{KeyId, KeyText, OperatorKey, OperatorKeyError, ParseKeyIdError, Pepper};
pub use policy::{Limits, Policies, PolicyError, TierName};
pub use store::{DataFolder, FolderBlobs, SqliteStore};
pub use usage::{
    Amounts, Counted, Ledger, Ledgers, Month, Owner, ParseMonthError, Spent, UsageError,
};
