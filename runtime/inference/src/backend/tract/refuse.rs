//! Refuses what tract has by name and would answer wrongly.
//!
//! tract looks at the name of an operator and not at whose it is, and passes over attributes that it does not know.
//! Each refusal here is of a use that ONNX defines and tract 0.23.9 ignores; the backend cases of the ONNX project
//! and a comparison of its schemas with tract's source found them.

use tract_onnx::pb::NodeProto;

use super::rewrite::{ML, attribute, integer, makes_text, string, strings};
use crate::{LoadError, contract::shown};

/// Operators of `ai.onnx.ml` that tract has, after the rewrite.
const ML_OPERATORS: [&str; 4] =
    ["LinearClassifier", "LinearRegressor", "Normalizer", "TreeEnsembleClassifier"];

/// Operators of `com.microsoft` that tract has. Others of that domain share a name with one of ONNX's and are
/// something else.
const MICROSOFT_OPERATORS: [&str; 14] = [
    "BiasGelu",
    "DequantizeLinear",
    "FastGelu",
    "GatherBlockQuantized",
    "Gelu",
    "GroupQueryAttention",
    "MatMulNBits",
    "MultiHeadAttention",
    "QuantizeLinear",
    "QuickGelu",
    "RotaryEmbedding",
    "SimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
];

/// Whether tract means the same as the model by the name of this operator.
pub(super) fn is_known(node: &NodeProto, registered: impl Fn(&str) -> bool) -> bool {
    let name = node.op_type.as_str();
    let theirs = match node.domain.as_str() {
        "" | "ai.onnx" => !ML_OPERATORS.contains(&name) && name != "ArrayFeatureExtractor",
        ML => ML_OPERATORS.contains(&name),
        "com.microsoft" => MICROSOFT_OPERATORS.contains(&name),
        _ => false,
    };
    theirs && registered(name)
}

/// Refuses a node that tract would calculate otherwise than ONNX defines; `opset` is the version of ONNX's own
/// operators.
pub(super) fn check(node: &NodeProto, opset: i64) -> Result<(), LoadError> {
    let why = match node.op_type.as_str() {
        _ if makes_text(node) => Some("strings"),
        "LSTM" | "GRU" | "RNN" => recurrent(node),
        "Attention" => attention(node),
        "BatchNormalization" if integer(node, "training_mode").unwrap_or(0) != 0 => {
            Some("training")
        }
        "QuantizeLinear" => quantize(node),
        "DequantizeLinear" if !matches!(integer(node, "output_dtype"), None | Some(0 | 1)) => {
            Some("an `output_dtype` other than 32-bit floats")
        }
        "Add" | "Sub" | "Mul" | "Div" | "Pow" | "And" | "Or" | "Xor" | "Equal" | "Greater"
        | "Less"
            if opset < 7 && attribute(node, "axis").is_some() =>
        {
            Some("an `axis` to broadcast along; convert the model to a later version of ONNX")
        }
        _ => None,
    };
    match why {
        None => Ok(()),
        Some(why) => {
            let operator = shown(&node.op_type);
            Err(LoadError::UnsupportedVariant { operator, why: why.to_owned() })
        }
    }
}

/// tract always takes the default functions, and clips nothing.
fn recurrent(node: &NodeProto) -> Option<&'static str> {
    let usual: &[&str] = match node.op_type.as_str() {
        "LSTM" => &["sigmoid", "tanh", "tanh"],
        "GRU" => &["sigmoid", "tanh"],
        _ => &["tanh"],
    };
    let functions = strings(node, "activations");
    let same = functions
        .iter()
        .zip(usual.iter().cycle())
        .all(|(one, usual)| one.eq_ignore_ascii_case(usual));
    if !same {
        return Some("activation functions other than the default ones");
    }
    if attribute(node, "clip").is_some_and(|clip| clip.f != 0.) {
        return Some("a `clip`");
    }
    if integer(node, "input_forget").unwrap_or(0) != 0 {
        return Some("coupled input and forget gates (`input_forget`)");
    }
    match string(node, "direction") {
        // What is left of `reverse` after the rewrite.
        Some("reverse") => Some("a reverse direction in a version of ONNX before 10"),
        None | Some("forward" | "bidirectional") => None,
        Some(_) => Some("an unknown direction"),
    }
}

/// tract masks as if queries and keys began together, and knows no window.
fn attention(node: &NodeProto) -> Option<&'static str> {
    let window = |name| integer(node, name).is_some_and(|size| size >= 0);
    if window("left_window_size") || window("right_window_size") {
        return Some("a sliding window");
    }
    let past = node.input.get(4).is_some_and(|input| !input.is_empty());
    (past && is_causal(node)).then_some("a causal mask together with past keys")
}

fn is_causal(node: &NodeProto) -> bool {
    integer(node, "is_causal").unwrap_or(0) != 0
}

/// Whether tract is right about this operator only where it knows every size.
pub(super) fn needs_sizes(node: &NodeProto) -> bool {
    node.op_type == "Attention" && is_causal(node)
}

fn quantize(node: &NodeProto) -> Option<&'static str> {
    let given = node.input.get(2).is_some_and(|input| !input.is_empty());
    // 2 is `UINT8`, the default, and 1 `FLOAT`.
    if !given && !matches!(integer(node, "output_dtype"), None | Some(0 | 2)) {
        return Some("an `output_dtype` without a zero point of that type");
    }
    let precision = !matches!(integer(node, "precision"), None | Some(0 | 1));
    precision.then_some("a `precision` other than 32-bit floats")
}
