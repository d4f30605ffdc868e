"""Small ONNX models for the runtime's tests, with the answers onnxruntime gives.

`write(directory, digits)` writes the models and `expected.json`:

    {"models": [{
        "file": "two-by-two.onnx",
        "about": "what it is for",
        "loads": true,                  // what the runtime should say, whatever onnxruntime does;
                                        // null: it may refuse, or else must answer the cases
        "inputs":  [{"name": "a", "datatype": "FP32", "shape": ["N", 4]}],
        "outputs": [...],               // the order is the model's
        "cases": [
            {"inputs": {"a": {"datatype": "FP32", "shape": [1, 4], "data": [...]}},
             "outputs": {...}},         // or "error": true, when the run must fail
        ]}]}

Datatypes are named as the Open Inference Protocol names them; data is flat, in row-major order.
Node names differ from the names of the outputs they make: tract calls outputs by their node.
"""

import json

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

import ml_models
import sklearn_models
import string_models

OIP = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "object": "BYTES",
}
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
# What tract gets wrong on its own: refusing is as good as putting it right.
EITHER = {"default-constant.onnx", "bomb-overflow.onnx"}
FAILS = "(fails)"  # in the inputs of a run that must fail, and that onnxruntime should not try


def write(directory, digits):
    """Writes every model; `digits` is the path of digits.onnx. Returns how many there are."""
    directory.mkdir(parents=True, exist_ok=True)
    entries = []
    kinds = (identities, arithmetic, labels, shapes, gathers, division, facts, heavy)
    modules = (module.models for module in (ml_models, sklearn_models, string_models))
    for models in (*kinds, recurrent, shifts, extremes, quantised, *modules):
        for name, about, model, runs in models():
            entries.append(entry(directory, name, about, model, runs))
    for name, about, content in (*refused(digits.read_bytes()), *string_models.refused()):
        (directory / name).write_bytes(content)
        loads = None if name in EITHER else False
        entries.append({"file": name, "about": about, "loads": loads, "cases": []})
    text = json.dumps({"models": entries}, allow_nan=False, separators=(",", ":"))
    (directory / "expected.json").write_text(text + "\n")
    return len(entries)


def entry(directory, name, about, model, runs):
    """Writes one model and runs it in onnxruntime on each of `runs`."""
    path = directory / name
    path.write_bytes(model.SerializeToString())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if name.startswith("quantised-weights"):
        # Further optimisation makes a MatMulNBits of this, which rounds the inputs to 8 bits: 5.746 for 5.770.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in model.graph.output]
    cases = []
    for inputs in runs:
        fails = FAILS in inputs
        inputs = {key: value for key, value in inputs.items() if key != FAILS}
        case = {"inputs": {key: tensor(value) for key, value in inputs.items()}}
        try:
            if fails:
                raise ValueError("known to fail")
            outputs = [matrix(value) for value in session.run(names, inputs)]
            case["outputs"] = {key: tensor(value) for key, value in zip(names, outputs)}
        except Exception:  # onnxruntime raises several kinds
            case["error"] = True
        cases.append(case)
    return {
        "file": name,
        "about": about,
        "loads": None if name in EITHER else True,
        "inputs": [described(value) for value in model.graph.input],
        "outputs": [described(value) for value in model.graph.output],
        "cases": cases,
    }


def tensor(value):
    return {
        "datatype": OIP[value.dtype.name],
        "shape": list(value.shape),
        "data": value.reshape(-1).tolist(),
    }


def matrix(value):
    """A list of maps from class to probability is a matrix of probabilities, one column for each class."""
    if isinstance(value, list):
        return np.array([[row[key] for key in sorted(row)] for row in value], np.float32)
    return value


def described(value):
    if value.type.WhichOneof("value") == "sequence_type":
        return {"name": value.name, "datatype": "FP32", "shape": ["N", "classes"]}
    kind = value.type.tensor_type
    dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
    known = [dim.dim_value if dim.HasField("dim_value") else "?" for dim in kind.shape.dim]
    shape = [dim.dim_param or size for dim, size in zip(kind.shape.dim, known)]
    return {"name": value.name, "datatype": OIP[dtype.name], "shape": shape}


def build(nodes, inputs, outputs, weights=(), info=(), sets=(("", 17),)):
    """A model of `nodes`; inputs and outputs are (name, type, shape)."""

    def values(triples):
        return [helper.make_tensor_value_info(*triple) for triple in triples]

    def node(i, operator, reads, makes, attributes={}):
        return helper.make_node(operator, reads, makes, f"node{i}", **attributes)

    return helper.make_model(
        helper.make_graph(
            [node(i, *one) for i, one in enumerate(nodes)],
            "test",
            values(inputs),
            values(outputs),
            [numpy_helper.from_array(value, name) for name, value in weights],
            value_info=values(info),
        ),
        opset_imports=[helper.make_opsetid(*one) for one in sets],
        ir_version=8,
    )


def f32(*rows):
    return np.array(rows, np.float32)


# Models that run


def identities():
    """One model for every type of element; the values are those most easily lost on the way."""
    samples = {
        "bool": [True, False, True],
        "uint8": [0, 128, 255],
        "uint16": [0, 32768, 65535],
        "uint32": [0, 2**31, 2**32 - 1],
        "uint64": [0, 2**53 + 1, 2**64 - 1],
        "int8": [-128, 0, 127],
        "int16": [-32768, 0, 32767],
        "int32": [-(2**31), 0, 2**31 - 1],
        "int64": [-(2**63), 2**53 + 1, 2**63 - 1],
        "float16": [-65504.0, 6e-8, 0.333],
        "float32": [-3.4028235e38, 1e-45, 0.1],
        "float64": [-1.7976931348623157e308, 5e-324, 0.1],
    }
    for dtype, values in samples.items():
        row = np.array([values], dtype)
        kind = helper.np_dtype_to_tensor_dtype(row.dtype)
        x, y = (("x", kind, ["N", 3]), ("y", kind, ["N", 3]))
        model = build([("Identity", ["x"], ["y"])], [x], [y])
        runs = [{"x": row}, {"x": np.concatenate([row, row[:, ::-1]])}, {"x": row[:0]}]
        yield f"identity-{OIP[dtype].lower()}.onnx", f"{OIP[dtype]} in and out", model, runs


def arithmetic():
    yield (
        "mul-add.onnx",
        "y = 2x + [1, 2, 3], batch symbolic",
        build(
            [("Mul", ["x", "two"], ["m"]), ("Add", ["m", "bias"], ["y"])],
            [("x", FLOAT, ["N", 3])],
            [("y", FLOAT, ["N", 3])],
            [("two", np.float32(2)), ("bias", f32(1, 2, 3))],
        ),
        [{"x": f32([0, 1, -1.5])}, {"x": f32([1, 2, 3], [4, 5, 6])}, {"x": np.zeros((0, 3), "f")}],
    )
    weights = np.random.default_rng(1).standard_normal((4, 3)).astype(np.float32)
    rows = np.random.default_rng(2).standard_normal((33, 4)).astype(np.float32)
    for name, batch, runs in (
        ("linear-batch.onnx", "N", [rows[:1], rows[:2], rows[:8], rows, rows[:1, :3]]),
        ("linear-fixed.onnx", 1, [rows[:1], rows[1:2], rows[:2]]),
    ):
        yield (
            name,
            f"softmax(x W), batch {'symbolic' if batch == 'N' else 'fixed at 1'}",
            build(
                [("MatMul", ["x", "w"], ["z"]), ("Softmax", ["z"], ["p"], {"axis": 1})],
                [("x", FLOAT, [batch, 4])],
                [("p", FLOAT, [batch, 3])],
                [("w", weights)],
            ),
            [{"x": run} for run in runs],
        )
    yield (
        "two-by-two.onnx",
        "two inputs and two outputs; a swap of either shows",
        build(
            [("Sub", ["a", "b"], ["difference"]), ("Concat", ["a", "b"], ["joined"], {"axis": 1})],
            [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2])],
            [("difference", FLOAT, ["N", 2]), ("joined", FLOAT, ["N", 4])],
        ),
        [
            {"a": f32([1, 2]), "b": f32([10, 20])},
            {"a": f32([1, 2], [3, 4]), "b": f32([10, 20], [30, 40])},
            {"a": f32([1, 2], [3, 4]), "b": f32([10, 20])},  # batches of 2 and 1: an error
        ],
    )
    yield (
        "mixed-types.onnx",
        "FP32 and INT64 inputs of different shapes",
        build(
            [
                ("Cast", ["count"], ["real"], {"to": FLOAT}),
                ("Mul", ["price", "real"], ["total"]),
                ("Add", ["count", "one"], ["next"]),
            ],
            [("price", FLOAT, ["N", 2]), ("count", INT64, ["N", 1])],
            [("total", FLOAT, ["N", 2]), ("next", INT64, ["N", 1])],
            [("one", np.array([[1]], np.int64))],
        ),
        [
            {"price": f32([0.5, 1.5]), "count": np.array([[3]], np.int64)},
            {"price": f32([1, 2], [3, 4]), "count": np.array([[-1], [10]], np.int64)},
        ],
    )


def labels():
    """Labels that tract types as symbolic dimensions (TDim), since they pass a cast to INT64."""
    ml = {"domain": "ai.onnx.ml"}
    rows = [{"x": f32([0.1, 0.7, 0.2])}, {"x": f32([5, 1, 1], [0, 0, 1], [0, 2, 1])}]
    yield (
        "argmax-labels.onnx",
        "labels as scikit-learn's MLPClassifier exports them",
        build(
            [
                ("Softmax", ["x"], ["probs"], {"axis": 1}),
                ("ArgMax", ["probs"], ["best"], {"axis": 1}),
                ("ArrayFeatureExtractor", ["classes", "best"], ["picked"], ml),
                ("Reshape", ["picked", "flat"], ["row"]),
                ("Cast", ["row"], ["label"], {"to": INT64}),
            ],
            [("x", FLOAT, ["N", 3])],
            [("label", INT64, ["N"]), ("probs", FLOAT, ["N", 3])],
            [("classes", np.array([10, 20, 30], np.int32)), ("flat", np.array([-1], np.int64))],
            sets=(("", 17), ("ai.onnx.ml", 1)),
        ),
        rows,
    )
    yield (
        "argmax.onnx",
        "the index of the greatest, uncast",
        build(
            [("ArgMax", ["x"], ["best"], {"axis": 1, "keepdims": 0})],
            [("x", FLOAT, ["N", 3])],
            [("best", INT64, ["N"])],
        ),
        rows,
    )


def shapes():
    yield (
        "shape-output.onnx",
        "the input's own shape as output",
        build(
            [("Shape", ["x"], ["shape"]), ("ReduceSum", ["x"], ["sum"], {"keepdims": 0})],
            [("x", FLOAT, ["N", 3])],
            [("shape", INT64, [2]), ("sum", FLOAT, [])],
        ),
        [{"x": f32([1, 2, 3])}, {"x": f32([1, 2, 3], [4, 5, 6])}],
    )
    yield (
        "scalar.onnx",
        "rank 0 in and out",
        build([("Neg", ["x"], ["y"])], [("x", FLOAT, [])], [("y", FLOAT, [])]),
        [{"x": np.array(1.5, np.float32)}],
    )
    yield (
        "two-symbols.onnx",
        "two free dimensions, batch and length",
        build(
            [("ReduceMean", ["x"], ["mean"], {"axes": [1], "keepdims": 0})],
            [("x", FLOAT, ["N", "S", 2])],
            [("mean", FLOAT, ["N", 2])],
        ),
        [{"x": f32([[0, 1]])}, {"x": np.arange(20, dtype=np.float32).reshape(2, 5, 2)}],
    )


def quantised():
    """A scale and a zero point for each channel: of the values, along each axis, and of the weights."""
    random = np.random.default_rng(7)
    rows = random.uniform(-3, 3, (4, 3, 5)).astype(np.float32)
    for dtype in ("int8", "uint8"):
        for axis, count in ((1, 3), (2, 5)):
            scales = random.uniform(0.01, 0.1, count).astype(np.float32)
            zeros = random.integers(0, 100, count).astype(dtype)
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
            yield (
                f"quantise-{dtype}-axis-{axis}.onnx",
                f"QuantizeLinear to {dtype} and back, by channel of axis {axis}",
                build(
                    [
                        ("QuantizeLinear", ["x", "s", "z"], ["q"], {"axis": axis}),
                        ("DequantizeLinear", ["q", "s", "z"], ["y"], {"axis": axis}),
                    ],
                    [("x", FLOAT, ["N", 3, 5])],
                    [("q", kind, ["N", 3, 5]), ("y", FLOAT, ["N", 3, 5])],
                    [("s", scales), ("z", zeros)],
                ),
                [{"x": rows}, {"x": rows[:1]}],
            )
    weights = random.integers(-127, 128, (5, 4)).astype(np.int8)
    for axis, count in ((0, 5), (1, 4)):
        scales = random.uniform(0.01, 0.1, count).astype(np.float32)
        zeros = random.integers(-5, 5, count).astype(np.int8)
        yield (
            f"quantised-weights-axis-{axis}.onnx",
            f"a product with int8 weights, by channel of axis {axis}",
            build(
                [
                    ("DequantizeLinear", ["w", "s", "z"], ["real"], {"axis": axis}),
                    ("MatMul", ["x", "real"], ["y"]),
                ],
                [("x", FLOAT, ["N", 5])],
                [("y", FLOAT, ["N", 4])],
                [("w", weights), ("s", scales), ("z", zeros)],
            ),
            [{"x": rows[:, 0]}, {"x": rows[:1, 1]}],
        )


def gathers():
    table = (np.arange(16)[:, None] * 10 + np.arange(4)).astype(np.float32)
    runs = [[0], [15, 3, -1, -16], [16], [-17], [999999], [2**40], [-(2**63)], [3, 16]]
    yield (
        "gather.onnx",
        "rows of a table of 16; an index outside must be an error",
        build(
            [("Gather", ["table", "indices"], ["rows"], {"axis": 0})],
            [("indices", INT64, ["N"])],
            [("rows", FLOAT, ["N", 4])],
            [("table", table)],
        ),
        [{"indices": np.array(run, np.int64)} for run in runs],
    )
    yield (
        "brittle.onnx",
        "the same, and 999 divides by zero, which panics in tract and must be an error",
        build(
            [
                ("Sub", ["indices", "worst"], ["far"]),
                ("Div", ["one", "far"], ["nothing"]),
                ("Add", ["indices", "nothing"], ["place"]),
                ("Gather", ["table", "place"], ["rows"], {"axis": 0}),
            ],
            [("indices", INT64, ["N"])],
            [("rows", FLOAT, ["N", 4])],
            [("table", table), ("worst", np.array([999])), ("one", np.array([1]))],
        ),
        [{"indices": np.array([0, 15, 3])}, {"indices": np.array([999]), FAILS: True}],
    )
    rows, indices = [("x", FLOAT, ["N", 3])], [("i", INT64, ["A", "B"])]
    x = f32([1, 2, 3], [4, 5, 6])
    for name, operator, attributes, makes in (
        ("gather-columns", "Gather", {"axis": 1}, ["N", "A", "B"]),
        ("gather-elements", "GatherElements", {"axis": 1}, ["A", "B"]),
    ):
        # In the second and third, tract's Gather would read a number of the row beside.
        runs = [[[0, 2], [-1, -3]], [[0, 3], [0, 0]], [[-4, 0], [0, 0]], [[2**40, 0], [0, 0]]]
        yield (
            f"{name}.onnx",
            f"{operator} along the columns; an index outside must be an error",
            build([(operator, ["x", "i"], ["y"], attributes)], rows + indices, [("y", FLOAT, makes)]),
            [{"x": x, "i": np.array(run, np.int64)} for run in runs],
        )


def division():
    """Dividing whole numbers by zero stops some processes, onnxruntime's among them."""
    model = build(
        [("Div", ["a", "b"], ["q"])],
        [("a", INT64, ["N"]), ("b", INT64, ["N"])],
        [("q", INT64, ["N"])],
    )

    def run(a, b):
        return {"a": np.array(a, np.int64), "b": np.array(b, np.int64)}

    yield (
        "divide.onnx",
        "INT64 division; by zero, it panics in tract and must be an error",
        model,
        [run([7, -8], [2, 2]), run([7, 1], [2, 0]) | {FAILS: True}, run([9], [3])],
    )


def facts():
    """Models that contradict themselves about shapes; the operators are right."""
    nodes = [("MatMul", ["x", "w"], ["z"]), ("Relu", ["z"], ["y"])]
    weights = [("w", f32([1, -1], [2, 0.5], [0, 1]))]
    inputs, outputs = [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 2])]
    runs = [{"x": f32([1, 2, 3])}, {"x": f32([1, 2, 3], [-4, 5, 6])}]
    yield (
        "stale-value-info.onnx",
        "value_info says that [N,2] is [1,7]",
        build(nodes, inputs, outputs, weights, info=[("z", FLOAT, [1, 7])]),
        runs,
    )
    yield (
        "stale-output-shape.onnx",
        "the output is declared [1,2] and is [N,2]",
        build(nodes, inputs, [("y", FLOAT, [1, 2])], weights),
        runs,
    )
    yield (
        "default-constant.onnx",
        "ConstantOfShape without a value is FP32; tract takes FP64 and so makes the output FP64",
        build(
            [("ConstantOfShape", ["shape"], ["zero"]), ("Add", ["x", "zero"], ["y"])],
            [("x", FLOAT, ["N", 3])],
            [("y", FLOAT, ["N", 3])],
            [("shape", np.array([1, 3], np.int64))],
        ),
        [{"x": f32([1, 2, 3])}],
    )


def heavy():
    """A model that costs much and weighs little."""
    side, layers = 1024, 16
    square = np.array([side, side], np.int64)
    uniform = numpy_helper.from_array(np.array([1 / side], np.float32), "value")
    nodes = [
        ("ConstantOfShape", ["square"], ["w"], {"value": uniform}),
        ("Mul", ["w", "x"], ["h0"]),
    ]
    for i in range(layers):
        nodes.append(("MatMul", [f"h{i}", "w"], [f"m{i}"]))
        nodes.append(("Sigmoid", [f"m{i}"], [f"h{i + 1}"]))
    nodes.append(("ReduceMax", [f"h{layers}"], ["y"], {"keepdims": 1}))
    yield (
        "slow.onnx",
        f"{layers} products of {side}x{side} matrices, {2 * layers * side**3 / 1e9:.0f} GFLOP",
        build(nodes, [("x", FLOAT, [1, 1])], [("y", FLOAT, [1, 1])], [("square", square)]),
        [{"x": f32([1])}],
    )


def rnn(operator, gates, layout=0, **attributes):
    """A recurrent operator over 5 steps of 2 rows of 3 values, and inputs for it."""
    random = np.random.default_rng(7)
    directions = 2 if attributes.get("direction") == "bidirectional" else 1

    def values(*shape):
        return random.standard_normal(shape).astype(np.float32)

    weights = [
        ("w", values(directions, gates * 4, 3)),
        ("r", values(directions, gates * 4, 4)),
        ("b", values(directions, gates * 8)),
    ]
    steps = (2, 5, 3) if layout else (5, 2, 3)
    model = build(
        [(operator, ["x", "w", "r", "b"], ["y", "last"], {"hidden_size": 4, "layout": layout, **attributes})],
        [("x", FLOAT, list(steps))],
        [("y", FLOAT, None), ("last", FLOAT, None)],
        weights,
    )
    return model, [{"x": values(*steps)}, {"x": values(*steps)}]


def recurrent():
    """Every direction: tract runs `reverse` forward on its own."""
    for operator, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
        for direction in ("forward", "reverse", "bidirectional"):
            model, runs = rnn(operator, gates, direction=direction)
            yield f"{operator.lower()}-{direction}.onnx", f"{operator}, {direction}", model, runs


def shifts():
    """Shifts by up to every bit there is."""
    for dtype in ("uint8", "uint32", "uint64"):
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        bits = np.dtype(dtype).itemsize * 8
        values = np.array([1, 2, 3, 100, 255], dtype)
        for direction in ("LEFT", "RIGHT"):
            yield (
                f"shift-{direction.lower()}-{dtype}.onnx",
                f"BitShift {direction} of {dtype}",
                build(
                    [("BitShift", ["x", "by"], ["y"], {"direction": direction})],
                    [("x", kind, ["N"]), ("by", kind, ["N"])],
                    [("y", kind, ["N"])],
                ),
                [{"x": values, "by": np.array([0, 1, 2, 3, bits - 1], dtype)}],
            )


def extremes():
    """The largest and smallest where all are infinite: the logarithm of 0 is, and JSON cannot say it."""
    rows = f32([0, 0], [0, 1], [1, 2])
    for operator, sign in (("ReduceMax", []), ("ReduceMin", [("Neg", ["log"], ["signed"])])):
        value = "signed" if sign else "log"
        yield (
            f"{operator.lower()}-infinite.onnx",
            f"{operator} of infinities",
            build(
                [
                    ("Log", ["x"], ["log"]),
                    *sign,
                    (operator, [value], ["m"], {"axes": [1]}),
                    ("IsInf", ["m"], ["y"]),
                ],
                [("x", FLOAT, ["N", 2])],
                [("y", TensorProto.BOOL, ["N", 1])],
            ),
            [{"x": rows}],
        )


# Models that must be refused


def refused(digits):
    x, y = [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])]
    models = {
        "unsupported-unique.onnx": (
            "Unique, which tract lacks",
            build([("Unique", ["x"], ["y"])], x, y),
        ),
        "unsupported-use.onnx": (
            "an RNN of another activation function, which tract would pass over",
            rnn("RNN", 1, activations=["Relu"])[0],
        ),
        "unsupported-roialign.onnx": (
            "RoiAlign, which tract lacks",
            build(
                [("RoiAlign", ["x", "rois", "at"], ["y"], {"output_height": 2, "output_width": 2})],
                [("x", FLOAT, [1, 1, 8, 8]), ("rois", FLOAT, ["R", 4]), ("at", INT64, ["R"])],
                [("y", FLOAT, ["R", 1, 2, 2])],
            ),
        ),
        "unsupported-contrib.onnx": (
            "an operator of another domain that shares its name with one of ONNX's",
            build(
                [("Relu", ["x"], ["y"], {"domain": "com.microsoft"})],
                x,
                y,
                sets=(("", 17), ("com.microsoft", 1)),
            ),
        ),
        "unsupported-domain.onnx": (
            "an operator nobody defines",
            build(
                [("Nonesuch", ["x"], ["y"], {"domain": "example"})],
                x,
                y,
                sets=(("", 17), ("example", 1)),
            ),
        ),
        "string-identity.onnx": (
            "strings in and out: tract loads it, but no tensor of ours holds them",
            build(
                [("Identity", ["x"], ["y"])],
                [("x", TensorProto.STRING, ["N"])],
                [("y", TensorProto.STRING, ["N"])],
            ),
        ),
        "external-parent.onnx": ("weights in the file ../../x", external("../../x")),
        "external-absolute.onnx": ("weights in the file /x", external("/x")),
        "external-beside.onnx": ("weights in the file weights.bin", external("weights.bin")),
        "type-clash.onnx": (
            "adds FP32 to INT64",
            build([("Add", ["x", "i"], ["y"])], x + [("i", INT64, ["N", 3])], y),
        ),
        "shape-clash.onnx": (
            "multiplies [N,3] by [4,3]",
            build([("MatMul", ["x", "w"], ["y"])], x, y, [("w", np.ones((4, 3), np.float32))]),
        ),
        "cycle.onnx": (
            "two nodes that wait for each other",
            build([("Add", ["x", "b"], ["a"]), ("Neg", ["a"], ["b"]), ("Neg", ["b"], ["y"])], x, y),
        ),
        "dangling.onnx": (
            "reads a value that nothing makes",
            build([("Add", ["x", "ghost"], ["y"])], x, y),
        ),
        # tract makes constants while it loads: a guard must stand before it.
        "bomb-memory.onnx": ("a constant of 4 TiB in 200 bytes", bomb([2**20, 2**20])),
        "bomb-overflow.onnx": ("a constant whose size overflows 64 bits", bomb([2**40, 2**40])),
        "bomb-negative.onnx": ("a constant of shape [-1, 3]", bomb([-1, 3])),
    }
    for name, (about, model) in models.items():
        yield name, about, model.SerializeToString()
    yield "truncated.onnx", "digits.onnx, cut at 60%", digits[: len(digits) * 6 // 10]
    yield "truncated-end.onnx", "digits.onnx without its last byte", digits[:-1]
    yield "empty.onnx", "no bytes", b""
    yield "text.onnx", "not protobuf", b"This is not a model.\n"
    noise = np.random.default_rng(3).integers(0, 256, 4096, np.uint8).tobytes()
    yield "noise.onnx", "random bytes", noise


def external(location):
    """y = x + w, where w is said to lie in another file."""
    weight = TensorProto(name="w", data_type=FLOAT, dims=[3])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.append(onnx.StringStringEntryProto(key="location", value=location))
    model = build([("Add", ["x", "w"], ["y"])], [("x", FLOAT, ["N", 3])], [("y", FLOAT, ["N", 3])])
    model.graph.initializer.append(weight)
    return model


def bomb(shape):
    """y = x + the sum of a huge constant."""
    one = numpy_helper.from_array(np.array([1], np.float32), "value")
    return build(
        [
            ("ConstantOfShape", ["shape"], ["huge"], {"value": one}),
            ("ReduceSum", ["huge"], ["sum"], {"keepdims": 0}),
            ("Add", ["x", "sum"], ["y"]),
        ],
        [("x", FLOAT, ["N", 3])],
        [("y", FLOAT, ["N", 3])],
        [("shape", np.array(shape, np.int64))],
    )
