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
    /// The sizes that run with a plan of their own instead of the one for all sizes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_plans: Vec<u32>,
}

/// What measuring a model gave, for the next time it is loaded: measuring takes up to a second, for which a caller may
/// be waiting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// The backend and the processor that it was taken with. On others it would say nothing, about time or about bits.
    machine: String,
    batching: Batching,
}

impl Measurement {
    pub(crate) fn of(batching: &Batching) -> Self {
        Measurement { machine: machine(), batching: batching.clone() }
    }

    /// What was measured, where it holds for this machine.
    pub fn here(&self) -> Option<&Batching> {
        (self.machine == machine()).then_some(&self.batching)
    }
}

/// What the bits of an answer and the time it takes depend on, beside the model.
fn machine() -> String {
    let backend = concat!("sandpiper ", env!("CARGO_PKG_VERSION"), ", tract 0.23.9");
    #[cfg(target_arch = "x86_64")]
    let features = [
        ("fma", std::is_x86_feature_detected!("fma")),
        ("avx2", std::is_x86_feature_detected!("avx2")),
        ("avx512f", std::is_x86_feature_detected!("avx512f")),
        ("avx512vnni", std::is_x86_feature_detected!("avx512vnni")),
    ];
    #[cfg(not(target_arch = "x86_64"))]
    let features: [(&str, bool); 0] = [];
    let present: Vec<&str> =
        features.iter().filter(|(_, present)| *present).map(|(name, _)| *name).collect();
    format!("{backend}, {} {}", std::env::consts::ARCH, present.join(" "))
}

/// One point of t(b).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BatchCost {
    /// Rows in the batch.
    pub size: u32,
    /// The median time of one run, in microseconds.
    pub us: f64,
}
