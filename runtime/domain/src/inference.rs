//! The port between a sandbox and the inference plane.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use crate::{DataType, InferenceBill, ModelName, NamedTensor, Selector, Share, TenantName};

/// A boxed future, for ports that are used as trait objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What a function may load: whose names count, and what its manifest binds them to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelScope {
    /// The tenant that owns the function.
    pub tenant: TenantName,
    /// The manifest's `[models]` table; `None` means every model of the tenant, at `live`.
    pub bindings: Option<BTreeMap<String, Selector>>,
    /// The versions that those names meant when the function's alias last moved.
    pub pins: Arc<BTreeMap<String, u32>>,
}

/// Identifies one immutable version of one model on this node.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ModelKey {
    /// Who owns it.
    pub tenant: TenantName,
    /// Its name.
    pub model: ModelName,
    /// Its version, from 1.
    pub version: u32,
}

/// One input or output of a model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TensorSpec {
    /// The name in the graph.
    pub name: String,
    /// The element type.
    pub datatype: DataType,
    /// The dimensions; -1 where the size is free (a batch, a length).
    pub shape: Vec<i64>,
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSignature {
    /// The inputs, in the graph's order.
    pub inputs: Vec<TensorSpec>,
    /// The outputs, in the graph's order.
    pub outputs: Vec<TensorSpec>,
}

/// One call of a model.
#[derive(Debug)]
pub struct InferenceRequest {
    /// The tenant that is charged, who need not be the model's owner.
    pub tenant: TenantName,
    /// What that tenant is due.
    pub share: Share,
    /// When the answer is of no use any more.
    pub deadline: Option<Instant>,
    /// The inputs, in any order.
    pub inputs: Vec<NamedTensor>,
    /// Whether it may run in one batch with calls of other tenants.
    pub batch_with_others: bool,
    /// Where it may run if it is a brief one.
    pub brief: BriefRuns,
    /// What it costs is added here, however it ends, before its caller hears of the end.
    pub bill: Option<Arc<InferenceBill>>,
}

/// Where a call may run that takes less time than handing it to another thread and back.
#[derive(Debug, Clone, Default)]
pub enum BriefRuns {
    /// On the compute threads, as all others.
    #[default]
    Elsewhere,
    /// On the thread that polls the call.
    Here,
    /// On the thread that polls the caller, as soon as that poll is over: for callers whose own stack is too small.
    Later(Arc<Deferred>),
}

/// A piece of work that waits for the end of a poll.
#[derive(Default)]
pub struct Deferred(Mutex<Option<Work>>);

type Work = Box<dyn FnOnce() + Send>;

impl Deferred {
    /// Whether nothing waits here.
    pub fn is_vacant(&self) -> bool {
        self.place().is_none()
    }

    /// Leaves work to be run, in the place of any that was there.
    pub fn put(&self, work: impl FnOnce() + Send + 'static) {
        let before = self.place().replace(Box::new(work));
        drop(before);
    }

    /// Runs what is there, on this thread. Says whether there was anything.
    pub fn run(&self) -> bool {
        let work = self.place().take();
        let is_some = work.is_some();
        if let Some(work) = work {
            work();
        }
        is_some
    }

    fn place(&self) -> MutexGuard<'_, Option<Work>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Deferred {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Deferred").finish_non_exhaustive()
    }
}

/// The answer to one call, and what it cost.
#[derive(Debug)]
pub struct InferenceOutput {
    /// The outputs, in the graph's order.
    pub outputs: Vec<NamedTensor>,
    /// Time spent waiting for a compute thread.
    pub queued: Duration,
    /// Time spent on a compute thread. What ran in a batch counts with its part of the batch.
    pub computed: Duration,
    /// Calls that ran together with this one, itself among them; 0 where the answer came from the cache.
    pub batch_size: usize,
}

/// Why a call of a model failed. Texts may reach the guest and its caller: they hold neither input values nor weights.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferenceError {
    /// The inputs do not fit the model.
    #[error("{0}")]
    InvalidArgument(String),
    /// No model of that name for this caller: missing, foreign and not bound all look alike.
    #[error("no model of that name is available to this function")]
    NotFound,
    /// Something the backend or the policy does not offer.
    #[error("{0}")]
    Unsupported(String),
    /// A tensor or a result beyond a limit.
    #[error("{0}")]
    TooLarge(String),
    /// The deadline passed before an answer was there.
    #[error("the deadline passed before the model had answered")]
    Timeout,
    /// The node's queue is full.
    #[error("busy: the inference queue is full; try again shortly")]
    Saturated,
    /// As many calls of this tenant wait as may wait.
    #[error("busy: as many inferences of this tenant wait as its limit allows; try again shortly")]
    TenantSaturated,
    /// With what waits before it, the call would end after its deadline, so that it was not begun.
    #[error("busy: the work that waits would take longer than the deadline; try again in {} ms", .retry_after.as_millis())]
    Unmeetable {
        /// When the queue should have gone down.
        retry_after: Duration,
    },
    /// The model is there and not ready: on its way, unloaded or in quarantine.
    #[error("{0}")]
    Unavailable(String),
    /// The model failed while it ran.
    #[error("{0}")]
    Runtime(String),
}

/// A loaded model that can be run.
pub trait Model: Send + Sync {
    /// What it takes and gives.
    fn signature(&self) -> &ModelSignature;

    /// Queues one call and resolves when it has run. Dropping the future cancels the call if it still waits.
    fn infer(
        &self,
        request: InferenceRequest,
    ) -> BoxFuture<'static, Result<InferenceOutput, InferenceError>>;
}

/// Finds models by the name a guest gives, in the scope of its function.
pub trait ModelSource: Send + Sync {
    /// Resolves `name` (`[owner/]name[@selector]`) and loads the model when it is not in memory yet.
    fn open<'a>(
        &'a self,
        scope: &'a ModelScope,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Arc<dyn Model>, InferenceError>>;
}
