//! Watches what tract calculates while it analyses a graph.
//!
//! tract evaluates every operator whose inputs are constant, and only then asks how large the result is: a file of
//! 160 bytes can ask for terabytes. So every operator is wrapped in one that infers the shapes first, refuses
//! values that are too large, and has nothing evaluated whose result tract would throw away for its size.

use std::collections::HashSet;

use tract_onnx::{
    prelude::{InferenceFact, InferenceModel, TDim, TVec, TractResult},
    tract_core::{
        internal::{
            EvalContext, EvalOp, HashMap, Op, OpState, OutletId, SessionId, StaticName,
            SymbolValues, TValue, TypedModel, TypedOp, Validation, ensure,
        },
        optim::CONST_FOLD_MEM_BUDGET,
    },
    tract_hir::infer::{Factoid, InferenceNode, InferenceOp},
};

use super::{demand, plan::TENSOR_BYTES_MAX};

/// Lists of more integers are no sizes.
const SIZES_MAX: usize = 64;

/// What an operator infers: inputs, outputs, and others it observes.
type Inferred = (TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>);

/// Wraps every operator of the graph; `extremes` are the nodes that take the largest or smallest of values.
pub(super) fn watch(model: &mut InferenceModel, extremes: &HashSet<String>) {
    for node in model.nodes_mut() {
        // Sources and constants have nothing to evaluate.
        if !node.inputs.is_empty() {
            let extreme = extremes.contains(&node.name);
            node.op = Box::new(Watched { op: node.op.clone(), extreme });
        }
    }
}

/// Passes for the operator inside, which is what `as_op` gives.
#[derive(Debug, Clone)]
struct Watched {
    op: Box<dyn InferenceOp>,
    extreme: bool,
}

impl PartialEq for Watched {
    fn eq(&self, _: &Self) -> bool {
        false
    }
}

impl Eq for Watched {}

impl InferenceOp for Watched {
    fn infer(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<Inferred> {
        let inferred = self.op.infer_facts(inputs, outputs, observed)?;
        let (inputs, outputs, observed) = &inferred;
        check_operands(&self.op.name(), inputs)?;
        if let (true, [input, ..], [output, ..]) = (self.extreme, &inputs[..], &outputs[..]) {
            let nothing = bytes(input) == Some(0) && bytes(output).is_some_and(|bytes| bytes > 0);
            ensure!(!nothing, "it takes the largest or smallest of no values");
        }
        let mut size = Some(0u64);
        for output in outputs {
            let bytes = bytes(output);
            check_size(bytes.unwrap_or(0))?;
            size = size.zip(bytes).map(|(size, bytes)| size + bytes);
        }
        let known: u64 = inputs.iter().filter_map(bytes).sum();
        let constant = !inputs.is_empty() && inputs.iter().all(|input| input.value.is_concrete());
        let kept = size.is_none_or(|size| size <= known.max(CONST_FOLD_MEM_BUDGET));
        match constant && kept {
            false => Ok(inferred),
            true => {
                let (inputs, outputs) = (inputs.iter().collect(), outputs.iter().collect());
                self.op.infer(inputs, outputs, observed.iter().collect())
            }
        }
    }

    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<Inferred> {
        self.op.infer_facts(inputs, outputs, observed)
    }

    fn observe_outlets(
        &self,
        model: &InferenceModel,
        node: &InferenceNode,
    ) -> TractResult<Vec<OutletId>> {
        self.op.observe_outlets(model, node)
    }

    fn incorporate(
        &self,
        model: &InferenceModel,
        node: &InferenceNode,
    ) -> TractResult<Option<tract_onnx::tract_hir::infer::InferenceModelPatch>> {
        self.op.incorporate(model, node)
    }

    fn nboutputs(&self) -> TractResult<usize> {
        self.op.nboutputs()
    }

    fn as_op(&self) -> &dyn Op {
        self.op.as_op()
    }

    fn as_op_mut(&mut self) -> &mut dyn Op {
        self.op.as_op_mut()
    }

    fn to_typed(
        &self,
        source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        self.op.to_typed(source, node, target, mapping)
    }
}

impl Op for Watched {
    fn name(&self) -> StaticName {
        self.op.name()
    }

    fn validation(&self) -> Validation {
        self.op.validation()
    }

    fn info(&self) -> TractResult<Vec<String>> {
        self.op.info()
    }

    fn mints_runtime_symbols(&self) -> bool {
        self.op.mints_runtime_symbols()
    }

    fn as_typed(&self) -> Option<&dyn TypedOp> {
        self.op.as_typed()
    }
}

impl EvalOp for Watched {
    fn eval(&self, context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.op.eval(context, inputs)
    }

    fn forwards_input(&self) -> Option<usize> {
        self.op.forwards_input()
    }

    fn eval_out_of_plan(&self, inputs: TVec<TValue>) -> TractResult<Option<TVec<TValue>>> {
        self.op.eval_out_of_plan(inputs)
    }

    fn state(&self, context: &EvalContext) -> TractResult<Option<Box<dyn OpState>>> {
        self.op.state(context)
    }

    fn drop_session(&self, session: SessionId, node: usize) {
        self.op.drop_session(session, node);
    }
}

/// tract infers shapes from constants through 32 bits, and makes values of all 64: what is larger is refused here.
fn check_operands(operator: &str, inputs: &TVec<InferenceFact>) -> TractResult<()> {
    let values = inputs.iter().map(|input| input.value.concretize());
    let symbols = SymbolValues::default();
    let first = match operator {
        "Range" => {
            let values: Option<Vec<_>> = values.collect();
            if let Some([start, end, step]) = values.as_deref() {
                let steps = demand::range([start, end, step], &symbols).unwrap_or(0);
                check_size(steps.saturating_mul(start.datum_type().size_of() as u64))?;
            }
            return Ok(());
        }
        "ConstantOfShape" | "MelWeightMatrix" => 0,
        window if window.starts_with("StftWindow") => 0,
        "MultiBroadcastTo" | "Tile" | "OneHot" | "Pad" | "Resize" | "Dft" | "Dft17" | "STFT" => 1,
        _ => return Ok(()),
    };
    let sizes = values.skip(first).flatten();
    for sizes in sizes.filter(|sizes| sizes.datum_type().is_integer() && sizes.len() <= SIZES_MAX) {
        for size in demand::integers(&sizes, &symbols)? {
            if i32::try_from(size).is_err() {
                check_size(u64::MAX)?;
            }
        }
    }
    Ok(())
}

fn check_size(size: u64) -> TractResult<()> {
    ensure!(size <= TENSOR_BYTES_MAX, "it makes a value of more than {TENSOR_BYTES_MAX} bytes");
    Ok(())
}

/// The size of a value whose shape is known; as large as can be where the shape is none.
fn bytes(fact: &InferenceFact) -> Option<u64> {
    let element = fact.datum_type.concretize().map_or(1, |datum| datum.size_of());
    let shape: TVec<TDim> = fact.shape.concretize()?;
    let sizes: Option<TVec<i64>> = shape.iter().map(|dim| dim.to_i64().ok()).collect();
    let product = sizes?.iter().try_fold(element as u64, |product, size| {
        u64::try_from(*size).ok().and_then(|size| product.checked_mul(size))
    });
    Some(product.unwrap_or(u64::MAX))
}
