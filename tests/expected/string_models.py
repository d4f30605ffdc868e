"""Models with strings at their edges: labels that come out, and categories that go in.

`models()` yields (file, about, ModelProto, runs) and `refused()` (file, about, content) for onnx_models.py.
"""

import warnings

import numpy as np
from onnx import TensorProto
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import GradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder, StandardScaler
from sklearn.svm import LinearSVC
from sklearn.tree import DecisionTreeClassifier
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType, StringTensorType

import onnx_models

STRING, FLOAT, INT64 = TensorProto.STRING, TensorProto.FLOAT, TensorProto.INT64
ML = {"domain": "ai.onnx.ml"}
ROWS = 24


def models():
    yield from labels()
    yield from categories()
    yield from operators()


def fitted(estimator, features, labels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(features, labels)


def labels():
    iris, cancer = load_iris(), load_breast_cancer()
    classifiers = {
        "logistic": LogisticRegression(max_iter=300),
        "tree": DecisionTreeClassifier(max_depth=3, random_state=0),
        "forest": RandomForestClassifier(10, max_depth=5, random_state=0),
        "boosting": GradientBoostingClassifier(n_estimators=10, random_state=0),
        "linear-svc": LinearSVC(max_iter=20000),
        "sgd": make_pipeline(StandardScaler(), SGDClassifier(loss="log_loss", random_state=0)),
        "mlp": make_pipeline(StandardScaler(), MLPClassifier((16,), max_iter=60, random_state=0)),
        "bayes": GaussianNB(),
        "neighbours": KNeighborsClassifier(),
    }
    for data, name in ((iris, "iris"), (cancer, "cancer")):
        features, names = data.data.astype(np.float32), data.target_names.astype(str)[data.target]
        rows = features[np.random.default_rng(1).permutation(len(features))[:ROWS]]
        for kind, estimator in classifiers.items():
            model = to_onnx(fitted(estimator, features, names), features[:1])
            value = model.graph.input[0].name
            runs = [{value: rows}, {value: rows[:1]}]
            yield f"strings-{name}-{kind}.onnx", f"{estimator}, labels that are strings", model, runs


def categories():
    """Encoders of columns of strings; a category that was not seen is an error, nothing or a number."""
    colours, sizes = ["red", "green", "blue", "grün"], ["s", "m", "l"]
    pairs = [[colour, size] for colour in colours for size in sizes]
    table = np.array(pairs, dtype=object)
    classes = np.array(["warm" if colour == "red" else "cold" for colour, _ in pairs])
    known, unknown = table[[0, 5, 11, 7]], np.array([["red", "xl"], ["", "s"]], dtype=object)
    encoders = {
        "one-hot": OneHotEncoder(handle_unknown="ignore"),
        "one-hot-strict": OneHotEncoder(),
        "ordinal": OrdinalEncoder(),
        "ordinal-unknown": OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
    }
    for name, encoder in encoders.items():
        estimator = fitted(make_pipeline(encoder, LogisticRegression()), table, classes)
        model = to_onnx(estimator, initial_types=[("x", StringTensorType([None, 2]))])
        runs = [{"x": known}, {"x": known[:1]}, {"x": unknown}, {"x": np.concatenate([known, unknown])}]
        yield f"strings-{name}.onnx", f"{estimator} over columns of strings", model, runs
    mixed = np.empty((len(pairs), 3), dtype=object)
    mixed[:, :2], mixed[:, 2] = table, np.arange(len(pairs), dtype=np.float32)
    columns = [("text", OneHotEncoder(handle_unknown="ignore"), [0, 1]), ("number", StandardScaler(), [2])]
    estimator = fitted(make_pipeline(ColumnTransformer(columns), LogisticRegression()), mixed, classes)
    kinds = [("colour", StringTensorType([None, 1])), ("size", StringTensorType([None, 1]))]
    model = to_onnx(estimator, initial_types=[*kinds, ("number", FloatTensorType([None, 1]))])
    run = {"colour": table[:, :1], "size": table[:, 1:], "number": mixed[:, 2:].astype(np.float32)}
    other = {**run, "size": np.full_like(run["size"], "xl")}
    yield "strings-columns.onnx", f"{estimator}", model, [run, other]


def strings(*texts):
    return np.array(texts, dtype=object)


def one(operator, inputs, outputs, weights=(), version=2, after=(), **attributes):
    """A model of one operator of `ai.onnx.ml`."""
    node = (operator, [name for name, _, _ in inputs], ["y"], {**ML, **attributes})
    sets = (("", 17), ("ai.onnx.ml", version))
    return onnx_models.build([node, *after], inputs, outputs, weights, sets=sets)


def operators():
    text, number, out = ("x", STRING, ["N"]), ("x", INT64, ["N"]), ("y", STRING, ["N"])
    keys = {"keys_int64s": [5, -7], "values_strings": ["five", "minus seven"]}
    runs = [{"x": np.array([5, -7, 5])}, {"x": np.array([6])}, {"x": np.zeros(0, np.int64)}]
    for name, more in (("", {}), ("-default", {"default_string": "none of them"})):
        model = one("LabelEncoder", [number], [out], **keys, **more)
        yield f"strings-encoder-to{name}.onnx", "LabelEncoder of integers to strings", model, runs
    keys = {"keys_strings": ["a", "bb", ""], "values_floats": [0.5, 1.5, 2.5], "default_float": -3.0}
    model = one("LabelEncoder", [text], [("y", FLOAT, ["N"])], **keys)
    texts = [{"x": strings("a", "", "bb")}, {"x": strings("ccc", "A", "a")}]
    yield "strings-encoder-from.onnx", "LabelEncoder of strings to floats", model, texts
    keys = {"keys_strings": ["a", "bb", ""], "values_strings": ["bb", "ü", "a"]}
    model = one("LabelEncoder", [text], [out], **keys)
    yield "strings-encoder-both.onnx", "LabelEncoder of strings to strings", model, texts
    places = ("y", INT64, ["N"])
    model = one("LabelEncoder", [text], [places], version=1, classes_strings=["a", "bb"])
    yield "strings-encoder-first.onnx", "LabelEncoder as its first version has it", model, texts
    mapper = {"cats_int64s": [3, 1], "cats_strings": ["a", "bb"]}
    model = one("CategoryMapper", [text], [places], **mapper, default_int64=9)
    yield "strings-mapper-from.onnx", "CategoryMapper of strings", model, texts
    model = one("CategoryMapper", [number], [out], **mapper)
    yield "strings-mapper-to.onnx", "CategoryMapper of integers", model, [{"x": np.array([1, 3, 4])}]
    moved = [("Reshape", ["y", "shape"], ["m"]), ("Concat", ["m", "m"], ["z"], {"axis": 1})]
    weights = [("shape", np.array([-1, 1]))]
    model = one("CategoryMapper", [number], [("z", STRING, ["N", 2])], weights, after=moved, **mapper)
    yield "strings-moved.onnx", "strings that are moved about", model, [{"x": np.array([1, 3, 4])}]


def refused():
    text = ("x", STRING, ["N"])
    for name, nodes, outputs in (
        ("passed", [("Unsqueeze", ["x", "axes"], ["y"])], [("y", STRING, ["N", 1])]),
        ("compared", [("Equal", ["x", "z"], ["y"])], [("y", TensorProto.BOOL, ["N"])]),
        ("cast", [("Cast", ["x"], ["y"], {"to": FLOAT})], [("y", FLOAT, ["N"])]),
        ("folded", [("StringNormalizer", ["x"], ["y"], {"case_change_action": "UPPER"})], [("y", STRING, ["N"])]),
    ):
        inputs = [text, ("z", STRING, ["N"])] if name == "compared" else [text]
        weights = [("axes", np.array([1]))] if name == "passed" else []
        model = onnx_models.build(nodes, inputs, outputs, weights)
        yield f"strings-{name}.onnx", f"strings that are {name}", model.SerializeToString()
    nodes = [("Cast", ["n"], ["y"], {"to": STRING})]
    model = onnx_models.build(nodes, [("n", FLOAT, ["N"])], [("y", STRING, ["N"])])
    yield "strings-made.onnx", "strings that are made of numbers", model.SerializeToString()
