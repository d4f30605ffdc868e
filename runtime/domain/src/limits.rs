//! Limits, with their units in their names, and the grant that carries them to the hot path.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::ModelScope;

/// What one sandbox may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxLimits {
    /// All linear memories of the sandbox together.
    pub memory_mib: u64,
    /// CPU time of one request.
    pub cpu_ms: u64,
    /// Wall-clock time of one request.
    pub wall_ms: u64,
    /// Bytes of tensors alive in the host for one sandbox.
    pub tensor_mib: u64,
    /// Body of one request.
    pub request_body_mib: u64,
    /// Log bytes of one request.
    pub log_kib: u64,
}

impl SandboxLimits {
    /// The smaller of each pair: a limit can only be lowered.
    pub fn min(self, other: Self) -> Self {
        SandboxLimits {
            memory_mib: self.memory_mib.min(other.memory_mib),
            cpu_ms: self.cpu_ms.min(other.cpu_ms),
            wall_ms: self.wall_ms.min(other.wall_ms),
            tensor_mib: self.tensor_mib.min(other.tensor_mib),
            request_body_mib: self.request_body_mib.min(other.request_body_mib),
            log_kib: self.log_kib.min(other.log_kib),
        }
    }
}

/// A sustained rate and what may come at once on top (GCRA).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Requests per second, sustained.
    pub per_s: u32,
    /// Requests that may arrive together.
    pub burst: u32,
}

/// The scheduler's priority band of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Band {
    /// Served when nothing normal waits.
    Low,
    /// The ordinary band.
    Normal,
}

/// What a tenant is due of the compute threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Its part, beside those of the others that have work.
    pub weight: u32,
    /// Its priority band.
    pub band: Band,
}

/// What a tenant may use in one calendar month (UTC); `None` is unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Budget {
    /// Invocations and direct inferences.
    pub requests: Option<u64>,
    /// Seconds of guest CPU.
    pub cpu_s: Option<u64>,
    /// GiB-seconds of guest memory.
    pub memory_gib_s: Option<u64>,
    /// Seconds of inference.
    pub inference_s: Option<u64>,
}

impl Budget {
    /// The smaller of each pair.
    pub fn min(self, other: Self) -> Self {
        let lower = |one: Option<u64>, other: Option<u64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (limit, None) | (None, limit) => limit,
        };
        Budget {
            requests: lower(self.requests, other.requests),
            cpu_s: lower(self.cpu_s, other.cpu_s),
            memory_gib_s: lower(self.memory_gib_s, other.memory_gib_s),
            inference_s: lower(self.inference_s, other.inference_s),
        }
    }
}

/// What one tenant may use, over all its functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantLimits {
    /// Sandboxes at once.
    pub concurrency: u32,
    /// Sandboxes alive at once, those that wait for a model among them.
    pub sandboxes: u32,
    /// Jobs and shards that may wait.
    pub jobs: u32,
    /// Size of a batch's input, in MiB.
    pub batch_mib: u64,
    /// What it may use in a month.
    pub budget: Budget,
    /// Requests that may wait for a sandbox.
    pub queue: u32,
    /// Request rate; `None` is unlimited.
    pub rate: Option<RateLimit>,
    /// Functions that may exist.
    pub functions: u32,
    /// Models that may exist.
    pub models: u32,
    /// Versions kept of each function and model.
    pub versions: u32,
    /// Size of an uploaded component.
    pub component_mib: u64,
    /// Size of an uploaded model.
    pub model_mib: u64,
    /// Memory of all its models that never make room for others, in each node.
    pub pinned_mib: u64,
    /// Share of the compute threads.
    pub weight: u32,
    /// Priority band.
    pub band: Band,
}

impl TenantLimits {
    /// What the tenant is due of the compute threads.
    pub fn share(&self) -> Share {
        Share { weight: self.weight, band: self.band }
    }
}

/// The compiled result of policy for one function version: everything the hot path needs to know of what it may do.
#[derive(Debug, Clone)]
pub struct Grant {
    /// The limits of each of its sandboxes.
    pub sandbox: SandboxLimits,
    /// The limits of its tenant.
    pub tenant: TenantLimits,
    /// The models it may load.
    pub models: Arc<ModelScope>,
    /// Its environment.
    pub env: Arc<BTreeMap<String, String>>,
}
