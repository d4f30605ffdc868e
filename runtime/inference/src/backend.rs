//! What the plane asks of an engine that runs graphs.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sandpiper_domain::{InferenceError, NamedTensor, Tensor};

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

    /// What is to be done before these inputs can be run in a time that depends on the graph alone, if anything is. It
    /// may take long, and cannot be stopped.
    fn missing_plan(self: Arc<Self>, inputs: &[Tensor]) -> Option<Work>;

    /// Runs the graph on inputs that [`Contract::order`] has put in order, on this thread. Panics of the engine
    /// are contained. `stop` is asked between the steps of the graph; once it says yes the run ends in
    /// [`InferenceError::Timeout`].
    fn run(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed>;
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
