//! Strings at the edges of models. The corpus of the end-to-end tests has onnxruntime's answers.

use bytes::Bytes;
use sandpiper_domain::{DataType, InferenceError, Model, NamedTensor, Tensor};
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, attribute_proto::AttributeType,
    tensor_proto::DataType as Onnx,
};

use crate::{
    LoadError,
    testing::{
        D, bytes, i64s, infer, integers, load, node, stump, unranked, value, with_int, with_ints,
        with_strings,
    },
};

fn ml(mut node: NodeProto) -> NodeProto {
    node.domain = "ai.onnx.ml".to_owned();
    node
}

fn texts(name: &str, texts: &[&[u8]]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: vec![texts.len() as i64],
        data_type: Onnx::String as i32,
        string_data: texts.iter().map(|text| text.to_vec()).collect(),
        ..Default::default()
    }
}

fn strings(name: &str, shape: &[u64], texts: &[&[u8]]) -> NamedTensor {
    let tensor = Tensor::of_strings(shape, texts.iter().copied()).unwrap();
    NamedTensor { name: name.to_owned(), tensor }
}

/// From the strings `x` of `[N]`: an encoder to strings, whose result lies beside a weight, turned.
pub(crate) fn moved() -> Bytes {
    let encoder =
        with_strings(ml(node("LabelEncoder", &["x"], &["l"])), "keys_strings", &["a", "b"]);
    let encoder = with_strings(encoder, "values_strings", &["one", "two"]);
    bytes(GraphProto {
        node: vec![
            encoder,
            with_int(node("Concat", &["l", "w"], &["c"]), "axis", 0),
            node("Unsqueeze", &["c", "axes"], &["r"]),
            with_int(node("Cast", &["r"], &["s"]), "to", Onnx::String as i64),
            with_ints(node("Transpose", &["s"], &["y"]), "perm", &[1, 0]),
        ],
        initializer: vec![texts("w", &[b"three", b""]), integers("axes", &[1])],
        input: vec![value("x", Onnx::String, &[D::N("N")])],
        output: vec![value("y", Onnx::String, &[])],
        ..Default::default()
    })
}

#[test]
fn strings_are_moved_about() {
    let model = load(moved()).unwrap();
    let (takes, gives) = (&model.signature().inputs[0], &model.signature().outputs[0]);
    assert_eq!((takes.datatype, gives.datatype), (DataType::Bytes, DataType::Bytes));
    let output = infer(&model, vec![strings("x", &[2], &[b"b", b"\xff"])]).unwrap().outputs;
    assert_eq!(output, [strings("y", &[1, 4], &[b"two", b"_Unused", b"three", b""])]);
    let wrong = infer(&model, vec![i64s("x", &[1, 2])]).unwrap_err();
    assert_eq!(wrong.to_string(), "the input `x` is INT64; the model takes BYTES");
}

/// Strings that the graph does not hold are none that callers can have got it to hold.
#[test]
fn a_table_of_numbers_is_no_table_of_strings() {
    let encoder = ml(node("LabelEncoder", &["x"], &["y"]));
    let encoder = with_strings(with_ints(encoder, "keys_int64s", &[1]), "values_strings", &["one"]);
    let graph = |node: NodeProto| GraphProto {
        node: vec![node],
        input: vec![value("x", Onnx::Int64, &[D::N("N")])],
        output: vec![unranked("y", Onnx::String, None)],
        ..Default::default()
    };
    // Of both lists, the one of strings counts.
    let both = with_ints(encoder, "values_int64s", &[1 << 40]);
    let model = load(bytes(graph(both))).unwrap();
    let output = infer(&model, vec![i64s("x", &[1, 2])]).unwrap().outputs;
    assert_eq!(output, [strings("y", &[2], &[b"one", b"_Unused"])]);
    // Numbers that are only called strings.
    let refused = load(bytes(graph(node("Identity", &["x"], &["y"])))).unwrap_err();
    assert!(matches!(refused, LoadError::UnsupportedType(_)), "{refused:?}");
}

#[test]
fn labels_of_a_classifier_may_be_strings() {
    let labels = AttributeProto {
        name: "classlabels_strings".to_owned(),
        r#type: AttributeType::Strings as i32,
        strings: vec![b"no".to_vec(), b"yes".to_vec()],
        ..Default::default()
    };
    let none = AttributeProto {
        name: "classlabels_int64s".to_owned(),
        r#type: AttributeType::Ints as i32,
        ..Default::default()
    };
    let refused = load(bytes(stump(std::slice::from_ref(&labels)))).unwrap_err();
    assert!(matches!(refused, LoadError::Malformed(_)), "two types of labels: {refused:?}");
    let model = load(bytes(stump(&[labels, none]))).unwrap();
    let rows = crate::testing::f32s("x", &[3, 1], &[0., 2., 0.5]);
    let outputs = infer(&model, vec![rows]).unwrap().outputs;
    assert_eq!(outputs[0], strings("label", &[3], &[b"no", b"yes", b"no"]));
}

#[test]
fn long_strings_are_refused_before_they_are_copied() {
    let long = vec![b'x'; 1 << 20];
    let model = load(bytes(GraphProto {
        node: vec![node("Gather", &["w", "x"], &["y"])],
        initializer: vec![texts("w", &[&long, b"short"])],
        input: vec![value("x", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::String, &[])],
        ..Default::default()
    }))
    .unwrap();
    let error = infer(&model, vec![i64s("x", &[0; 1024])]).unwrap_err();
    assert!(matches!(error, InferenceError::TooLarge(_)), "{error:?}");
    let output = infer(&model, vec![i64s("x", &[1; 1024])]).unwrap().outputs;
    assert_eq!(output[0].tensor.data().len(), 1024 * 9);
}

/// Categories of one column are an error in another, so that made-up rows must know which goes where.
#[test]
fn a_strict_encoder_of_two_columns_is_tried_on_its_own_categories() {
    let column = |place: &str, values: &[&str]| {
        let cut = format!("cut_{place}");
        let mut hot = ml(node("OneHotEncoder", &[&cut], &[&format!("hot_{place}")]));
        hot.name = format!("hot_{place}");
        let hot = with_int(with_strings(hot, "cats_strings", values), "zeros", 0);
        let mut gather = with_int(node("Gather", &["x", place], &[&cut]), "axis", 1);
        gather.name = cut;
        [gather, hot]
    };
    let mut nodes: Vec<NodeProto> = [column("a", &["red", "blue"]), column("b", &["s", "m", "l"])]
        .into_iter()
        .flatten()
        .collect();
    nodes.push(with_int(node("Concat", &["hot_a", "hot_b"], &["y"]), "axis", 2));
    let model = load(bytes(GraphProto {
        node: nodes,
        initializer: vec![integers("a", &[0]), integers("b", &[1])],
        input: vec![value("x", Onnx::String, &[D::N("N"), D::F(2)])],
        output: vec![unranked("y", Onnx::Float, None)],
        ..Default::default()
    }))
    .unwrap();
    let batching = &model.profile().batching;
    assert!(!batching.curve.is_empty(), "{:?}", batching.reason);
    let output = infer(&model, vec![strings("x", &[1, 2], &[b"blue", b"l"])]).unwrap().outputs;
    assert_eq!(
        output[0].tensor,
        crate::testing::f32s("y", &[1, 1, 5], &[0., 1., 0., 0., 1.]).tensor
    );
    let strange = infer(&model, vec![strings("x", &[1, 2], &[b"l", b"blue"])]).unwrap_err();
    assert!(matches!(strange, InferenceError::InvalidArgument(_)), "{strange:?}");
}

#[test]
fn other_uses_of_strings_are_refused() {
    let x = || value("x", Onnx::String, &[D::N("N")]);
    let graph = |nodes: Vec<NodeProto>, kind: Onnx| GraphProto {
        node: nodes,
        initializer: vec![texts("w", &[b"a"]), integers("n", &[1])],
        input: vec![x(), value("z", Onnx::String, &[D::N("N")])],
        output: vec![unranked("y", kind, None)],
        ..Default::default()
    };
    let inner = |inner: GraphProto| AttributeProto {
        name: "then_branch".to_owned(),
        r#type: AttributeType::Graph as i32,
        g: Some(inner),
        ..Default::default()
    };
    let mut branch = node("If", &["n"], &["y"]);
    branch.attribute.push(inner(graph(vec![node("Identity", &["x"], &["y"])], Onnx::String)));
    let hot = with_ints(ml(node("OneHotEncoder", &["x"], &["y"])), "cats_int64s", &[1]);
    let late = vec![node("Identity", &["v"], &["y"]), node("Identity", &["w"], &["v"])];
    for (what, nodes, kind) in [
        ("passed on", vec![node("Identity", &["x"], &["y"])], Onnx::String),
        ("compared", vec![node("Equal", &["x", "z"], &["y"])], Onnx::Bool),
        ("compared with numbers", vec![node("Equal", &["w", "n"], &["y"])], Onnx::Bool),
        (
            "beside numbers",
            vec![with_int(node("Concat", &["w", "n"], &["y"]), "axis", 0)],
            Onnx::String,
        ),
        ("added", vec![node("Add", &["w", "n"], &["y"])], Onnx::Int64),
        ("an index", vec![node("Gather", &["n", "w"], &["y"])], Onnx::Int64),
        ("a branch", vec![branch], Onnx::String),
        ("cast", vec![with_int(node("Cast", &["w"], &["y"]), "to", 7)], Onnx::Int64),
        ("made", vec![with_int(node("Cast", &["n"], &["y"]), "to", 8)], Onnx::String),
        (
            "drawn",
            vec![with_int(
                with_ints(node("RandomUniform", &[], &["y"]), "shape", &[2]),
                "dtype",
                8,
            )],
            Onnx::String,
        ),
        ("other categories", vec![hot], Onnx::Float),
        ("read too early", late, Onnx::String),
    ] {
        let refused = load(bytes(graph(nodes, kind))).unwrap_err();
        let why = &refused;
        let is_ours = matches!(
            why,
            LoadError::UnsupportedVariant { .. }
                | LoadError::UnsupportedType(_)
                | LoadError::Malformed(_)
        );
        assert!(is_ours, "{what}: {why:?}");
    }
    // What the graph holds can be told from all that callers send.
    let model = load(bytes(graph(vec![node("Equal", &["x", "w"], &["y"])], Onnx::Bool))).unwrap();
    let pair = |name| strings(name, &[2], &[b"a", b"b"]);
    let output = infer(&model, vec![pair("x"), pair("z")]).unwrap().outputs;
    assert_eq!(&output[0].tensor.data()[..], [1, 0]);
}
