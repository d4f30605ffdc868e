//! What is rewritten before tract sees it, and what is refused because tract would answer something else. Numbers
//! are worked out by hand; the corpus of the end-to-end tests has onnxruntime's.

use sandpiper_domain::{DataType, Tensor};
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, tensor_proto::DataType as Onnx};

use crate::{
    LoadError,
    testing::{
        D, bytes, f32s, i64s, infer, integers, load, named, node, stump, value, weight,
        with_floats, with_int, with_ints, with_strings,
    },
};

fn ml(mut node: NodeProto) -> NodeProto {
    node.domain = "ai.onnx.ml".to_owned();
    node
}

fn outputs(graph: GraphProto, inputs: Vec<sandpiper_domain::NamedTensor>) -> Vec<Tensor> {
    let model = load(bytes(graph)).unwrap();
    infer(&model, inputs).unwrap().outputs.into_iter().map(|output| output.tensor).collect()
}

/// A graph of one input `x`, one node and one output `y`.
fn single(node: NodeProto, kind: Onnx, dims: &[D]) -> GraphProto {
    GraphProto {
        node: vec![node],
        input: vec![value("x", kind, dims)],
        output: vec![value("y", kind, &[])],
        ..Default::default()
    }
}

#[test]
fn a_missing_value_is_put_in() {
    let imputer = |missing: Option<f32>, values: &[f32]| {
        let mut imputer =
            with_floats(ml(node("Imputer", &["x"], &["y"])), "imputed_value_floats", values);
        imputer.attribute.extend(missing.map(|f| AttributeProto {
            name: "replaced_value_float".to_owned(),
            r#type: 1,
            f,
            ..Default::default()
        }));
        imputer
    };
    let graph = |missing, values: &[f32], columns| {
        single(imputer(missing, values), Onnx::Float, &[D::N("N"), columns])
    };
    let rows = f32s("x", &[2, 2], &[1., f32::NAN, f32::NAN, 4.]);
    let result = outputs(graph(Some(f32::NAN), &[7., 8.], D::F(2)), vec![rows]);
    assert_eq!(result, [f32s("y", &[2, 2], &[1., 8., 7., 4.]).tensor]);
    // Where the model does not say what is missing, zeros are.
    let rows = || f32s("x", &[2, 2], &[1., 0., 0., 4.]);
    for columns in [D::F(2), D::N("C")] {
        let result = outputs(graph(None, &[7., 8.], columns), vec![rows()]);
        assert_eq!(result, [f32s("y", &[2, 2], &[1., 8., 7., 4.]).tensor]);
    }
    let result = outputs(graph(None, &[7.], D::F(2)), vec![rows()]);
    assert_eq!(result, [f32s("y", &[2, 2], &[1., 7., 7., 4.]).tensor]);
    // onnxruntime takes the first value for all columns then, and of three axes the second for columns.
    assert!(load(bytes(graph(None, &[7., 8., 9.], D::F(2)))).is_err());
    let cube = [D::N("N"), D::F(2), D::F(2)];
    assert!(load(bytes(single(imputer(None, &[7., 8.]), Onnx::Float, &cube))).is_err());
}

#[test]
fn tables_that_do_not_have_the_stated_columns_are_refused() {
    let graph = |counts: Option<&[i64]>| {
        let vectorizer = ml(node("FeatureVectorizer", &["a", "b"], &["y"]));
        GraphProto {
            node: vec![match counts {
                Some(counts) => with_ints(vectorizer, "inputdimensions", counts),
                None => vectorizer,
            }],
            input: vec![
                value("a", Onnx::Float, &[D::N("N"), D::F(2)]),
                value("b", Onnx::Float, &[D::N("N"), D::F(1)]),
            ],
            output: vec![value("y", Onnx::Float, &[])],
            ..Default::default()
        }
    };
    for counts in [None, Some(&[1, 1][..]), Some(&[2, 2]), Some(&[3, 1]), Some(&[2]), Some(&[2, 0])]
    {
        assert!(load(bytes(graph(counts))).is_err(), "{counts:?}");
    }
    let tables = vec![f32s("a", &[2, 2], &[1., 2., 3., 4.]), f32s("b", &[2, 1], &[5., 6.])];
    let expected = f32s("y", &[2, 3], &[1., 2., 5., 3., 4., 6.]).tensor;
    assert_eq!(outputs(graph(Some(&[2, 1])), tables), [expected]);
}

#[test]
fn a_base_value_that_some_rows_do_not_get_is_refused() {
    // onnxruntime 1.32 gives [1, 0] to a row whose leaf has no weight, whatever the base value.
    let base = AttributeProto {
        name: "base_values".to_owned(),
        r#type: 6,
        floats: vec![0.5],
        ..Default::default()
    };
    let ints = |name: &str, ints: &[i64]| AttributeProto {
        name: name.to_owned(),
        r#type: 7,
        ints: ints.to_vec(),
        ..Default::default()
    };
    let weights =
        AttributeProto { name: "class_weights".to_owned(), floats: vec![0.25], ..base.clone() };
    let one_leaf = [
        ints("class_treeids", &[0]),
        ints("class_nodeids", &[1]),
        ints("class_ids", &[0]),
        weights,
    ];
    let result = outputs(stump(&one_leaf), vec![f32s("x", &[2, 1], &[0., 2.])]);
    assert_eq!(result[1], f32s("p", &[2, 2], &[0.75, 0.25, 1., 0.]).tensor);
    let error = load(bytes(stump(&[&one_leaf[..], &[base]].concat()))).unwrap_err();
    assert!(error.to_string().contains("rows that get no score"), "{error}");
}

#[test]
fn a_category_that_is_not_there_is_an_error_where_it_should_be() {
    let encoder = |zeros| {
        let encoder = ml(node("OneHotEncoder", &["x"], &["y"]));
        with_int(with_ints(encoder, "cats_int64s", &[5, 6]), "zeros", zeros)
    };
    let graph = |zeros| single(encoder(zeros), Onnx::Int64, &[D::N("N")]);
    let expected = f32s("y", &[2, 2], &[0., 1., 0., 0.]).tensor;
    assert_eq!(outputs(graph(1), vec![i64s("x", &[6, 9])]), [expected]);
    let strict = load(bytes(graph(0))).unwrap();
    // A data error of a caller does not tell of the model.
    for _ in 0..4 {
        let error = infer(&strict, vec![i64s("x", &[9])]).unwrap_err().to_string();
        assert!(error.contains("out of its range") && !error.contains('9'), "{error}");
    }
    assert!(strict.quarantine().is_none());
    let known = infer(&strict, vec![i64s("x", &[6, 5])]).unwrap().outputs;
    assert_eq!(known[0].tensor, f32s("y", &[2, 2], &[0., 1., 1., 0.]).tensor);
    assert!(infer(&strict, vec![i64s("x", &[6, 9])]).is_err());
}

#[test]
fn an_index_beyond_the_depth_is_nowhere() {
    // In the cases of ONNX, where tract's own operator panics.
    let graph = GraphProto {
        node: vec![node("OneHot", &["x", "depth", "values"], &["y"])],
        initializer: vec![integers("depth", &[3]), weight("values", &[2], &[0., 1.])],
        input: vec![value("x", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[])],
        ..Default::default()
    };
    let indices = i64s("x", &[0, 3, -1, -4, 1 << 40]);
    let expected = [1., 0., 0., 0., 0., 0., 0., 0., 1., 0., 0., 0., 0., 0., 0.];
    assert_eq!(outputs(graph, vec![indices]), [f32s("y", &[5, 3], &expected).tensor]);
}

#[test]
fn an_index_that_would_make_the_backend_panic_is_an_error_of_the_run() {
    // Along another axis the operator is tract's own.
    let hot = with_int(node("OneHot", &["x", "depth", "values"], &["y"]), "axis", 0);
    let model = load(bytes(GraphProto {
        node: vec![hot],
        initializer: vec![integers("depth", &[3]), weight("values", &[2], &[0., 1.])],
        input: vec![value("x", Onnx::Int64, &[D::N("N")])],
        output: vec![value("y", Onnx::Float, &[])],
        ..Default::default()
    }))
    .unwrap();
    // Three panics in a row would put the model in quarantine.
    for _ in 0..4 {
        let error = infer(&model, vec![i64s("x", &[0, 3])]).unwrap_err().to_string();
        assert!(error.contains("out of its range") && !error.contains('3'), "{error}");
    }
    let fine = infer(&model, vec![i64s("x", &[0, 2])]).unwrap();
    assert_eq!(fine.outputs[0].tensor.datatype(), DataType::F32);
}

#[test]
fn large_integers_survive_a_cast() {
    let large = (1 << 40) + 1;
    let cast = || with_int(node("Cast", &["x"], &["y"]), "to", Onnx::Int64 as i64);
    let from = |kind| GraphProto {
        output: vec![value("y", Onnx::Int64, &[])],
        ..single(cast(), kind, &[D::N("N")])
    };
    let expected = i64s("y", &[large, -5]).tensor;
    assert_eq!(
        outputs(from(Onnx::Int64), vec![i64s("x", &[large, -5])]),
        std::slice::from_ref(&expected)
    );
    let doubles = [large as f64, -5.5].iter().flat_map(|v| v.to_le_bytes()).collect();
    let doubles = named("x", DataType::F64, &[2], doubles);
    assert_eq!(outputs(from(Onnx::Double), vec![doubles]), [expected]);
}

#[test]
fn a_stump_gives_labels_and_both_probabilities() {
    // x < 1 -> 0.25 for the second class, else 0.75.
    let result = outputs(stump(&[]), vec![f32s("x", &[2, 1], &[0., 2.])]);
    assert_eq!(result[0], i64s("label", &[10, 20]).tensor);
    assert_eq!(result[1], f32s("p", &[2, 2], &[0.75, 0.25, 0.25, 0.75]).tensor);
}

#[test]
fn a_tree_that_is_none_is_refused() {
    let ints = |name: &str, ints: &[i64]| AttributeProto {
        name: name.to_owned(),
        r#type: 7,
        ints: ints.to_vec(),
        ..Default::default()
    };
    for (changed, part) in [
        // A branch back to itself would never end, and a class beyond the last be written nowhere.
        (ints("nodes_truenodeids", &[0, 0, 0]), "that its tree does not lead to"),
        (ints("nodes_truenodeids", &[2, 0, 0]), "no place in its tree"),
        (ints("nodes_truenodeids", &[9, 0, 0]), "no place in its tree"),
        (ints("nodes_nodeids", &[0, 1, 1]), "two nodes of one number"),
        (ints("nodes_treeids", &[0, 0, 1]), "no place in its tree"),
        (ints("nodes_featureids", &[-1, 0, 0]), "a feature that cannot be"),
        (ints("nodes_featureids", &[1 << 40, 0, 0]), "a feature that cannot be"),
        (ints("nodes_featureids", &[0, 0]), "of different lengths"),
        (ints("class_ids", &[0, 2]), "a class or target that is not there"),
        (ints("class_ids", &[0, -1]), "a class or target that is not there"),
        (ints("class_nodeids", &[1, 0]), "a node that is no leaf"),
        (ints("class_nodeids", &[1, 7]), "a node that is no leaf"),
        (ints("class_ids", &[0]), "weights of different lengths"),
    ] {
        let error = load(bytes(stump(std::slice::from_ref(&changed)))).unwrap_err();
        assert!(matches!(error, LoadError::Malformed(_)), "{changed:?}: {error}");
        assert!(error.to_string().contains(part), "{changed:?}: {error}");
    }
    // A feature that the rows do not have is an error of the run.
    let model = load(bytes(stump(&[ints("nodes_featureids", &[3, 0, 0])])));
    assert!(model.is_err() || infer(&model.unwrap(), vec![f32s("x", &[1, 1], &[0.])]).is_err());
}

#[test]
fn an_operator_of_trees_outside_its_domain_is_unknown() {
    let mut graph = stump(&[]);
    graph.node[0].domain = String::new();
    let error = load(bytes(graph)).unwrap_err();
    assert!(matches!(error, LoadError::UnsupportedOperator { .. }), "{error}");
}

#[test]
fn what_the_backend_would_pass_over_is_refused() {
    let lstm = || node("LSTM", &["x", "w", "r"], &["y"]);
    let attention = || node("Attention", &["x", "x", "x"], &["y"]);
    let past = node("Attention", &["x", "x", "x", "", "p", "p"], &["y"]);
    let clip = with_floats(lstm(), "unused", &[]);
    let clip = {
        let mut clip = clip;
        clip.attribute = vec![AttributeProto {
            name: "clip".to_owned(),
            r#type: 1,
            f: 1.,
            ..Default::default()
        }];
        clip
    };
    for (node, part) in [
        (with_strings(lstm(), "activations", &["Sigmoid", "Relu", "Tanh"]), "activation functions"),
        (clip, "a `clip`"),
        (with_int(lstm(), "input_forget", 1), "input_forget"),
        (with_int(attention(), "left_window_size", 3), "a sliding window"),
        (with_int(past, "is_causal", 1), "past keys"),
        (
            with_int(
                node("BatchNormalization", &["x", "x", "x", "x", "x"], &["y"]),
                "training_mode",
                1,
            ),
            "training",
        ),
        (with_int(node("QuantizeLinear", &["x", "s"], &["y"]), "output_dtype", 3), "output_dtype"),
        (
            with_int(node("DequantizeLinear", &["x", "s"], &["y"]), "output_dtype", 10),
            "output_dtype",
        ),
        (node("BitShift", &["unknown", "unknown"], &["y"]), "whose type"),
    ] {
        let error = load(bytes(single(node, Onnx::Float, &[D::F(1)]))).unwrap_err();
        assert!(matches!(error, LoadError::UnsupportedVariant { .. }), "{error}");
        assert!(error.to_string().contains(part), "{error}");
    }
}
