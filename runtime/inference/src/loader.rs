//! From a specification to a model that is ready: tried in a process of its own, parsed, measured and warmed up.

use std::{
    sync::{Arc, MutexGuard},
    time::{Duration, Instant},
};

use bytes::Bytes;
use sandpiper_domain::{InferenceError, NamedTensor, TenantName, Tensor};

use crate::{
    LoadError, LoadedModel, Measurement, ModelSpec, ModelStats, Trial, alloc,
    backend::{Failed, Program, tract},
    builders::Builders,
    registry::{Loaded, Registry},
    response_cache::ResponseCache,
    scheduler::Scheduler,
};

/// Warming up ends here, between two steps of the graph; the model is ready all the same.
const WARM_UP: Duration = Duration::from_secs(5);
/// How often the weights are in memory while a plan is made of them, give or take.
const WEIGHTS_HELD: u64 = 5;
/// Inputs larger than this are not made up for warming up.
const MADE_UP_BYTES_MAX: usize = 64 << 20;

/// What a load needs beside its source.
pub(crate) struct Loader {
    pub(crate) compute: Arc<Scheduler>,
    pub(crate) builders: Arc<Builders>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) responses: Arc<ResponseCache>,
    pub(crate) trial: Option<Trial>,
}

impl Loader {
    /// Tries what a tenant has sent in a process that can be killed. For uploads; what is in the catalog has passed.
    pub(crate) fn try_apart(&self, spec: &ModelSpec) -> Result<(), LoadError> {
        match &self.trial {
            Some(trial) => trial.run(spec),
            None => Ok(()),
        }
    }

    /// Loads, measures and warms up, within the budget. On a loader thread; `alone` keeps other large loads off.
    /// Whether an upload finds room beside pinned models is decided when it is known which of them it replaces.
    pub(crate) fn prepare(
        &self,
        spec: ModelSpec,
        stats: Arc<ModelStats>,
        owner: Option<&TenantName>,
        is_upload: bool,
        alone: Option<MutexGuard<'_, ()>>,
    ) -> Loaded {
        let ModelSpec { bytes, digest, options, samples, measurement } = spec;
        let needed = needed_for(bytes.len() as u64);
        let reservation = self.registry.wait_for_room(needed, owner)?;
        let known = measurement.as_ref().and_then(Measurement::here);
        let program = tract::load(&bytes, &options, &samples, known);
        drop(bytes);
        // What was needed on the way is several times what is left.
        alloc::give_back_pages();
        let program = program?;
        // Counted before the reservation ends, so that nobody takes the room for free in between.
        program.footprint().enter(self.registry.ledger());
        drop((reservation, alone));
        warm_up(&*program, &samples)?;
        let responses = options.cache.then(|| self.responses.of_model(digest, stats.clone()));
        let threads = (self.compute.clone(), self.builders.clone());
        let model = LoadedModel::new(program, threads, &options, stats, responses);
        self.registry.fits_beside_pinned(&model, |_| is_upload)?;
        Ok(Arc::new(model))
    }
}

/// What loading a file of so many bytes is taken to need on the way.
pub(crate) fn needed_for(bytes: u64) -> u64 {
    bytes.saturating_mul(WEIGHTS_HELD)
}

/// Runs the samples, or else the smallest inputs that the signature allows, so that the first call finds everything in
/// place. Samples must fit the model; that a run of them fails or takes long is no fault of the model.
pub(crate) fn warm_up(
    program: &dyn Program,
    samples: &[Vec<NamedTensor>],
) -> Result<(), LoadError> {
    let begun = Instant::now();
    let stop = || begun.elapsed() >= WARM_UP;
    for (number, sample) in samples.iter().enumerate() {
        let refused = |error: InferenceError| LoadError::Sample { number, why: error.to_string() };
        let inputs = program.contract().order(sample.clone()).map_err(refused)?;
        if stop() {
            continue;
        }
        match program.run(inputs, &stop) {
            Ok(_) | Err(Failed { error: InferenceError::Timeout, .. }) => {}
            Err(failed) => return Err(refused(failed.error)),
        }
    }
    if samples.is_empty()
        && let Some(inputs) = smallest(program)
    {
        // Zeros need not make sense to the model.
        let _ = program.run(inputs, &stop);
    }
    Ok(())
}

/// Zeros and empty strings for every input, with 1 for each free dimension.
fn smallest(program: &dyn Program) -> Option<Vec<Tensor>> {
    let specs = &program.contract().signature.inputs;
    let mut room = MADE_UP_BYTES_MAX;
    let mut inputs = Vec::with_capacity(specs.len());
    for spec in specs {
        let shape: Vec<u64> =
            spec.shape.iter().map(|size| u64::try_from(*size).unwrap_or(1)).collect();
        let elements = shape.iter().try_fold(1usize, |product, size| {
            usize::try_from(*size).ok().and_then(|size| product.checked_mul(size))
        });
        let bytes = elements?.checked_mul(spec.datatype.size_min())?;
        room = room.checked_sub(bytes)?;
        inputs.push(Tensor::new(spec.datatype, &shape, Bytes::from(vec![0; bytes])).ok()?);
    }
    Some(inputs)
}
