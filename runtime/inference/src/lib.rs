//! The inference plane: models are parsed and optimised once per version on loader threads, and run on a fixed
//! set of compute threads behind a bounded queue. Callers see [`sandpiper_domain::Model`] and tensors of bytes;
//! only [`backend`] knows which engine runs a graph. No WIT type, no HTTP and no wasmtime comes this far down.

mod alloc;
mod backend;
mod batch;
mod contain;
mod contract;
mod cost;
mod error;
mod health;
mod model;
mod plane;
mod pool;
mod profile;
mod registry;
mod scheduler;
mod stats;

pub use alloc::WalledAllocator;
pub use error::LoadError;
pub use model::LoadedModel;
pub use plane::{Config, InferencePlane};
pub use profile::{BatchCost, Batching, ModelProfile};
pub use stats::{BatchTimes, ModelStats, Timing};

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
