//! A model in memory, and how a call of it reaches a compute thread.

use std::{
    fmt,
    future::ready,
    sync::Arc,
    time::{Duration, Instant},
};

use sandpiper_domain::{
    BoxFuture, InferenceError, InferenceOutput, InferenceRequest, Model, ModelOptions,
    ModelSignature, TenantName, Tensor,
};
use tokio::sync::oneshot;

use crate::{
    Batching, ModelProfile, ModelStats,
    backend::Program,
    pool::{Owned, Pool, Ticket},
    response_cache::{Lookup, ModelCache},
};

type Answer = Result<InferenceOutput, InferenceError>;

/// One call on its way to a compute thread.
pub(crate) struct Job {
    tenant: TenantName,
    program: Arc<dyn Program>,
    inputs: Vec<Tensor>,
    deadline: Option<Instant>,
    queued_at: Instant,
    stats: Arc<ModelStats>,
    reply: oneshot::Sender<Answer>,
}

impl Job {
    /// Runs the call unless nobody waits for it any more.
    pub(crate) fn work(self) {
        let Job { program, inputs, deadline, queued_at, stats, reply, .. } = self;
        let begun = Instant::now();
        let late = || deadline.is_some_and(|deadline| Instant::now() >= deadline);
        if reply.is_closed() {
            return;
        }
        if late() {
            let _ = reply.send(Err(InferenceError::Timeout));
            return;
        }
        let stop = || reply.is_closed() || late();
        let queued = begun.saturating_duration_since(queued_at);
        let answer = program.run(inputs, &stop);
        stats.queue.add(1, queued);
        stats.ran(1, Duration::ZERO, begun.elapsed(), Duration::ZERO);
        let of_outcome = if answer.is_ok() { &stats.success } else { &stats.fail };
        of_outcome.add(1, queued_at.elapsed());
        let answer = answer.map(|outputs| InferenceOutput {
            outputs,
            queued,
            computed: begun.elapsed(),
            batch_size: 1,
        });
        // The program goes first, so that a caller who has the answer holds the last reference.
        drop(program);
        let _ = reply.send(answer);
    }
}

impl Owned for Job {
    fn owner(&self) -> Option<&TenantName> {
        Some(&self.tenant)
    }
}

/// One model version, parsed and optimised. Every function and request that uses the version shares it.
pub struct LoadedModel {
    program: Arc<dyn Program>,
    pool: Arc<Pool<Job>>,
    profile: Arc<ModelProfile>,
    stats: Arc<ModelStats>,
    options: ModelOptions,
    responses: Option<ModelCache>,
}

impl LoadedModel {
    /// `memory_bytes` is what it counts for in the budget of models.
    pub(crate) fn new(
        program: Arc<dyn Program>,
        pool: Arc<Pool<Job>>,
        memory_bytes: u64,
        stats: Arc<ModelStats>,
    ) -> Self {
        let batching = Batching { sizes: vec![1], ..Batching::default() };
        let (operators, parameters) = (program.operators().clone(), program.parameters());
        let profile = Arc::new(ModelProfile { operators, parameters, memory_bytes, batching });
        let options = ModelOptions::default();
        LoadedModel { program, pool, profile, stats, options, responses: None }
    }

    pub(crate) fn with_options(self, options: ModelOptions, responses: Option<ModelCache>) -> Self {
        LoadedModel { options, responses, ..self }
    }

    /// How it is to be run and kept.
    pub fn options(&self) -> &ModelOptions {
        &self.options
    }

    /// What it holds in memory now, in bytes: as in its profile, and what plans for further shapes have added.
    pub fn memory_bytes(&self) -> u64 {
        self.program.footprint().bytes()
    }

    /// Whether anybody but the registry has it: calls that wait or run.
    pub(crate) fn is_in_use(&self) -> bool {
        Arc::strong_count(&self.program) > 1
    }

    /// What is in it, and what it costs.
    pub fn profile(&self) -> &Arc<ModelProfile> {
        &self.profile
    }

    /// What its calls have come to.
    pub fn stats(&self) -> &Arc<ModelStats> {
        &self.stats
    }
}

impl fmt::Debug for LoadedModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoadedModel").field("signature", self.signature()).finish_non_exhaustive()
    }
}

impl Model for LoadedModel {
    fn signature(&self) -> &ModelSignature {
        &self.program.contract().signature
    }

    fn infer(&self, request: InferenceRequest) -> BoxFuture<'static, Answer> {
        let lookup = self.responses.as_ref().map(|responses| responses.look_up(&request));
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
        let (program, pool) = (self.program.clone(), self.pool.clone());
        let stats = self.stats.clone();
        Box::pin(async move {
            let inputs = program.contract().order(request.inputs)?;
            let (reply, answer) = oneshot::channel();
            let tenant = request.tenant;
            let (deadline, queued_at) = (request.deadline, Instant::now());
            let ticket = pool
                .push(Job { tenant, program, inputs, deadline, queued_at, stats, reply })
                .map_err(|_| InferenceError::Saturated)?;
            let mut waiting = Waiting { pool, ticket, over: false };
            let answer = answer.await;
            waiting.over = true;
            match answer {
                Ok(answer) => answer,
                Err(_) => Err(InferenceError::Runtime(
                    "the call ended without an answer: the inference plane is shutting down"
                        .to_owned(),
                )),
            }
        })
    }
}

/// Takes the call back when its future is dropped while it waits.
struct Waiting {
    pool: Arc<Pool<Job>>,
    ticket: Ticket,
    over: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.over {
            drop(self.pool.cancel(self.ticket));
        }
    }
}
