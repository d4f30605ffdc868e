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

use crate::budget::TenantBytes;

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
    queue: Arc<Queue>,
}

/// The places for those who wait. All gates of a tenant share one queue, so that its length is the tenant's limit.
#[derive(Debug)]
struct Queue {
    waiting: AtomicU32,
    waiting_max: u32,
}

/// A place inside a gate; dropping it lets the next one in.
pub(crate) type Permit = OwnedSemaphorePermit;

impl Gate {
    fn new(inside_max: u32, queue: Arc<Queue>) -> Self {
        Gate { inside: Arc::new(Semaphore::new(inside_max as usize)), queue }
    }

    pub(crate) async fn enter(&self) -> Result<Permit, Refusal> {
        if let Ok(permit) = self.inside.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _place = Place::take(&self.queue).ok_or(Refusal::QueueFull)?;
        match tokio::time::timeout(WAIT_MAX, self.inside.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(Refusal::Waited),
        }
    }
}

/// A place in a queue, given back however the wait ends.
struct Place<'a>(&'a AtomicU32);

impl<'a> Place<'a> {
    fn take(queue: &'a Queue) -> Option<Self> {
        let next = |waiting| (waiting < queue.waiting_max).then_some(waiting + 1);
        queue.waiting.fetch_update(Relaxed, Relaxed, next).ok()?;
        Some(Place(&queue.waiting))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Uploads of one tenant that are worked on at once.
const UPLOADS_MAX: usize = 2;
/// Logs that one tenant may follow at once.
const FOLLOWERS_MAX: usize = 16;

/// The limits of one tenant, at work.
pub(crate) struct TenantAdmission {
    limits: TenantLimits,
    gate: Gate,
    /// A generic cell rate algorithm: ITU-T I.371, annex A.
    rate: Option<DefaultDirectRateLimiter>,
    pub(crate) uploads: Arc<Semaphore>,
    pub(crate) followers: Arc<Semaphore>,
    /// Streams of inferences that may be open at once; each may hold a message.
    pub(crate) streams: Arc<Semaphore>,
    /// The tenant's part of the bytes of requests and answers.
    pub(crate) bytes: Arc<TenantBytes>,
    /// Its part of the threads that read and write long ones.
    pub(crate) parsers: Arc<Semaphore>,
}

impl TenantAdmission {
    pub(crate) fn new(limits: TenantLimits, bytes: Arc<TenantBytes>, parsers: usize) -> Self {
        let rate = limits.rate.and_then(|rate| {
            let quota = Quota::per_second(NonZeroU32::new(rate.per_s)?);
            Some(RateLimiter::direct(quota.allow_burst(NonZeroU32::new(rate.burst)?)))
        });
        let queue = Queue { waiting: AtomicU32::new(0), waiting_max: limits.queue };
        TenantAdmission {
            limits,
            gate: Gate::new(limits.concurrency, Arc::new(queue)),
            rate,
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            streams: Arc::new(Semaphore::new(limits.concurrency as usize)),
            bytes,
            parsers: Arc::new(Semaphore::new(parsers)),
        }
    }

    /// Whether it was made for these limits.
    pub(crate) fn is_for(&self, limits: &TenantLimits) -> bool {
        self.limits == *limits
    }

    /// A gate of one of the tenant's functions.
    pub(crate) fn function_gate(&self, inside_max: u32) -> Gate {
        Gate::new(inside_max, self.gate.queue.clone())
    }

    /// Lets one request of a function in. The function's gate comes before the tenant's: who waits there must not take
    /// a place from the tenant's other functions.
    pub(crate) async fn enter(&self, function: &Gate) -> Result<[Permit; 2], Refusal> {
        if self.rate.as_ref().is_some_and(|rate| rate.check().is_err()) {
            return Err(Refusal::Rate);
        }
        let function = function.enter().await?;
        Ok([function, self.gate.enter().await?])
    }

    /// Lets one inference in that comes without a function.
    pub(crate) async fn enter_inference(&self) -> Result<Permit, Refusal> {
        if self.rate.as_ref().is_some_and(|rate| rate.check().is_err()) {
            return Err(Refusal::Rate);
        }
        self.gate.enter().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use sandpiper_domain::{Band, Budget, RateLimit};

    use super::*;
    use crate::budget::ByteBudget;

    fn tenant(concurrency: u32, queue: u32, rate: Option<RateLimit>) -> TenantAdmission {
        let limits = TenantLimits {
            concurrency,
            sandboxes: 4 * concurrency,
            jobs: 1,
            batch_mib: 1,
            budget: Budget::default(),
            queue,
            rate,
            functions: 1,
            models: 1,
            versions: 1,
            component_mib: 1,
            model_mib: 1,
            pinned_mib: 1,
            weight: 1,
            band: Band::Normal,
        };
        TenantAdmission::new(limits, ByteBudget::new(1 << 20).tenant(), 1)
    }

    #[tokio::test]
    async fn a_gate_lets_in_as_many_as_it_should_and_queues_as_many_as_it_may() {
        let tenant = Arc::new(tenant(2, 1, None));
        let function = Arc::new(tenant.function_gate(100));
        let first = tenant.enter(&function).await.unwrap();
        let _second = tenant.enter(&function).await.unwrap();
        let waiting = tokio::spawn({
            let (tenant, function) = (tenant.clone(), function.clone());
            async move { tenant.enter(&function).await.map(drop) }
        });
        while tenant.gate.queue.waiting.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(tenant.enter(&function).await.map(drop), Err(Refusal::QueueFull));
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(tenant.gate.queue.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn the_functions_of_a_tenant_share_its_queue() {
        let tenant = tenant(100, 1, None);
        let (one, other) = (tenant.function_gate(1), tenant.function_gate(1));
        let _inside = (tenant.enter(&one).await.unwrap(), tenant.enter(&other).await.unwrap());
        let mut waiting = std::pin::pin!(tenant.enter(&one));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(tenant.enter(&other).await.map(drop), Err(Refusal::QueueFull));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_queue() {
        let tenant = tenant(1, 1, None);
        let function = tenant.function_gate(1);
        let _inside = tenant.enter(&function).await.unwrap();
        assert!(tenant.enter(&function).now_or_never().is_none());
        assert_eq!(tenant.gate.queue.waiting.load(Relaxed), 0);
    }

    #[tokio::test]
    async fn a_burst_passes_and_the_next_one_is_too_fast() {
        let tenant = tenant(100, 0, Some(RateLimit { per_s: 1, burst: 3 }));
        let function = tenant.function_gate(100);
        for _ in 0..3 {
            assert!(tenant.enter(&function).await.is_ok());
        }
        assert_eq!(tenant.enter(&function).await.map(drop), Err(Refusal::Rate));
    }
}
