//! Operators of ONNX's own that tract calculates otherwise than ONNX defines.

use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType, type_proto::Value};

use super::{
    emit::{Emit, float, integer, string, with_int, with_ints},
    types::Types,
};
use crate::LoadError;

/// Deeper encodings are left to tract: one of a comparison writes out every place.
const DEPTH_MAX: i64 = 4096;

fn ends(node: &NodeProto) -> Option<(&str, &str)> {
    Some((node.input.first()?.as_str(), node.output.first()?.as_str()))
}

/// A cast to 64-bit integers, of values that may need more than 32 of them. What is of that type already, such as
/// sizes that are not known yet, stays as it is.
pub(super) fn cast(node: &NodeProto, types: &Types, emit: &mut Emit<'_>) -> bool {
    let Some((value, output)) = ends(node) else { return false };
    if integer(node, "to") != Some(DataType::Int64 as i64) {
        return false;
    }
    match types.get(value) {
        Some(DataType::Int64) => emit.op_to("Identity", &[value], output),
        Some(
            DataType::Bool
            | DataType::Int8
            | DataType::Int16
            | DataType::Int32
            | DataType::Uint8
            | DataType::Uint16
            | DataType::String,
        ) => return false,
        _ => emit.widen(value, output),
    }
    true
}

/// Shifts by no bits less than none and no more than there are: what is shifted further is 0, or -1 where the sign
/// fills it. tract shifts by whatever the processor makes of such a count.
pub(super) fn shift(
    node: &NodeProto,
    types: &Types,
    emit: &mut Emit<'_>,
) -> Result<bool, LoadError> {
    let (Some((value, output)), Some(count)) = (ends(node), node.input.get(1)) else {
        return Ok(false);
    };
    let unknown = || LoadError::UnsupportedVariant {
        operator: node.op_type.clone(),
        why: "integers whose type the graph does not show".to_owned(),
    };
    let right = string(node, "direction") == Some("RIGHT");
    let kind = types.get(value).or_else(|| types.get(count)).ok_or_else(unknown)?;
    let (bytes, signed) = match kind {
        DataType::Uint8 => (1, false),
        DataType::Uint16 => (2, false),
        DataType::Uint32 => (4, false),
        DataType::Uint64 => (8, false),
        DataType::Int8 => (1, true),
        DataType::Int16 => (2, true),
        DataType::Int32 => (4, true),
        DataType::Int64 => (8, true),
        _ => return Err(unknown()),
    };
    let width = bytes as i64 * 8;
    // Compared as 64-bit integers, of which every count that fits is one.
    let wide = emit.cast(count, DataType::Int64);
    let (none, all) = (emit.integers(&[], &[0]), emit.integers(&[], &[width]));
    let (negative, wider) = (emit.op("Less", &[&wide, &none]), emit.op("Less", &[&wide, &all]));
    let positive = emit.op("Not", &[&negative]);
    let fits = emit.op("And", &[&positive, &wider]);
    let zero = emit.weight(&[], kind, vec![0; bytes]);
    // An arithmetic shift by one bit less than there are leaves nothing but the sign.
    let most: i64 = if signed && right { width - 1 } else { 0 };
    let most = emit.weight(&[], kind, most.to_le_bytes()[..bytes].to_vec());
    let bounded = emit.op("Where", &[&fits, count, &most]);
    let mut shifted = node.clone();
    shifted.input[1] = bounded;
    if signed && right {
        emit.keep(shifted);
        return Ok(true);
    }
    let part = emit.fresh();
    shifted.output[0] = part.clone();
    emit.keep(shifted);
    emit.op_to("Where", &[&fits, &part, &zero], output);
    Ok(true)
}

/// tract's own is right in 32 bits, and calculates something else in others.
pub(super) fn celu(node: &NodeProto, types: &Types, emit: &mut Emit<'_>) -> bool {
    let Some((value, output)) = ends(node) else { return false };
    if types.get(value) == Some(DataType::Float) {
        return false;
    }
    let alpha = emit.floats(&[], &[float(node, "alpha").unwrap_or(1.)]);
    let alpha = emit.op("CastLike", &[&alpha, value]);
    let (one, zero) = (emit.floats(&[], &[1.]), emit.floats(&[], &[0.]));
    let (one, zero) = (emit.op("CastLike", &[&one, value]), emit.op("CastLike", &[&zero, value]));
    let scaled = emit.op("Div", &[value, &alpha]);
    let raised = emit.op("Exp", &[&scaled]);
    let less = emit.op("Sub", &[&raised, &one]);
    let below = emit.op("Mul", &[&alpha, &less]);
    let below = emit.op("Min", &[&below, &zero]);
    let above = emit.op("Max", &[value, &zero]);
    emit.op_to("Add", &[&above, &below], output);
    true
}

/// `x · sigmoid(alpha · x)`; tract knows no `alpha`.
pub(super) fn swish(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((value, output)) = ends(node) else { return false };
    let alpha = float(node, "alpha").unwrap_or(1.);
    if alpha == 1. {
        return false;
    }
    let alpha = emit.floats(&[], &[alpha]);
    let alpha = emit.op("CastLike", &[&alpha, value]);
    let scaled = emit.op("Mul", &[value, &alpha]);
    let gate = emit.op("Sigmoid", &[&scaled]);
    emit.op_to("Mul", &[value, &gate], output);
    true
}

/// With the mode `CRD` the channels come first in each new channel; tract knows only the other order.
pub(super) fn space_to_depth(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let Some((_, output)) = ends(node) else { return false };
    if string(node, "mode") != Some("CRD") {
        return false;
    }
    let block = integer(node, "blocksize").unwrap_or(0);
    let Some(block) = block.checked_mul(block) else { return false };
    let mut other = node.clone();
    other.attribute.retain(|attribute| attribute.name != "mode");
    let blocks = emit.fresh();
    other.output[0] = blocks.clone();
    emit.keep(other);
    // [N, B·B·C, H, W] -> [H, W, N, B·B·C] -> [H, W, N, B·B, C] -> [H, W, N, C, B·B] and back.
    let order = |axes: &[i64]| vec![with_ints("perm", axes.to_vec())];
    let last = emit.node("Transpose", &[&blocks], order(&[2, 3, 0, 1]));
    let split = emit.reshape(&last, &[0, 0, 0, block, -1]);
    let turned = emit.node("Transpose", &[&split], order(&[0, 1, 2, 4, 3]));
    let joined = emit.reshape(&turned, &[0, 0, 0, -1]);
    emit.node_to("Transpose", &[&joined], output, order(&[2, 3, 0, 1]));
    true
}

/// The largest or smallest of values. Of booleans, tract wants bytes. Of floats it starts with the largest finite
/// one, and so never finds that all are infinite.
pub(super) fn extreme(node: &NodeProto, types: &Types, emit: &mut Emit<'_>) -> bool {
    let Some((value, output)) = ends(node) else { return false };
    match types.get(value) {
        Some(DataType::Bool) => {
            let bytes = emit.cast(value, DataType::Uint8);
            let reduced = like(node, &bytes, emit);
            let to = vec![with_int("to", DataType::Bool as i64)];
            emit.node_to("Cast", &[&reduced], output, to);
            true
        }
        Some(DataType::Float | DataType::Float16 | DataType::Double) | None => {
            let largest = node.op_type == "ReduceMax";
            let beyond = if largest { f32::NEG_INFINITY } else { f32::INFINITY };
            let beyond = emit.floats(&[], &[beyond]);
            let beyond = emit.op("CastLike", &[&beyond, value]);
            let reduced = like(node, value, emit);
            let others = emit.op("Equal", &[value, &beyond]);
            let others = emit.op("Not", &[&others]);
            let others = emit.cast(&others, DataType::Uint8);
            let mut any = node.clone();
            any.op_type = "ReduceMax".to_owned();
            let any = like(&any, &others, emit);
            let any = emit.cast(&any, DataType::Bool);
            emit.op_to("Where", &[&any, &reduced, &beyond], output);
            true
        }
        _ => false,
    }
}

/// The same operator on another value.
fn like(node: &NodeProto, value: &str, emit: &mut Emit<'_>) -> String {
    let mut node = node.clone();
    let output = emit.fresh();
    node.name = String::new();
    node.input[0] = value.to_owned();
    node.output[0] = output.clone();
    emit.keep(node);
    output
}

/// `OneHot` along a new last axis, as a comparison: an index out of range is none of the places, where tract panics.
pub(super) fn one_hot(node: &NodeProto, graph: &GraphProto, emit: &mut Emit<'_>) -> bool {
    let (Some((indices, output)), Some(depth), Some(values)) =
        (ends(node), node.input.get(1), node.input.get(2))
    else {
        return false;
    };
    let last = integer(node, "axis").unwrap_or(-1) == -1;
    let Some(depth) = whole(graph, depth).filter(|depth| last && (1..=DEPTH_MAX).contains(depth))
    else {
        return false;
    };
    let places = emit.integers(&[depth], &(0..depth).collect::<Vec<_>>());
    let below = emit.integers(&[depth], &(-depth..0).collect::<Vec<_>>());
    let indices = emit.cast(indices, DataType::Int64);
    let indices = emit.with_last_axis(&indices);
    let (hit, hit_below) =
        (emit.op("Equal", &[&indices, &places]), emit.op("Equal", &[&indices, &below]));
    let hit = emit.op("Or", &[&hit, &hit_below]);
    let (off, on) = (emit.integers(&[], &[0]), emit.integers(&[], &[1]));
    let first = || vec![with_int("axis", 0)];
    let off = emit.node("Gather", &[values, &off], first());
    let on = emit.node("Gather", &[values, &on], first());
    emit.op_to("Where", &[&hit, &on, &off], output);
    true
}

/// The one number in a weight, if it is whole.
fn whole(graph: &GraphProto, name: &str) -> Option<i64> {
    let tensor = graph.initializer.iter().find(|tensor| tensor.name == name)?;
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 => match (&tensor.raw_data[..], &tensor.int64_data[..]) {
            ([], [value]) => Some(*value),
            (raw, _) => Some(i64::from_le_bytes(raw.try_into().ok()?)),
        },
        DataType::Int32 => match (&tensor.raw_data[..], &tensor.int32_data[..]) {
            ([], [value]) => Some(i64::from(*value)),
            (raw, _) => Some(i64::from(i32::from_le_bytes(raw.try_into().ok()?))),
        },
        DataType::Float => {
            let value = match (&tensor.raw_data[..], &tensor.float_data[..]) {
                ([], [value]) => *value,
                (raw, _) => f32::from_le_bytes(raw.try_into().ok()?),
            };
            (value.fract() == 0. && value.abs() < 1e6).then_some(value as i64)
        }
        _ => None,
    }
}

/// Before version 7 the second operand lay along the first from some `axis` on, and not along its last axes.
pub(super) fn broadcast(node: &NodeProto, graph: &GraphProto, emit: &mut Emit<'_>) -> bool {
    let (Some(axis), [first, second]) = (integer(node, "axis"), &node.input[..]) else {
        return false;
    };
    if emit.opset >= 7 {
        return false;
    }
    let mut plain = node.clone();
    plain.attribute.retain(|attribute| attribute.name != "axis");
    if integer(node, "broadcast").unwrap_or(0) != 0 {
        let (Some(rank), Some(own)) = (rank(graph, first), rank(graph, second)) else {
            return false;
        };
        let axis = usize::try_from(axis).ok().filter(|axis| axis + own <= rank);
        let Some(axis) = axis else { return false };
        let mut shape = vec![0; own];
        shape.resize(rank - axis, 1);
        plain.input[1] = emit.reshape(second, &shape);
    }
    emit.keep(plain);
    true
}

/// How many axes a weight or an input has.
fn rank(graph: &GraphProto, name: &str) -> Option<usize> {
    if let Some(tensor) = graph.initializer.iter().find(|tensor| tensor.name == name) {
        return Some(tensor.dims.len());
    }
    let input = graph.input.iter().find(|input| input.name == name)?;
    let Value::TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
    Some(tensor.shape.as_ref()?.dim.len())
}
