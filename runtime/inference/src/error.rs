//! Why a model could not be loaded.

use serde::{Deserialize, Serialize};

/// The most operators an error names.
const OPERATORS_SHOWN: usize = 16;

/// Why a model was refused. The text is meant for the tenant who uploaded it: it holds no weights and no paths.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum LoadError {
    /// The bytes are something else than an ONNX model.
    #[error("the bytes are not an ONNX model")]
    NotOnnx,
    /// They begin like an ONNX model and then stop making sense.
    #[error("the ONNX model is truncated or damaged")]
    Truncated,
    /// The protobuf can be read but breaks a rule of ONNX.
    #[error("the ONNX model is malformed: {0}")]
    Malformed(String),
    /// Weights lie in other files.
    #[error(
        "the model keeps the tensor `{tensor}` in an external file; upload one self-contained ONNX file"
    )]
    ExternalData {
        /// The first tensor that does.
        tensor: String,
    },
    /// The backend has no such operators.
    #[error("the backend does not implement these operators of the model: {}", list(.operators))]
    UnsupportedOperator {
        /// Their names, each once, in the order of their first use.
        operators: Vec<String>,
    },
    /// The backend has the operator, but not what this node asks of it, and would answer something else.
    #[error("the backend does not implement this use of the operator `{operator}`: {why}")]
    UnsupportedVariant {
        /// The operator's name.
        operator: String,
        /// What about it the backend lacks.
        why: String,
    },
    /// A tensor of a type that the backend cannot hold.
    #[error("{0}")]
    UnsupportedType(String),
    /// The backend understands every operator and still cannot make a plan of the graph.
    #[error("the model cannot be loaded: {0}")]
    Unloadable(String),
    /// The backend panicked over the model; the panic was contained.
    #[error("the model cannot be loaded: the backend failed on it in an unforeseen way")]
    Panicked,
    /// A sample that came with the model does not fit it, or the model fails on it.
    #[error("sample {number} does not work with the model: {why}")]
    Sample {
        /// Which, from 0.
        number: usize,
        /// What is wrong.
        why: String,
    },
    /// The trial process needed more memory than it may have.
    #[error(
        "making the model ready takes more than {limit_mib} MiB of memory, which is the limit for a file of its size"
    )]
    TrialMemory {
        /// The limit.
        limit_mib: u64,
    },
    /// The trial process needed more processor time than it may have.
    #[error(
        "making the model ready takes more than {limit_s} s of processor time, which is the limit for a file of its size"
    )]
    TrialCpu {
        /// The limit.
        limit_s: u64,
    },
    /// The trial process did not end in time.
    #[error("the model was not ready after {limit_s} s, which is the limit for a file of its size")]
    TrialWall {
        /// The limit.
        limit_s: u64,
    },
    /// The trial process broke down.
    #[error("the backend broke down over the model, in a process of its own")]
    TrialCrashed,
    /// The model alone is larger than all models may be together.
    #[error("the model takes {} MiB of memory; all models of this node together may take {} MiB", mib_up(*.needed), .budget >> 20)]
    OverBudget {
        /// Bytes it takes.
        needed: u64,
        /// Bytes that there are for models.
        budget: u64,
    },
    /// What pinned models leave of the budget is too little.
    #[error("the model takes {} MiB of memory, and pinned models leave no room for it on this node", mib_up(*.needed))]
    NoRoom {
        /// Bytes it takes.
        needed: u64,
    },
    /// With this one, the tenant's pinned models would take more than they may.
    #[error("the model takes {} MiB of memory; this tenant's pinned models may take {} MiB together, and others hold {} MiB", mib_up(*.needed), .limit >> 20, mib_up(*.held))]
    PinLimit {
        /// Bytes it takes.
        needed: u64,
        /// Bytes that the tenant's other pinned models hold.
        held: u64,
        /// Bytes that all of them may take.
        limit: u64,
    },
    /// With this one, the pinned models of all tenants would take more than they may.
    #[error("the model takes {} MiB of memory; pinned models of all tenants together may take {} MiB on this node, and those that there are leave too little of it", mib_up(*.needed), .limit >> 20)]
    PinsFull {
        /// Bytes it takes.
        needed: u64,
        /// Bytes that all pinned models may take.
        limit: u64,
    },
    /// Too many models wait to be loaded.
    #[error("too many models are being loaded; try again shortly")]
    Saturated,
    /// The bytes could not be had.
    #[error("{0}")]
    Bytes(String),
}

fn mib_up(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn list(operators: &[String]) -> String {
    let shown = operators.iter().take(OPERATORS_SHOWN).map(String::as_str).collect::<Vec<_>>();
    let mut text = shown.join(", ");
    if operators.len() > OPERATORS_SHOWN {
        text.push_str(&format!(" and {} more", operators.len() - OPERATORS_SHOWN));
    }
    text
}
