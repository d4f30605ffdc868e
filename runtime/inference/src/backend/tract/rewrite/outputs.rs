//! What classifiers hand out.

use tract_onnx::pb::{
    GraphProto, NodeProto, TensorShapeProto, TypeProto,
    tensor_proto::DataType,
    tensor_shape_proto::{Dimension, dimension::Value as DimValue},
    type_proto,
};

use super::{
    ML,
    emit::{Emit, integers, strings},
};

/// `ZipMap` makes a list of maps from class to probability of a matrix of probabilities. The matrix is the output
/// instead, with the classes as columns, in the order that the operator has them.
pub(super) fn zip_map(node: &NodeProto, emit: &mut Emit<'_>) -> bool {
    let (Some(input), Some(output)) = (node.input.first(), node.output.first()) else {
        return false;
    };
    emit.op_to("Identity", &[input], output);
    true
}

/// Declares what such an output has become.
pub(super) fn retype(node: &NodeProto, graph: &mut GraphProto) {
    let (true, Some(name)) = (node.domain == ML && node.op_type == "ZipMap", node.output.first())
    else {
        return;
    };
    let classes =
        integers(node, "classlabels_int64s").len().max(strings(node, "classlabels_strings").len());
    let size = |value| Dimension { value, ..Default::default() };
    let classes = i64::try_from(classes).ok().map(DimValue::DimValue);
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: vec![size(None), size(classes)] }),
    };
    for output in graph.output.iter_mut().filter(|output| output.name == *name) {
        let value = Some(type_proto::Value::TensorType(tensor.clone()));
        output.r#type = Some(TypeProto { value, ..Default::default() });
    }
}
