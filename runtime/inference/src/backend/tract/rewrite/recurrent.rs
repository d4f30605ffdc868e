//! Recurrent operators that run from the end of a sequence to its start, which tract runs from its start.

use tract_onnx::pb::NodeProto;

use super::emit::{Emit, integer, string};

/// Turns the direction around: the sequence is reversed before the operator, and what it says of each step after.
/// The last state is the same in both.
pub(super) fn forward(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    // `Slice` has steps since version 10.
    if string(node, "direction") != Some("reverse") || emit.opset < 10 {
        return false;
    }
    let Some(sequence) = node.input.first() else { return false };
    let axis = integer(node, "layout").unwrap_or(0).clamp(0, 1);
    let mut forward = node.clone();
    forward.attribute.retain(|attribute| attribute.name != "direction");
    forward.input[0] = reversed(sequence, axis, None, emit);
    match node.output.first() {
        Some(steps) if !steps.is_empty() => {
            let turned = emit.fresh();
            forward.output[0] = turned.clone();
            emit.keep(forward);
            reversed(&turned, axis, Some(steps), emit);
        }
        _ => emit.keep(forward),
    }
    true
}

fn reversed(value: &str, axis: i64, output: Option<&str>, emit: &mut Emit<'_>) -> String {
    let start = emit.integers(&[1], &[-1]);
    let end = emit.integers(&[1], &[-i64::from(i32::MAX)]);
    let axes = emit.integers(&[1], &[axis]);
    let step = emit.integers(&[1], &[-1]);
    let output = output.map_or_else(|| emit.fresh(), str::to_owned);
    emit.op_to("Slice", &[value, &start, &end, &axes, &step], &output);
    output
}
