//! A model in memory, and how a call of it reaches a compute thread.

use std::{
    fmt,
    future::ready,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use sandpiper_domain::{
    BoxFuture, BriefRuns, DataType, InferenceError, InferenceRequest, Model, ModelOptions,
    ModelSignature, TenantName, Tensor,
};
use tokio::sync::oneshot;

use crate::{
    Measurement, ModelProfile, ModelStats,
    backend::{Held, Hold, Program},
    batch,
    builders::Builders,
    cost::Costs,
    health::Health,
    response_cache::{Lookup, ModelCache},
    scheduler::{Answer, Ask, Job, Pending, Refusal, Scheduler, Ticket},
};

/// A call with more rows than this counts as one with so many.
const ROWS_MAX: usize = 1 << 32;

/// What a model's calls on the compute threads share.
pub(crate) struct Core {
    /// Tells this loaded model from all others.
    pub(crate) id: u64,
    pub(crate) program: Arc<dyn Program>,
    /// Make plans for shapes that come for the first time.
    pub(crate) builders: Arc<Builders>,
    /// The sizes of batches, without 1; empty where calls run one by one.
    pub(crate) sizes: Vec<u32>,
    pub(crate) delay: Duration,
    pub(crate) costs: Costs,
    pub(crate) health: Health,
    pub(crate) stats: Arc<ModelStats>,
    /// Axes other than that of the rows may differ from call to call.
    is_varied: bool,
    /// What it takes depends on its rows alone.
    is_steady: bool,
}

/// A call that takes no more than this is brief: handing it to a compute thread and back takes about as long, for two
/// threads have to be woken.
const BRIEF_NS: u64 = 100_000;
/// Looking longer strings up may take longer than that.
const BRIEF_STRINGS_MAX: usize = 16 << 10;

/// One model version, parsed and optimised. Every function and request that uses the version shares it.
pub struct LoadedModel {
    core: Arc<Core>,
    scheduler: Arc<Scheduler>,
    profile: Arc<ModelProfile>,
    options: ModelOptions,
    responses: Option<ModelCache>,
}

impl LoadedModel {
    /// The threads are those that run it and those that make plans for it; `responses` is its part of the cache of
    /// answers, where it has one.
    pub(crate) fn new(
        program: Arc<dyn Program>,
        (scheduler, builders): (Arc<Scheduler>, Arc<Builders>),
        options: &ModelOptions,
        stats: Arc<ModelStats>,
        responses: Option<ModelCache>,
    ) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        stats.loads.fetch_add(1, Relaxed);
        let (batching, memory_bytes) = (program.batching().clone(), program.footprint().bytes());
        let (operators, parameters) = (program.operators().clone(), program.parameters());
        let sizes: Vec<u32> = batching.sizes.iter().copied().filter(|size| *size > 1).collect();
        let inputs = &program.contract().signature.inputs;
        // The rows of a model without batches are part of the width.
        let fixed = usize::from(!sizes.is_empty());
        let is_free = |size: &i64| *size < 0;
        let is_free_from =
            |axis: usize| inputs.iter().any(|input| input.shape.iter().skip(axis).any(is_free));
        let is_varied = is_free_from(fixed);
        // What samples took says little of calls of other shapes.
        let curve = batching.curve.iter().filter(|_| !is_varied);
        let costs = Costs::new(curve.map(|cost| (cost.size, (cost.us * 1e3) as u64)));
        let is_steady = !is_free_from(1) && program.is_steady();
        let core = Core {
            id: NEXT.fetch_add(1, Relaxed),
            program,
            builders,
            sizes,
            delay: Duration::from_micros(options.max_delay_us),
            costs,
            health: Health::default(),
            stats,
            is_varied,
            is_steady,
        };
        let profile = Arc::new(ModelProfile { operators, parameters, memory_bytes, batching });
        let (core, options) = (Arc::new(core), options.clone());
        LoadedModel { core, scheduler, profile, options, responses }
    }

    /// How it is run and kept.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// What it holds in memory now, in bytes: as in its profile, and what plans for further shapes have added.
    pub fn memory_bytes(&self) -> u64 {
        self.core.program.footprint().bytes()
    }

    /// Whether calls of it wait or run.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.core) > 1
    }

    /// What is in it, and what it costs.
    pub fn profile(&self) -> &Arc<ModelProfile> {
        &self.profile
    }

    /// What measuring it gave, to be kept for the next time that it is loaded.
    pub fn measurement(&self) -> Measurement {
        Measurement::of(&self.profile.batching)
    }

    /// What its calls have come to.
    pub fn stats(&self) -> &Arc<ModelStats> {
        &self.core.stats
    }

    /// Why the model is in quarantine, if it is: it panicked three times in a row. Loading it again ends that.
    pub fn quarantine(&self) -> Option<String> {
        self.core.health.reason()
    }

    /// Says whose model it is, which matters for who can bring it into quarantine.
    pub(crate) fn belongs_to(&self, owner: &TenantName) {
        self.core.health.belongs_to(owner);
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("signature", self.signature()).finish_non_exhaustive()
    }
}

impl Model for LoadedModel {
    fn signature(&self) -> &ModelSignature {
        &self.core.program.contract().signature
    }

    fn infer(&self, request: InferenceRequest) -> BoxFuture<'static, Answer> {
        // Nothing is looked up for a call that will be refused.
        let is_refused = || self.core.health.refusal(&request.tenant).is_some();
        let responses = self.responses.as_ref().filter(|_| !is_refused());
        let lookup = responses.map(|responses| responses.look_up(&request));
        match lookup {
            Some(Lookup::Hit(output)) => Box::pin(ready(Ok(output))),
            Some(Lookup::Miss(place)) => {
                let answer = self.compute(request);
                Box::pin(async move { answer.await.inspect(|output| place.keep(output)) })
            }
            Some(Lookup::Pass) | None => self.compute(request),
        }
    }
}

impl LoadedModel {
    fn compute(&self, request: InferenceRequest) -> BoxFuture<'static, Answer> {
        let (core, scheduler) = (self.core.clone(), self.scheduler.clone());
        Box::pin(async move {
            let with_others = request.batch_with_others;
            let InferenceRequest { tenant, share, deadline, inputs, brief, bill, .. } = request;
            if let Some(refusal) = core.health.refusal(&tenant) {
                core.stats.rejected.fetch_add(1, Relaxed);
                return Err(refusal);
            }
            let inputs = core.program.contract().order(inputs)?;
            let plan = match core.program.hold(&tenant, &inputs) {
                Hold::Ready(held) => held,
                other => core.plan(other, &tenant, &inputs, deadline).await?,
            };
            let (rows, width, group) = core.group(&inputs);
            let (reply, answer) = oneshot::channel();
            let stats = core.stats.clone();
            let ask = Ask {
                tenant: &tenant.clone(),
                share,
                model: core.id,
                rows,
                group,
                with_others,
                deadline,
                delay: core.delay,
                floor_ns: core.costs.floor_ns(),
            };
            let brief_ns = core.may_run_here(&brief).then(|| core.brief_ns(&inputs, width));
            let claim = brief_ns.flatten().and_then(|ns| scheduler.claim(&ask, ns));
            let (queued_at, pending) = (Instant::now(), Pending::new(stats.clone()));
            let job = Job {
                core,
                tenant,
                inputs,
                rows,
                width,
                deadline,
                queued_at,
                reply,
                pending,
                plan,
                bill,
            };
            let ticket = match (claim, brief) {
                (Some(claim), BriefRuns::Later(deferred)) => {
                    deferred.put(move || claim.run(job));
                    None
                }
                (Some(claim), _) => {
                    claim.run(job);
                    None
                }
                (None, _) => match scheduler.push(&ask, job) {
                    Ok(ticket) => Some(ticket),
                    Err(refusal) => {
                        stats.rejected.fetch_add(1, Relaxed);
                        return Err(refused(refusal));
                    }
                },
            };
            let mut waiting = Waiting { scheduler, ticket, stats, over: false };
            let answer = answer.await;
            waiting.over = true;
            // Nobody answers any more.
            let closing = "unavailable: the inference plane is shutting down";
            answer.unwrap_or_else(|_| Err(InferenceError::Unavailable(closing.to_owned())))
        })
    }
}

impl Core {
    /// Waits until the plan for these inputs is there, in the tenant's turn and until the deadline.
    async fn plan(
        &self,
        hold: Hold,
        tenant: &TenantName,
        inputs: &[Tensor],
        deadline: Option<Instant>,
    ) -> Result<Option<Held>, InferenceError> {
        let planned = async {
            let mut hold = hold;
            loop {
                let freed = match hold {
                    Hold::Ready(held) => return Ok(held),
                    Hold::After(work, held) => {
                        self.builders.run(tenant, work).await?;
                        return Ok(Some(held));
                    }
                    Hold::Full(freed) => freed,
                };
                let is_freed = freed.notified();
                // Asked once more, so that what was freed meanwhile is not missed.
                hold = self.program.hold(tenant, inputs);
                if matches!(hold, Hold::Full(_)) {
                    is_freed.await;
                    hold = self.program.hold(tenant, inputs);
                }
            }
        };
        match deadline {
            None => planned.await,
            Some(deadline) => tokio::time::timeout_at(deadline.into(), planned)
                .await
                .unwrap_or(Err(InferenceError::Timeout)),
        }
    }

    /// Whether a call may run where it was made if it is brief.
    fn may_run_here(&self, brief: &BriefRuns) -> bool {
        match brief {
            BriefRuns::Elsewhere => false,
            // Guests take far longer than what they ask of the model: those few that ask at once are no batch.
            BriefRuns::Later(place) => place.is_vacant(),
            BriefRuns::Here => self.stats.pending.load(Relaxed) == 0,
        }
    }

    /// What a call on these inputs is expected to take, if it is brief. One that its owner wants to wait for company is
    /// not.
    fn brief_ns(&self, inputs: &[Tensor], width: usize) -> Option<u64> {
        let is_text = |input: &&Tensor| input.datatype() == DataType::Bytes;
        let strings = inputs.iter().filter(is_text).map(|input| input.data().len()).sum::<usize>();
        if !self.is_steady || !self.delay.is_zero() || strings > BRIEF_STRINGS_MAX {
            return None;
        }
        let specs = &self.program.contract().signature.inputs;
        let is_one_row = specs.iter().zip(inputs).all(|(spec, input)| {
            spec.shape.first().is_none_or(|size| *size >= 0) || input.shape().first() == Some(&1)
        });
        let ns = self.costs.estimate_ns(1, width);
        (is_one_row && (1..=BRIEF_NS).contains(&ns)).then_some(ns)
    }

    /// The rows of a call and their width, and what tells it from calls that it cannot share a batch with; `None` where
    /// it runs alone.
    fn group(&self, inputs: &[Tensor]) -> (usize, usize, Option<u64>) {
        let elements = || inputs.iter().map(Tensor::elements).fold(0usize, usize::saturating_add);
        if self.sizes.is_empty() {
            return (1, if self.is_varied { elements() } else { 1 }, None);
        }
        let first = inputs.first().and_then(|input| input.shape().first()).copied().unwrap_or(1);
        // A shape with a zero in it may name any number of rows.
        let rows = first.min(ROWS_MAX);
        let width = if self.is_varied { elements() / rows.max(1) } else { 1 };
        if batch::rows_of(inputs).is_none_or(|rows| rows == 0 || rows > ROWS_MAX) {
            return (rows, width, None);
        }
        if !self.is_varied {
            return (rows, width, Some(0));
        }
        // Keyed anew in each process: nobody can find shapes that collide.
        static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);
        let rest: Vec<&[usize]> =
            inputs.iter().map(|input| input.shape().get(1..).unwrap_or_default()).collect();
        (rows, width, Some(HASHER.hash_one(rest)))
    }
}

fn refused(refusal: Refusal) -> InferenceError {
    match refusal {
        Refusal::Tenant => InferenceError::TenantSaturated,
        Refusal::Full => InferenceError::Saturated,
        Refusal::Expired => InferenceError::Timeout,
        Refusal::Late { retry_after } => InferenceError::Unmeetable { retry_after },
    }
}

/// Takes the call back when its future is dropped before the answer is there.
struct Waiting {
    scheduler: Arc<Scheduler>,
    /// `None` where the call does not wait in the queue.
    ticket: Option<Ticket>,
    stats: Arc<ModelStats>,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            self.stats.cancelled.fetch_add(1, Relaxed);
            if let Some(job) = self.ticket.and_then(|ticket| self.scheduler.cancel(ticket)) {
                job.withdraw();
            }
        }
    }
}
