//! What a function version has done since its rollout began. Nothing is counted for versions that nobody watches.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use sandpiper_control::Observed;
use sandpiper_domain::Fault;
use sandpiper_sandbox::Outcome;

/// Four to each doubling of the time, from one microsecond to more than an hour.
const BUCKETS: usize = 128;

/// The counts of a version that is watched.
#[derive(Default)]
pub(crate) struct VersionWindow {
    /// Asked first, since most versions are not watched and this is cheaper.
    is_watched: AtomicBool,
    counts: ArcSwapOption<Counts>,
}

struct Counts {
    requests: AtomicU64,
    errors: AtomicU64,
    took: [AtomicU64; BUCKETS],
}

impl VersionWindow {
    /// Counts from now on, from nothing.
    pub(crate) fn begin(&self) {
        let counts = Counts {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            took: std::array::from_fn(|_| AtomicU64::new(0)),
        };
        self.counts.store(Some(Arc::new(counts)));
        self.is_watched.store(true, Relaxed);
    }

    /// Counts no longer.
    pub(crate) fn end(&self) {
        self.is_watched.store(false, Relaxed);
        self.counts.store(None);
    }

    /// A request came to its end.
    pub(crate) fn record(&self, outcome: Outcome, took: Duration) {
        if !self.is_watched.load(Relaxed) {
            return;
        }
        let counts = self.counts.load();
        let Some(counts) = &*counts else { return };
        match outcome {
            // The node had no room for it, which is no fault of the version.
            Outcome::Faulted(Fault::Saturated) => return,
            Outcome::Faulted(_) => counts.errors.fetch_add(1, Relaxed),
            Outcome::Completed | Outcome::Cancelled => 0,
        };
        counts.requests.fetch_add(1, Relaxed);
        let place = &counts.took[bucket(took.as_micros() as u64)];
        place.fetch_add(1, Relaxed);
    }

    /// The function itself answered that it has failed.
    pub(crate) fn failed(&self) {
        if let Some(counts) = &*self.counts.load() {
            counts.errors.fetch_add(1, Relaxed);
        }
    }

    /// What it has counted.
    pub(crate) fn observed(&self) -> Observed {
        let counts = self.counts.load();
        let Some(counts) = &*counts else { return Observed::default() };
        let requests = counts.requests.load(Relaxed);
        // An answer counts as failed when its head is there, and as a request when its end is.
        let errors = counts.errors.load(Relaxed).min(requests);
        Observed { requests, errors, p99_ms: counts.p99_ms() }
    }
}

impl Counts {
    fn p99_ms(&self) -> Option<u64> {
        let took = self.took.each_ref().map(|count| count.load(Relaxed));
        let mut slower = took.iter().sum::<u64>().div_ceil(100);
        if slower == 0 {
            return None;
        }
        for (place, count) in took.iter().enumerate().rev() {
            if slower <= *count {
                return Some(lower_bound_us(place) / 1_000);
            }
            slower -= count;
        }
        None
    }
}

fn bucket(took_us: u64) -> usize {
    let took_us = took_us.clamp(4, u64::from(u32::MAX));
    let doublings = took_us.ilog2() as usize;
    let quarter = (took_us >> (doublings - 2)) as usize & 3;
    doublings * 4 + quarter
}

fn lower_bound_us(bucket: usize) -> u64 {
    let (doublings, quarter) = (bucket / 4, bucket as u64 % 4);
    ((4 + quarter) << doublings) >> 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_counted_that_nobody_watches() {
        let window = VersionWindow::default();
        window.record(Outcome::Completed, Duration::from_millis(1));
        window.failed();
        assert_eq!(window.observed(), Observed::default());
        window.begin();
        window.record(Outcome::Completed, Duration::from_millis(1));
        assert_eq!(window.observed().requests, 1);
        window.end();
        assert_eq!(window.observed(), Observed::default());
    }

    #[test]
    fn faults_and_failures_are_errors_and_a_full_node_is_none() {
        let window = VersionWindow::default();
        window.begin();
        window.record(Outcome::Faulted(Fault::NoResponse), Duration::from_millis(1));
        window.record(Outcome::Faulted(Fault::Saturated), Duration::from_millis(1));
        window.failed();
        window.record(Outcome::Completed, Duration::from_millis(1));
        let seen = window.observed();
        assert_eq!((seen.requests, seen.errors), (2, 2));
    }

    #[test]
    fn one_in_a_hundred_is_found_to_a_quarter() {
        let window = VersionWindow::default();
        window.begin();
        for _ in 0..98 {
            window.record(Outcome::Completed, Duration::from_millis(10));
        }
        window.record(Outcome::Completed, Duration::from_millis(200));
        let p99 = window.observed().p99_ms.unwrap();
        assert!((160..=200).contains(&p99), "{p99}");
        for _ in 0..900 {
            window.record(Outcome::Completed, Duration::from_millis(10));
        }
        let p99 = window.observed().p99_ms.unwrap();
        assert!((8..=10).contains(&p99), "{p99}");
    }

    proptest::proptest! {
        #[test]
        fn every_time_has_a_bucket_that_begins_below_it(took_us: u64) {
            let place = bucket(took_us);
            proptest::prop_assert!(place < BUCKETS);
            proptest::prop_assert!(lower_bound_us(place) <= took_us.max(4));
        }
    }
}
