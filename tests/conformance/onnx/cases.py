"""The ONNX project's own backend cases, as the `onnx` package brings them."""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.backend.test.loader import load_model_tests

SUITES = ("node", "simple", "pytorch-operator", "pytorch-converted")


@dataclass
class Case:
    """One model with the data sets that it must answer."""

    name: str
    suite: str
    model: onnx.ModelProto
    # Each is (inputs by name, outputs by name); values are arrays, lists (sequences) or None.
    data_sets: list
    rtol: float
    atol: float

    @property
    def operators(self):
        return sorted({node.op_type for node in self.model.graph.node})


def load():
    """All cases that need no download, in a fixed order."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tests = [(suite, test) for suite in SUITES for test in load_model_tests(kind=suite)]
    cases = [case(suite, test) for suite, test in tests if test.url is None]
    return sorted(cases, key=lambda one: (SUITES.index(one.suite), one.name))


def case(suite, test):
    if test.model is not None:
        model, data_sets = test.model, test.data_sets
    else:
        folder = Path(test.model_dir)
        model = onnx.load(folder / "model.onnx")
        data_sets = [read(each, model) for each in sorted(folder.glob("test_data_set_*"))]
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value.name for value in model.graph.input]
    given = [name for name in inputs if name not in weights]
    outputs = [value.name for value in model.graph.output]
    named = []
    for values, expected in data_sets:
        # Some cases hand over the weights too.
        names = given if len(values) == len(given) else inputs
        values, expected = map(array, values), map(array, expected)
        named.append((dict(zip(names, values)), dict(zip(outputs, expected))))
    return Case(test.name, suite, model, named, test.rtol, test.atol)


def array(value):
    """The cases of casts hold protobuf messages, and others NumPy's scalars."""
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def read(folder, model):
    def values(kind, infos):
        files = sorted(folder.glob(f"{kind}_*.pb"), key=lambda path: int(path.stem.split("_")[1]))
        return [parse(path.read_bytes(), info) for path, info in zip(files, infos)]

    weights = {tensor.name for tensor in model.graph.initializer}
    given = [value for value in model.graph.input if value.name not in weights]
    if len(list(folder.glob("input_*.pb"))) != len(given):
        given = model.graph.input
    return values("input", given), values("output", model.graph.output)


def parse(data, info):
    kind = info.type.WhichOneof("value")
    if kind == "sequence_type":
        return numpy_helper.to_list(onnx.SequenceProto.FromString(data))
    if kind == "optional_type":
        return numpy_helper.to_optional(onnx.OptionalProto.FromString(data))
    return numpy_helper.to_array(onnx.TensorProto.FromString(data))


def with_later_inputs_fixed(one):
    """Copies of the case, one for each data set, whose inputs after the first are weights; [] if there are none."""
    weights = {tensor.name for tensor in one.model.graph.initializer}
    given = [value.name for value in one.model.graph.input if value.name not in weights]
    copies = []
    for inputs, outputs in one.data_sets:
        later = [name for name in given[1:] if isinstance(inputs.get(name), np.ndarray)]
        if not later:
            return []
        model = onnx.ModelProto()
        model.CopyFrom(one.model)
        for name in later:
            # An array of another order would give its bytes in that order.
            value = np.ascontiguousarray(inputs[name]).reshape(inputs[name].shape)
            model.graph.initializer.append(numpy_helper.from_array(value, name))
        kept = [value for value in model.graph.input if value.name not in later]
        del model.graph.input[:]
        model.graph.input.extend(kept)
        rest = {name: value for name, value in inputs.items() if name not in later}
        copies.append(Case(one.name, one.suite, model, [(rest, outputs)], one.rtol, one.atol))
    return copies
