//! What is counted.

use std::{
    ops::{AddAssign, Index, IndexMut},
    sync::atomic::{AtomicU64, Ordering::Relaxed},
};

/// One thing that is counted, in the unit in its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counted {
    /// Invocations, and inferences without a function. What was turned away is none.
    Requests,
    /// Invocations that ended in a fault.
    Faults,
    /// CPU time of guests while they served.
    GuestCpuUs,
    /// CPU time of guests while they were made ready.
    StartCpuUs,
    /// The most memory of each start and each invocation, and what is kept ready, times how long it was held.
    MemoryMibMs,
    /// Time of inference.
    InferenceUs,
    /// Time that inferences waited.
    InferenceQueuedUs,
    /// Invocations that were jobs or shards of batches.
    Jobs,
    /// Bytes of request bodies that guests took.
    BytesIn,
    /// Bytes of response bodies that went out.
    BytesOut,
}

impl Counted {
    /// All of them, in the order of their columns.
    pub const ALL: [Counted; 10] = [
        Counted::Requests,
        Counted::Faults,
        Counted::GuestCpuUs,
        Counted::StartCpuUs,
        Counted::MemoryMibMs,
        Counted::InferenceUs,
        Counted::InferenceQueuedUs,
        Counted::Jobs,
        Counted::BytesIn,
        Counted::BytesOut,
    ];

    /// Its name in the database and in answers.
    pub fn name(self) -> &'static str {
        match self {
            Counted::Requests => "requests",
            Counted::Faults => "faults",
            Counted::GuestCpuUs => "guest_cpu_us",
            Counted::StartCpuUs => "start_cpu_us",
            Counted::MemoryMibMs => "memory_mib_ms",
            Counted::InferenceUs => "inference_us",
            Counted::InferenceQueuedUs => "inference_queued_us",
            Counted::Jobs => "jobs",
            Counted::BytesIn => "bytes_in",
            Counted::BytesOut => "bytes_out",
        }
    }
}

/// How much of everything.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amounts([u64; Counted::ALL.len()]);

impl Amounts {
    /// Whether there is nothing at all.
    pub fn is_zero(&self) -> bool {
        self.0.iter().all(|amount| *amount == 0)
    }
}

impl Index<Counted> for Amounts {
    type Output = u64;
    fn index(&self, item: Counted) -> &u64 {
        &self.0[item as usize]
    }
}

impl IndexMut<Counted> for Amounts {
    fn index_mut(&mut self, item: Counted) -> &mut u64 {
        &mut self.0[item as usize]
    }
}

impl AddAssign for Amounts {
    fn add_assign(&mut self, other: Self) {
        for (sum, more) in self.0.iter_mut().zip(other.0) {
            *sum = sum.saturating_add(more);
        }
    }
}

/// Sums that many threads add to.
#[derive(Debug, Default)]
pub(super) struct Sums([AtomicU64; Counted::ALL.len()]);

impl Sums {
    pub(super) fn add(&self, amounts: &Amounts) {
        for (sum, more) in self.0.iter().zip(amounts.0) {
            if more > 0 {
                sum.fetch_add(more, Relaxed);
            }
        }
    }

    /// Takes away what was added before.
    pub(super) fn subtract(&self, amounts: &Amounts) {
        for (sum, less) in self.0.iter().zip(amounts.0) {
            if less > 0 {
                sum.fetch_sub(less, Relaxed);
            }
        }
    }

    pub(super) fn read(&self) -> Amounts {
        Amounts(self.0.each_ref().map(|sum| sum.load(Relaxed)))
    }

    /// Reads and sets to nothing; each addition is read once.
    pub(super) fn take(&self) -> Amounts {
        Amounts(self.0.each_ref().map(|sum| match sum.load(Relaxed) {
            0 => 0,
            _ => sum.swap(0, Relaxed),
        }))
    }
}
