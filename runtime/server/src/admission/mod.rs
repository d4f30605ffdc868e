//! Who may come in now: rate, then places among those that run and those that are alive, for each tenant and each
//! function version.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use governor::{
    DefaultDirectRateLimiter, Quota, RateLimiter,
    clock::{Clock, DefaultClock},
};
use sandpiper_control::Owner;
use sandpiper_domain::{Lane, TenantLimits};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{budget::TenantBytes, respond::Problem};

mod gate;
mod meter;

pub(crate) use gate::{Crowd, Entry};
use gate::{FunctionPlaces, Places};
pub(crate) use meter::{Account, Habits, Held, Inference, Meter, Transferred};

/// Why a request was turned away, and when it may come again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) cause: Cause,
    pub(crate) retry_after: Duration,
}

/// The limit that a request has met. All of these are the tenant's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Faster than the tenant's rate.
    Rate,
    /// As many wait for a place as may.
    QueueFull,
    /// It waited, and its turn did not come.
    Waited,
    /// This part of the month's budget is used up.
    Budget(&'static str),
    /// Models are asked for so much that the function could not be answered in time.
    Inference,
}

impl Refusal {
    /// Whole seconds, never too few.
    pub(crate) fn retry_after_s(&self) -> u32 {
        let seconds = self.retry_after.as_secs_f64().ceil();
        (seconds as u32).max(1)
    }
}

impl Cause {
    pub(crate) fn code(self) -> &'static str {
        match self {
            Cause::Rate => "rate_limited",
            Cause::QueueFull => "queue_full",
            Cause::Waited => "queue_timeout",
            Cause::Budget(_) => "budget_exhausted",
            Cause::Inference => "inference_saturated",
        }
    }

    pub(crate) fn text(self) -> &'static str {
        match self {
            Cause::Rate => "the tenant sends requests faster than its limit",
            Cause::QueueFull => "as many requests run and wait as the tenant's limits allow",
            Cause::Waited => "the request waited too long for its turn",
            Cause::Budget("requests") => "the tenant has used up its requests of this month",
            Cause::Budget("cpu_s") => "the tenant has used up its CPU time of this month",
            Cause::Budget("memory_gib_s") => "the tenant has used up its memory of this month",
            Cause::Budget(_) => "the tenant has used up its inference time of this month",
            Cause::Inference => "more inferences wait than could be answered in time",
        }
    }
}

/// What runs on the whole node. A batch leaves a core to those whose answers are waited for.
#[derive(Debug)]
pub(crate) struct Pressure {
    running: [AtomicU32; 3],
    cores: u32,
}

impl Pressure {
    pub(crate) fn new(cores: usize) -> Self {
        Pressure { running: Default::default(), cores: cores.clamp(1, 1 << 16) as u32 }
    }

    fn add(&self, lane: Lane) {
        self.running[lane as usize].fetch_add(1, Relaxed);
    }

    fn remove(&self, lane: Lane) {
        self.running[lane as usize].fetch_sub(1, Relaxed);
    }

    /// Two tenants that ask at once may both be told so; one shard too many does no harm.
    fn has_room_for_batch(&self) -> bool {
        let interactive = self.running[Lane::Interactive as usize].load(Relaxed);
        let batch = self.running[Lane::Batch as usize].load(Relaxed);
        let kept = u32::from(interactive > 0);
        batch < self.cores.saturating_sub(kept).max(1)
    }
}

/// The gate of one function version.
pub(crate) type Gate = Arc<FunctionPlaces>;

/// Uploads of one tenant that are worked on at once.
const UPLOADS_MAX: usize = 2;
/// Logs that one tenant may follow at once.
const FOLLOWERS_MAX: usize = 16;

/// The limits of one tenant, at work.
pub(crate) struct TenantAdmission {
    limits: TenantLimits,
    places: Arc<Places>,
    pub(crate) account: Account,
    /// A generic cell rate algorithm: ITU-T I.371, annex A.
    rate: Option<DefaultDirectRateLimiter>,
    /// Half of it, which is what jobs and batches may use: those who wait for an answer have the other half at least.
    rate_beside: Option<DefaultDirectRateLimiter>,
    pub(crate) uploads: Arc<Semaphore>,
    followers: Arc<Semaphore>,
    /// Streams of inferences that may be open at once; each may hold a message.
    pub(crate) streams: Arc<Semaphore>,
    /// The tenant's part of the bytes of requests and answers.
    pub(crate) bytes: Arc<TenantBytes>,
    /// Its part of the threads that read and write long ones.
    pub(crate) parsers: Arc<Semaphore>,
    /// Its sandboxes that are ready, or about to be.
    pub(crate) ready: Arc<AtomicUsize>,
}

/// Of the sandboxes that a node keeps ready, one tenant has no more than this part.
const READY_DIVISOR: usize = 4;

impl TenantAdmission {
    /// A place for one more who follows; `what` is what is followed, in the plural.
    pub(crate) fn follower(&self, what: &'static str) -> Result<OwnedSemaphorePermit, Problem> {
        self.followers.clone().try_acquire_owned().map_err(|_| {
            let message = format!("as many {what} of this tenant are being followed as may be");
            Problem::too_many("follower_limit", &message)
        })
    }

    pub(crate) fn new(
        limits: TenantLimits,
        (bytes, ready): (Arc<TenantBytes>, Arc<AtomicUsize>),
        parsers: usize,
        pressure: Arc<Pressure>,
        account: Account,
    ) -> Self {
        let limiter = |part: u32| {
            let rate = limits.rate?;
            let quota = Quota::per_second(NonZeroU32::new(rate.per_s.div_ceil(part))?);
            Some(RateLimiter::direct(
                quota.allow_burst(NonZeroU32::new(rate.burst.div_ceil(part))?),
            ))
        };
        TenantAdmission {
            limits,
            places: Arc::new(Places::new(&limits, pressure)),
            account,
            rate: limiter(1),
            rate_beside: limiter(2),
            uploads: Arc::new(Semaphore::new(UPLOADS_MAX)),
            followers: Arc::new(Semaphore::new(FOLLOWERS_MAX)),
            streams: Arc::new(Semaphore::new(limits.concurrency as usize)),
            bytes,
            parsers: Arc::new(Semaphore::new(parsers)),
            ready,
        }
    }

    /// How many of its sandboxes may be ready on a node that keeps so many.
    pub(crate) fn ready_max(&self, of_node: usize) -> usize {
        (of_node / READY_DIVISOR).max(1).min(self.limits.sandboxes as usize)
    }

    /// Whether something of its budget is left.
    pub(crate) fn has_budget(&self) -> bool {
        self.account.check(self.limits.budget).is_ok()
    }

    /// Whether it was made for this tenant, and not for an earlier one of its name, with these limits.
    pub(crate) fn is_for(&self, owner: &Owner, limits: &TenantLimits) -> bool {
        self.limits == *limits && self.account.owner == *owner
    }

    /// A gate of one of the tenant's functions, for as many alive at once.
    pub(crate) fn function_gate(&self, alive_max: u32) -> Gate {
        Arc::new(FunctionPlaces::new(alive_max))
    }

    /// How many run, wait for a model, and wait for a place.
    pub(crate) fn crowd(&self) -> Crowd {
        self.places.crowd()
    }

    /// Lets one request of a function in, which came just now.
    pub(crate) async fn enter(
        &self,
        function: &Gate,
        lane: Lane,
        now: Instant,
    ) -> Result<Arc<Entry>, Refusal> {
        self.check(lane).map_err(told)?;
        self.places.enter(Some(function), lane, now).await.map(Arc::new).map_err(told)
    }

    /// Lets one inference in that comes without a function.
    pub(crate) async fn enter_inference(&self) -> Result<Entry, Refusal> {
        self.check(Lane::Interactive).map_err(told)?;
        self.places.enter(None, Lane::Interactive, Instant::now()).await.map_err(told)
    }

    /// Budget and rate.
    fn check(&self, lane: Lane) -> Result<(), Refusal> {
        self.account.check(self.limits.budget)?;
        let beside = self.rate_beside.as_ref().filter(|_| lane != Lane::Interactive);
        beside.into_iter().chain(&self.rate).try_for_each(|rate| {
            rate.check().map_err(|early| Refusal {
                cause: Cause::Rate,
                retry_after: early.wait_time_from(DefaultClock::default().now()),
            })
        })
    }
}

/// Counts a refusal.
pub(crate) fn told(refusal: Refusal) -> Refusal {
    metrics::counter!("sandpiper_admission_refused_total", "reason" => refusal.cause.code())
        .increment(1);
    refusal
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use sandpiper_control::{Amounts, Ledger, Month};
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
        TenantAdmission::new(
            limits,
            (ByteBudget::new(1 << 20).tenant(), Arc::default()),
            1,
            Arc::new(Pressure::new(2)),
            account(),
        )
    }

    fn account() -> Account {
        let now = time::OffsetDateTime::UNIX_EPOCH;
        let owner = Owner::new("acme".parse().unwrap(), now);
        let ledger = Ledger::new(Month::of(now), Amounts::default());
        Account { owner, ledger: Arc::new(ledger) }
    }

    fn cause(answer: Result<Arc<Entry>, Refusal>) -> Option<Cause> {
        answer.err().map(|refusal| refusal.cause)
    }

    async fn enter(tenant: &TenantAdmission, function: &Gate) -> Result<Arc<Entry>, Refusal> {
        tenant.enter(function, Lane::Interactive, Instant::now()).await
    }

    #[test]
    fn a_tenant_has_a_part_of_what_is_kept_ready() {
        // It may have 8 alive.
        let tenant = tenant(2, 1, None);
        assert_eq!([1, 4, 8, 500].map(|of_node| tenant.ready_max(of_node)), [1, 1, 2, 8]);
    }

    #[tokio::test]
    async fn a_gate_lets_in_as_many_as_it_should_and_queues_as_many_as_it_may() {
        let tenant = Arc::new(tenant(2, 1, None));
        let function = tenant.function_gate(100);
        let first = enter(&tenant, &function).await.unwrap();
        let _second = enter(&tenant, &function).await.unwrap();
        let waiting = tokio::spawn({
            let (tenant, function) = (tenant.clone(), function.clone());
            async move { enter(&tenant, &function).await.map(drop) }
        });
        while tenant.crowd().waiting[0] == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(cause(enter(&tenant, &function).await), Some(Cause::QueueFull));
        drop(first);
        assert_eq!(waiting.await.unwrap(), Ok(()));
        assert_eq!(tenant.crowd().waiting[0], 0);
    }

    #[tokio::test]
    async fn the_functions_of_a_tenant_share_its_queue() {
        let tenant = tenant(100, 1, None);
        let (one, other) = (tenant.function_gate(1), tenant.function_gate(1));
        let _inside = (enter(&tenant, &one).await.unwrap(), enter(&tenant, &other).await.unwrap());
        let mut waiting = std::pin::pin!(enter(&tenant, &one));
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!(cause(enter(&tenant, &other).await), Some(Cause::QueueFull));
    }

    #[tokio::test]
    async fn one_who_gives_up_leaves_the_queue() {
        let tenant = tenant(1, 1, None);
        let function = tenant.function_gate(1);
        let _inside = enter(&tenant, &function).await.unwrap();
        assert!(enter(&tenant, &function).now_or_never().is_none());
        assert_eq!(tenant.crowd().waiting[0], 0);
    }

    #[tokio::test]
    async fn a_burst_passes_and_the_next_one_is_too_fast() {
        let tenant = tenant(100, 0, Some(RateLimit { per_s: 1, burst: 3 }));
        let function = tenant.function_gate(100);
        for _ in 0..3 {
            assert!(enter(&tenant, &function).await.is_ok());
        }
        assert_eq!(cause(enter(&tenant, &function).await), Some(Cause::Rate));
    }

    #[tokio::test]
    async fn jobs_and_batches_together_use_half_of_the_rate() {
        let tenant = tenant(100, 0, Some(RateLimit { per_s: 1, burst: 6 }));
        let function = tenant.function_gate(100);
        for lane in [Lane::Job, Lane::Batch, Lane::Job] {
            assert!(tenant.enter(&function, lane, Instant::now()).await.is_ok());
        }
        for lane in [Lane::Job, Lane::Batch] {
            assert_eq!(
                cause(tenant.enter(&function, lane, Instant::now()).await),
                Some(Cause::Rate)
            );
        }
        for _ in 0..3 {
            assert!(tenant.enter(&function, Lane::Interactive, Instant::now()).await.is_ok());
        }
    }
}
