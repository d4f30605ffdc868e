//! Small files and small tensors that ask for large values.

use bytes::Bytes;
use sandpiper_domain::{DataType, InferenceError, NamedTensor};
use tract_onnx::pb::{GraphProto, TensorProto, tensor_proto::DataType as Onnx};

use crate::{
    LoadError,
    testing::{
        D, bytes, f32s, i64s, infer, integers, load, named, node, unranked, value, weight, with_int,
    },
};

/// The most that this process has held, in MiB. Under nextest each test has a process of its own.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: vec![], ..integers(name, &[value]) }
}

fn scalar_input(name: &str, value: i64) -> NamedTensor {
    named(name, DataType::I64, &[], value.to_le_bytes().to_vec())
}

/// `y = operator(weights…)`, with an output of no stated shape.
fn constant(operator: &str, inputs: &[&str], weights: Vec<TensorProto>) -> Bytes {
    bytes(GraphProto {
        node: vec![node(operator, inputs, &["y"])],
        initializer: weights,
        output: vec![unranked("y", Onnx::Float, None)],
        ..Default::default()
    })
}

#[track_caller]
fn refused(bytes: Bytes, operator: &str) {
    let error = load(bytes).unwrap_err();
    let LoadError::Unloadable(text) = &error else { panic!("{error:?}") };
    assert!(text.contains(&format!("the node `the_{operator}`")), "{text}");
    assert!(text.contains("more than 1073741824 bytes"), "{text}");
    assert!(peak() < 1500, "{} MiB", peak());
}

#[test]
fn a_constant_range_cannot_be_huge() {
    for end in [400_000_000, 1 << 40, i64::MAX] {
        let weights = vec![scalar("a", 0), scalar("b", end), scalar("c", 1)];
        refused(constant("Range", &["a", "b", "c"], weights), "Range");
    }
}

#[test]
fn constants_cannot_grow_huge() {
    let shape = || integers("shape", &[1 << 31]);
    let one = || weight("one", &[1], &[0.5]);
    refused(constant("ConstantOfShape", &["shape"], vec![shape()]), "ConstantOfShape");
    refused(constant("Expand", &["one", "shape"], vec![one(), shape()]), "Expand");
    refused(constant("Tile", &["one", "shape"], vec![one(), shape()]), "Tile");
    let pads = integers("shape", &[0, 1 << 45]);
    refused(constant("Pad", &["one", "shape"], vec![one(), pads]), "Pad");
    let sizes = integers("shape", &[1 << 45]);
    refused(constant("Resize", &["one", "", "", "shape"], vec![one(), sizes]), "Resize");
    let (depth, values) = (scalar("depth", 1 << 40), weight("values", &[2], &[0., 1.]));
    let indices = integers("shape", &[1, 2]);
    let weights = vec![indices, depth, values];
    refused(constant("OneHot", &["shape", "depth", "values"], weights), "OneHot");
    refused(constant("HannWindow", &["size"], vec![scalar("size", 1 << 45)]), "HannWindow");
}

#[test]
fn the_size_of_a_constant_may_be_calculated() {
    let fill = node("ConstantOfShape", &["shape"], &["y"]);
    refused(
        bytes(GraphProto {
            node: vec![node("Mul", &["half", "half"], &["shape"]), fill],
            initializer: vec![integers("half", &[1 << 16])],
            output: vec![unranked("y", Onnx::Float, None)],
            ..Default::default()
        }),
        "ConstantOfShape",
    );
}

#[test]
fn a_product_of_constants_cannot_be_huge() {
    // tract's product of constants is a vector, whose allocation cannot be refused.
    let column = vec![0.5; 1 << 16];
    let weights = vec![weight("a", &[1 << 16, 1], &column), weight("b", &[1, 1 << 16], &column)];
    refused(constant("MatMul", &["a", "b"], weights.clone()), "MatMul");
    refused(constant("Add", &["a", "b"], weights), "Add");
}

/// `n -> Range(0, n, 1) -> ReduceSum`.
fn counter() -> Bytes {
    bytes(GraphProto {
        node: vec![
            node("Range", &["zero", "n", "one"], &["r"]),
            with_int(node("ReduceSum", &["r", "axes"], &["y"]), "keepdims", 0),
        ],
        initializer: vec![scalar("zero", 0), scalar("one", 1), integers("axes", &[0])],
        input: vec![value("n", Onnx::Int64, &[])],
        output: vec![value("y", Onnx::Int64, &[])],
        ..Default::default()
    })
}

#[test]
fn a_number_cannot_ask_for_a_huge_range() {
    let model = load(counter()).unwrap();
    for n in [700_000_000, 1 << 40, i64::MAX] {
        let error = infer(&model, vec![scalar_input("n", n)]).unwrap_err();
        assert!(matches!(error, InferenceError::TooLarge(_)), "{n}: {error:?}");
        assert!(peak() < 1500, "{n}: {} MiB", peak());
    }
    let output = infer(&model, vec![scalar_input("n", 1000)]).unwrap().outputs;
    assert_eq!(output, [scalar_input("y", 499_500)]);
}

#[test]
fn what_grows_from_a_range_is_measured_too() {
    // The outer sum of a range with itself: 20,000 steps make 3.2 GB.
    let model = load(bytes(GraphProto {
        node: vec![
            node("Range", &["zero", "n", "one"], &["r"]),
            node("Unsqueeze", &["r", "last"], &["column"]),
            node("Add", &["column", "r"], &["table"]),
            with_int(node("ReduceSum", &["table", "axes"], &["y"]), "keepdims", 0),
        ],
        initializer: vec![
            scalar("zero", 0),
            scalar("one", 1),
            integers("last", &[1]),
            integers("axes", &[0, 1]),
        ],
        input: vec![value("n", Onnx::Int64, &[])],
        output: vec![value("y", Onnx::Int64, &[])],
        ..Default::default()
    }))
    .unwrap();
    let error = infer(&model, vec![scalar_input("n", 20_000)]).unwrap_err();
    assert!(matches!(error, InferenceError::TooLarge(_)), "{error:?}");
    assert!(peak() < 1500, "{} MiB", peak());
    let output = infer(&model, vec![scalar_input("n", 3)]).unwrap().outputs;
    assert_eq!(output, [scalar_input("y", 18)]);
}

#[test]
fn top_k_cannot_be_told_to_give_more_than_it_has() {
    let model = load(bytes(GraphProto {
        node: vec![node("TopK", &["x", "k"], &["y", "places"])],
        input: vec![value("x", Onnx::Float, &[D::F(4)]), value("k", Onnx::Int64, &[D::F(1)])],
        output: vec![unranked("y", Onnx::Float, None)],
        ..Default::default()
    }))
    .unwrap();
    let call = |k| infer(&model, vec![f32s("x", &[4], &[1., 4., 3., 2.]), i64s("k", &[k])]);
    assert_eq!(call(2).unwrap().outputs, [f32s("y", &[2], &[4., 3.])]);
    for k in [1 << 30, 1 << 50, -1] {
        let error = call(k).unwrap_err();
        assert!(matches!(error, InferenceError::TooLarge(_)), "{k}: {error:?}");
    }
    assert!(peak() < 1500, "{} MiB", peak());
}

#[test]
fn the_allowance_of_a_run_is_walled() {
    // Each value is allowed and all of them are alive at the end: 8 times 800 MB.
    let copies = 8;
    let mut nodes = vec![node("Range", &["zero", "n", "one"], &["r0"])];
    let name = |n: usize| format!("r{n}");
    for n in 1..=copies {
        nodes.push(tract_onnx::pb::NodeProto {
            name: format!("add_{n}"),
            ..node("Add", &[&name(n - 1), "one"], &[&name(n)])
        });
    }
    let outputs = (0..=copies).map(|n| value(&name(n), Onnx::Int64, &[D::Free]));
    let model = load(bytes(GraphProto {
        node: nodes,
        initializer: vec![scalar("zero", 0), scalar("one", 1)],
        input: vec![value("n", Onnx::Int64, &[])],
        output: outputs.collect(),
        ..Default::default()
    }))
    .unwrap();
    let error = infer(&model, vec![scalar_input("n", 100_000_000)]).unwrap_err();
    assert!(matches!(error, InferenceError::Runtime(_)), "{error:?}");
    assert!(peak() < 2500, "{} MiB", peak());
    let output = infer(&model, vec![scalar_input("n", 2)]).unwrap().outputs;
    assert_eq!(output[copies], i64s("r8", &[8, 9]));
}
