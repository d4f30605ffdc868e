//! Builds small ONNX files and tensors for the tests.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use sandpiper_domain::{
    Band, BriefRuns, DataType, InferenceError, InferenceOutput, InferenceRequest, Model, ModelKey,
    NamedTensor, Share, Tensor,
};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto,
    attribute_proto::AttributeType,
    tensor_proto::DataType as Onnx,
    tensor_shape_proto::{Dimension, dimension::Value as DimValue},
    type_proto,
};

use crate::{Config, InferencePlane, LoadError, LoadedModel};

/// A dimension: a size, or a name.
#[derive(Clone, Copy)]
pub(crate) enum D {
    F(i64),
    N(&'static str),
    Free,
}

pub(crate) fn value(name: &str, onnx: Onnx, dims: &[D]) -> ValueInfoProto {
    let dim = |dim: &D| Dimension {
        value: match dim {
            D::F(size) => Some(DimValue::DimValue(*size)),
            D::N(name) => Some(DimValue::DimParam((*name).to_owned())),
            D::Free => None,
        },
        ..Default::default()
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    unranked(name, onnx, Some(shape))
}

pub(crate) fn unranked(name: &str, onnx: Onnx, shape: Option<TensorShapeProto>) -> ValueInfoProto {
    let tensor = type_proto::Tensor { elem_type: onnx as i32, shape };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            value: Some(type_proto::Value::TensorType(tensor)),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    NodeProto {
        op_type: op.to_owned(),
        name: format!("the_{op}"),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: outputs.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

pub(crate) fn with_int(mut node: NodeProto, name: &str, i: i64) -> NodeProto {
    node.attribute.push(AttributeProto {
        name: name.to_owned(),
        r#type: AttributeType::Int as i32,
        i,
        ..Default::default()
    });
    node
}

fn with(mut node: NodeProto, attribute: AttributeProto) -> NodeProto {
    node.attribute.retain(|own| own.name != attribute.name);
    node.attribute.push(attribute);
    node
}

pub(crate) fn with_ints(node: NodeProto, name: &str, ints: &[i64]) -> NodeProto {
    let (name, r#type) = (name.to_owned(), AttributeType::Ints as i32);
    with(node, AttributeProto { name, r#type, ints: ints.to_vec(), ..Default::default() })
}

pub(crate) fn with_floats(node: NodeProto, name: &str, floats: &[f32]) -> NodeProto {
    let (name, r#type) = (name.to_owned(), AttributeType::Floats as i32);
    with(node, AttributeProto { name, r#type, floats: floats.to_vec(), ..Default::default() })
}

pub(crate) fn with_strings(node: NodeProto, name: &str, texts: &[&str]) -> NodeProto {
    let (name, r#type) = (name.to_owned(), AttributeType::Strings as i32);
    let strings = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    with(node, AttributeProto { name, r#type, strings, ..Default::default() })
}

/// A classifier of one branch: of the classes 10 and 20, the second has 0.25 where `x < 1` and else 0.75. Attributes
/// in `changed` take the place of its own.
pub(crate) fn stump(changed: &[AttributeProto]) -> GraphProto {
    let mut tree = node("TreeEnsembleClassifier", &["x"], &["label", "p"]);
    tree.domain = "ai.onnx.ml".to_owned();
    for (name, values) in [
        ("nodes_treeids", &[0, 0, 0][..]),
        ("nodes_nodeids", &[0, 1, 2]),
        ("nodes_featureids", &[0, 0, 0]),
        ("nodes_truenodeids", &[1, 0, 0]),
        ("nodes_falsenodeids", &[2, 0, 0]),
        ("class_treeids", &[0, 0]),
        ("class_nodeids", &[1, 2]),
        ("class_ids", &[0, 0]),
        ("classlabels_int64s", &[10, 20]),
    ] {
        tree = with_ints(tree, name, values);
    }
    tree = with_floats(tree, "nodes_values", &[1., 0., 0.]);
    tree = with_floats(tree, "class_weights", &[0.25, 0.75]);
    tree = with_strings(tree, "nodes_modes", &["BRANCH_LT", "LEAF", "LEAF"]);
    for attribute in changed {
        tree = with(tree, attribute.clone());
    }
    GraphProto {
        node: vec![tree],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(1)])],
        output: vec![value("label", Onnx::Int64, &[]), value("p", Onnx::Float, &[])],
        ..Default::default()
    }
}

pub(crate) fn weight(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: Onnx::Float as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

pub(crate) fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![values.len() as i64],
        data_type: Onnx::Int64 as i32,
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        ..Default::default()
    }
}

pub(crate) fn model(graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { version: 17, ..Default::default() }],
        graph: Some(graph),
        ..Default::default()
    }
}

pub(crate) fn bytes(graph: GraphProto) -> Bytes {
    model(graph).encode_to_vec().into()
}

/// `y = x + w`, with x of `[N, 3]` and w = 10, 20, 30.
pub(crate) fn adder() -> Bytes {
    bytes(GraphProto {
        node: vec![node("Add", &["x", "w"], &["y"])],
        initializer: vec![weight("w", &[3], &[10., 20., 30.])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(3)])],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::F(3)])],
        ..Default::default()
    })
}

/// `y = table[ids]`, with table = 0.5, 1.5, 2.5 and ids of `[N]`.
pub(crate) fn gather() -> Bytes {
    bytes(GraphProto {
        node: vec![node("Gather", &["table", "ids"], &["y"])],
        initializer: vec![weight("table", &[3], &[0.5, 1.5, 2.5])],
        input: vec![value("ids", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[D::N("N")])],
        ..Default::default()
    })
}

/// The same, but id 99 overflows, which panics in builds that check for it, as the tests' is.
pub(crate) fn brittle() -> Bytes {
    bytes(GraphProto {
        node: vec![
            node("Pow", &["ids", "ten"], &["large"]),
            node("Div", &["large", "largest"], &["nothing"]),
            node("Add", &["ids", "nothing"], &["place"]),
            node("Gather", &["table", "place"], &["y"]),
        ],
        initializer: vec![
            weight("table", &[3], &[0.5, 1.5, 2.5]),
            integers("ten", &[10]),
            integers("largest", &[i64::MAX]),
        ],
        input: vec![value("ids", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[D::N("N")])],
        ..Default::default()
    })
}

/// `y = x x x …`, matrices of 512 by 512 multiplied `count` times: some time of work.
pub(crate) fn slow(count: usize) -> Bytes {
    let name = |step: usize| if step == 0 { "x".to_owned() } else { format!("v{step}") };
    let step = |n: usize| NodeProto {
        name: format!("step_{n}"),
        ..node("MatMul", &[&name(n), "x"], &[&name(n + 1)])
    };
    bytes(GraphProto {
        node: (0..count).map(step).collect(),
        input: vec![value("x", Onnx::Float, &[D::F(512), D::F(512)])],
        output: vec![value(&name(count), Onnx::Float, &[D::F(512), D::F(512)])],
        ..Default::default()
    })
}

pub(crate) fn f32s(name: &str, shape: &[u64], values: &[f32]) -> NamedTensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    named(name, DataType::F32, shape, data)
}

/// `y = concat(a, b)` on axis 1. tract refuses to join two symbols, and so makes a plan for each set of shapes.
pub(crate) fn joined() -> Bytes {
    bytes(GraphProto {
        node: vec![with_int(node("Concat", &["a", "b"], &["y"]), "axis", 1)],
        input: vec![
            value("a", Onnx::Float, &[D::N("N"), D::Free]),
            value("b", Onnx::Float, &[D::N("M"), D::F(1)]),
        ],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::Free])],
        ..Default::default()
    })
}

/// The same on axis 2 of inputs of three axes, so that calls run in batches.
pub(crate) fn joined_rows() -> Bytes {
    bytes(GraphProto {
        node: vec![with_int(node("Concat", &["a", "b"], &["y"]), "axis", 2)],
        input: vec![
            value("a", Onnx::Float, &[D::N("N"), D::N("S"), D::F(1)]),
            value("b", Onnx::Float, &[D::N("N"), D::N("T"), D::F(1)]),
        ],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::N("S"), D::F(2)])],
        ..Default::default()
    })
}

pub(crate) fn i64s(name: &str, values: &[i64]) -> NamedTensor {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    named(name, DataType::I64, &[values.len() as u64], data)
}

pub(crate) fn named(name: &str, datatype: DataType, shape: &[u64], data: Vec<u8>) -> NamedTensor {
    let tensor = Tensor::new(datatype, shape, data.into()).unwrap();
    NamedTensor { name: name.to_owned(), tensor }
}

pub(crate) fn key(version: u32) -> ModelKey {
    ModelKey { tenant: "acme".parse().unwrap(), model: "m".parse().unwrap(), version }
}

pub(crate) fn plane(threads: usize, queue_capacity: usize) -> Arc<InferencePlane> {
    InferencePlane::start(Config { threads, queue_capacity, ..Config::default() }).unwrap()
}

pub(crate) fn request(inputs: Vec<NamedTensor>) -> InferenceRequest {
    request_of("acme", inputs)
}

pub(crate) fn request_of(tenant: &str, inputs: Vec<NamedTensor>) -> InferenceRequest {
    let share = Share { weight: 1, band: Band::Normal };
    let tenant = tenant.parse().unwrap();
    InferenceRequest {
        tenant,
        share,
        deadline: None,
        inputs,
        batch_with_others: true,
        brief: BriefRuns::Elsewhere,
        bill: None,
    }
}

/// Loads a model on a plane of one thread.
pub(crate) fn load(bytes: Bytes) -> Result<Arc<LoadedModel>, LoadError> {
    block_on(plane(1, 4).inspect(bytes))
}

pub(crate) fn infer(
    model: &LoadedModel,
    inputs: Vec<NamedTensor>,
) -> Result<InferenceOutput, InferenceError> {
    block_on(model.infer(request(inputs)))
}

fn block_on<F: Future>(future: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(future)
}
