//! Models that load, and the numbers they give. The expected ones are worked out by hand.

use sandpiper_domain::{DataType, InferenceError, Model, TensorSpec};
use tract_onnx::pb::{GraphProto, TensorProto, tensor_proto::DataType as Onnx};

use crate::{
    LoadError,
    testing::{
        D, adder, bytes, f32s, gather, i64s, infer, integers, joined, load, named, node, unranked,
        value, weight, with_int,
    },
};

const TYPES: [(Onnx, DataType); 12] = [
    (Onnx::Bool, DataType::Bool),
    (Onnx::Uint8, DataType::U8),
    (Onnx::Uint16, DataType::U16),
    (Onnx::Uint32, DataType::U32),
    (Onnx::Uint64, DataType::U64),
    (Onnx::Int8, DataType::I8),
    (Onnx::Int16, DataType::I16),
    (Onnx::Int32, DataType::I32),
    (Onnx::Int64, DataType::I64),
    (Onnx::Float16, DataType::F16),
    (Onnx::Float, DataType::F32),
    (Onnx::Double, DataType::F64),
];

fn spec(name: &str, datatype: DataType, shape: &[i64]) -> TensorSpec {
    TensorSpec { name: name.to_owned(), datatype, shape: shape.to_vec() }
}

#[test]
fn every_type_goes_in_and_comes_out() {
    for (onnx, datatype) in TYPES {
        for dims in [[D::F(2), D::F(3)], [D::N("N"), D::F(3)], [D::Free, D::Free]] {
            let model = load(bytes(GraphProto {
                node: vec![node("Identity", &["x"], &["y"])],
                input: vec![value("x", onnx, &dims)],
                output: vec![value("y", onnx, &dims)],
                ..Default::default()
            }))
            .unwrap();
            let count = 6 * datatype.size_min();
            let data: Vec<u8> = match datatype {
                DataType::Bool => (0..6).map(|i| i % 2).collect(),
                _ => (0..count).map(|i| (i * 37 % 251) as u8).collect(),
            };
            let input = named("x", datatype, &[2, 3], data);
            let output = infer(&model, vec![input.clone()]).unwrap().outputs;
            assert_eq!(output.len(), 1);
            assert_eq!(output[0].name, "y");
            assert_eq!(output[0].tensor, input.tensor, "{datatype}");
            assert_eq!(model.signature().outputs[0].datatype, datatype);
        }
    }
}

#[test]
fn a_graph_may_give_back_its_input() {
    let model = load(bytes(GraphProto {
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(1)])],
        output: vec![value("x", Onnx::Float, &[D::N("N"), D::F(1)])],
        ..Default::default()
    }))
    .unwrap();
    let output = infer(&model, vec![f32s("x", &[2, 1], &[1., 2.])]).unwrap();
    assert_eq!(output.outputs[0], f32s("x", &[2, 1], &[1., 2.]));
}

#[test]
fn any_byte_but_zero_is_true() {
    let model = load(bytes(GraphProto {
        node: vec![node("Not", &["x"], &["y"])],
        input: vec![value("x", Onnx::Bool, &[D::F(3)])],
        output: vec![value("y", Onnx::Bool, &[D::F(3)])],
        ..Default::default()
    }))
    .unwrap();
    let output = infer(&model, vec![named("x", DataType::Bool, &[3], vec![0, 1, 255])]).unwrap();
    assert_eq!(output.outputs[0].tensor.data().as_ref(), [1, 0, 0]);
}

#[test]
fn one_plan_serves_every_batch() {
    let model = load(adder()).unwrap();
    assert_eq!(model.signature().inputs, [spec("x", DataType::F32, &[-1, 3])]);
    assert_eq!(model.signature().outputs, [spec("y", DataType::F32, &[-1, 3])]);
    for batch in [1, 2, 5, 0] {
        let values: Vec<f32> = (0..batch * 3).map(|i| i as f32).collect();
        let sums: Vec<f32> = (0..batch * 3).map(|i| (i + 10 * (i % 3 + 1)) as f32).collect();
        let output = infer(&model, vec![f32s("x", &[batch, 3], &values)]).unwrap();
        assert_eq!(output.outputs, [f32s("y", &[batch, 3], &sums)], "{batch}");
    }
}

#[test]
fn inputs_come_in_any_order_and_weights_are_none() {
    // `w` is an input with an initializer, as old files have it.
    let model = load(bytes(GraphProto {
        node: vec![node("Sub", &["a", "b"], &["d"]), node("Mul", &["d", "w"], &["y"])],
        initializer: vec![weight("w", &[1], &[100.])],
        input: vec![
            value("w", Onnx::Float, &[D::F(1)]),
            value("a", Onnx::Float, &[D::F(1)]),
            value("b", Onnx::Float, &[D::F(1)]),
        ],
        output: vec![value("y", Onnx::Float, &[D::F(1)])],
        ..Default::default()
    }))
    .unwrap();
    let names: Vec<_> = model.signature().inputs.iter().map(|spec| &spec.name).collect();
    assert_eq!(names, ["a", "b"]);
    let (a, b) = (f32s("a", &[1], &[5.]), f32s("b", &[1], &[3.]));
    for inputs in [vec![a.clone(), b.clone()], vec![b, a]] {
        assert_eq!(infer(&model, inputs).unwrap().outputs, [f32s("y", &[1], &[200.])]);
    }
}

#[test]
fn shapes_come_out_as_integers() {
    let model = load(bytes(GraphProto {
        node: vec![node("Shape", &["x"], &["y"])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(3)])],
        output: vec![value("y", Onnx::Int64, &[D::F(2)])],
        ..Default::default()
    }))
    .unwrap();
    assert_eq!(model.signature().outputs, [spec("y", DataType::I64, &[2])]);
    for batch in [1, 4] {
        let input = f32s("x", &[batch, 3], &vec![0.; batch as usize * 3]);
        let output = infer(&model, vec![input]).unwrap();
        assert_eq!(output.outputs, [i64s("y", &[batch as i64, 3])]);
    }
}

#[test]
fn labels_looked_up_in_a_table_come_out_as_integers() {
    // argmax of each row, then a label for it: what converters of classifiers write.
    let argmax = with_int(node("ArgMax", &["x"], &["best"]), "axis", 1);
    let model = load(bytes(GraphProto {
        node: vec![
            with_int(argmax, "keepdims", 0),
            node("Gather", &["labels", "best"], &["label"]),
        ],
        initializer: vec![integers("labels", &[70, 80, 90])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(3)])],
        output: vec![value("label", Onnx::Int64, &[D::N("N")])],
        ..Default::default()
    }))
    .unwrap();
    let input = f32s("x", &[2, 3], &[1., 3., 2., 9., 3., 2.]);
    let output = infer(&model, vec![input]).unwrap();
    assert_eq!(output.outputs, [i64s("label", &[80, 70])]);
}

#[test]
fn stale_shapes_of_inner_values_and_outputs_are_ignored() {
    let model = load(bytes(GraphProto {
        node: vec![node("Relu", &["x"], &["h"]), node("Neg", &["h"], &["y"])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(2)])],
        output: vec![value("y", Onnx::Float, &[D::F(7), D::F(7)])],
        value_info: vec![value("h", Onnx::Float, &[D::F(1), D::F(9)])],
        ..Default::default()
    }))
    .unwrap();
    assert_eq!(model.signature().outputs, [spec("y", DataType::F32, &[-1, 2])]);
    let output = infer(&model, vec![f32s("x", &[1, 2], &[-4., 4.])]).unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 2], &[-0., -4.])]);
}

#[test]
fn wide_unsigned_weights_are_read_from_their_own_field() {
    for (onnx, datatype) in [(Onnx::Uint32, DataType::U32), (Onnx::Uint64, DataType::U64)] {
        let table = TensorProto {
            name: "w".to_owned(),
            dims: vec![2],
            data_type: onnx as i32,
            uint64_data: vec![7, 8],
            ..Default::default()
        };
        let model = load(bytes(GraphProto {
            node: vec![node("Identity", &["w"], &["y"])],
            initializer: vec![table],
            output: vec![value("y", onnx, &[D::F(2)])],
            ..Default::default()
        }))
        .unwrap();
        let outputs = infer(&model, vec![]).unwrap().outputs;
        let mut data = vec![0; 2 * datatype.size_min()];
        (data[0], data[datatype.size_min()]) = (7, 8);
        assert_eq!(outputs, [named("y", datatype, &[2], data)]);
    }
}

/// `y = a b`, with four free dimensions that have nothing to do with each other as far as the file says.
fn product() -> bytes::Bytes {
    bytes(GraphProto {
        node: vec![node("MatMul", &["a", "b"], &["y"])],
        input: vec![
            value("a", Onnx::Float, &[D::Free, D::Free]),
            value("b", Onnx::Float, &[D::N("K"), D::N("M")]),
        ],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::N("M")])],
        ..Default::default()
    })
}

#[test]
fn free_dimensions_need_not_be_named() {
    let model = load(product()).unwrap();
    let inputs = [spec("a", DataType::F32, &[-1, -1]), spec("b", DataType::F32, &[-1, -1])];
    assert_eq!(model.signature().inputs, inputs);
    assert_eq!(model.signature().outputs, [spec("y", DataType::F32, &[-1, -1])]);
    // More shapes than plans are kept, and the first ones again.
    for size in (1..40).chain([1, 2, 3]) {
        let a = f32s("a", &[2, size], &vec![1.; 2 * size as usize]);
        let b = f32s("b", &[size, 1], &vec![2.; size as usize]);
        let output = infer(&model, vec![a, b]).unwrap();
        assert_eq!(output.outputs[0], f32s("y", &[2, 1], &[2. * size as f32; 2]));
    }
}

#[test]
fn a_product_never_reads_past_its_operands() {
    // tract has a symbolic plan for this and takes the inner sizes for equal.
    let model = load(product()).unwrap();
    for (left, right) in [(2, 3), (100, 1), (1, 100), (100_000, 1)] {
        let a = f32s("a", &[1, left], &vec![1.; left as usize]);
        let b = f32s("b", &[right, 4], &vec![1.; right as usize * 4]);
        let error = infer(&model, vec![a, b]).unwrap_err();
        assert!(matches!(error, InferenceError::InvalidArgument(_)), "{error:?}");
    }
    // One symbol against a number.
    let model = load(bytes(GraphProto {
        node: vec![node("Transpose", &["x"], &["t"]), node("MatMul", &["t", "w"], &["y"])],
        initializer: vec![weight("w", &[3, 2], &[1.; 6])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(4)])],
        output: vec![value("y", Onnx::Float, &[D::F(4), D::F(2)])],
        ..Default::default()
    }))
    .unwrap();
    let run = |rows: u64| infer(&model, vec![f32s("x", &[rows, 4], &vec![1.; rows as usize * 4])]);
    assert_eq!(run(3).unwrap().outputs, [f32s("y", &[4, 2], &[3.; 8])]);
    for rows in [1, 2, 4, 50] {
        let error = run(rows).unwrap_err();
        assert!(matches!(error, InferenceError::InvalidArgument(_)), "{error:?}");
    }
}

#[test]
fn graphs_without_a_symbolic_plan_are_planned_by_shape() {
    let model = load(joined()).unwrap();
    assert_eq!(model.signature().outputs, [spec("y", DataType::F32, &[-1, -1])]);
    // More shapes than plans are kept, and the first ones again.
    for rows in (1..40).chain([1, 2, 3]) {
        let column = |name: &str| f32s(name, &[rows, 1], &vec![7.; rows as usize]);
        let output = infer(&model, vec![column("a"), column("b")]).unwrap();
        assert_eq!(output.outputs[0], f32s("y", &[rows, 2], &vec![7.; rows as usize * 2]));
    }
    for _ in 0..2 {
        let inputs = vec![f32s("a", &[2, 1], &[4.; 2]), f32s("b", &[3, 1], &[4.; 3])];
        let error = infer(&model, inputs).unwrap_err();
        let InferenceError::InvalidArgument(text) = error else { panic!("{error:?}") };
        assert_eq!(text, "the model cannot run on inputs of these shapes: [[2, 1], [3, 1]]");
    }
}

#[test]
fn nodes_may_share_a_name() {
    let twin = |input: &str, output: &str| node("Neg", &[input], &[output]);
    let model = load(bytes(GraphProto {
        node: vec![twin("x", "h"), twin("h", "i"), twin("i", "y")],
        input: vec![value("x", Onnx::Float, &[D::N("the_Neg")])],
        output: vec![value("y", Onnx::Float, &[D::N("the_Neg")])],
        ..Default::default()
    }))
    .unwrap();
    let output = infer(&model, vec![f32s("x", &[2], &[1., -2.])]).unwrap();
    assert_eq!(output.outputs, [f32s("y", &[2], &[-1., 2.])]);
}

#[test]
fn a_constant_without_a_value_is_of_32_bits() {
    let model = load(bytes(GraphProto {
        node: vec![node("ConstantOfShape", &["shape"], &["y"])],
        initializer: vec![integers("shape", &[2])],
        output: vec![value("y", Onnx::Float, &[D::F(2)])],
        ..Default::default()
    }))
    .unwrap();
    assert_eq!(infer(&model, vec![]).unwrap().outputs, [f32s("y", &[2], &[0., 0.])]);
}

#[test]
fn a_graph_that_only_takes_one_batch_says_so() {
    // The batch is declared free, but the reshape is not.
    let model = load(bytes(GraphProto {
        node: vec![node("Reshape", &["x", "to"], &["y"])],
        initializer: vec![integers("to", &[1, 2])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(2)])],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::F(2)])],
        ..Default::default()
    }))
    .unwrap();
    let output = infer(&model, vec![f32s("x", &[1, 2], &[1., 2.])]).unwrap();
    assert_eq!(output.outputs, [f32s("y", &[1, 2], &[1., 2.])]);
    let error = infer(&model, vec![f32s("x", &[2, 2], &[1., 2., 3., 4.])]).unwrap_err();
    assert!(matches!(&error, InferenceError::InvalidArgument(_) | InferenceError::Runtime(_)));
    assert!(!error.to_string().contains("4.0"), "{error}");
}

#[test]
fn an_input_of_unknown_rank_takes_any() {
    let model = load(bytes(GraphProto {
        node: vec![node("Neg", &["x"], &["y"])],
        input: vec![unranked("x", Onnx::Float, None)],
        output: vec![unranked("y", Onnx::Float, None)],
        ..Default::default()
    }))
    .unwrap();
    for shape in [vec![], vec![1], vec![1, 1]] {
        let output = infer(&model, vec![f32s("x", &shape, &[3.])]).unwrap();
        assert_eq!(output.outputs, [f32s("y", &shape, &[-3.])]);
    }
}

#[test]
fn two_unnamed_batches_may_meet() {
    let model = load(bytes(GraphProto {
        node: vec![node("Add", &["a", "b"], &["y"])],
        input: vec![
            value("a", Onnx::Float, &[D::Free, D::F(1)]),
            value("b", Onnx::Float, &[D::Free, D::F(1)]),
        ],
        output: vec![value("y", Onnx::Float, &[D::Free, D::F(1)])],
        ..Default::default()
    }))
    .unwrap();
    let (a, b) = (f32s("a", &[2, 1], &[1., 2.]), f32s("b", &[2, 1], &[3., 4.]));
    assert_eq!(infer(&model, vec![a, b]).unwrap().outputs, [f32s("y", &[2, 1], &[4., 6.])]);
}

#[test]
fn dimensions_with_odd_names_are_just_names() {
    for name in ["batch-size", "batch size", "?", "", "größe", "1", "a*b", "((((((((((1))))))))))"]
    {
        let name: &'static str = name;
        let model = load(bytes(GraphProto {
            node: vec![node("Neg", &["x"], &["y"])],
            input: vec![value("x", Onnx::Float, &[D::N(name)])],
            output: vec![value("y", Onnx::Float, &[D::N(name)])],
            ..Default::default()
        }))
        .unwrap_or_else(|error| panic!("{name:?}: {error}"));
        if name != "1" {
            let output = infer(&model, vec![f32s("x", &[2], &[1., 2.])]);
            assert_eq!(output.unwrap().outputs, [f32s("y", &[2], &[-1., -2.])], "{name:?}");
        }
    }
}

#[test]
fn an_index_out_of_range_is_an_error_and_no_panic() {
    let model = load(gather()).unwrap();
    // Three panics in a row would put the model in quarantine.
    for _ in 0..4 {
        let error = infer(&model, vec![i64s("ids", &[-4])]).unwrap_err();
        assert!(matches!(error, InferenceError::InvalidArgument(_)), "{error:?}");
    }
    assert!(model.quarantine().is_none());
    for _ in 0..2 {
        let error = infer(&model, vec![i64s("ids", &[0, 999_999])]).unwrap_err();
        let InferenceError::InvalidArgument(text) = error else { panic!("{error:?}") };
        assert!(text.contains("out of its range") && text.contains("Gather"), "{text}");
        assert!(!text.contains("999999") && !text.contains("1.5"), "{text}");
        let output = infer(&model, vec![i64s("ids", &[2, 0, -1])]).unwrap();
        assert_eq!(output.outputs, [f32s("y", &[3], &[2.5, 0.5, 2.5])]);
    }
}

#[test]
fn a_small_input_cannot_ask_for_a_huge_value() {
    let model = load(bytes(GraphProto {
        node: vec![with_int(node("ReduceSum", &["x", "axes"], &["y"]), "keepdims", 0)],
        initializer: vec![integers("axes", &[0])],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::N("M")])],
        output: vec![value("y", Onnx::Float, &[D::N("M")])],
        ..Default::default()
    }))
    .unwrap();
    assert_eq!(
        infer(&model, vec![f32s("x", &[2, 2], &[1., 2., 3., 4.])]).unwrap().outputs,
        [f32s("y", &[2], &[4., 6.])]
    );
    for width in [1 << 29, 1 << 40, u64::MAX / 16] {
        let error = infer(&model, vec![f32s("x", &[0, width], &[])]).unwrap_err();
        assert!(
            matches!(error, InferenceError::TooLarge(_) | InferenceError::Runtime(_)),
            "{error:?}"
        );
    }
}

#[test]
fn what_the_runtime_cannot_hold_is_refused_by_name() {
    for (onnx, name) in [(Onnx::Bfloat16, "BFLOAT16"), (Onnx::Float8e5m2, "FLOAT8E5M2")] {
        let error = load(bytes(GraphProto {
            node: vec![node("Identity", &["x"], &["y"])],
            input: vec![value("x", onnx, &[D::F(1)])],
            output: vec![value("y", onnx, &[D::F(1)])],
            ..Default::default()
        }))
        .unwrap_err();
        let LoadError::UnsupportedType(text) = error else { panic!("{error:?}") };
        assert!(text.contains(name) && text.contains("`x`"), "{text}");
    }
}
