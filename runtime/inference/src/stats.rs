//! What the calls of one model version have come to: counted as Triton counts them, so that its clients and dashboards
//! read them alike.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// One row more than the largest batch that the scheduler makes. Calls may have any number of rows of their own, and
/// each number that is told apart takes memory and a line in the answers about statistics.
pub(crate) const BATCH_LARGER: usize = 33;

/// A count of events and the time they took together.
#[derive(Debug, Default)]
pub struct Timing {
    count: AtomicU64,
    ns: AtomicU64,
}

impl Timing {
    /// Adds `count` events that took `took` together.
    pub fn add(&self, count: u64, took: Duration) {
        self.count.fetch_add(count, Relaxed);
        self.ns.fetch_add(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The events so far, and the nanoseconds they took together.
    pub fn get(&self) -> (u64, u64) {
        (self.count.load(Relaxed), self.ns.load(Relaxed))
    }
}

/// The statistics of one model version on this node. They outlive its stay in memory.
#[derive(Debug, Default)]
pub struct ModelStats {
    /// Calls that ended well, from the queue to the answer.
    pub success: Timing,
    /// Calls that did not.
    pub fail: Timing,
    /// Waiting for a compute thread.
    pub queue: Timing,
    /// Bringing inputs into the engine's form.
    pub compute_input: Timing,
    /// Running the graph.
    pub compute_infer: Timing,
    /// Bringing outputs into ours.
    pub compute_output: Timing,
    /// Answers from the cache.
    pub cache_hit: Timing,
    /// Calls that looked in the cache in vain.
    pub cache_miss: Timing,
    /// Calls refused before they ran: a full queue, a deadline that could not be met.
    pub rejected: AtomicU64,
    /// Calls given up by their callers.
    pub cancelled: AtomicU64,
    /// Rows computed: a call of a batch of four rows counts four.
    pub inference_count: AtomicU64,
    /// Runs of the graph, whatever their batch.
    pub execution_count: AtomicU64,
    /// Calls that wait now.
    pub pending: AtomicU64,
    /// Times that the version was brought into memory.
    pub loads: AtomicU64,
    /// Times that it had to make room for another.
    pub evictions: AtomicU64,
    last_inference_ms: AtomicU64,
    batches: Mutex<BTreeMap<usize, BatchTimes>>,
}

/// What runs of one batch size took.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct BatchTimes {
    /// Runs.
    pub count: u64,
    /// Nanoseconds for the inputs, the graph and the outputs.
    pub input_ns: u64,
    /// See above.
    pub infer_ns: u64,
    /// See above.
    pub output_ns: u64,
}

impl ModelStats {
    /// Notes one run of the graph on a batch of `rows` rows.
    pub fn ran(&self, rows: usize, input: Duration, infer: Duration, output: Duration) {
        let rows_count = rows as u64;
        self.execution_count.fetch_add(1, Relaxed);
        self.inference_count.fetch_add(rows_count, Relaxed);
        self.compute_input.add(rows_count, input);
        self.compute_infer.add(rows_count, infer);
        self.compute_output.add(rows_count, output);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.last_inference_ms.store(now.as_millis() as u64, Relaxed);
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let times = batches.entry(rows.min(BATCH_LARGER)).or_default();
        times.count += 1;
        times.input_ns += input.as_nanos() as u64;
        times.infer_ns += infer.as_nanos() as u64;
        times.output_ns += output.as_nanos() as u64;
    }

    /// When the model last ran, in milliseconds since 1970; 0 where it never did.
    pub fn last_inference_ms(&self) -> u64 {
        self.last_inference_ms.load(Relaxed)
    }

    /// The runs by batch size. Runs of 33 rows and more, which are calls that ran alone, are counted together under 33.
    pub fn batches(&self) -> BTreeMap<usize, BatchTimes> {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_that_are_told_apart_are_few() {
        let stats = ModelStats::default();
        let no_time = Duration::ZERO;
        (1..10_000).for_each(|rows| stats.ran(rows, no_time, no_time, no_time));
        let batches = stats.batches();
        assert_eq!(
            batches.keys().copied().collect::<Vec<_>>(),
            (1..=BATCH_LARGER).collect::<Vec<_>>()
        );
        assert_eq!((batches[&32].count, batches[&BATCH_LARGER].count), (1, 9_967));
    }
}
