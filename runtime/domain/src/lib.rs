//! The nouns of Sandpiper: names, versions, limits, tensors, errors, and the ports through which the
//! planes meet. This crate does no I/O and knows no HTTP, no wasmtime and no tract.

mod digest;
mod function;
mod inference;
mod limits;
mod manifest;
mod model_options;
mod name;
mod reference;
mod scope;
mod store;
mod tensor;

pub use digest::{Digest, ParseDigestError};
pub use function::{Fault, Usage};
pub use inference::{
    BoxFuture, BriefRuns, Deferred, InferenceError, InferenceOutput, InferenceRequest, Model,
    ModelKey, ModelScope, ModelSignature, ModelSource, TensorSpec,
};
pub use limits::{Band, Grant, RateLimit, SandboxLimits, Share, TenantLimits};
pub use manifest::{Auth, Build, FunctionLimits, Manifest, ManifestError, Scale};
pub use model_options::{ModelOptions, ModelOptionsError};
pub use name::{AliasName, FunctionName, ModelName, NameError, TenantName};
pub use reference::{ModelRef, ReferenceError, Selector};
pub use scope::{Scope, ScopeSet, UnknownScope};
pub use store::{BlobStore, Expect, MetadataStore, Operation, Record, StoreError};
pub use tensor::{DataType, NamedTensor, RANK_MAX, Tensor, TensorError};
