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

/// The upper bounds of the buckets of [`ModelStats::answered_within`], in milliseconds. Triton's, and two below them:
/// here most answers take less.
pub const ANSWER_BOUNDS_MS: [u64; 6] = [1, 10, 100, 500, 2000, 5000];

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
    /// Calls that ended well, by how long they took; the last bucket takes what is beyond the bounds.
    answers: [AtomicU64; ANSWER_BOUNDS_MS.len() + 1],
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
    /// Notes a call that ended well.
    pub fn succeeded(&self, took: Duration) {
        self.success.add(1, took);
        let is_beyond = |bound: &&u64| took > Duration::from_millis(**bound);
        let bucket = ANSWER_BOUNDS_MS.iter().take_while(is_beyond).count();
        if let Some(answers) = self.answers.get(bucket) {
            answers.fetch_add(1, Relaxed);
        }
    }

    /// Calls that ended well and took no longer than the bound of this index in [`ANSWER_BOUNDS_MS`]; beyond the last
    /// one, all that ended well.
    pub fn answered_within(&self, bound: usize) -> u64 {
        self.answers.iter().take(bound.saturating_add(1)).map(|count| count.load(Relaxed)).sum()
    }

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
    fn an_answer_is_in_every_bucket_from_its_own_on() {
        let stats = ModelStats::default();
        for us in [900, 1000, 1001, 99_000, 2_000_000, 70_000_000] {
            stats.succeeded(Duration::from_micros(us));
        }
        let within: Vec<u64> = (0..7).map(|bound| stats.answered_within(bound)).collect();
        assert_eq!(within, [2, 3, 4, 4, 5, 5, 6]);
        assert_eq!(stats.success.get().0, 6);
    }

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
