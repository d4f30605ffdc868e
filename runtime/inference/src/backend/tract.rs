//! The engine: tract. This module and those below it are the only ones that know its types.
//!
//! A graph is optimised once with symbolic dimensions where it has free ones. Some graphs allow no such plan; for
//! them a plan is made for each set of input shapes when it first comes.

mod audit;
mod batch;
mod convert;
mod demand;
mod edges;
mod explain;
mod fact;
mod fold;
mod guard;
mod indices;
mod load;
mod plan;
mod refuse;
mod rewrite;
mod rows;
mod shapes;
mod trial_rows;

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use sandpiper_domain::{InferenceError, NamedTensor, TenantName, Tensor};
use tract_onnx::prelude::{TVec, Tensor as TractTensor};

use batch::with_rows;
use edges::Edges;
pub(crate) use load::load;
use plan::{Failure, Plan, Trace};
use rewrite::Strings;
use shapes::PlansByShape;

use super::{Failed, Hold, Planned, Program, Ran};
use crate::{
    Batching,
    contain::{Panic, contained_run},
    contract::Contract,
    footprint::Footprint,
};

struct TractProgram {
    contract: Contract,
    operators: BTreeMap<String, u32>,
    parameters: u64,
    footprint: Arc<Footprint>,
    plans: Plans,
    /// Plans for so many rows and no other number, where they are faster than the one for all.
    by_rows: Vec<(usize, Arc<Plan>)>,
    batching: Batching,
    edges: Edges,
}

enum Plans {
    /// One plan for every shape the signature allows.
    One(Arc<Plan>),
    ByShape(Arc<PlansByShape>),
}

impl Program for TractProgram {
    fn contract(&self) -> &Contract {
        &self.contract
    }

    fn operators(&self) -> &BTreeMap<String, u32> {
        &self.operators
    }

    fn parameters(&self) -> u64 {
        self.parameters
    }

    fn batching(&self) -> &Batching {
        &self.batching
    }

    fn is_steady(&self) -> bool {
        const VALUES_DECIDE: [&str; 3] = ["If", "Loop", "Scan"];
        let decides = VALUES_DECIDE.iter().any(|operator| self.operators.contains_key(*operator));
        let is_one = matches!(&self.plans, Plans::One(plan) if plan.has_settled_sizes());
        is_one && !decides && self.edges.are_short()
    }

    fn footprint(&self) -> &Arc<Footprint> {
        &self.footprint
    }

    fn hold(&self, tenant: &TenantName, inputs: &[Tensor]) -> Hold {
        match &self.plans {
            Plans::One(_) => Hold::Ready(None),
            Plans::ByShape(plans) => plans.hold(tenant, shapes_of(inputs)),
        }
    }

    fn is_planned(&self, inputs: &[Tensor], rows: usize) -> Planned {
        match &self.plans {
            Plans::One(_) => Planned::Yes,
            Plans::ByShape(plans) => plans.is_planned(with_rows(shapes_of(inputs), rows)),
        }
    }

    fn run(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed> {
        let begun = Instant::now();
        self.run_by(PlansByShape::get, inputs, stop, begun)
    }

    fn run_planned(&self, inputs: Vec<Tensor>, stop: &dyn Fn() -> bool) -> Result<Ran, Failed> {
        let begun = Instant::now();
        self.run_by(PlansByShape::known, inputs, stop, begun)
    }
}

impl TractProgram {
    fn new(contract: Contract, declared: audit::Declared, plans: Plans) -> Self {
        let edges = Edges::of(&declared);
        let audit::Declared { operators, parameters, .. } = declared;
        let (by_rows, batching) = (Vec::new(), Batching::default());
        let footprint = match &plans {
            Plans::One(_) => Arc::default(),
            Plans::ByShape(plans) => plans.footprint(),
        };
        TractProgram { contract, operators, parameters, footprint, plans, by_rows, batching, edges }
    }

    /// Runs the plan that `by_shape` finds, with strings translated at the edges.
    fn run_by(
        &self,
        by_shape: impl Fn(&PlansByShape, &[TVec<usize>]) -> Option<Arc<Plan>>,
        inputs: Vec<Tensor>,
        stop: &dyn Fn() -> bool,
        begun: Instant,
    ) -> Result<Ran, Failed> {
        let inputs = self.edges.enter(inputs)?;
        let plan = self.plan(&inputs, by_shape)?;
        let mut ran = self.run_with(&plan, inputs, stop, begun)?;
        let computed = Instant::now();
        ran.outputs = self.edges.leave(ran.outputs)?;
        ran.output += computed.elapsed();
        Ok(ran)
    }

    /// Runs a plan on inputs as the graph takes them.
    fn run_with(
        &self,
        plan: &Plan,
        inputs: Vec<Tensor>,
        stop: &dyn Fn() -> bool,
        begun: Instant,
    ) -> Result<Ran, Failed> {
        let tensors =
            inputs.iter().map(convert::to_tract).collect::<Result<TVec<_>, InferenceError>>()?;
        drop(inputs);
        let fed = Instant::now();
        let trace = Trace::default();
        let outcome = contained_run(|| {
            let outputs = plan.run(tensors, stop, &trace)?;
            let computed = Instant::now();
            let outputs = outputs.into_iter().map(convert::from_tract).collect::<Vec<_>>();
            Ok((outputs, computed))
        });
        match outcome {
            Ok(Ok((outputs, computed))) => Ok(Ran {
                outputs: self.name(outputs)?,
                input: fed - begun,
                infer: computed - fed,
                output: computed.elapsed(),
            }),
            Ok(Err(failure)) => Err(explain_failure(plan, &trace, &failure).into()),
            Err(Panic::Values(what)) => Err(explain_values(plan, &trace, what).into()),
            Err(Panic::Unknown) => {
                Err(Failed { error: explain_panic(plan, &trace), panicked: true })
            }
        }
    }

    fn plan_by_rows(&self, inputs: &[Tensor]) -> Option<&Arc<Plan>> {
        let rows = inputs.first().and_then(|input| input.shape().first());
        self.by_rows.iter().find(|(size, _)| Some(size) == rows).map(|(_, plan)| plan)
    }

    fn plan(
        &self,
        inputs: &[Tensor],
        by_shape: impl Fn(&PlansByShape, &[TVec<usize>]) -> Option<Arc<Plan>>,
    ) -> Result<Arc<Plan>, InferenceError> {
        if let Some(plan) = self.plan_by_rows(inputs) {
            return Ok(plan.clone());
        }
        match &self.plans {
            Plans::One(plan) => Ok(plan.clone()),
            Plans::ByShape(plans) => by_shape(plans, &shapes_of(inputs)).ok_or_else(|| {
                let shapes: Vec<_> = inputs.iter().map(Tensor::shape).collect();
                InferenceError::InvalidArgument(format!(
                    "the model cannot run on inputs of these shapes: {shapes:?}"
                ))
            }),
        }
    }

    fn name(&self, outputs: Vec<Option<Tensor>>) -> Result<Vec<NamedTensor>, InferenceError> {
        let specs = &self.contract.signature.outputs;
        let named = outputs.into_iter().zip(specs).map(|(tensor, spec)| {
            let name = spec.name.clone();
            tensor.map(|tensor| NamedTensor { name, tensor }).ok_or_else(|| {
                let name = crate::contract::shown(&spec.name);
                InferenceError::Unsupported(format!(
                    "the output `{name}` is of a type or shape that the runtime cannot hand out"
                ))
            })
        });
        named.collect()
    }
}

fn shapes_of(inputs: &[Tensor]) -> Vec<TVec<usize>> {
    inputs.iter().map(|input| input.shape().iter().copied().collect()).collect()
}

fn explain_failure(plan: &Plan, trace: &Trace, failure: &Failure) -> InferenceError {
    match failure {
        Failure::Stopped => InferenceError::Timeout,
        Failure::Inputs => InferenceError::InvalidArgument(
            "the shapes of the inputs do not fit each other in this model".to_owned(),
        ),
        Failure::TooLarge => InferenceError::TooLarge(
            "a value inside the model would be larger than 1 GiB for these inputs".to_owned(),
        ),
        // What indexes weights by weights is settled when the model is loaded, so that this is the caller's doing.
        Failure::Index => explain_values(plan, trace, "an index that is out of its range"),
        Failure::Failed => InferenceError::Runtime(match plan.operator(trace) {
            Some(operator) => format!("the model failed while it ran, in an operator `{operator}`"),
            None => "the model failed while it ran".to_owned(),
        }),
    }
}

fn explain_values(plan: &Plan, trace: &Trace, what: &str) -> InferenceError {
    let operator = plan.operator(trace).unwrap_or_default();
    InferenceError::InvalidArgument(format!(
        "the inputs hold, or lead to, {what} in an operator `{operator}` of the model"
    ))
}

fn explain_panic(plan: &Plan, trace: &Trace) -> InferenceError {
    InferenceError::Runtime(match plan.operator(trace) {
        Some(operator) => format!(
            "the model panicked while it ran, in an operator `{operator}`; a value among the inputs may be out of its range"
        ),
        None => "the model panicked while it ran".to_owned(),
    })
}

/// A tensor of zeros or usual strings, to try a plan with.
fn zeros(strings: &Strings, slot: &audit::Slot, shape: &[usize]) -> Option<TractTensor> {
    let mut tensor = TractTensor::zero_dt(convert::datum_type(slot.datatype?)?, shape).ok()?;
    if slot.is_text {
        let columns = shape.last().copied().unwrap_or(1).max(1);
        let mut plain = tensor.try_as_plain_ram_mut().ok()?;
        for (at, number) in plain.as_slice_mut::<i64>().ok()?.iter_mut().enumerate() {
            *number = strings.usual(&slot.name, at % columns, 0);
        }
    }
    Some(tensor)
}
