//! The inference plane: models are parsed and optimised once per version on loader threads, and run on a fixed
//! set of compute threads behind a bounded queue. Callers see [`sandpiper_domain::Model`] and tensors of bytes;
//! only [`backend`] knows which engine runs a graph. No WIT type, no HTTP and no wasmtime comes this far down.

mod alloc;
mod backend;
mod batch;
mod builders;
mod contain;
mod contract;
mod cost;
mod error;
mod eviction;
mod footprint;
mod health;
mod loader;
mod model;
mod plane;
mod pool;
mod profile;
mod registry;
mod response_cache;
mod scheduler;
mod spec;
mod stats;
mod trial;

pub use alloc::WalledAllocator;
pub use error::LoadError;
pub use model::LoadedModel;
pub use plane::{Config, InferencePlane};
pub use profile::{BatchCost, Batching, Measurement, ModelProfile};
pub use registry::{MemoryTerms, MemoryTermsOf, PinsOf};
pub use spec::ModelSpec;
pub use stats::{ANSWER_BOUNDS_MS, BatchTimes, ModelStats, Timing};
pub use trial::{Trial, try_model};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
