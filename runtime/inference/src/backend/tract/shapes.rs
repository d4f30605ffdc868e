//! Plans for graphs that tract cannot optimise with symbolic dimensions: one for each set of input shapes.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sandpiper_domain::TenantName;
use tokio::sync::Notify;
use tract_onnx::prelude::{InferenceModel, TVec, TractResult};

use super::{
    super::{Hold, Planned},
    audit::Declared,
    plan::Plan,
};
use crate::{contain::measured_within, footprint::Footprint};

/// Plans kept for one model; the one that was used longest ago makes room. Those that calls of one tenant hold until
/// they have run are no more, either: each has weights of its own.
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
    state: Mutex<State>,
    /// Told when a call lets go of its plan.
    freed: Arc<Notify>,
}

#[derive(Default)]
struct State {
    /// The last one is the one used last.
    plans: Vec<Entry>,
    /// Shapes of batches that were asked for once, the last one last.
    missed: Vec<Shapes>,
}

struct Entry {
    shapes: Shapes,
    slot: Slot,
    /// Whose calls hold it, and how many of each.
    holders: Vec<(TenantName, usize)>,
}

impl Entry {
    fn is_held_by(&self, tenant: &TenantName) -> bool {
        self.holders.iter().any(|(holder, _)| holder == tenant)
    }
}

impl State {
    /// The place for the plan of these shapes, which is thereby the one used last.
    fn entry(&mut self, shapes: &[TVec<usize>]) -> &mut Entry {
        let known = self.plans.iter().position(|entry| entry.shapes.as_slice() == shapes);
        let entry = match known {
            Some(place) => self.plans.remove(place),
            None => {
                self.make_room(PLANS_MAX - 1);
                Entry { shapes: shapes.to_vec(), slot: Slot::default(), holders: Vec::new() }
            }
        };
        let last = self.plans.len();
        self.plans.push(entry);
        &mut self.plans[last]
    }

    /// Forgets the oldest plans beyond `count`, but none that a call holds.
    fn make_room(&mut self, count: usize) {
        while self.plans.len() > count {
            let Some(free) = self.plans.iter().position(|entry| entry.holders.is_empty()) else {
                return;
            };
            self.plans.remove(free);
        }
    }
}

impl PlansByShape {
    pub(super) fn new(model: InferenceModel, declared: Declared, room: usize) -> Self {
        let (footprint, state, freed) = (Arc::default(), Mutex::default(), Arc::default());
        PlansByShape { model, declared, room, footprint, state, freed }
    }

    /// The memory of the model, to which the plans made here add.
    pub(super) fn footprint(&self) -> Arc<Footprint> {
        self.footprint.clone()
    }

    /// The plan for these shapes, made on this thread if it is the first to ask. `None`: tract cannot make one.
    pub(super) fn get(&self, shapes: &[TVec<usize>]) -> Option<Arc<Plan>> {
        let slot = self.state().entry(shapes).slot.clone();
        self.fill(&slot, shapes)
    }

    fn fill(&self, slot: &Slot, shapes: &[TVec<usize>]) -> Option<Arc<Plan>> {
        // A thread that asks for a plan in the making waits for it here, with no lock held.
        slot.get_or_init(|| {
            let (plan, held) = measured_within(self.room, || self.build(shapes)).ok()?;
            let mut plan = plan.ok()?;
            plan.charge = Some(self.footprint.charge(held));
            Some(Arc::new(plan))
        })
        .clone()
    }

    /// The plan for these shapes if it has been made.
    pub(super) fn known(&self, shapes: &[TVec<usize>]) -> Option<Arc<Plan>> {
        let mut state = self.state();
        let known = state.plans.iter().position(|entry| entry.shapes.as_slice() == shapes)?;
        let entry = state.plans.remove(known);
        let plan = entry.slot.get().cloned().flatten();
        state.plans.push(entry);
        plan
    }

    /// Keeps the plan for these shapes in memory until a call of this tenant has run, or says how it comes there.
    pub(super) fn hold(self: &Arc<Self>, tenant: &TenantName, shapes: Shapes) -> Hold {
        let mut state = self.state();
        let own = state.plans.iter().filter(|entry| entry.is_held_by(tenant));
        let is_full = own.clone().count() >= PLANS_MAX;
        if is_full && !own.clone().any(|entry| entry.shapes == shapes) {
            return Hold::Full(self.freed.clone());
        }
        let entry = state.entry(&shapes);
        match entry.holders.iter_mut().find(|(holder, _)| holder == tenant) {
            Some((_, calls)) => *calls += 1,
            None => entry.holders.push((tenant.clone(), 1)),
        }
        let slot = entry.slot.clone();
        drop(state);
        let is_known = slot.get().is_some();
        let (plans, tenant) = (self.clone(), tenant.clone());
        let held = Box::new(Held { plans, slot: slot.clone(), tenant });
        if is_known {
            return Hold::Ready(Some(held));
        }
        let plans = self.clone();
        Hold::After(Box::new(move || drop(plans.fill(&slot, &shapes))), held)
    }

    /// Whether the plan for the shapes of a batch has been made.
    pub(super) fn is_planned(self: &Arc<Self>, shapes: Shapes) -> Planned {
        let mut state = self.state();
        let known = state.plans.iter().find(|entry| entry.shapes == shapes);
        if known.is_some_and(|entry| entry.slot.get().is_some()) {
            return Planned::Yes;
        }
        if let Some(place) = state.missed.iter().position(|missed| *missed == shapes) {
            state.missed.remove(place);
            drop(state);
            let plans = self.clone();
            return Planned::After(Box::new(move || drop(plans.get(&shapes))));
        }
        if state.missed.len() >= PLANS_MAX {
            state.missed.remove(0);
        }
        state.missed.push(shapes);
        Planned::No
    }

    /// Keeps a plan that was made for these shapes.
    pub(super) fn keep(&self, shapes: &[TVec<usize>], plan: Arc<Plan>) {
        // Where another thread has made one already, that one stays.
        let _ = self.state().entry(shapes).slot.set(Some(plan));
    }

    /// Makes a plan without keeping it.
    pub(super) fn build(&self, shapes: &[TVec<usize>]) -> TractResult<Plan> {
        Plan::for_shapes(&self.model, &self.declared, shapes)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Keeps a plan for a call.
struct Held {
    plans: Arc<PlansByShape>,
    slot: Slot,
    tenant: TenantName,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut state = self.plans.state();
        let own = state.plans.iter_mut().find(|entry| Arc::ptr_eq(&entry.slot, &self.slot));
        if let Some(entry) = own {
            entry.holders.retain_mut(|(holder, calls)| {
                *calls -= usize::from(*holder == self.tenant);
                *calls > 0
            });
        }
        state.make_room(PLANS_MAX);
        drop(state);
        self.plans.freed.notify_waiters();
    }
}
