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

/// What a version has done with the requests that its rollout sent to it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Observed {
    /// Its requests, but for those of `cancelled`.
    pub requests: u64,
    /// Those of them that failed.
    pub errors: u64,
    /// Requests whose callers soon left without an answer, which tells nothing of the version.
    pub cancelled: u64,
    /// What 99 of 100 of the requests took at most, when there was any.
    pub p99_ms: Option<u64>,
}

/// What is known of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What the new version did.
    pub candidate: Observed,
    /// What the version of before did meanwhile.
    pub stable: Observed,
    /// Since when both are watched without a break: since the rollout began, or since the node was started.
    pub from: OffsetDateTime,
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

/// Judges a rollout.
///
/// - With fewer requests than it wants it waits for them as long again as it was to wait at all; what there is by then
///   decides. Time in which nobody watched does not count as waiting.
/// - A new version that fails more often than it may is taken back at once, unless the version of before fails as well:
///   then something else is out of order, and the new one is to blame only for what it fails beyond that. It waits, is
///   promoted once it keeps to its part, and is taken back when it has not by the end. The version of before counts
///   from as many requests on as the new one needs.
/// - Times are compared with what the rollout allows alone.
/// - Where all callers left without an answer, it is taken back in the end.
pub fn judge(seen: &Seen, rollout: &Rollout, now: OffsetDateTime) -> Verdict {
    let bake = rollout.bake_until - rollout.began_at;
    let last = rollout.bake_until.max(seen.from).saturating_add(bake);
    let is_enough = seen.candidate.requests >= rollout.health.requests_min;
    let is_last = now >= last;
    // Even who asks for no requests at all asks for the time.
    let is_watched = seen.candidate.requests > 0 || now >= seen.from.saturating_add(bake);
    if !is_enough && !is_last {
        return Verdict::Wait;
    }
    match fault(seen, rollout) {
        Some(fault) if fault.is_its_own || is_last => Verdict::RollBack(fault.reason),
        None if is_watched && now >= rollout.bake_until => Verdict::Promote,
        Some(_) | None => Verdict::Wait,
    }
}

/// What speaks against a new version.
struct Fault {
    reason: String,
    /// Whether it is the version's for certain.
    is_its_own: bool,
}

fn fault(seen: &Seen, rollout: &Rollout) -> Option<Fault> {
    let (health, candidate) = (&rollout.health, &seen.candidate);
    let Observed { requests, errors, cancelled, p99_ms } = *candidate;
    let max = health.error_rate_max;
    let is_over = candidate.error_rate() > max;
    let failed =
        || format!("{errors} of {requests} requests failed, more than {:.1} %", max * 100.0);
    let is_known = seen.stable.requests >= health.requests_min;
    let usual = if is_known { seen.stable.error_rate() } else { 0.0 };
    if candidate.error_rate() > usual + max {
        return Some(Fault { reason: failed(), is_its_own: true });
    }
    if let Some((p99, max)) = p99_ms.zip(health.p99_ms_max).filter(|(p99, max)| p99 > max) {
        let reason =
            format!("one of 100 requests took {p99} ms or longer, more than the {max} ms allowed");
        return Some(Fault { reason, is_its_own: true });
    }
    if is_over {
        let reason = format!("{}; version {} failed, too", failed(), rollout.stable);
        return Some(Fault { reason, is_its_own: false });
    }
    let is_unanswered = requests == 0 && cancelled > 0;
    is_unanswered.then(|| {
        let reason = format!("none of {cancelled} requests was answered before its caller left");
        Fault { reason, is_its_own: false }
    })
}

impl Observed {
    fn error_rate(&self) -> f64 {
        self.errors as f64 / self.requests.max(1) as f64
    }
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

    fn observed(requests: u64, errors: u64, p99_ms: u64) -> Observed {
        let p99_ms = (requests > 0).then_some(p99_ms);
        Observed { requests, errors, cancelled: 0, p99_ms }
    }

    fn seen(requests: u64, errors: u64, p99_ms: u64) -> Seen {
        let candidate = observed(requests, errors, p99_ms);
        Seen { candidate, stable: Observed::default(), from: after(0) }
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

    #[test]
    fn time_in_which_nobody_watched_is_no_proof() {
        let rollout = rollout(Health::default());
        // The node was down from the beginning to long after the end.
        let back = |requests, errors| Seen { from: after(1_000), ..seen(requests, errors, 9) };
        assert_eq!(judge(&back(0, 0), &rollout, after(1_000)), Verdict::Wait);
        assert_eq!(judge(&back(19, 0), &rollout, after(1_099)), Verdict::Wait);
        assert_eq!(judge(&back(19, 0), &rollout, after(1_100)), Verdict::Promote);
        assert_eq!(judge(&back(20, 0), &rollout, after(1_001)), Verdict::Promote);
        assert!(matches!(judge(&back(20, 9), &rollout, after(1_001)), Verdict::RollBack(_)));
        let rollout = self::rollout(Health { requests_min: 0, ..Health::default() });
        assert_eq!(judge(&back(0, 0), &rollout, after(1_099)), Verdict::Wait);
        assert_eq!(judge(&back(0, 0), &rollout, after(1_100)), Verdict::Promote);
        assert_eq!(judge(&seen(0, 0, 0), &rollout, after(100)), Verdict::Promote);
    }

    #[test]
    fn what_fails_everywhere_is_not_the_new_version() {
        let rollout = rollout(Health::default());
        let with = |errors: u64, of_stable: u64, seconds: i64| {
            let seen = Seen { stable: observed(100, of_stable, 9), ..seen(20, errors, 9) };
            judge(&seen, &rollout, after(seconds))
        };
        // Both fail as often: it waits, and who has not recovered by the end does not take over.
        assert_eq!(with(20, 100, 199), Verdict::Wait);
        let Verdict::RollBack(reason) = with(20, 100, 200) else { panic!("it took over") };
        assert_eq!(reason, "20 of 20 requests failed, more than 5.0 %; version 1 failed, too");
        // It fails more often than that explains.
        assert!(matches!(with(20, 94, 1), Verdict::RollBack(_)));
        assert_eq!(with(20, 95, 1), Verdict::Wait);
        // It has recovered.
        assert_eq!(with(1, 100, 100), Verdict::Promote);
    }

    #[test]
    fn few_requests_of_the_stable_version_excuse_nothing() {
        let stable = observed(19, 19, 9);
        let seen = Seen { stable, ..seen(20, 20, 9) };
        let verdict = judge(&seen, &rollout(Health::default()), after(1));
        assert!(matches!(verdict, Verdict::RollBack(_)));
    }

    #[test]
    fn callers_that_all_leave_promote_nothing() {
        for requests_min in [0, 20] {
            let rollout = rollout(Health { requests_min, ..Health::default() });
            let candidate = Observed { cancelled: 7, ..Observed::default() };
            let seen = Seen { candidate, ..seen(0, 0, 0) };
            assert_eq!(judge(&seen, &rollout, after(199)), Verdict::Wait);
            let Verdict::RollBack(reason) = judge(&seen, &rollout, after(200)) else {
                panic!("it took over");
            };
            assert_eq!(reason, "none of 7 requests was answered before its caller left");
        }
    }

    proptest! {
        #[test]
        fn every_rollout_ends(
            requests: u64,
            errors: u64,
            cancelled: u64,
            p99_ms: u64,
            of_stable: (u64, u64),
            rate in 0.0f64..=1.0,
        ) {
            let rollout = rollout(Health { error_rate_max: rate, ..Health::default() });
            let candidate = Observed { cancelled, ..observed(requests, errors, p99_ms) };
            let stable = observed(of_stable.0, of_stable.1, p99_ms);
            let verdict = judge(&Seen { candidate, stable, from: after(0) }, &rollout, after(200));
            prop_assert_ne!(verdict, Verdict::Wait);
        }
    }
}
