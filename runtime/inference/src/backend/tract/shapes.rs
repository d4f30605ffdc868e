//! Plans for graphs that tract cannot optimise with symbolic dimensions: one for each set of input shapes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::{InferenceModel, TVec, TractResult};

use super::{audit::Declared, plan::Plan};
use crate::contain::contained_within;

/// Plans kept for one model; the one that was used longest ago makes room.
const PLANS_MAX: usize = 16;

type Shapes = Vec<TVec<usize>>;
type Slot = Arc<OnceLock<Option<Arc<Plan>>>>;

/// The graph, not yet analysed, and the plans made of it so far.
pub(super) struct PlansByShape {
    model: InferenceModel,
    declared: Declared,
    /// The memory that making a plan may take.
    room: usize,
    /// The last one is the one used last.
    plans: Mutex<Vec<(Shapes, Slot)>>,
}

impl PlansByShape {
    pub(super) fn new(model: InferenceModel, declared: Declared, room: usize) -> Self {
        PlansByShape { model, declared, room, plans: Mutex::default() }
    }

    /// The plan for these shapes, made on this thread if it is the first to ask. `None`: tract cannot make one.
    pub(super) fn get(&self, shapes: &[TVec<usize>]) -> Option<Arc<Plan>> {
        let slot = self.slot(shapes);
        // A thread that asks for a plan in the making waits for it here, with no lock held.
        slot.get_or_init(|| {
            let plan = contained_within(self.room, || self.build(shapes));
            plan.ok().and_then(Result::ok).map(Arc::new)
        })
        .clone()
    }

    /// Makes a plan without keeping it.
    pub(super) fn build(&self, shapes: &[TVec<usize>]) -> TractResult<Plan> {
        Plan::for_shapes(&self.model, &self.declared, shapes)
    }

    fn slot(&self, shapes: &[TVec<usize>]) -> Slot {
        let mut plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let known = plans.iter().position(|(known, _)| known.as_slice() == shapes);
        let entry = match known {
            Some(place) => plans.remove(place),
            None => {
                if plans.len() >= PLANS_MAX {
                    plans.remove(0);
                }
                (shapes.to_vec(), Slot::default())
            }
        };
        let slot = entry.1.clone();
        plans.push(entry);
        slot
    }
}
