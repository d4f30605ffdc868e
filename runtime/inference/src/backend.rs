//! What the plane asks of an engine that runs graphs.

use std::{collections::BTreeMap, sync::Arc};

use sandpiper_domain::{InferenceError, NamedTensor, Tensor};

use crate::{contract::Contract, footprint::Footprint};

pub(crate) mod tract;

/// A graph made ready to run, any number of times and on any thread.
pub(crate) trait Program: Send + Sync {
    /// What it takes and gives.
    fn contract(&self) -> &Contract;

    /// How often each operator is in the graph as uploaded.
    fn operators(&self) -> &BTreeMap<String, u32>;

    /// Elements of all weights together.
    fn parameters(&self) -> u64;

    /// The memory it holds; it may grow with the shapes that come.
    fn footprint(&self) -> &Arc<Footprint>;

    /// Runs the graph on inputs that [`Contract::order`] has put in order, on this thread. Panics of the engine
    /// are contained. `stop` is asked between the steps of the graph; once it says yes the run ends in
    /// [`InferenceError::Timeout`].
    fn run(
        &self,
        inputs: Vec<Tensor>,
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<NamedTensor>, InferenceError>;
}
