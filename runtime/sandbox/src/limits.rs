//! What one sandbox may hold: the sum of its memories, tables, instances and tensors.

use sandpiper_domain::SandboxLimits;
use wasmtime::ResourceLimiter;

/// Core instances of one component: the guest, its adapters and shims.
pub(crate) const INSTANCES_MAX: usize = 64;
/// Linear memories of one component.
pub(crate) const MEMORIES_MAX: usize = 4;
/// Tables of one component.
pub(crate) const TABLES_MAX: usize = 16;
/// Elements of one table.
pub(crate) const TABLE_ELEMENTS_MAX: usize = 20_000;
/// Host resources (streams, fields, tensors …) alive in one sandbox.
pub(crate) const RESOURCES_MAX: usize = 1_000;
/// In-memory size of one set of header fields.
pub(crate) const FIELDS_BYTES_MAX: usize = 32 * 1024;
/// Bytes that one call for random bytes may ask for.
pub(crate) const RANDOM_BYTES_MAX: u64 = 64 * 1024;
/// Bytes that one host call may lift out of the guest besides tensors.
pub(crate) const HOSTCALL_BYTES_MAX: usize = 2 << 20;

const MIB: u64 = 1 << 20;

/// Sums what a sandbox holds and refuses what goes beyond; the first refusal is remembered, since the guest usually
/// traps soon after and the cause should be told.
#[derive(Debug)]
pub(crate) struct Limiter {
    memory_bytes: u64,
    memory_bytes_peak: u64,
    memory_bytes_max: u64,
    tensor_bytes: u64,
    tensor_bytes_max: u64,
    refused_limit_mib: Option<u64>,
}

impl Limiter {
    pub(crate) fn new(limits: &SandboxLimits) -> Self {
        Limiter {
            memory_bytes: 0,
            memory_bytes_peak: 0,
            memory_bytes_max: limits.memory_mib * MIB,
            tensor_bytes: 0,
            tensor_bytes_max: limits.tensor_mib * MIB,
            refused_limit_mib: None,
        }
    }

    /// Counts anew: for the next request of a sandbox, the largest sum is what it holds now.
    pub(crate) fn begin(&mut self) {
        self.memory_bytes_peak = self.memory_bytes;
        self.refused_limit_mib = None;
    }

    /// Whether nothing was refused, no tensor is left, and at most half of the memory is taken.
    pub(crate) fn is_at_rest(&self) -> bool {
        self.refused_limit_mib.is_none()
            && self.tensor_bytes == 0
            && self.memory_bytes <= self.memory_bytes_max / 2
    }

    /// The sum of linear memories now.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.memory_bytes
    }

    /// The largest sum of linear memories so far.
    pub(crate) fn memory_bytes_peak(&self) -> u64 {
        self.memory_bytes_peak
    }

    /// The limit, in MiB, that was the first to refuse something.
    pub(crate) fn refused_limit_mib(&self) -> Option<u64> {
        self.refused_limit_mib
    }

    /// Charges tensor bytes; `false` when they do not fit any more.
    pub(crate) fn take_tensor_bytes(&mut self, bytes: usize) -> bool {
        let wanted = self.tensor_bytes.saturating_add(bytes as u64);
        if wanted > self.tensor_bytes_max {
            self.refused_limit_mib.get_or_insert(self.tensor_bytes_max / MIB);
            return false;
        }
        self.tensor_bytes = wanted;
        true
    }

    /// Gives tensor bytes back.
    pub(crate) fn give_tensor_bytes(&mut self, bytes: usize) {
        self.tensor_bytes = self.tensor_bytes.saturating_sub(bytes as u64);
    }
}

impl ResourceLimiter for Limiter {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let growth = desired.saturating_sub(current) as u64;
        let wanted = self.memory_bytes.saturating_add(growth);
        if wanted > self.memory_bytes_max {
            self.refused_limit_mib.get_or_insert(self.memory_bytes_max / MIB);
            return Ok(false);
        }
        self.memory_bytes = wanted;
        self.memory_bytes_peak = self.memory_bytes_peak.max(wanted);
        Ok(true)
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS_MAX)
    }

    fn instances(&self) -> usize {
        INSTANCES_MAX
    }

    fn tables(&self) -> usize {
        TABLES_MAX
    }

    fn memories(&self) -> usize {
        MEMORIES_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Limiter {
        Limiter::new(&SandboxLimits {
            memory_mib: 2,
            cpu_ms: 1,
            wall_ms: 1,
            tensor_mib: 1,
            request_body_mib: 1,
            log_kib: 1,
        })
    }

    #[test]
    fn memories_are_summed() {
        let mut limiter = limiter();
        assert!(limiter.memory_growing(0, 1 << 20, None).unwrap());
        assert!(limiter.memory_growing(0, 1 << 20, None).unwrap());
        assert!(!limiter.memory_growing(1 << 20, (1 << 20) + 1, None).unwrap());
        assert_eq!(limiter.refused_limit_mib(), Some(2));
        assert_eq!(limiter.memory_bytes_peak(), 2 << 20);
    }

    #[test]
    fn tensors_are_charged_and_given_back() {
        let mut limiter = limiter();
        assert!(limiter.take_tensor_bytes(1 << 20));
        assert!(!limiter.take_tensor_bytes(1));
        limiter.give_tensor_bytes(1);
        assert!(limiter.take_tensor_bytes(1));
        assert!(!limiter.take_tensor_bytes(usize::MAX));
    }
}
