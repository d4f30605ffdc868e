//! What the plane asks of an engine that runs graphs.

use std::{any::Any, collections::BTreeMap, sync::Arc, time::Duration};

use sandpiper_domain::{InferenceError, NamedTensor, TenantName, Tensor};
use tokio::sync::Notify;

use crate::{Batching, builders::Work, contract::Contract, footprint::Footprint};

pub(crate) mod tract;

/// A graph made ready to run, any number of times and on any thread.
pub(crate) trait Program: Send + Sync {
    /// What it takes and gives.
    fn contract(&self) -> &Contract;

    /// How often each operator is in the graph as uploaded.
    fn operators(&self) -> &BTreeMap<String, u32>;

    /// Elements of all weights together.
    fn parameters(&self) -> u64;

    /// Whether calls may run together, and what that was measured to take.
    fn batching(&self) -> &Batching;

    /// Whether runs on inputs of one shape take about the same time, whatever is in them.
    fn is_steady(&self) -> bool;

    /// The memory it holds; it may grow with the shapes that come.
    fn footprint(&self) -> &Arc<Footprint>;

    /// Asks for the plan that a call of this tenant on these inputs needs.
    fn hold(&self, tenant: &TenantName, inputs: &[Tensor]) -> Hold;

    /// Whether `rows` rows like those of `inputs` can be run at once.
    fn is_planned(&self, inputs: &[Tensor], rows: usize) -> Planned;

    /// Runs the graph on inputs that [`Contract::order`] has put in order, on this thread. Panics of the engine
    /// are contained. `stop` is asked between the steps of the graph; once it says yes the run ends in
    /// [`InferenceError::Timeout`]. A plan that is missing is made first, which may take long and cannot be stopped.
    fn run(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed>;

    /// The same, but without a plan nothing is run: for threads that others wait for.
    fn run_planned(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed>;
}

/// Keeps a plan in memory for a call.
pub(crate) type Held = Box<dyn Any + Send>;

/// What a call has to wait for before it can be run in a time that depends on the graph alone.
pub(crate) enum Hold {
    /// Nothing. The plan is there for as long as it is held.
    Ready(Option<Held>),
    /// This work, which may take long and cannot be stopped.
    After(Work, Held),
    /// Other calls of its tenant, which hold as many plans as they may. Then it is to ask again.
    Full(Arc<Notify>),
}

/// Whether a batch can be run.
pub(crate) enum Planned {
    /// At once.
    Yes,
    /// After this work, if it is worth it: somebody has asked for the same before.
    After(Work),
    /// Nobody has asked for it before.
    No,
}

/// A run that ended well: its outputs in the graph's order, and how long its three parts took.
pub(crate) struct Ran {
    pub(crate) outputs: Vec<NamedTensor>,
    pub(crate) input: Duration,
    pub(crate) infer: Duration,
    pub(crate) output: Duration,
}

/// A run that did not.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: InferenceError,
    /// The engine panicked.
    pub(crate) panicked: bool,
}

impl From<InferenceError> for Failed {
    fn from(error: InferenceError) -> Self {
        Failed { error, panicked: false }
    }
}
