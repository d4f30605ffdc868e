"""Models of operators of `ai.onnx.ml` at the edges of what they define, where runtimes differ.

`models()` yields (file, about, ModelProto, runs) for onnx_models.py.
"""

import numpy as np
from onnx import TensorProto

import onnx_models

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
SETS = (("", 17), ("ai.onnx.ml", 3))


def f32(*rows):
    return np.array(rows, np.float32)


def one(operator, inputs, outputs, weights=(), before=(), **attributes):
    """A model of one operator of `ai.onnx.ml`, after those of `before`, which make its first input `v`."""
    names = [name for name, _, _ in inputs] + [name for name, _ in weights]
    reads = ["v", *names[1:]] if before else names
    makes = [name for name, _, _ in outputs]
    node = (operator, reads, makes, {"domain": "ai.onnx.ml", **attributes})
    return onnx_models.build([*before, node], inputs, outputs, weights, sets=SETS)


def models():
    yield from trees()
    yield from imputers()
    yield from categories()
    yield from machines()
    yield from columns()


def stump(weights, post, base):
    attributes = {
        "nodes_treeids": [0, 0, 0],
        "nodes_nodeids": [0, 1, 2],
        "nodes_featureids": [0, 0, 0],
        "nodes_values": [1.0, 0.0, 0.0],
        "nodes_modes": ["BRANCH_LT", "LEAF", "LEAF"],
        "nodes_truenodeids": [1, 0, 0],
        "nodes_falsenodeids": [2, 0, 0],
        "class_treeids": [0, 0],
        "class_nodeids": [1, 2],
        "class_ids": [0, 0],
        "class_weights": weights,
        "classlabels_int64s": [10, 20],
        "post_transform": post,
    }
    if base:
        attributes["base_values"] = base
    outputs = [("label", INT64, ["N"]), ("p", FLOAT, ["N", 2])]
    return one("TreeEnsembleClassifier", [("x", FLOAT, ["N", 1])], outputs, **attributes)


def trees():
    """Two classes and one score: what of the two columns, and where the labels change, depends on all of these."""
    signs = {"positive": [0.25, 0.75], "large": [0.0, 2.0], "mixed": [-1.0, 0.75], "negative": [-0.5, -2.0]}
    for sign, weights in signs.items():
        for post in ("NONE", "LOGISTIC"):
            for base in (None, [-0.5]):
                name = f"stump-{sign}-{post.lower()}{'-base' if base else ''}.onnx"
                about = f"a tree of two classes, weights {weights}, {post}, base {base}"
                yield name, about, stump(weights, post, base), [{"x": f32([0], [2])}]


def imputers():
    """JSON has no NaN, so that the value that is missing is the logarithm of -1."""
    x = f32([1, 0], [0, 4], [-1, 3])
    for name, attributes in (
        ("default", {"imputed_value_floats": [7.0, 8.0]}),
        ("default-one", {"imputed_value_floats": [7.0]}),
        ("minus", {"imputed_value_floats": [7.0, 8.0], "replaced_value_float": -1.0}),
    ):
        model = one("Imputer", [("x", FLOAT, ["N", 2])], [("y", FLOAT, ["N", 2])], **attributes)
        yield f"imputer-{name}.onnx", f"Imputer, {attributes}", model, [{"x": x}]
    model = one(
        "Imputer",
        [("x", FLOAT, ["N", 2])],
        [("y", FLOAT, ["N", 2])],
        before=[("Log", ["x"], ["v"])],
        imputed_value_floats=[7.0, 8.0],
        replaced_value_float=float("nan"),
    )
    yield "imputer-nan.onnx", "Imputer of NaN", model, [{"x": f32([1, -1], [-1, 2])}]
    whole = np.array([[0, 2], [3, 0]])
    for name, values in (("whole", [7, 8]), ("whole-one", [7])):
        inputs, outputs = [("x", INT64, ["N", 2])], [("y", INT64, ["N", 2])]
        model = one("Imputer", inputs, outputs, imputed_value_int64s=values)
        yield f"imputer-{name}.onnx", f"Imputer of integers, {values}", model, [{"x": whole}]


def categories():
    for zeros in (0, 1):
        model = one(
            "OneHotEncoder",
            [("x", INT64, ["N"])],
            [("y", FLOAT, ["N", 2])],
            cats_int64s=[5, 6],
            zeros=zeros,
        )
        runs = [{"x": np.array([5, 6])}, {"x": np.array([5, 9])}]
        yield f"one-hot-encoder-{zeros}.onnx", f"OneHotEncoder, zeros = {zeros}", model, runs


def machines():
    """Rows of another length than the support vectors are an error, whether they divide into such or not."""
    for kind in ("RBF", "LINEAR", "POLY", "SIGMOID"):
        model = one(
            "SVMRegressor",
            [("x", FLOAT, ["N", "F"])],
            [("y", FLOAT, ["N", 1])],
            kernel_type=kind,
            kernel_params=[0.5, 0.25, 2.0],
            n_supports=2,
            support_vectors=[1.0, 2.0, 3.0, 4.0],
            coefficients=[0.5, -0.25],
            rho=[0.1],
        )
        runs = [f32([1, 2], [3, 5]), f32([1, 2, 3, 4]), f32([1], [2])]
        yield f"svr-{kind.lower()}.onnx", f"SVMRegressor, {kind}", model, [{"x": run} for run in runs]


def columns():
    model = one(
        "FeatureVectorizer",
        [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 1])],
        [("y", FLOAT, ["N", 3])],
        inputdimensions=[2, 1],
    )
    yield "vectorizer.onnx", "FeatureVectorizer", model, [{"a": f32([1, 2], [3, 4]), "b": f32([5], [6])}]
    for name, shape, x in (("vector", ["N"], f32(1, 2, 3)), ("matrix", ["N", 3], f32([1, 2, 3], [4, 5, 6]))):
        for before in ((), [("Neg", ["x"], ["v"])]):
            model = one(
                "ArrayFeatureExtractor",
                [("x", FLOAT, shape)],
                [("y", FLOAT, None)],
                [("i", np.array([2, 0]))],
                before,
            )
            kind = "computed" if before else "given"
            about = f"ArrayFeatureExtractor of a {name} that is {kind}"
            yield f"extract-{name}-{kind}.onnx", about, model, [{"x": x}]
