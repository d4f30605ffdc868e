//! A model in memory, and how a call of it reaches a compute thread.

use std::{fmt, sync::Arc, time::Instant};

use sandpiper_domain::{
    BoxFuture, InferenceError, InferenceOutput, InferenceRequest, Model, ModelSignature,
    TenantName, Tensor,
};
use tokio::sync::oneshot;

use crate::{
    backend::Program,
    pool::{Owned, Pool, Ticket},
};

type Answer = Result<InferenceOutput, InferenceError>;

/// One call on its way to a compute thread.
pub(crate) struct Job {
    tenant: TenantName,
    program: Arc<dyn Program>,
    inputs: Vec<Tensor>,
    deadline: Option<Instant>,
    queued_at: Instant,
    reply: oneshot::Sender<Answer>,
}

impl Job {
    /// Runs the call unless nobody waits for it any more.
    pub(crate) fn work(self) {
        let Job { program, inputs, deadline, queued_at, reply, .. } = self;
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
        let answer = program.run(inputs, &stop).map(|outputs| InferenceOutput {
            outputs,
            queued,
            computed: begun.elapsed(),
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
    size: u64,
}

impl LoadedModel {
    pub(crate) fn new(program: Arc<dyn Program>, pool: Arc<Pool<Job>>, size: u64) -> Self {
        LoadedModel { program, pool, size }
    }

    /// What it counts for in the budget of models, in bytes: the length of its file.
    pub fn size(&self) -> u64 {
        self.size
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
        let (program, pool) = (self.program.clone(), self.pool.clone());
        Box::pin(async move {
            let inputs = program.contract().order(request.inputs)?;
            let (reply, answer) = oneshot::channel();
            let tenant = request.tenant;
            let (deadline, queued_at) = (request.deadline, Instant::now());
            let ticket = pool
                .push(Job { tenant, program, inputs, deadline, queued_at, reply })
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
