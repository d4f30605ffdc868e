//! Whether a call gets a place in the queue.

use std::time::{Duration, Instant};

use sandpiper_domain::{Band, Share};

use super::{Ask, Queue, Refusal, TenantId, Waiting, nanos, whole_ns};

/// The most that one call adds to the backlog. The sum over a queue of any length stays far below what a counter holds.
const COST_NS_MAX: u64 = 600_000_000_000;
/// Nobody is told to come back later than this: by then the queue is another one.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);

impl<J: Waiting> Queue<J> {
    pub(super) fn refuse(
        &self,
        ask: &Ask<'_>,
        job: &J,
        free: Duration,
        now: Instant,
    ) -> Option<Refusal> {
        let tenant = self.fair.find(ask.tenant);
        let own = tenant.and_then(|id| self.of_tenant.get(&id)).copied().unwrap_or_default();
        if own.calls >= self.limits.tenant {
            return Some(Refusal::Tenant);
        }
        let of_model = self.of_model.get(&ask.model).copied().unwrap_or(0);
        let places = self.limits.node.saturating_sub(self.entries.len());
        if places == 0 || of_model >= self.limits.model {
            return Some(Refusal::Full);
        }
        // As the queue fills each tenant may have less of it, so that there is always a place for the next one.
        if own.calls > 0 && own.calls >= places {
            return Some(Refusal::Tenant);
        }
        let left = ask.deadline?.saturating_duration_since(now);
        if left.is_zero() {
            return Some(Refusal::Expired);
        }
        // The least that its runs took was perhaps taken from larger ones: one of its calls is always let in to learn.
        let floor = if of_model == 0 { Duration::ZERO } else { nanos(ask.floor_ns) };
        // Others' estimates alone refuse nobody: they follow from what those callers sent.
        let is_idle = tenant.is_none_or(|id| self.fair.is_idle(id));
        let behind_all = self.in_time(self.backlog_ns) + free + floor;
        if behind_all <= left || (is_idle && floor <= left) {
            return None;
        }
        let cost_ns = backlog_cost(job, ask, now);
        let before = self.before(tenant, ask.share, own.ns, cost_ns);
        let wait = free + self.in_time(before);
        let late = wait + floor > left;
        // When what waits now is done, the same call would find the queue as it is good for it.
        let retry_after = wait.clamp(Duration::from_millis(1), RETRY_AFTER_MAX);
        late.then_some(Refusal::Late { retry_after })
    }

    /// The work that is served before a call that a tenant adds to what it has waiting, in nanoseconds: its own, and
    /// of each other's as much as their weights allow in that time. The low band waits for the normal one.
    pub(super) fn before(
        &self,
        tenant: Option<TenantId>,
        share: Share,
        own: [u64; 2],
        cost_ns: u64,
    ) -> u64 {
        let [normal, low] = own;
        let own_ns = if share.band == Band::Low { normal.saturating_add(low) } else { normal };
        let ours = own_ns.saturating_add(cost_ns);
        let mut before = own_ns;
        for (&id, backlog) in &self.of_tenant {
            if Some(id) == tenant {
                continue;
            }
            let weight = u128::from(self.fair.weight(id));
            let due = u128::from(ours) * weight / u128::from(share.weight.max(1));
            let due = |ns: u64| ns.min(u64::try_from(due).unwrap_or(u64::MAX));
            let [normal, low] = backlog.ns;
            let part = match share.band {
                Band::Normal => due(normal),
                Band::Low => normal.saturating_add(due(low)),
            };
            before = before.saturating_add(part);
        }
        before
    }

    /// How long the threads together take for this much work.
    pub(super) fn in_time(&self, ns: u64) -> Duration {
        nanos(ns / self.limits.threads.max(1) as u64)
    }
}

/// What a call adds to the work that waits: under a backlog its rows run in the largest batches. It is no more than is
/// left until the deadline, when the call ends however it stands.
pub(super) fn backlog_cost(job: &impl Waiting, ask: &Ask<'_>, now: Instant) -> u64 {
    let largest = job.sizes().last().map_or(1, |size| (*size).max(1)) as usize;
    let ns = match ask.rows >= largest {
        true => job.cost_ns(ask.rows),
        false => {
            let part = u128::from(job.cost_ns(largest)) * ask.rows as u128 / largest as u128;
            u64::try_from(part).unwrap_or(u64::MAX)
        }
    };
    let left = ask.deadline.map(|by| whole_ns(by.saturating_duration_since(now)));
    ns.min(left.unwrap_or(COST_NS_MAX)).min(COST_NS_MAX)
}
