//! Models that would move what is in one row to another: none runs in a batch with others.

use tract_onnx::pb::{GraphProto, NodeProto, TensorProto, tensor_proto::DataType as Onnx};

use crate::testing::{
    D, bytes, f32s, infer, integers, load, named, node, value, weight, with_int, with_ints,
};
use sandpiper_domain::DataType;

/// `x` of `[N, 3]` to `y` of `[N, 3]`.
fn graph(nodes: Vec<NodeProto>) -> GraphProto {
    GraphProto {
        node: nodes,
        initializer: vec![
            integers("zero", &[0]),
            TensorProto { dims: Vec::new(), ..integers("rows", &[0]) },
            integers("one", &[1]),
            integers("minus", &[-1]),
            integers("first", &[i64::MIN + 1]),
            weight("w", &[3], &[10., 20., 30.]),
        ],
        input: vec![value("x", Onnx::Float, &[D::N("N"), D::F(3)])],
        output: vec![value("y", Onnx::Float, &[D::N("N"), D::F(3)])],
        ..Default::default()
    }
}

fn cast(from: &str, to: &str, kind: Onnx) -> NodeProto {
    with_int(node("Cast", &[from], &[to]), "to", kind as i64)
}

#[test]
fn what_moves_rows_is_never_batched() {
    let first_row = || node("Slice", &["x", "zero", "one", "zero"], &["row"]);
    let shape = || node("Shape", &["x"], &["shape"]);
    let cumulated = |name, on: i64| with_int(node("CumSum", &["x", "rows"], &["y"]), name, on);
    // A place that the values say, from 0 to N - 1.
    let place = || {
        let most = with_int(node("ArgMax", &["x"], &["most"]), "axis", 0);
        vec![with_int(most, "keepdims", 0), node("Slice", &["most", "zero", "one"], &["place"])]
    };
    let after = || node("Add", &["place", "one"], &["after"]);
    let models = [
        (
            "the first row for all",
            vec![first_row(), shape(), node("Expand", &["row", "shape"], &["y"])],
        ),
        ("the first row added to all", vec![first_row(), node("Add", &["x", "row"], &["y"])]),
        ("reversed", vec![node("Slice", &["x", "minus", "first", "zero", "minus"], &["y"])]),
        ("sums of the rows before", vec![cumulated("reverse", 0)]),
        ("sums of the rows after", vec![cumulated("reverse", 1)]),
        (
            "a row that the values choose, for all",
            [
                place(),
                vec![
                    after(),
                    node("Slice", &["x", "place", "after", "zero"], &["row"]),
                    shape(),
                    node("Expand", &["row", "shape"], &["y"]),
                ],
            ]
            .concat(),
        ),
        (
            "rows that the values choose",
            vec![
                with_int(node("TopK", &["x", "one"], &["top", "which"]), "axis", 1),
                with_ints(node("Flatten", &["which"], &["flat"]), "unused", &[]),
                with_int(node("Gather", &["x", "flat"], &["rows"]), "axis", 0),
                with_int(node("ReduceMax", &["rows"], &["y"]), "keepdims", 0),
            ],
        ),
        (
            "a Fourier transform along the rows",
            vec![
                with_ints(node("Transpose", &["x"], &["turned"]), "perm", &[1, 0]),
                node("Unsqueeze", &["turned", "minus"], &["signal"]),
                with_int(node("DFT", &["signal"], &["waves"]), "axis", 1),
                with_int(node("Gather", &["waves", "zero"], &["real"]), "axis", 2),
                node("Squeeze", &["real", "minus"], &["flat"]),
                with_ints(node("Transpose", &["flat"], &["y"]), "perm", &[1, 0]),
            ],
        ),
    ];
    for (what, nodes) in models {
        let model = match load(bytes(graph(nodes))) {
            Ok(model) => model,
            // What does not load mixes nothing, but then the model here is wrong.
            Err(error) => panic!("{what}: {error}"),
        };
        let batching = &model.profile().batching;
        assert_eq!(batching.sizes, [1], "{what}");
        assert!(batching.reason.is_some() && batching.curve.is_empty(), "{what}: {batching:?}");
    }
}

#[test]
fn an_index_never_reads_the_row_beside() {
    // Along any axis but the first, the place that is one too far is the first of the next row.
    let model = load(bytes(GraphProto {
        node: vec![
            cast("which", "i", Onnx::Int64),
            with_int(node("Gather", &["x", "i"], &["y"]), "axis", 1),
        ],
        input: vec![
            value("x", Onnx::Float, &[D::N("N"), D::F(3)]),
            value("which", Onnx::Int32, &[D::N("K")]),
        ],
        output: vec![value("y", Onnx::Float, &[])],
        ..Default::default()
    }))
    .unwrap();
    let ask = |index: i32| {
        let which = named("which", DataType::I32, &[1], index.to_le_bytes().to_vec());
        infer(&model, vec![f32s("x", &[2, 3], &[1., 2., 3., 4., 5., 6.]), which])
    };
    for index in [3, -4, 5, i32::MAX, i32::MIN] {
        let error = ask(index).unwrap_err().to_string();
        assert!(error.contains("out of its range"), "{index}: {error}");
    }
    assert!(model.quarantine().is_none());
    let last = [f32s("y", &[2, 1], &[3., 6.])];
    assert_eq!((ask(2).unwrap().outputs, ask(-1).unwrap().outputs), (last.to_vec(), last.to_vec()));
}
