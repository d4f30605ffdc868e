//! A rollout: a new version takes a part of the traffic, and then all of it or none. What decides is a pure function.

use serde::{Deserialize, Serialize};
use time::{Duration, OffsetDateTime};

/// The longest that a new version may be watched.
pub const BAKE_MAX: Duration = Duration::days(7);

/// A new version on trial.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version of before.
    pub stable: u32,
    /// The new one.
    pub candidate: u32,
    /// Its part of the traffic.
    pub percent: u32,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub began_at: OffsetDateTime,
    /// Until when it is watched.
    #[serde(with = "time::serde::rfc3339")]
    pub bake_until: OffsetDateTime,
    /// What it must keep to.
    pub health: Health,
}

/// What a new version must keep to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Health {
    /// The largest part of its requests that may fail, from 0 to 1.
    pub error_rate_max: f64,
    /// The longest that 99 of 100 of its requests may take.
    pub p99_ms_max: Option<u64>,
    /// Requests it is not judged before, as long as there is time.
    pub requests_min: u64,
}

impl Default for Health {
    fn default() -> Self {
        Health { error_rate_max: 0.05, p99_ms_max: None, requests_min: 20 }
    }
}

/// A rollout to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NewRollout {
    /// The new version.
    pub candidate: u32,
    /// Its part of the traffic.
    pub percent: u32,
    /// How long it is watched.
    pub bake: Duration,
    /// What it must keep to.
    pub health: Health,
}

/// A rollout that is over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedRollout {
    /// The version that was new.
    pub candidate: u32,
    /// How it ended.
    pub end: RolloutEnd,
    /// When.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
}

/// How a rollout ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutEnd {
    /// The new version has all the traffic.
    Promoted,
    /// The new version failed, and the one of before has all the traffic.
    RolledBack {
        /// What was seen.
        reason: String,
    },
    /// Somebody moved the alias, or wanted no more of it.
    Aborted,
}

/// What a version has done since its rollout began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its requests.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// What 99 of 100 of them took at most, when there was any.
    pub p99_ms: Option<u64>,
}

/// What is to become of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing yet.
    Wait,
    /// The new version takes all.
    Promote,
    /// It is taken back, for this reason.
    RollBack(String),
}

/// Judges a rollout. With fewer requests than it wants it waits for them as long again as it was to wait at all; what
/// there is by then decides.
pub fn judge(seen: &Observed, rollout: &Rollout, now: OffsetDateTime) -> Verdict {
    let is_enough = seen.requests >= rollout.health.requests_min;
    let bake = rollout.bake_until - rollout.began_at;
    let is_last = now >= rollout.bake_until.saturating_add(bake);
    if !is_enough && !is_last {
        return Verdict::Wait;
    }
    if let Some(reason) = fault(seen, rollout) {
        return Verdict::RollBack(reason);
    }
    if now >= rollout.bake_until { Verdict::Promote } else { Verdict::Wait }
}

fn fault(seen: &Observed, rollout: &Rollout) -> Option<String> {
    let health = &rollout.health;
    let rate = seen.errors as f64 / (seen.requests.max(1)) as f64;
    if rate > health.error_rate_max {
        let (errors, requests) = (seen.errors, seen.requests);
        let max = health.error_rate_max * 100.0;
        return Some(format!("{errors} of {requests} requests failed, more than {max:.1} %"));
    }
    let (p99, max) = seen.p99_ms.zip(health.p99_ms_max)?;
    (p99 > max).then(|| {
        format!("one of 100 requests took {p99} ms or longer, more than the {max} ms allowed")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rollout(health: Health) -> Rollout {
        let began_at = OffsetDateTime::UNIX_EPOCH;
        let bake_until = began_at + Duration::seconds(100);
        Rollout { stable: 1, candidate: 2, percent: 10, began_at, bake_until, health }
    }

    fn after(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::UNIX_EPOCH + Duration::seconds(seconds)
    }

    fn seen(requests: u64, errors: u64, p99_ms: u64) -> Observed {
        Observed { requests, errors, p99_ms: (requests > 0).then_some(p99_ms) }
    }

    #[test]
    fn a_good_version_takes_over_when_it_was_watched_long_enough() {
        let rollout = rollout(Health::default());
        assert_eq!(judge(&seen(1_000, 50, 9), &rollout, after(99)), Verdict::Wait);
        assert_eq!(judge(&seen(1_000, 50, 9), &rollout, after(100)), Verdict::Promote);
    }

    #[test]
    fn errors_end_it_at_once_when_there_are_enough_requests() {
        let rollout = rollout(Health::default());
        assert_eq!(judge(&seen(19, 19, 9), &rollout, after(1)), Verdict::Wait);
        let Verdict::RollBack(reason) = judge(&seen(20, 2, 9), &rollout, after(1)) else {
            panic!("it goes on");
        };
        assert_eq!(reason, "2 of 20 requests failed, more than 5.0 %");
    }

    #[test]
    fn slowness_ends_it_where_it_was_asked_for() {
        let slow = seen(20, 0, 300);
        assert_eq!(judge(&slow, &rollout(Health::default()), after(1)), Verdict::Wait);
        let limited = rollout(Health { p99_ms_max: Some(299), ..Health::default() });
        assert!(matches!(judge(&slow, &limited, after(1)), Verdict::RollBack(_)));
    }

    #[test]
    fn few_requests_are_waited_for_twice_as_long_and_then_decide() {
        let rollout = rollout(Health::default());
        assert_eq!(judge(&seen(0, 0, 0), &rollout, after(199)), Verdict::Wait);
        assert_eq!(judge(&seen(0, 0, 0), &rollout, after(200)), Verdict::Promote);
        assert!(matches!(judge(&seen(5, 3, 9), &rollout, after(200)), Verdict::RollBack(_)));
    }

    proptest! {
        #[test]
        fn every_rollout_ends(requests: u64, errors: u64, p99_ms: u64, rate in 0.0f64..=1.0) {
            let rollout = rollout(Health { error_rate_max: rate, ..Health::default() });
            let verdict = judge(&seen(requests, errors, p99_ms), &rollout, after(200));
            prop_assert_ne!(verdict, Verdict::Wait);
        }
    }
}
