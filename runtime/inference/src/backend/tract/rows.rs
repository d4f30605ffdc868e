//! Whether the rows of a batch stay apart in a graph, as far as its structure tells.

use std::collections::{HashMap, HashSet};

use tract_onnx::tract_core::{
    internal::{
        EvalContext, InOut, IntoTValue, OutletId, TDim, TValue, TVec, Tensor, TractResult,
        TypedFact, TypedModel, TypedNode, TypedOp, bail, tvec,
    },
    ops::{
        array::DynSlice,
        cnn::{MaxPool, SumPool},
        fft::Stft,
        nn::{Reduce, RmsNorm, Softmax},
        scan::Scan,
    },
};

use super::audit::{Declared, Dim};

/// Whether axis 0 of every input is free and one and the same.
pub(super) fn declares_rows(declared: &Declared) -> Result<(), &'static str> {
    let mut rows = None;
    for slot in &declared.inputs {
        let Some(dims) = &slot.dims else { return Err("the rank of an input is not stated") };
        let Some((first, rest)) = dims.split_first() else { return Err("an input is a scalar") };
        if matches!(first, Dim::Fixed(_)) {
            return Err("axis 0 of an input has a fixed size");
        }
        let is_named =
            |dim: &Dim| matches!((dim, first), (Dim::Named(a), Dim::Named(b)) if mentions(a, b));
        if rest.iter().any(is_named) {
            return Err("another axis of an input depends on axis 0");
        }
        // Axes without a name may differ from each other.
        if rows.is_some_and(|rows| rows != first || *first == Dim::Unknown) {
            return Err("axis 0 of the inputs is not one and the same");
        }
        rows = Some(first);
    }
    rows.map(drop).ok_or("the model has no inputs")
}

fn mentions(expression: &str, symbol: &str) -> bool {
    expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == symbol)
}

/// Whether axis 0 of every output is that of the inputs, and no other axis depends on it. For plans with symbols.
pub(super) fn keeps_rows(model: &TypedModel) -> TractResult<Result<(), &'static str>> {
    let fact = |outlet| model.outlet_fact(outlet);
    let Some(&first) = model.input_outlets()?.first() else { return Ok(Err("no inputs")) };
    let Some(rows @ TDim::Sym(symbol)) = fact(first)?.shape.first() else {
        return Ok(Err("axis 0 of an input has no size of its own"));
    };
    let fits = |fact: &TypedFact| {
        let mut dims = fact.shape.iter();
        dims.next() == Some(rows) && !dims.any(|dim| dim.symbols().contains(symbol))
    };
    for &outlet in model.input_outlets()? {
        if !fits(fact(outlet)?) {
            return Ok(Err("axis 0 of the inputs is not one and the same"));
        }
    }
    for &outlet in model.output_outlets()? {
        if !fits(fact(outlet)?) {
            return Ok(Err("axis 0 of an output is not that of the inputs"));
        }
    }
    Ok(Ok(()))
}

/// Whether every operator on the way from the inputs to the outputs carries axis 0 along and none mixes what lies on
/// it. The owner of a model must not be able to see rows of other tenants by way of a batch, and a sample of rows does
/// not show what a graph does with others. An operator that is not known to keep rows apart is taken to mix them.
pub(super) fn carries_rows(model: &TypedModel) -> TractResult<bool> {
    let mut carried: HashMap<OutletId, usize> = HashMap::new();
    for &input in model.input_outlets()? {
        carried.insert(input, 0);
    }
    let Some(&first) = model.input_outlets()?.first() else { return Ok(false) };
    let Some(rows) = model.outlet_fact(first)?.shape.first() else { return Ok(false) };
    // An operator may name an axis that it shortens or widens, and say that it goes through.
    let is_whole = |outlet: OutletId, axis: usize| -> TractResult<bool> {
        Ok(model.outlet_fact(outlet)?.shape.get(axis) == Some(rows))
    };
    for id in model.eval_order()? {
        let node = model.node(id);
        let axes: Vec<Option<usize>> =
            node.inputs.iter().map(|input| carried.get(input).copied()).collect();
        if axes.iter().all(Option::is_none) {
            continue;
        }
        let Some(outputs) = carry(model, id, &axes)? else { return Ok(false) };
        for (slot, axis) in outputs.into_iter().enumerate() {
            let outlet = (id, slot).into();
            if !is_whole(outlet, axis)? {
                return Ok(false);
            }
            carried.insert(outlet, axis);
        }
    }
    for &input in model.input_outlets()? {
        if !is_whole(input, 0)? {
            return Ok(false);
        }
    }
    Ok(model.output_outlets()?.iter().all(|output| carried.get(output) == Some(&0)))
}

/// Where the axis `axes` of the inputs of a node comes out, for each output; `None` where it does not come out whole.
fn carry(model: &TypedModel, id: usize, axes: &[Option<usize>]) -> TractResult<Option<Vec<usize>>> {
    let node = model.node(id);
    let (inputs, outputs) = model.node_facts(id)?;
    let first = axes.iter().enumerate().find_map(|(slot, axis)| Some((slot, (*axis)?)));
    let Some((slot, axis)) = first else { return Ok(None) };
    // These say nothing of their axes: a window slides over pixels, never over images.
    let pool = node.op_as::<MaxPool>().map(|pool| &pool.pool_spec);
    let pool = pool.or_else(|| node.op_as::<SumPool>().map(|pool| &pool.pool_spec));
    if let Some(pool) = pool {
        let apart = axis == 0 && pool.data_format.has_n();
        return Ok(apart.then(|| vec![0; outputs.len()]));
    }
    if mixes(node, axis) {
        return Ok(None);
    }
    let mapping = node.op.axes_mapping(&inputs, &outputs)?;
    let rows = mapping.axis((InOut::In(slot), axis))?;
    for (slot, own) in axes.iter().enumerate() {
        let places = rows.inputs.get(slot).map(|places| places.as_slice()).unwrap_or_default();
        let fits = match own {
            Some(own) => places == [*own],
            // What is the same for all rows.
            None => places.iter().all(|&axis| inputs[slot].shape.get(axis) == Some(&TDim::Val(1))),
        };
        if !fits {
            return Ok(None);
        }
    }
    let place = |places: &TVec<usize>| match places.as_slice() {
        [axis] => Some(*axis),
        _ => None,
    };
    Ok(rows.outputs.iter().map(place).collect())
}

/// Whether an operator names an axis that it mixes or shifts along, and says that it goes through.
fn mixes(node: &TypedNode, axis: usize) -> bool {
    node.op_as::<Softmax>().is_some_and(|softmax| softmax.axes.contains(&axis))
        || node.op_as::<RmsNorm>().is_some_and(|norm| norm.axis == axis)
        || node.op_as::<DynSlice>().is_some_and(|slice| slice.axis == axis)
        || node.op_as::<Stft>().is_some_and(|stft| stft.axis == axis)
        || node.op_is::<Scan>()
        || ["DiagGather", "ScaledMaskedSoftmax"].contains(&&*node.op.name())
}

/// The largest batch that is taken apart.
const ROWS_MAX: usize = 32;

/// The nodes of an optimised graph whose results depend on where in memory a row lies. tract adds up the elements
/// before the first aligned address by themselves, so that the rounding of a sum follows the address.
pub(super) fn sensitive(model: &TypedModel) -> HashSet<usize> {
    let along = |node: &&TypedNode| {
        let softmax = node.op_as::<Softmax>().map(|softmax| &softmax.axes);
        let reduce = node.op_as::<Reduce>().map(|reduce| &reduce.axes);
        let axes = softmax.or(reduce);
        let norm = node.op_as::<RmsNorm>().map(|norm| norm.axis);
        axes.is_some_and(|axes| !axes.contains(&0)) || norm.is_some_and(|axis| axis != 0)
    };
    let nodes = model.nodes().iter().filter(along).filter(|node| node.inputs.len() == 1);
    nodes.map(|node| node.id).collect()
}

/// Whether the input has rows that can be taken apart.
pub(super) fn are_several(inputs: &[TValue]) -> bool {
    let rows = inputs.first().and_then(|input| input.shape().first());
    rows.is_some_and(|rows| (2..=ROWS_MAX).contains(rows))
}

/// Runs an operator of one input on each row by itself.
pub(super) fn eval_apart(
    context: &EvalContext<'_>,
    op: &dyn TypedOp,
    inputs: &[TValue],
) -> TractResult<TVec<TValue>> {
    let [input] = inputs else { bail!("an operator of one input has {}", inputs.len()) };
    let mut rows = Vec::with_capacity(ROWS_MAX);
    for row in 0..input.shape().first().copied().unwrap_or(0) {
        let row = input.slice(0, row, row + 1)?.into_tvalue();
        rows.extend(op.eval(context, tvec![row])?);
    }
    let rows: Vec<&Tensor> = rows.iter().map(|row| &**row).collect();
    Ok(tvec![Tensor::stack_tensors(0, &rows)?.into_tvalue()])
}

#[cfg(test)]
mod tests {
    use tract_onnx::tract_core::{
        internal::{DatumExt, IntoArcTensor, SpecialOps, ToDim, tensor0},
        ops::array::MultiBroadcastTo,
    };

    use super::*;

    /// Whether a graph of this one operator on `x` carries the rows of `x`, by what tract says of its axes.
    fn carries(shape: &[TDim], op: impl TypedOp, others: &[Tensor]) -> bool {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact(shape)).unwrap();
        let mut inputs = tvec![x];
        for (index, other) in others.iter().enumerate() {
            let other = other.clone().into_arc_tensor();
            inputs.push(model.add_const(format!("c{index}"), other).unwrap());
        }
        let outputs = model.wire_node("op", op, &inputs).unwrap();
        model.select_output_outlets(&outputs).unwrap();
        carries_rows(&model).unwrap()
    }

    #[test]
    fn an_axis_that_is_cut_widened_or_transformed_is_not_carried() {
        let model = TypedModel::default();
        let n = TDim::Sym(model.symbols.sym("N"));
        let shape = [n.clone(), 8.to_dim(), 2.to_dim()];
        let slice = |axis, len: TDim| DynSlice { axis, len };
        let ends = [tensor0(0i64), tensor0(4i64)];
        assert!(!carries(&shape, slice(0, n.clone()), &ends));
        assert!(carries(&shape, slice(1, 4.to_dim()), &ends));
        let stft = |axis| Stft { axis, frame: 1, stride: 1, window: None };
        assert!(!carries(&shape, stft(0), &[]));
        assert!(carries(&shape, stft(1), &[]));
        let wide = |rows: TDim| MultiBroadcastTo { shape: [rows, 8.to_dim()].iter().collect() };
        assert!(!carries(&[1.to_dim(), 8.to_dim()], wide(5.to_dim()), &[]));
        assert!(carries(&[n.clone(), 1.to_dim()], wide(n), &[]));
    }
}
