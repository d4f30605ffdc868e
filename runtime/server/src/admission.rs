//! Who may come in now: rate, then concurrency with a bounded queue, for each tenant and each function version.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    time::Duration,
};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use sandpiper_domain::TenantLimits;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The longest a request waits at a gate. A client that gets its 429 sooner can do something about it.
const WAIT_MAX: Duration = Duration::from_secs(10);

/// Why a request was turned away. All of these are the tenant's own limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Faster than the tenant's rate.
    Rate,
    /// The queue in front of the gate is full.
    QueueFull,
    /// It waited, and its turn did not come.
    Waited,
}

/// Lets a number of requests in at once and a number of others wait, first come, first served.
#[derive(Debug)]
pub(crate) struct Gate {
    inside: Arc<Semaphore>,
    waiting: AtomicU32,
    waiting_max: u32,
}

/// A place inside a gate; dropping it lets the next one in.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Gate {
    pub(crate) fn new(inside_max: u32, waiting_max: u32) -> Self {
        let inside = Arc::new(Semaphore::new(inside_max as usize));
        Gate { inside, waiting: AtomicU32::new(0), waiting_max }
    }

    pub(crate) async fn enter(&self) -> Result<Permit, Refusal> {
        if let Ok(permit) = self.inside.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(&self.waiting, self.waiting_max).ok_or(Refusal::QueueFull)?;
        match tokio::time::timeout(WAIT_MAX, self.inside.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Refusal::Waited),
        }
    }
}

/// A place in a queue, given back however the wait ends.
struct Place<'a>(&'a AtomicU32);

impl<'a> Place<'a> {
    fn take(waiting: &'a AtomicU32, waiting_max: u32) -> Option<Self> {
        waiting.fetch_update(Relaxed, Relaxed, |n| (n < waiting_max).then_some(n + 1)).ok()?;
        Some(Place(waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// The limits of one tenant, at work.
pub(crate) struct TenantAdmission {
    limits: TenantLimits,
    gate: Gate,
    /// A generic cell rate algorithm: ITU-T I.371, annex A.
    rate: Option<DefaultDirectRateLimiter>,
}

impl TenantAdmission {
    pub(crate) fn new(limits: TenantLimits) -> Self {
        let rate = limits.rate.and_then(|rate| {
            let quota = Quota::per_second(NonZeroU32::new(rate.per_s)?);
            Some(RateLimiter::direct(quota.allow_burst(NonZeroU32::new(rate.burst)?)))
        });
        TenantAdmission { limits, gate: Gate::new(limits.concurrency, limits.queue), rate }
    }

    /// Whether it was made for these limits.
    pub(crate) fn is_for(&self, limits: &TenantLimits) -> bool {
        self.limits == *limits
    }

    pub(crate) async fn enter(&self) -> Result<Permit, Refusal> {
        if self.rate.as_ref().is_some_and(|rate| rate.check().is_err()) {
            return Err(Refusal::Rate);
        }
        self.gate.enter().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use sandpiper_domain::{Band, RateLimit};

    use super::*;

    #[tokio::test]
    async fn a_gate_lets_in_as_many_as_it_should_and_queues_as_many_as_it_may() {
        let gate = Arc::new(Gate::new(2, 1));
        let first = gate.enter().await.unwrap();
        let _second = gate.enter().await.unwrap();
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter().await.map(drop) }
        });
        while gate.waiting.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(gate.enter().await.map(drop), Err(Refusal::QueueFull));
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(gate.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_queue() {
        let gate = Gate::new(1, 1);
        let _inside = gate.enter().await.unwrap();
        assert!(gate.enter().now_or_never().is_none());
        assert_eq!(gate.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_burst_passes_and_the_next_one_is_too_fast() {
        let admission = TenantAdmission::new(TenantLimits {
            concurrency: 100,
            queue: 0,
            rate: Some(RateLimit { per_s: 1, burst: 3 }),
            functions: 1,
            models: 1,
            versions: 1,
            component_mib: 1,
            model_mib: 1,
            weight: 1,
            band: Band::Normal,
        });
        for _ in 0..3 {
            assert!(admission.enter().await.is_ok());
        }
        assert_eq!(admission.enter().await.map(drop), Err(Refusal::Rate));
    }
}
