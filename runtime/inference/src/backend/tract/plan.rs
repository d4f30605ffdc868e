//! A graph optimised for its input shapes, which may be symbolic, and one run of it.

use std::{
    cell::Cell,
    collections::{HashMap, HashSet},
    sync::Arc,
};

use tract_onnx::{
    prelude::{
        InferenceModel, InferenceModelExt, IntoRunnable, TractResult, TypedModel,
        TypedRunnableModel,
    },
    tract_core::{
        internal::{
            DatumType, IntoArcTensor, IntoTValue, SpecialOps, SymbolValues, TDim, TValue, TVec,
            Tensor as TractTensor, TypedFact, ensure, format_err, tvec,
        },
        ops::cast::cast,
        plan::eval,
    },
};

use super::{audit::Declared, convert::is_symbolic, demand, fact::fixed, guard, indices, rows};
use crate::{contain::contained, footprint::Charge};

/// No value inside a graph may be larger than this: a small input can ask for a huge one.
pub(super) const TENSOR_BYTES_MAX: u64 = 1 << 30;

/// Sizes in bytes by node.
type LateSizes = HashMap<usize, Vec<TDim>>;

/// An optimised graph.
pub(super) struct Plan {
    runnable: Arc<TypedRunnableModel>,
    /// The sizes of inner values that the shapes of the inputs decide, in bytes.
    sizes: Vec<TDim>,
    /// The nodes whose outputs are as large as values inside the graph say, with the sizes known by then.
    late: LateSizes,
    /// The types of the inputs, as optimised.
    inputs: Vec<DatumType>,
    /// Whether no operator mixes what lies on axis 0.
    carries_rows: bool,
    /// Nodes that run row by row, so that rows in a batch give the bits that they give alone.
    row_by_row: HashSet<usize>,
    /// What it adds to the model's memory, where it was made for some shapes alone.
    pub(super) charge: Option<Charge>,
}

/// Why a run gave no outputs. tract's own texts hold values of tensors and go no further.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It was told to stop.
    Stopped,
    /// The shapes of the inputs contradict each other.
    Inputs,
    /// A value inside would be too large.
    TooLarge,
    /// An index among the values is out of its range.
    Index,
    /// An operator failed.
    Failed,
}

/// Names the operator that ran when a run failed or panicked.
#[derive(Default)]
pub(super) struct Trace(Cell<Option<usize>>);

impl Plan {
    /// Analyses, declutters and optimises.
    pub(super) fn build(model: InferenceModel) -> TractResult<Self> {
        let mut model = model.into_typed()?;
        cast_symbolic_outputs(&mut model)?;
        // Before constants are folded, and after.
        sizes(&model)?;
        model.declutter()?;
        let carries_rows = contained(|| rows::carries_rows(&model).unwrap_or(false));
        model.optimize()?;
        let (sizes, late) = sizes(&model)?;
        let inputs = (0..model.input_outlets()?.len())
            .map(|index| Ok(model.input_fact(index)?.datum_type))
            .collect::<TractResult<_>>()?;
        let carries_rows = carries_rows.unwrap_or(false);
        let row_by_row = if carries_rows { rows::sensitive(&model) } else { HashSet::new() };
        let runnable = model.into_runnable()?;
        Ok(Plan { runnable, sizes, late, inputs, carries_rows, row_by_row, charge: None })
    }

    /// The plan for inputs of these shapes and no other.
    pub(super) fn for_shapes(
        model: &InferenceModel,
        declared: &Declared,
        shapes: &[TVec<usize>],
    ) -> TractResult<Self> {
        let mut model = model.clone();
        for (index, (slot, shape)) in declared.inputs.iter().zip(shapes).enumerate() {
            model.set_input_fact(index, fixed(slot, shape))?;
        }
        Plan::build(model)
    }

    /// Whether axis 0 of the outputs is that of the inputs; says why not.
    pub(super) fn keeps_rows(&self) -> Result<(), &'static str> {
        rows::keeps_rows(self.runnable.model())
            .unwrap_or(Err("the shapes of the model are not known"))
    }

    /// Whether the structure of the graph keeps the rows of a batch apart.
    pub(super) fn carries_rows(&self) -> bool {
        self.carries_rows
    }

    /// Whether the shapes of the inputs decide the sizes of all values.
    pub(super) fn has_settled_sizes(&self) -> bool {
        self.late.is_empty()
    }

    /// What an output is known to be.
    pub(super) fn output(&self, index: usize) -> TractResult<&TypedFact> {
        self.runnable.model().output_fact(index)
    }

    /// The operator that a trace ended in.
    pub(super) fn operator(&self, trace: &Trace) -> Option<String> {
        let node = self.runnable.model().nodes().get(trace.0.get()?)?;
        Some(node.op.name().into_owned())
    }

    /// Runs the graph on this thread with a state of its own, so that nothing outlives the run.
    pub(super) fn run(
        &self,
        inputs: TVec<TractTensor>,
        stop: &dyn Fn() -> bool,
        trace: &Trace,
    ) -> Result<TVec<Arc<TractTensor>>, Failure> {
        let mut state = self.runnable.spawn().map_err(|_| Failure::Failed)?;
        let mut values: TVec<TValue> = tvec!();
        for (tensor, datum) in inputs.into_iter().zip(&self.inputs) {
            let tensor = match is_symbolic(*datum) {
                true => tensor.cast_to::<TDim>().map_err(|_| Failure::Inputs)?.into_owned(),
                false => tensor,
            };
            values.push(tensor.into_tvalue());
        }
        state.set_inputs(values).map_err(|_| Failure::Inputs)?;
        self.check_sizes(&state.turn_state.resolved_symbols)?;
        let refused = Cell::new(None);
        let outcome = state.exec_plan_with_eval(|context, op_state, node, inputs| {
            trace.0.set(Some(node.id));
            if stop() {
                return Err(format_err!("stopped"));
            }
            if !guard::fits(&*node.op, &inputs, context.symbols) {
                refused.set(Some(Failure::Inputs));
                return Err(format_err!("operands of different sizes"));
            }
            if !indices::fit(&*node.op, &inputs) {
                refused.set(Some(Failure::Index));
                return Err(format_err!("an index out of its range"));
            }
            if !self.has_room(node.id, &inputs, context.symbols) {
                refused.set(Some(Failure::TooLarge));
                return Err(format_err!("a value too large"));
            }
            match self.row_by_row.contains(&node.id) && rows::are_several(&inputs) {
                true => rows::eval_apart(context, &*node.op, &inputs),
                false => eval(context, op_state, node, inputs),
            }
        });
        if outcome.is_err() {
            let other = || if stop() { Failure::Stopped } else { Failure::Failed };
            return Err(refused.take().unwrap_or_else(other));
        }
        let outputs = state.outputs().map_err(|_| Failure::Failed)?;
        // Whatever else holds the outputs goes first.
        drop(state);
        Ok(outputs.into_iter().map(IntoArcTensor::into_arc_tensor).collect())
    }

    fn check_sizes(&self, symbols: &SymbolValues) -> Result<(), Failure> {
        match self.sizes.iter().all(|size| may_be(size, symbols)) {
            true => Ok(()),
            false => Err(Failure::TooLarge),
        }
    }

    /// Whether the outputs of this node are small enough, as far as can be said before they are there.
    fn has_room(&self, node: usize, inputs: &[TValue], symbols: &SymbolValues) -> bool {
        let Some(sizes) = self.late.get(&node) else { return true };
        let op = &*self.runnable.model().node(node).op;
        let demand = match demand::depends_on_values(op) {
            true => demand::bytes(op, inputs, symbols).unwrap_or(0),
            false => 0,
        };
        demand <= TENSOR_BYTES_MAX && sizes.iter().all(|size| may_be(size, symbols))
    }
}

/// Checks the sizes of all values that are settled, and gives those that are not: what the shapes of the inputs
/// decide, and by node what values inside the graph decide.
fn sizes(model: &TypedModel) -> TractResult<(Vec<TDim>, LateSizes)> {
    let mut given = HashSet::new();
    for input in model.input_outlets()? {
        given.extend(model.outlet_fact(*input)?.shape.iter().flat_map(TDim::symbols));
    }
    let (mut early, mut late) = (Vec::new(), LateSizes::new());
    for node in model.nodes() {
        if demand::depends_on_values(&*node.op) {
            late.entry(node.id).or_default();
        }
        for outlet in &node.outputs {
            let size = byte_size(&outlet.fact);
            match size.to_i64() {
                Ok(size) => check_size(size)?,
                Err(_) if !size.symbols().is_subset(&given) => {
                    late.entry(node.id).or_default().push(size);
                }
                Err(_) if early.contains(&size) => {}
                Err(_) => early.push(size),
            }
        }
    }
    Ok((early, late))
}

/// False where a size is settled and too large.
fn may_be(size: &TDim, symbols: &SymbolValues) -> bool {
    size.eval(symbols).to_i64().map_or(true, |size| check_size(size).is_ok())
}

/// Outputs that tract types as symbolic integers become `i64` inside the plan, where the symbols have values.
fn cast_symbolic_outputs(model: &mut TypedModel) -> TractResult<()> {
    let mut outputs = model.output_outlets()?.to_vec();
    for (index, outlet) in outputs.iter_mut().enumerate() {
        if is_symbolic(model.outlet_fact(*outlet)?.datum_type) {
            let name = format!("sandpiper.output.{index}");
            *outlet = model.wire_node(name, cast(DatumType::I64), &[*outlet])?[0];
        }
    }
    model.select_output_outlets(&outputs)
}

fn byte_size(fact: &TypedFact) -> TDim {
    fact.shape.volume() * fact.datum_type.size_of()
}

fn check_size(size: i64) -> TractResult<()> {
    let fits = u64::try_from(size).is_ok_and(|size| size <= TENSOR_BYTES_MAX);
    ensure!(fits, "a value inside the model takes more than {TENSOR_BYTES_MAX} bytes");
    Ok(())
}
