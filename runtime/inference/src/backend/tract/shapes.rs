//! Plans for graphs that tract cannot optimise with symbolic dimensions: one for each set of input shapes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tract_onnx::prelude::{InferenceModel, TVec, TractResult};

use super::{audit::Declared, plan::Plan};
use crate::{contain::measured_within, footprint::Footprint};

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
    footprint: Arc<Footprint>,
    /// The last one is the one used last.
    plans: Mutex<Vec<(Shapes, Slot)>>,
}

impl PlansByShape {
    pub(super) fn new(model: InferenceModel, declared: Declared, room: usize) -> Self {
        let (footprint, plans) = (Arc::default(), Mutex::default());
        PlansByShape { model, declared, room, footprint, plans }
    }

    /// The memory of the model, to which the plans made here add.
    pub(super) fn footprint(&self) -> Arc<Footprint> {
        self.footprint.clone()
    }

    /// The plan for these shapes, made on this thread if it is the first to ask. `None`: tract cannot make one.
    pub(super) fn get(&self, shapes: &[TVec<usize>]) -> Option<Arc<Plan>> {
        let slot = self.slot(shapes);
        // A thread that asks for a plan in the making waits for it here, with no lock held.
        slot.get_or_init(|| {
            let (plan, held) = measured_within(self.room, || self.build(shapes)).ok()?;
            let mut plan = plan.ok()?;
            plan.charge = Some(self.footprint.charge(held));
            Some(Arc::new(plan))
        })
        .clone()
    }

    /// Whether it is known what the plan for these shapes is. Asking is no use.
    pub(super) fn has(&self, shapes: &[TVec<usize>]) -> bool {
        let plans = self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        plans.iter().any(|(known, slot)| known.as_slice() == shapes && slot.get().is_some())
    }

    /// Keeps a plan that was made for these shapes.
    pub(super) fn keep(&self, shapes: &[TVec<usize>], plan: Arc<Plan>) {
        // Where another thread has made one already, that one stays.
        let _ = self.slot(shapes).set(Some(plan));
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
