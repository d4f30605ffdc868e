//! What prepares the columns of a table, in the operators of scikit-learn's exports.

use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType, type_proto::Value};

use super::emit::{Emit, attribute, float, floats, integer, integers, with_int};

fn ends(node: &NodeProto) -> Option<(&str, &str)> {
    Some((node.input.first()?.as_str(), node.output.first()?.as_str()))
}

/// `ArrayFeatureExtractor` takes elements along the last axis, whatever the shape of the list of their places; of a
/// vector it makes a matrix of one row.
pub(super) fn extract(node: &NodeProto, graph: &GraphProto, emit: &mut Emit<'_>) -> bool {
    let (Some((data, output)), Some(places)) = (ends(node), node.input.get(1)) else {
        return false;
    };
    let rank = rank(graph, data);
    if rank == Some(0) {
        return false;
    }
    let places = emit.reshape(places, &[-1]);
    let along = vec![with_int("axis", -1)];
    if rank.is_some_and(|rank| rank > 1) {
        emit.node_to("Gather", &[data, &places], output, along);
        return true;
    }
    let taken = emit.node("Gather", &[data, &places], along);
    if rank == Some(1) {
        let shape = emit.integers(&[2], &[1, -1]);
        emit.op_to("Reshape", &[&taken, &shape], output);
    } else {
        // A vector becomes one row, and what has rows stays as it is.
        let shape = emit.integers(&[2], &[1, 1]);
        emit.op_to("Expand", &[&taken, &shape], output);
    }
    true
}

/// The rank of a weight or of an input of the graph.
fn rank(graph: &GraphProto, name: &str) -> Option<usize> {
    if let Some(weight) = graph.initializer.iter().find(|tensor| tensor.name == name) {
        return Some(weight.dims.len());
    }
    let input = graph.input.iter().find(|input| input.name == name)?;
    let Value::TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
    Some(tensor.shape.as_ref()?.dim.len())
}

/// `(x - offset) · scale`, as 32-bit floats.
pub(super) fn scale(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((data, output)) = ends(node) else { return false };
    let (offset, scale) = (floats(node, "offset"), floats(node, "scale"));
    if scale.is_empty() || offset.len() != scale.len() {
        return false;
    }
    let count = scale.len() as i64;
    let (offset, scale) = (emit.floats(&[count], offset), emit.floats(&[count], scale));
    let data = emit.cast(data, DataType::Float);
    let shifted = emit.op("Sub", &[&data, &offset]);
    emit.op_to("Mul", &[&shifted, &scale], output);
    true
}

/// Puts values where others are missing: one for all columns, or one for each.
pub(super) fn impute(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((data, output)) = ends(node) else { return false };
    let (values, whole) =
        (floats(node, "imputed_value_floats"), integers(node, "imputed_value_int64s"));
    let (kind, count) = match (values, whole) {
        ([], []) => return false,
        (values, []) => (DataType::Float, values.len() as i64),
        ([], whole) => (DataType::Int64, whole.len() as i64),
        _ => return false,
    };
    // onnxruntime takes the first value for every column where there are not as many columns as values.
    let data = match count {
        1 => data.to_owned(),
        _ => emit.of_columns(data, count, kind),
    };
    let dims: &[i64] = if count == 1 { &[] } else { &[count] };
    let (missing, values) = if kind == DataType::Float {
        let missing = match float(node, "replaced_value_float").unwrap_or(0.) {
            value if value.is_nan() => emit.op("IsNaN", &[&data]),
            value => {
                let value = emit.floats(&[], &[value]);
                emit.op("Equal", &[&data, &value])
            }
        };
        (missing, emit.floats(dims, values))
    } else {
        let value = integer(node, "replaced_value_int64").unwrap_or(0);
        let value = emit.integers(&[], &[value]);
        (emit.op("Equal", &[&data, &value]), emit.integers(dims, whole))
    };
    emit.op_to("Where", &[&missing, &values, &data], output);
    true
}

/// 1 above the threshold, else 0.
pub(super) fn binarize(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((data, output)) = ends(node) else { return false };
    let threshold = emit.floats(&[], &[float(node, "threshold").unwrap_or(0.)]);
    let above = emit.op("Greater", &[data, &threshold]);
    emit.node_to("Cast", &[&above], output, vec![with_int("to", DataType::Float as i64)]);
    true
}

/// The columns of several tables beside each other, as 32-bit floats. onnxruntime cuts or fills tables that have other
/// than the stated number of columns; here they do not fit the model.
pub(super) fn vectorize(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some(output) = node.output.first() else { return false };
    let counts = integers(node, "inputdimensions");
    if node.input.is_empty() || counts.len() != node.input.len() {
        return false;
    }
    let mut parts = Vec::with_capacity(counts.len());
    for (part, count) in node.input.iter().zip(counts) {
        if *count < 1 {
            return false;
        }
        let part = emit.cast(part, DataType::Float);
        parts.push(emit.of_columns(&part, *count, DataType::Float));
    }
    let parts: Vec<_> = parts.iter().map(String::as_str).collect();
    emit.node_to("Concat", &parts, output, vec![with_int("axis", 1)]);
    true
}

/// One column for each category: 1 where the value is that category, else 0. Where a value of no category is an
/// error, it is an index out of range here.
pub(super) fn one_hot(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((data, output)) = ends(node) else { return false };
    let categories = integers(node, "cats_int64s");
    if categories.is_empty() || attribute(node, "cats_strings").is_some() {
        return false;
    }
    let categories = emit.integers(&[categories.len() as i64], categories);
    let data = emit.cast(data, DataType::Int64);
    let data = emit.with_last_axis(&data);
    let same = emit.op("Equal", &[&data, &categories]);
    let to_float = vec![with_int("to", DataType::Float as i64)];
    if integer(node, "zeros") != Some(0) {
        emit.node_to("Cast", &[&same], output, to_float);
        return true;
    }
    let same = emit.cast(&same, DataType::Float);
    let known = emit.reduce("ReduceMax", &same, -1);
    let one = emit.floats(&[1], &[1.]);
    let known = emit.cast(&known, DataType::Int64);
    let last = emit.integers(&[], &[1]);
    let place = emit.op("Sub", &[&last, &known]);
    let one = emit.node("Gather", &[&one, &place], vec![with_int("axis", 0)]);
    emit.op_to("Mul", &[&same, &one], output);
    true
}

/// Looks values up in a table of numbers.
pub(super) fn encode(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((data, output)) = ends(node) else { return false };
    let (whole, real) = (integers(node, "keys_int64s"), floats(node, "keys_floats"));
    let (keys, count) = match (whole, real) {
        (keys, []) if !keys.is_empty() => (emit.integers(&[keys.len() as i64], keys), keys.len()),
        ([], keys) if !keys.is_empty() && !keys.iter().any(|key| key.is_nan()) => {
            (emit.floats(&[keys.len() as i64], keys), keys.len())
        }
        _ => return false,
    };
    let (whole, real) = (integers(node, "values_int64s"), floats(node, "values_floats"));
    let (values, other) = match (whole, real) {
        (values, []) if values.len() == count => {
            let other = integer(node, "default_int64").unwrap_or(-1);
            (emit.integers(&[count as i64], values), emit.integers(&[], &[other]))
        }
        ([], values) if values.len() == count => {
            let other = float(node, "default_float").unwrap_or(-0.);
            (emit.floats(&[count as i64], values), emit.floats(&[], &[other]))
        }
        _ => return false,
    };
    let data = emit.with_last_axis(data);
    let same = emit.op("Equal", &[&data, &keys]);
    let same = emit.cast(&same, DataType::Float);
    let place = emit.node("ArgMax", &[&same], vec![with_int("axis", -1), with_int("keepdims", 1)]);
    let found = emit.reduce("ReduceMax", &same, -1);
    let found = emit.cast(&found, DataType::Bool);
    let value = emit.node("Gather", &[&values, &place], vec![with_int("axis", 0)]);
    let value = emit.op("Where", &[&found, &value, &other]);
    emit.without_last_axis(&value, output);
    true
}
