//! Whether a call gets a place in the queue.

use std::time::{Duration, Instant};

use sandpiper_domain::{Band, Share};

use super::{Ask, Queue, Refusal, TenantId, Waiting, nanos};

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
        if self.entries.len() >= self.limits.node || of_model >= self.limits.model {
            return Some(Refusal::Full);
        }
        let left = ask.deadline?.saturating_duration_since(now);
        if left.is_zero() {
            return Some(Refusal::Expired);
        }
        let behind_all = self.in_time(self.backlog_ns) + free + nanos(ask.floor_ns);
        if behind_all <= left {
            return None;
        }
        let before = self.before(tenant, ask.share, own.ns, backlog_cost(job, ask.rows));
        let wait = free + self.in_time(before);
        let late = wait + nanos(ask.floor_ns) > left;
        // When what waits now is done, the same call would find the queue as it is good for it.
        late.then_some(Refusal::Late { retry_after: wait.max(Duration::from_millis(1)) })
    }

    /// The work that is served before a call that a tenant adds to what it has waiting, in nanoseconds: its own, and
    /// of each other's as much as their weights allow in that time. The low band waits for the normal one.
    fn before(&self, tenant: Option<TenantId>, share: Share, own_ns: u64, cost_ns: u64) -> u64 {
        let ours = own_ns.saturating_add(cost_ns);
        let mut before = own_ns;
        for (&id, backlog) in &self.of_tenant {
            if Some(id) == tenant {
                continue;
            }
            let Some(other) = self.fair.share(id) else { continue };
            let part = match (share.band, other.band) {
                (Band::Normal, Band::Low) => 0,
                (Band::Low, Band::Normal) => backlog.ns,
                _ => {
                    let part = u128::from(ours) * u128::from(other.weight.max(1))
                        / u128::from(share.weight.max(1));
                    backlog.ns.min(u64::try_from(part).unwrap_or(u64::MAX))
                }
            };
            before = before.saturating_add(part);
        }
        before
    }

    /// How long the threads together take for this much work.
    fn in_time(&self, ns: u64) -> Duration {
        nanos(ns / self.limits.threads.max(1) as u64)
    }
}

/// What a call adds to the work that waits: under a backlog its rows run in the largest batches.
pub(super) fn backlog_cost(job: &impl Waiting, rows: usize) -> u64 {
    let largest = job.sizes().last().map_or(1, |size| (*size).max(1)) as usize;
    match rows >= largest {
        true => job.cost_ns(rows),
        false => {
            let part = u128::from(job.cost_ns(largest)) * rows as u128 / largest as u128;
            u64::try_from(part).unwrap_or(u64::MAX)
        }
    }
}
