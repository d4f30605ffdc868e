//! The nouns of Sandpiper: names, versions, limits, tensors, errors, and the ports through which the
//! planes meet. This crate does no I/O and knows no HTTP, no wasmtime and no tract.

mod activity;
mod bill;
mod digest;
mod function;
mod inference;
mod job;
mod limits;
mod manifest;
mod model_options;
mod name;
mod reference;
mod scope;
mod store;
mod tensor;

pub use activity::{Activity, Lane, Unmetered};
pub use bill::{InferenceBill, InferenceCost, Payer};
pub use digest::{Digest, ParseDigestError};
pub use function::{Fault, Usage};
pub use inference::{
    BoxFuture, BriefRuns, Deferred, InferenceError, InferenceOutput, InferenceRequest, Model,
    ModelKey, ModelScope, ModelSignature, ModelSource, TensorSpec,
};
pub use job::{
    Again, End, Enqueued, JobError, JobId, JobQueue, JobRequest, JobResult, JobState, Lease,
    NewJob, ParseJobIdError,
};
pub use limits::{Band, Budget, Grant, RateLimit, SandboxLimits, Share, TenantLimits};
pub use manifest::{Auth, Build, FunctionLimits, Manifest, ManifestError, Mode, Scale};
pub use model_options::{ModelOptions, ModelOptionsError};
pub use name::{AliasName, FunctionName, ModelName, NameError, TenantName};
pub use reference::{ModelRef, ReferenceError, Selector};
pub use scope::{Scope, ScopeSet, UnknownScope};
pub use store::{BlobStore, Expect, MetadataStore, Operation, Record, StoreError};
pub use tensor::{DataType, NamedTensor, RANK_MAX, Strings, Tensor, TensorError, put_string};
