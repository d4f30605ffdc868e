//! What the invocation of a function can end in, and what it costs.

use std::time::Duration;

/// Why an invocation gave no answer of its own. No variant holds text of the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Fault {
    /// More CPU time than the grant allows.
    #[error("the function used more CPU time than its limit of {limit_ms} ms")]
    CpuExceeded {
        /// The limit in force.
        limit_ms: u64,
    },
    /// More wall-clock time than the grant allows.
    #[error("the function did not finish within its limit of {limit_ms} ms")]
    WallExceeded {
        /// The limit in force.
        limit_ms: u64,
    },
    /// A growth of memory or tensors was refused and the guest then trapped.
    #[error("the function needed more memory than its limit of {limit_mib} MiB")]
    MemoryExceeded {
        /// The limit in force.
        limit_mib: u64,
    },
    /// The guest trapped.
    #[error("the function trapped: {cause}")]
    Trap {
        /// The kind of trap, in the runtime's words.
        cause: &'static str,
    },
    /// The guest ended without a response.
    #[error("the function ended without a response")]
    NoResponse,
    /// A sandbox that was made ahead would have carried a model over from its start.
    #[error(
        "the function holds a model that it opened at its start; it must open its models as it answers, since a sandbox that is made ahead may serve when the model has another version or may not be used any more"
    )]
    KeptModel,
    /// The node could not give the invocation a sandbox.
    #[error("the node has no sandbox free")]
    Saturated,
}

impl Fault {
    /// The stable code of this fault in error bodies, headers and metrics.
    pub fn code(&self) -> &'static str {
        match self {
            Fault::CpuExceeded { .. } => "cpu_exceeded",
            Fault::WallExceeded { .. } => "wall_exceeded",
            Fault::MemoryExceeded { .. } => "memory_exceeded",
            Fault::Trap { .. } => "trap",
            Fault::NoResponse => "no_response",
            Fault::KeptModel => "kept_model",
            Fault::Saturated => "node_saturated",
        }
    }
}

/// What one invocation cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time of the thread while the guest was polled.
    pub cpu: Duration,
    /// The largest sum of all linear memories, in bytes.
    pub memory_bytes_max: u64,
    /// From the making of its sandbox to its end; 0 where it never had one.
    pub lifetime: Duration,
    /// Its calls of models that were answered.
    pub inferences: u32,
    /// Time its calls of models waited.
    pub inference_queued: Duration,
    /// Time its calls of models ran.
    pub inference: Duration,
}
