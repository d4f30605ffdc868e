//! Files and tensors that are wrong.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use sandpiper_domain::{DataType, InferenceError, ModelOptions, NamedTensor};
use tract_onnx::pb::{
    AttributeProto, GraphProto, StringStringEntryProto, TensorProto,
    tensor_proto::{DataLocation, DataType as Onnx},
};

use crate::{
    LoadError, LoadedModel,
    backend::tract,
    testing::{
        D, adder, bytes, f32s, gather, i64s, infer, integers, load, model, named, node, value,
        weight,
    },
};

fn refusal(bytes: impl Into<Bytes>) -> LoadError {
    load(bytes.into()).unwrap_err()
}

#[test]
fn values_without_a_result_are_the_caller_s_doing_and_not_the_model_s() {
    let refused = |model: &LoadedModel, inputs: Vec<NamedTensor>, what: &str| {
        for _ in 0..4 {
            let error = infer(model, inputs.clone()).unwrap_err();
            let InferenceError::InvalidArgument(text) = &error else { panic!("{error:?}") };
            assert!(text.contains(what), "{text}");
        }
        assert_eq!(model.quarantine(), None);
    };
    let row = |a: &[i64], b: &[i64]| vec![i64s("a", a), i64s("b", b)];
    for (operator, wanted) in [("Div", [3, -2]), ("Mod", [1, 0])] {
        let numbers = |name| value(name, Onnx::Int64, &[D::N("N")]);
        let model = load(bytes(GraphProto {
            node: vec![node(operator, &["a", "b"], &["y"])],
            input: vec![numbers("a"), numbers("b")],
            output: vec![numbers("y")],
            ..Default::default()
        }));
        let model = model.unwrap();
        refused(&model, row(&[7, -8], &[2, 0]), "a division of integers by zero");
        let output = infer(&model, row(&[7, -8], &[2, 4])).unwrap();
        assert_eq!(output.outputs, [i64s("y", &wanted)]);
        infer(&model, row(&[i64::MIN], &[-1])).unwrap();
    }
    let model = load(bytes(GraphProto {
        node: vec![node("TopK", &["x", "k"], &["y", "places"])],
        initializer: vec![integers("k", &[4])],
        input: vec![value("x", Onnx::Float, &[D::F(64)])],
        output: vec![value("y", Onnx::Float, &[D::F(4)])],
        ..Default::default()
    }));
    let model = model.unwrap();
    let values = |odd: f32| -> Vec<f32> {
        (0..64).map(|n| if n % 3 == 0 { odd } else { (n * 37 % 64) as f32 }).collect()
    };
    refused(&model, vec![f32s("x", &[64], &values(f32::NAN))], "a NaN where numbers");
    let output = infer(&model, vec![f32s("x", &[64], &values(-1.))]).unwrap();
    assert_eq!(output.outputs, [f32s("y", &[4], &[63., 62., 59., 58.])]);
}

#[test]
fn what_is_no_onnx_is_called_that() {
    for junk in [&b""[..], b"\0asm\x01\0\0\0", b"<html>", b"PK\x03\x04", b"\x89PNG\r\n"] {
        assert_eq!(refusal(junk), LoadError::NotOnnx, "{junk:?}");
    }
}

#[test]
fn a_truncated_file_is_called_that() {
    let whole = adder();
    for length in 1..whole.len() - 6 {
        let error = refusal(whole.slice(..length));
        assert!(
            matches!(error, LoadError::Truncated | LoadError::Malformed(_)),
            "{length}: {error}"
        );
    }
}

#[test]
fn external_data_is_refused_wherever_it_is() {
    let tensor = TensorProto {
        name: "w".to_owned(),
        dims: vec![1],
        data_type: Onnx::Float as i32,
        data_location: Some(DataLocation::External as i32),
        external_data: vec![StringStringEntryProto {
            key: "location".to_owned(),
            value: "/etc/passwd".to_owned(),
        }],
        ..Default::default()
    };
    let mut constant = node("Constant", &[], &["y"]);
    constant.attribute = vec![AttributeProto {
        name: "value".to_owned(),
        t: Some(tensor.clone()),
        r#type: 4,
        ..Default::default()
    }];
    let output = vec![value("y", Onnx::Float, &[D::F(1)])];
    let as_weight = GraphProto {
        node: vec![node("Identity", &["w"], &["y"])],
        initializer: vec![tensor],
        output: output.clone(),
        ..Default::default()
    };
    let as_constant = GraphProto { node: vec![constant], output, ..Default::default() };
    for graph in [as_weight, as_constant] {
        let error = refusal(bytes(graph));
        assert_eq!(error, LoadError::ExternalData { tensor: "w".to_owned() });
        assert!(!error.to_string().contains("passwd"));
    }
}

#[test]
fn operators_that_are_missing_are_named_once_each() {
    let mut foreign = node("QGemm", &["a"], &["b"]);
    foreign.domain = "com.microsoft".to_owned();
    let error = refusal(bytes(GraphProto {
        node: vec![
            node("Unique", &["x"], &["z"]),
            node("Unique", &["z"], &["a"]),
            foreign,
            node("Relu", &["b"], &["y"]),
        ],
        input: vec![value("x", Onnx::Float, &[D::F(1)])],
        output: vec![value("y", Onnx::Float, &[D::F(1)])],
        ..Default::default()
    }));
    assert_eq!(
        error.to_string(),
        "the backend does not implement these operators of the model: Unique, QGemm (com.microsoft)"
    );
}

#[test]
fn broken_graphs_are_explained() {
    let x = || value("x", Onnx::Float, &[D::F(1)]);
    let y = || vec![value("y", Onnx::Float, &[D::F(1)])];
    let relu = || vec![node("Relu", &["x"], &["y"])];
    let undefined = GraphProto { input: vec![x()], output: y(), ..Default::default() };
    let twice =
        GraphProto { input: vec![x(), x()], output: y(), node: relu(), ..Default::default() };
    let none = GraphProto { input: vec![x()], node: relu(), ..Default::default() };
    let dangling = GraphProto {
        input: vec![x()],
        output: y(),
        node: vec![node("Add", &["x", "nowhere"], &["y"])],
        ..Default::default()
    };
    let short = GraphProto {
        output: y(),
        node: vec![node("Identity", &["w"], &["y"])],
        initializer: vec![TensorProto { dims: vec![1 << 40], ..weight("w", &[1], &[0.125]) }],
        ..Default::default()
    };
    let cycle = GraphProto {
        input: vec![x()],
        output: y(),
        node: vec![node("Add", &["x", "b"], &["y"]), node("Neg", &["y"], &["b"])],
        ..Default::default()
    };
    for (graph, part) in [
        (undefined, "no node computes its output `y`"),
        (twice, "two inputs `x`"),
        (none, "no outputs"),
        (dangling, "nowhere"),
        (short, "length"),
        (cycle, "oop"),
    ] {
        let text = refusal(bytes(graph)).to_string();
        assert!(text.contains(part), "{text}");
        assert!(!text.contains("0.125") && text.len() < 500, "{text}");
    }
    let mut nameless =
        model(GraphProto { input: vec![x()], output: y(), node: relu(), ..Default::default() });
    nameless.opset_import.clear();
    assert!(refusal(nameless.encode_to_vec()).to_string().contains("opset_import"));
}

#[test]
fn a_small_file_cannot_ask_for_a_huge_constant() {
    for shape in [vec![1 << 40], vec![1 << 32, 1 << 32], vec![-1, 3], vec![1 << 33, 1]] {
        let error = refusal(bytes(GraphProto {
            node: vec![node("ConstantOfShape", &["shape"], &["y"])],
            initializer: vec![integers("shape", &shape)],
            output: vec![value("y", Onnx::Float, &[D::Free])],
            ..Default::default()
        }));
        let LoadError::Unloadable(text) = error else { panic!("{error:?}") };
        assert!(text.contains("the node `the_ConstantOfShape`"), "{text}");
    }
}

#[test]
fn mistakes_in_the_inputs_are_named() {
    let model = load(adder()).unwrap();
    let good = || f32s("x", &[1, 3], &[1., 2., 3.]);
    let cases = [
        (vec![], "the input `x` is missing; the model takes `x` (FP32 [-1, 3])"),
        (vec![f32s("X", &[1, 3], &[4.; 3])], "the model has no input `X`; the model takes `x`"),
        (vec![good(), f32s("z", &[1], &[4.])], "the model has no input `z`"),
        (vec![good(), good()], "the input `x` is given twice"),
        (
            vec![named("x", DataType::F64, &[1, 3], vec![4; 24])],
            "the input `x` is FP64; the model takes FP32",
        ),
        (
            vec![f32s("x", &[3], &[4.; 3])],
            "the input `x` has the shape [3]; the model takes [-1, 3]",
        ),
        (vec![f32s("x", &[1, 4], &[4.; 4])], "has the shape [1, 4]"),
    ];
    for (inputs, part) in cases {
        let error = infer(&model, inputs).unwrap_err();
        let InferenceError::InvalidArgument(text) = error else { panic!("{error:?}") };
        assert!(text.contains(part), "{text}");
    }
    let wide = named("x", DataType::BF16, &[1, 3], vec![0; 6]);
    assert!(matches!(infer(&model, vec![wide]), Err(InferenceError::Unsupported(_))));
}

#[test]
fn inputs_must_agree_on_a_named_dimension() {
    let model = load(bytes(GraphProto {
        node: vec![node("Add", &["a", "b"], &["y"])],
        input: vec![value("a", Onnx::Float, &[D::N("N")]), value("b", Onnx::Float, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[D::N("N")])],
        ..Default::default()
    }))
    .unwrap();
    let inputs = vec![f32s("a", &[2], &[1., 2.]), f32s("b", &[3], &[1., 2., 3.])];
    let text = infer(&model, inputs).unwrap_err().to_string();
    assert!(text.contains("must be the same size (`N`); they are 2 and 3"), "{text}");
}

#[test]
fn a_weight_of_strings_in_raw_bytes_is_refused() {
    let text = TensorProto {
        name: "w".to_owned(),
        dims: vec![1],
        data_type: Onnx::String as i32,
        raw_data: b"abc".to_vec(),
        ..Default::default()
    };
    let error = refusal(bytes(GraphProto {
        node: vec![node("Identity", &["w"], &["y"])],
        initializer: vec![text],
        output: vec![value("y", Onnx::Float, &[D::F(1)])],
        ..Default::default()
    }));
    assert!(matches!(error, LoadError::UnsupportedType(_)), "{error:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn random_bytes_never_panic_out_of_load(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        crate::contain::install_hook();
        prop_assert!(tract::load(&data, &ModelOptions::default(), &[], None).is_err());
    }

    #[test]
    fn damaged_models_never_panic_out_of_load(
        which in 0usize..2,
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in proptest::option::of(any::<prop::sample::Index>()),
    ) {
        crate::contain::install_hook();
        let mut data = if which == 0 { adder() } else { gather() }.to_vec();
        for (place, byte) in changes {
            let place = place.index(data.len());
            data[place] = byte;
        }
        if let Some(cut) = cut {
            data.truncate(cut.index(data.len()));
        }
        let _ = tract::load(&data, &ModelOptions::default(), &[], None);
    }
}
