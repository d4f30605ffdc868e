"""`tritonclient.http`, unmodified: every call of the protocol, with values equal to onnxruntime's."""

import gzip
import json
import urllib.error
import urllib.request
import zlib

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from harness import model_file, same, session

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]], np.float32)
ALGORITHMS = [None, "gzip", "deflate"]


def client(node, **options):
    node.models
    return triton.InferenceServerClient(node.address, **options)


def tensors(kind, named, binary):
    made = []
    for name, array in named.items():
        tensor = triton.InferInput(name, list(array.shape), kind[name])
        tensor.set_data_from_numpy(array, binary_data=binary)
        made.append(tensor)
    return made


def ask(node, model, named, outputs=None, binary=True, kinds=None, **options):
    """Asks for a model's answer; a dictionary of arrays."""
    kinds = kinds or {name: triton_type(array) for name, array in named.items()}
    wanted = None
    if outputs is not None:
        wanted = [triton.InferRequestedOutput(name, binary_data=binary) for name in outputs]
    result = client(node).infer(
        model, tensors(kinds, named, binary), outputs=wanted, headers=node.headers, **options
    )
    names = [output["name"] for output in result.get_response()["outputs"]]
    return {name: result.as_numpy(name) for name in names}


def triton_type(array):
    from tritonclient.utils import np_to_triton_dtype

    return np_to_triton_dtype(array.dtype)


def refused(status, call, *arguments, **options):
    """Calls, and gives the words of the refusal, which must have this status."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        assert str(status) in (error.status() or ""), (error.status(), error.message())
        assert error.message() and "empty response" not in error.message(), error.message()
        return error.message()
    raise AssertionError(f"{call} was not refused")


def check_health_is_open(node):
    one = client(node)
    assert one.is_server_live() is True
    assert one.is_server_ready() is True


def check_server_metadata(node):
    about = client(node).get_server_metadata(headers=node.headers)
    assert about["name"] == "sandpiper" and about["version"], about
    assert "binary_tensor_data" in about["extensions"], about


def check_model_readiness(node):
    one = client(node)
    assert one.is_model_ready("iris", headers=node.headers)
    assert one.is_model_ready("iris", "1", headers=node.headers)
    assert not one.is_model_ready("iris", "9", headers=node.headers)
    assert not one.is_model_ready("nobody", headers=node.headers)
    assert not one.is_model_ready("iris")


def check_model_metadata(node):
    one = client(node)
    for version in ["", "1"]:
        about = one.get_model_metadata("iris", version, headers=node.headers)
        assert about["name"] == "iris" and about["versions"] == ["1"], about
        assert about["inputs"] == [{"name": "X", "datatype": "FP32", "shape": [-1, 4]}], about
        assert [output["name"] for output in about["outputs"]] == ["label", "probabilities"], about
    refused(404, one.get_model_metadata, "nobody", headers=node.headers)
    refused(404, one.get_model_metadata, "iris", "2", headers=node.headers)


def check_infer_as_binary(node):
    node.models
    same(ask(node, "iris", {"X": IRIS}), "iris", {"X": IRIS})
    same(ask(node, "iris", {"X": IRIS}, ["probabilities"]), "iris", {"X": IRIS})
    same(ask(node, "iris", {"X": IRIS}, model_version="1"), "iris", {"X": IRIS})


def check_infer_as_json(node):
    given = ask(node, "iris", {"X": IRIS}, ["label", "probabilities"], binary=False)
    same(given, "iris", {"X": IRIS})


def check_infer_with_mixed_outputs(node):
    wanted = [
        triton.InferRequestedOutput("probabilities", binary_data=True),
        triton.InferRequestedOutput("label", binary_data=False),
    ]
    inputs = tensors({"X": "FP32"}, {"X": IRIS}, binary=False)
    result = client(node).infer("iris", inputs, outputs=wanted, headers=node.headers)
    names = [output["name"] for output in result.get_response()["outputs"]]
    assert names == ["probabilities", "label"], names
    same({name: result.as_numpy(name) for name in names}, "iris", {"X": IRIS})


def check_infer_compressed_both_ways(node):
    rows = np.tile(IRIS, (200, 1))
    for request in ALGORITHMS:
        for response in ALGORITHMS:
            options = {
                "request_compression_algorithm": request,
                "response_compression_algorithm": response,
            }
            for binary in [True, False]:
                outputs = ["label", "probabilities"]
                same(ask(node, "iris", {"X": rows}, outputs, binary, **options), "iris", {"X": rows})


def check_answers_are_really_compressed(node):
    node.models
    rows = np.tile(IRIS, (200, 1)).reshape(-1).tolist()
    body = {"inputs": [{"name": "X", "shape": [600, 4], "datatype": "FP32", "data": rows}]}
    for encoding in ["gzip", "deflate"]:
        request = urllib.request.Request(node.url + "/v2/models/iris/infer", json.dumps(body).encode())
        request.add_header("Authorization", f"Bearer {node.key}")
        request.add_header("Accept-Encoding", encoding)
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Encoding"] == encoding, answer.headers
            packed = answer.read()
            assert len(packed) == int(answer.headers["Content-Length"])
            # HTTP's deflate is a zlib stream: RFC 9110, 8.4.1.2.
            unpack = gzip.decompress if encoding == "gzip" else zlib.decompress
            text = unpack(packed)
            assert json.loads(text)["model_name"] == "iris" and len(packed) < len(text)


def check_images(node):
    pixels = np.linspace(0, 1, 5 * 64, dtype=np.float32).reshape(5, 1, 8, 8)
    for binary in [True, False]:
        same(ask(node, "digits", {"image": pixels}, ["probs"], binary), "digits", {"image": pixels})


def check_a_large_model_of_integers(node):
    tokens = (np.arange(2 * 2048, dtype=np.int32).reshape(2, 2048) * 7) % 257
    one = session("magika")
    inputs = {one.get_inputs()[0].name: tokens}
    for binary in [True, False]:
        output = [one.get_outputs()[0].name]
        same(ask(node, "magika", inputs, output, binary), "magika", inputs, rtol=1e-3, atol=2e-5)


def check_every_datatype(node):
    for name, dtype in [
        ("bool", np.bool_), ("uint8", np.uint8), ("uint16", np.uint16), ("uint32", np.uint32),
        ("uint64", np.uint64), ("int8", np.int8), ("int16", np.int16), ("int32", np.int32),
        ("int64", np.int64), ("fp16", np.float16), ("fp32", np.float32), ("fp64", np.float64),
    ]:
        model = f"identity-{name}"
        node.put_model(model, model_file(model).read_bytes())
        one = session(model)
        given = one.get_inputs()[0]
        shape = [size if isinstance(size, int) and size > 0 else 2 for size in given.shape]
        values = extremes(dtype)
        array = np.resize(values, int(np.prod(shape))).reshape(shape).astype(dtype)
        for binary in [True, False]:
            # The client itself sends FP16 in binary alone.
            if binary or dtype is not np.float16:
                outputs = [output.name for output in one.get_outputs()]
                same(ask(node, model, {given.name: array}, outputs, binary), model, {given.name: array})


def extremes(dtype):
    if dtype is np.bool_:
        return np.array([True, False])
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 1, limits.max - 1], dtype)
    limits = np.finfo(dtype)
    return np.array([limits.min, limits.max, limits.tiny, 0.1], dtype)


def check_infer_asynchronously(node):
    one = client(node, concurrency=4)
    inputs = tensors({"X": "FP32"}, {"X": IRIS}, binary=True)
    started = [one.async_infer("iris", inputs, headers=node.headers) for _ in range(16)]
    for request in started:
        result = request.get_result()
        same({"probabilities": result.as_numpy("probabilities")}, "iris", {"X": IRIS})


def check_the_request_id_comes_back(node):
    inputs = tensors({"X": "FP32"}, {"X": IRIS}, binary=True)
    one = client(node)
    answer = one.infer("iris", inputs, request_id="my-7", headers=node.headers).get_response()
    assert answer["id"] == "my-7" and answer["model_version"] == "1", answer
    answer = one.infer(
        "iris", inputs, priority=2, timeout=5_000_000, headers=node.headers,
        parameters={"mine": "stays mine"},
    )
    same({"label": answer.as_numpy("label")}, "iris", {"X": IRIS})


def check_a_raw_body_of_one_input(node):
    node.models
    body, length = triton.InferenceServerClient.generate_request_body(
        tensors({"X": "FP32"}, {"X": IRIS}, binary=True)
    )
    assert length is not None
    request = urllib.request.Request(node.url + "/v2/models/iris/infer", IRIS.tobytes())
    request.add_header("Authorization", f"Bearer {node.key}")
    request.add_header("Inference-Header-Content-Length", "0")
    with urllib.request.urlopen(request) as answer:
        head = int(answer.headers["Inference-Header-Content-Length"])
        result = triton.InferenceServerClient.parse_response_body(answer.read(), header_length=head)
    same({"probabilities": result.as_numpy("probabilities")}, "iris", {"X": IRIS})


def check_errors_have_words(node):
    one = client(node)
    good = tensors({"X": "FP32"}, {"X": IRIS}, binary=True)
    assert "nobody" in refused(404, one.infer, "nobody", good, headers=node.headers)
    refused(404, one.infer, "iris", good, model_version="9", headers=node.headers)
    refused(401, one.infer, "iris", good)
    wrong_type = tensors({"X": "FP64"}, {"X": IRIS.astype(np.float64)}, binary=True)
    assert "FP64" in refused(400, one.infer, "iris", wrong_type, headers=node.headers)
    wrong_shape = tensors({"X": "FP32"}, {"X": IRIS[:, :3]}, binary=True)
    assert "shape" in refused(400, one.infer, "iris", wrong_shape, headers=node.headers)
    surplus = tensors({"Y": "FP32"}, {"Y": IRIS}, binary=False)
    assert "`Y`" in refused(400, one.infer, "iris", surplus, headers=node.headers)
    output = [triton.InferRequestedOutput("nothing")]
    refused(400, one.infer, "iris", good, outputs=output, headers=node.headers)
    classes = [triton.InferRequestedOutput("probabilities", class_count=2)]
    refused(501, one.infer, "iris", good, outputs=classes, headers=node.headers)
    refused(501, one.infer, "iris", good, sequence_id=4, headers=node.headers)
    text = triton.InferInput("X", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"abc"], dtype=np.object_))
    assert "BYTES" in refused(400, one.infer, "iris", [text], headers=node.headers)


COLOURS = np.array([["red", "s"], ["grün", "m"], ["", "xl"]], dtype=object)
STRINGS = {
    "strings-iris-forest": {"X": IRIS},
    "strings-iris-logistic": {"X": IRIS},
    "strings-one-hot": {"x": COLOURS},
}


def texts(given, model, inputs):
    """Labels are the strings that onnxruntime gives; the client has them as bytes."""
    assert given["output_label"].dtype == np.object_, given
    labels = [label.decode() if isinstance(label, bytes) else label for label in given["output_label"]]
    (expected,) = session(model).run(["output_label"], inputs)
    assert labels == list(expected), (labels, expected)


def check_strings_go_in_and_come_out(node):
    names = ["output_label", "output_probability"]
    for model, inputs in STRINGS.items():
        node.put_model(model, model_file(model).read_bytes())
        for binary in (True, False):
            given = ask(node, model, inputs, names, binary)
            texts(given, model, inputs)
    about = client(node).get_model_metadata("strings-one-hot", headers=node.headers)
    assert about["inputs"] == [{"name": "x", "datatype": "BYTES", "shape": [-1, 2]}], about
    config = client(node).get_model_config("strings-one-hot", headers=node.headers)
    assert config["input"][0]["data_type"] == config["output"][0]["data_type"] == "TYPE_STRING", config


def check_config(node):
    one = client(node)
    for version in ["", "1"]:
        config = one.get_model_config("iris", version, headers=node.headers)
        assert config["name"] == "iris" and config["backend"] == "tract", config
        batched = config["max_batch_size"] > 0
        dims = [4] if batched else [-1, 4]
        assert config["input"] == [{"name": "X", "data_type": "TYPE_FP32", "dims": dims}], config
        assert ("dynamic_batching" in config) == batched, config
    refused(404, one.get_model_config, "nobody", headers=node.headers)


def check_statistics(node):
    one = client(node)

    def counted():
        (stats,) = one.get_inference_statistics("iris", headers=node.headers)["model_stats"]
        assert (stats["name"], stats["version"]) == ("iris", "1"), stats
        return stats

    before = counted()
    ask(node, "iris", {"X": IRIS[:1]})
    after = counted()
    success = [stats["inference_stats"]["success"]["count"] for stats in (before, after)]
    assert success[1] == success[0] + 1, (before, after)
    assert after["inference_count"] == before["inference_count"] + 1, (before, after)
    assert after["inference_stats"]["compute_infer"]["ns"] > 0, after
    everything = one.get_inference_statistics(headers=node.headers)["model_stats"]
    assert {"iris", "digits"} <= {stats["name"] for stats in everything}, everything
    one.get_inference_statistics("iris", "1", headers=node.headers)
    refused(404, one.get_inference_statistics, "nobody", headers=node.headers)


def check_index_load_and_unload(node):
    one = client(node)

    def states():
        index = one.get_model_repository_index(headers=node.headers)
        return {entry["name"]: (entry["version"], entry["state"]) for entry in index}

    assert states()["mul-add"] == ("1", "READY"), states()
    one.unload_model("mul-add", headers=node.headers)
    assert states()["mul-add"] == ("1", "UNAVAILABLE"), states()
    assert not one.is_model_ready("mul-add", headers=node.headers)
    good = tensors({"x": "FP32"}, {"x": np.zeros((1, 3), np.float32)}, binary=True)
    assert "not ready" in refused(503, one.infer, "mul-add", good, headers=node.headers)
    one.load_model("mul-add", headers=node.headers)
    assert one.is_model_ready("mul-add", headers=node.headers)
    assert states()["mul-add"] == ("1", "READY"), states()
    refused(404, one.load_model, "nobody", headers=node.headers)
    refused(404, one.unload_model, "nobody", headers=node.headers)


def check_a_load_with_a_file_and_a_configuration(node):
    one = client(node)

    def load(name="loaded", **what):
        one.load_model(name, headers=node.headers, **what)

    def file(model):
        return {"file:1/model.onnx": model_file(model).read_bytes()}

    x = np.array([[0, 1, -1.5], [3, -2, 7]], np.float32)
    load(files=file("mul-add"))
    same(ask(node, "loaded", {"x": x}), "mul-add", {"x": x})
    config = json.dumps(
        {
            "backend": "onnxruntime",
            "max_batch_size": 8,
            "input": [{"name": "x", "data_type": "TYPE_FP32", "dims": [3]}],
            "output": [{"name": "y", "data_type": "TYPE_FP32", "dims": [3]}],
            "dynamic_batching": {"max_queue_delay_microseconds": 300},
            "response_cache": {"enable": True},
        }
    )
    load(config=config, files=file("identity-fp32"))
    same(ask(node, "loaded", {"x": x}), "identity-fp32", {"x": x})
    shown = one.get_model_config("loaded", headers=node.headers)
    assert shown["response_cache"] == {"enable": True}, shown
    assert shown["max_batch_size"] <= 8, shown
    # What is shown is taken again, and the file stays where the configuration alone is changed.
    shown["response_cache"]["enable"] = False
    load(config=json.dumps(shown))
    assert one.get_model_config("loaded", headers=node.headers)["response_cache"] == {"enable": False}
    same(ask(node, "loaded", {"x": x}), "identity-fp32", {"x": x})
    versions = one.get_model_metadata("loaded", headers=node.headers)["versions"]
    load(config=json.dumps(shown))
    load(files=file("identity-fp32"))
    assert one.get_model_metadata("loaded", headers=node.headers)["versions"] == versions
    # As large as models are.
    load("large", config="{}", files=file("magika"))
    assert one.is_model_ready("large", headers=node.headers)
    two = {**file("mul-add"), "file:2/model.onnx": b"other"}
    assert "one file" in refused(400, load, config="{}", files=two)
    assert "ONNX" in refused(400, load, config="{}", files={"file:1/model.onnx": b"no model"})
    assert "instance_group" in refused(400, load, config=json.dumps({"instance_group": [{"count": 2}]}))
    refused(404, load, "nobody", config="{}")
    same(ask(node, "loaded", {"x": x}), "identity-fp32", {"x": x})


def check_a_granted_model_by_its_owners_name(node):
    node.models
    key = node.new_tenant("beta", "standard")

    def beta():
        return {"Authorization": f"Bearer {key}"}

    inputs = tensors({"X": "FP32"}, {"X": IRIS}, binary=True)
    one = client(node)
    refused(404, one.infer, "acme/iris", inputs, headers=beta())
    node.call("PUT", "/api/v1/models/iris/grants", {"tenants": ["beta"]})
    answer = one.infer("acme/iris", inputs, headers=beta())
    assert answer.get_response()["model_name"] == "acme/iris"
    same({"probabilities": answer.as_numpy("probabilities")}, "iris", {"X": IRIS})
    assert one.get_model_metadata("acme/iris", headers=beta())["name"] == "acme/iris"
    refused(404, one.infer, "iris", inputs, headers=beta())
    refused(403, one.unload_model, "acme/iris", headers=beta())


def check_settings_of_traces_and_logs(node):
    one = client(node)
    assert one.get_trace_settings(headers=node.headers)["trace_level"] == ["OFF"]
    assert one.get_log_settings(headers=node.headers)["log_error"] is True
    refused(501, one.update_trace_settings, settings={"trace_level": ["TIMESTAMPS"]}, headers=node.headers)
    refused(501, one.update_log_settings, {"log_verbose_level": 1}, headers=node.headers)
