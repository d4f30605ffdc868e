//! What type the values of a graph have, as far as that is plain to see.

use std::collections::HashMap;

use tract_onnx::pb::{GraphProto, NodeProto, tensor_proto::DataType, type_proto::Value};

use super::{attribute, integer};

/// Element types by the names of values; a value that is not there may have any.
#[derive(Clone, Default)]
pub(super) struct Types(HashMap<String, DataType>);

/// Operators whose first output has the type of their first input.
const LIKE_FIRST: [&str; 83] = [
    "Abs",
    "Add",
    "AveragePool",
    "BatchNormalization",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Conv",
    "ConvTranspose",
    "CumSum",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Erf",
    "Exp",
    "Expand",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "InstanceNormalization",
    "LayerNormalization",
    "LeakyRelu",
    "Log",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "Sigmoid",
    "Sign",
    "Slice",
    "Softmax",
    "Softplus",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tanh",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
];

impl Types {
    /// The types inside `graph`, which sees the values of the graph around it.
    pub(super) fn of(graph: &GraphProto, outer: &Types) -> Self {
        let mut types = outer.clone();
        for input in &graph.input {
            let value = input.r#type.as_ref().and_then(|kind| kind.value.as_ref());
            match value {
                Some(Value::TensorType(tensor)) => types.set(&input.name, tensor.elem_type),
                None => types.set(&input.name, 0),
            }
        }
        for tensor in &graph.initializer {
            types.set(&tensor.name, tensor.data_type);
        }
        for node in &graph.node {
            let kind = types.result(node);
            for (index, output) in node.output.iter().enumerate() {
                types.set(output, if index == 0 { kind.map_or(0, |kind| kind as i32) } else { 0 });
            }
        }
        types
    }

    fn set(&mut self, name: &str, number: i32) {
        match DataType::try_from(number) {
            Ok(DataType::Undefined) | Err(_) => self.0.remove(name),
            Ok(kind) => self.0.insert(name.to_owned(), kind),
        };
    }

    fn result(&self, node: &NodeProto) -> Option<DataType> {
        match node.op_type.as_str() {
            "Cast" => DataType::try_from(i32::try_from(integer(node, "to")?).ok()?).ok(),
            "CastLike" => self.get(node.input.get(1)?),
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => Some(DataType::Int64),
            "Constant" => {
                let tensor = attribute(node, "value").and_then(|value| value.t.as_ref());
                DataType::try_from(tensor?.data_type).ok()
            }
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Not" | "And"
            | "Or" | "Xor" | "IsNaN" | "IsInf" => Some(DataType::Bool),
            "Where" => self.get(node.input.get(1)?),
            like if LIKE_FIRST.binary_search(&like).is_ok() => self.get(node.input.first()?),
            _ => None,
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<DataType> {
        self.0.get(name).copied()
    }
}
