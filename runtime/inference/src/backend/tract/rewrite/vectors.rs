//! Support vector machines, as matrix operations.

use tract_onnx::pb::{NodeProto, tensor_proto::DataType};

use super::emit::{Emit, floats, integer, string, with_ints};

/// `Σ coefficient · kernel(x, support vector) + rho`; the sign of it for one class.
pub(super) fn regressor(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
        return false;
    };
    let (coefficients, rho) = (floats(node, "coefficients"), floats(node, "rho"));
    let plain = matches!(string(node, "post_transform"), None | Some("NONE"));
    let supports = integer(node, "n_supports").unwrap_or(0);
    if !plain || rho.len() != 1 || coefficients.is_empty() {
        return false;
    }
    let data = emit.cast(input, DataType::Float);
    let count = coefficients.len() as i64;
    let alike = if supports == 0 {
        emit.of_columns(&data, count, DataType::Float)
    } else {
        match kernel(node, &data, supports, emit) {
            Some(alike) if supports == count => alike,
            _ => return false,
        }
    };
    let coefficients = emit.floats(&[count, 1], coefficients);
    let sum = emit.op("MatMul", &[&alike, &coefficients]);
    let rho = emit.floats(&[1], rho);
    if integer(node, "one_class").unwrap_or(0) == 0 {
        emit.op_to("Add", &[&sum, &rho], output);
        return true;
    }
    let sum = emit.op("Add", &[&sum, &rho]);
    let (zero, one, minus) =
        (emit.floats(&[1], &[0.]), emit.floats(&[1], &[1.]), emit.floats(&[1], &[-1.]));
    let inside = emit.op("Greater", &[&sum, &zero]);
    emit.op_to("Where", &[&inside, &one, &minus], output);
    true
}

/// How alike each row of `data` is to each support vector: `[N, supports]`.
fn kernel(node: &NodeProto, data: &str, supports: i64, emit: &mut Emit<'_>) -> Option<String> {
    let vectors = floats(node, "support_vectors");
    let features = (vectors.len() as i64).checked_div(supports).filter(|features| *features > 0)?;
    if features * supports != vectors.len() as i64 {
        return None;
    }
    let kind = string(node, "kernel_type").unwrap_or("LINEAR");
    let (gamma, offset, degree) = match (floats(node, "kernel_params"), kind) {
        ([gamma, offset, degree], _) => (*gamma, *offset, *degree),
        ([], "LINEAR") => (0., 0., 0.),
        _ => return None,
    };
    // Rows of another length are an error, and not more or fewer rows.
    let data = emit.of_columns(data, features, DataType::Float);
    if kind == "RBF" {
        // Differences and then squares, since the squares of far features would drown the difference.
        let rows = emit.reshape(&data, &[0, 1, features]);
        let vectors = emit.floats(&[1, supports, features], vectors);
        let apart = emit.op("Sub", &[&rows, &vectors]);
        let squares = emit.op("Mul", &[&apart, &apart]);
        let distance = emit.reduce("ReduceSum", &squares, 2);
        let distance = emit.reshape(&distance, &[0, supports]);
        let gamma = emit.floats(&[1], &[-gamma]);
        let exponent = emit.op("Mul", &[&distance, &gamma]);
        return Some(emit.op("Exp", &[&exponent]));
    }
    let vectors = emit.floats(&[supports, features], vectors);
    let vectors = emit.node("Transpose", &[&vectors], vec![with_ints("perm", vec![1, 0])]);
    let product = emit.op("MatMul", &[&data, &vectors]);
    if kind == "LINEAR" {
        return Some(product);
    }
    let (gamma, offset) = (emit.floats(&[1], &[gamma]), emit.floats(&[1], &[offset]));
    let product = emit.op("Mul", &[&product, &gamma]);
    let product = emit.op("Add", &[&product, &offset]);
    match kind {
        "POLY" => {
            let degree = emit.floats(&[1], &[degree]);
            Some(emit.op("Pow", &[&product, &degree]))
        }
        "SIGMOID" => Some(emit.op("Tanh", &[&product])),
        _ => None,
    }
}
