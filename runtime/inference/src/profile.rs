//! What is known of a model once it is loaded: what is in it, and what it costs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The inside of a model and its cost on this machine.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ModelProfile {
    /// The operators of the graph as uploaded, with how often each is there.
    pub operators: BTreeMap<String, u32>,
    /// Elements of all weights together.
    pub parameters: u64,
    /// What the model holds in memory, in bytes, as measured after loading it.
    pub memory_bytes: u64,
    /// Whether and how its calls are batched.
    pub batching: Batching,
}

/// What measuring the model with batches gave.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Batching {
    /// The batch sizes in use, ascending; `[1]` where calls run one by one.
    pub sizes: Vec<u32>,
    /// What one run took, by batch size: t(b).
    pub curve: Vec<BatchCost>,
    /// Why calls run one by one, where they do.
    pub reason: Option<String>,
}

/// One point of t(b).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchCost {
    /// Rows in the batch.
    pub size: u32,
    /// The median time of one run, in microseconds.
    pub us: f64,
}
