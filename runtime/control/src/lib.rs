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

pub use autoscaler::{Autoscaler, Decision, Observation, Terms, Windows};
pub use catalog::{
    Alias, AliasChange, Catalog, Cause, Found, Function, FunctionVersion, Key, ModelEntry,
    ModelGrants, ModelVersion, NewFunction, NewKey, NewModel, PinnedBlob, Placement, Principal,
    PutOutcome, Retention, Snapshot, Sticky, Target, Tenant, Versions,
};
pub use error::{CatalogError, KeyError, OpenError};
pub use jobs::{
    BatchView, Before, BlobWriter, CRASHES_MAX, Calls, CommitObserver, DueWebhook, JobFilter,
    JobView, Leased, NewBatch, NewShard, PinnedWork, ResultView, Shard, ShardOutput, ShardView,
    SqliteJobs, Turn,
};
pub use key::{KeyId, KeyText, OperatorKey, OperatorKeyError, ParseKeyIdError, Pepper};
pub use policy::{Limits, Policies, PolicyError, TierName};
pub use rollout::{
    BAKE_MAX, EndedRollout, Health, NewRollout, Observed, Rollout, RolloutEnd, Seen, Verdict, judge,
};
pub use store::{DataFolder, FolderBlobs, SqliteStore};
pub use usage::{
    Amounts, Counted, Ledger, Ledgers, Month, Owner, ParseMonthError, Spent, Tally, UsageError,
};
