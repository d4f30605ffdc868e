//! What the two versions of a rollout do with the requests that it sends them. Requests that name a version, or come
//! through another alias, are none of these: whoever may only call must not decide a rollout.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use http::StatusCode;
use sandpiper_control::{Observed, Rollout, Seen};
use sandpiper_domain::Fault;
use sandpiper_sandbox::Outcome;
use time::OffsetDateTime;

/// Four to each doubling of the time, from one microsecond to more than an hour.
const BUCKETS: usize = 128;
/// Whoever leaves without an answer after this time has waited long enough, where the rollout names no time.
const PATIENCE: Duration = Duration::from_secs(1);

/// The counts of a rollout under way.
pub(crate) struct Window {
    pub(crate) rollout: Rollout,
    /// Since when it counts.
    from: OffsetDateTime,
    patience: Duration,
    candidate: Counts,
    stable: Counts,
}

struct Counts {
    requests: AtomicU64,
    errors: AtomicU64,
    cancelled: AtomicU64,
    took: [AtomicU64; BUCKETS],
}

/// One request that the rollout sent to one of its versions.
pub(crate) struct Trial {
    window: Arc<Window>,
    is_of_candidate: bool,
    has_answered: AtomicBool,
    has_failed: AtomicBool,
}

impl Window {
    /// Counts from now on, from nothing.
    pub(crate) fn new(rollout: Rollout, now: OffsetDateTime) -> Self {
        let patience = rollout.health.p99_ms_max.map_or(PATIENCE, Duration::from_millis);
        let (candidate, stable) = (Counts::new(), Counts::new());
        Window { rollout, from: now, patience, candidate, stable }
    }

    /// Whether it counts for this rollout, and not for one before it on the same alias.
    pub(crate) fn is_of(&self, rollout: &Rollout) -> bool {
        self.rollout.began_at == rollout.began_at
    }

    /// A request that the rollout sends to this version.
    pub(crate) fn trial(self: &Arc<Self>, version: u32) -> Trial {
        Trial {
            window: self.clone(),
            is_of_candidate: version == self.rollout.candidate,
            has_answered: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        }
    }

    /// What it has counted.
    pub(crate) fn seen(&self) -> Seen {
        let (candidate, stable) = (self.candidate.observed(), self.stable.observed());
        Seen { candidate, stable, from: self.from }
    }
}

impl Trial {
    /// The head of the response is there.
    pub(crate) fn answered(&self, status: StatusCode) {
        self.has_answered.store(true, Relaxed);
        // An informational one is not the last word of any exchange.
        if status.is_server_error() || status.is_informational() {
            self.failed();
        }
    }

    /// The request came to its end, so long after it was let in.
    pub(crate) fn ended(&self, outcome: Outcome, took: Duration) {
        let counts = self.counts();
        match outcome {
            // The node had no room for it, which is no fault of the version.
            Outcome::Faulted(Fault::Saturated) => return,
            Outcome::Faulted(_) => self.failed(),
            Outcome::Completed => {}
            Outcome::Cancelled if self.has_answered.load(Relaxed) => {}
            Outcome::Cancelled if took < self.window.patience => {
                counts.cancelled.fetch_add(1, Relaxed);
                return;
            }
            Outcome::Cancelled => self.failed(),
        }
        counts.requests.fetch_add(1, Relaxed);
        counts.took[bucket(took.as_micros() as u64)].fetch_add(1, Relaxed);
    }

    /// However often a request fails, it is one error.
    fn failed(&self) {
        if !self.has_failed.swap(true, Relaxed) {
            self.counts().errors.fetch_add(1, Relaxed);
        }
    }

    fn counts(&self) -> &Counts {
        if self.is_of_candidate { &self.window.candidate } else { &self.window.stable }
    }
}

impl Counts {
    fn new() -> Self {
        Counts {
            requests: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            took: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn observed(&self) -> Observed {
        let requests = self.requests.load(Relaxed);
        // An answer counts as failed when its head is there, and as a request when its end is.
        let errors = self.errors.load(Relaxed).min(requests);
        let cancelled = self.cancelled.load(Relaxed);
        Observed { requests, errors, cancelled, p99_ms: self.p99_ms() }
    }

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
    use sandpiper_control::Health;

    use super::*;

    const FAULT: Outcome = Outcome::Faulted(Fault::NoResponse);

    /// Of version 2, where 1 is stable.
    fn window(health: Health) -> Arc<Window> {
        let (began_at, bake_until) = (OffsetDateTime::UNIX_EPOCH, OffsetDateTime::UNIX_EPOCH);
        let (stable, candidate, percent) = (1, 2, 10);
        let rollout = Rollout { stable, candidate, percent, began_at, bake_until, health };
        Arc::new(Window::new(rollout, began_at))
    }

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Requests, errors and those who left.
    fn counts(seen: Observed) -> (u64, u64, u64) {
        (seen.requests, seen.errors, seen.cancelled)
    }

    #[test]
    fn each_version_has_its_own_counts() {
        let window = window(Health::default());
        window.trial(1).ended(Outcome::Completed, ms(1));
        window.trial(1).ended(FAULT, ms(1));
        window.trial(2).ended(Outcome::Completed, ms(1));
        let seen = window.seen();
        assert_eq!((counts(seen.stable), counts(seen.candidate)), ((2, 1, 0), (1, 0, 0)));
    }

    #[test]
    fn one_request_is_one_error_at_most_and_a_full_node_is_none() {
        let window = window(Health::default());
        for outcome in [FAULT, Outcome::Completed, Outcome::Cancelled] {
            let trial = window.trial(2);
            trial.answered(StatusCode::INTERNAL_SERVER_ERROR);
            trial.ended(outcome, ms(1));
        }
        assert_eq!(counts(window.seen().candidate), (3, 3, 0));
        // A guest that has ended when its head is looked at.
        let trial = window.trial(2);
        trial.ended(Outcome::Completed, ms(1));
        trial.answered(StatusCode::BAD_GATEWAY);
        window.trial(2).ended(Outcome::Faulted(Fault::Saturated), ms(1));
        assert_eq!(counts(window.seen().candidate), (4, 4, 0));
    }

    #[test]
    fn who_leaves_without_an_answer_is_no_good_request() {
        let window_of = |p99_ms_max| window(Health { p99_ms_max, ..Health::default() });
        for (p99_ms_max, soon, late) in [(None, 999, 1_000), (Some(50), 49, 50)] {
            let window = window_of(p99_ms_max);
            window.trial(2).ended(Outcome::Cancelled, ms(soon));
            assert_eq!(counts(window.seen().candidate), (0, 0, 1));
            window.trial(2).ended(Outcome::Cancelled, ms(late));
            assert_eq!(counts(window.seen().candidate), (1, 1, 1));
            let trial = window.trial(2);
            trial.answered(StatusCode::OK);
            trial.ended(Outcome::Cancelled, ms(late));
            assert_eq!(counts(window.seen().candidate), (2, 1, 1), "it had its answer");
        }
    }

    #[test]
    fn one_in_a_hundred_is_found_to_a_quarter() {
        let window = window(Health::default());
        let record = |count, took| {
            (0..count).for_each(|_| window.trial(2).ended(Outcome::Completed, ms(took)));
            window.seen().candidate.p99_ms
        };
        assert_eq!(record(0, 0), None);
        record(98, 10);
        let p99 = record(1, 200).unwrap();
        assert!((160..=200).contains(&p99), "{p99}");
        let p99 = record(900, 10).unwrap();
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
