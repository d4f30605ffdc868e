"""`tritonclient.grpc`, unmodified: every call of the protocol, with values equal to onnxruntime's."""

import json
import queue
import time

import numpy as np
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from harness import model_file, same, session

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [7.0, 3.2, 4.7, 1.4], [6.3, 3.3, 6.0, 2.5]], np.float32)
PATIENCE = 60


def client(node):
    node.models
    return triton.InferenceServerClient(node.address)


def key(node):
    """gRPC's metadata has names in lower case."""
    return {"authorization": f"Bearer {node.key}"}


def tensors(named):
    made = []
    for name, array in named.items():
        tensor = triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
        tensor.set_data_from_numpy(array)
        made.append(tensor)
    return made


def arrays(result):
    return {output.name: result.as_numpy(output.name) for output in result.get_response().outputs}


def ask(node, model, named, outputs=None, **options):
    wanted = outputs and [triton.InferRequestedOutput(name) for name in outputs]
    result = client(node).infer(
        model, tensors(named), outputs=wanted, headers=key(node), **options
    )
    return arrays(result)


def eventually(holds):
    until = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def refused(status, call, *arguments, **options):
    """Calls, and gives the words of the refusal, which must have this status."""
    try:
        call(*arguments, **options)
    except InferenceServerException as error:
        assert error.status() == f"StatusCode.{status}", (error.status(), error.message())
        assert error.message(), error
        return error.message()
    raise AssertionError(f"{call} was not refused")


def check_health_is_open(node):
    one = client(node)
    assert one.is_server_live() is True
    assert one.is_server_ready() is True


def check_server_metadata(node):
    about = client(node).get_server_metadata(headers=key(node))
    assert about.name == "sandpiper" and about.version, about
    assert "statistics" in about.extensions, about
    as_json = client(node).get_server_metadata(headers=key(node), as_json=True)
    assert as_json["name"] == "sandpiper", as_json
    refused("UNAUTHENTICATED", client(node).get_model_metadata, "iris")


def check_model_readiness(node):
    one = client(node)
    assert one.is_model_ready("iris", headers=key(node))
    assert one.is_model_ready("iris", "1", headers=key(node))
    assert not one.is_model_ready("iris", "9", headers=key(node))
    assert not one.is_model_ready("nobody", headers=key(node))
    refused("UNAUTHENTICATED", one.is_model_ready, "iris")


def check_model_metadata(node):
    one = client(node)
    for version in ["", "1"]:
        about = one.get_model_metadata("iris", version, headers=key(node))
        assert about.name == "iris" and list(about.versions) == ["1"], about
        (given,) = about.inputs
        assert (given.name, given.datatype, list(given.shape)) == ("X", "FP32", [-1, 4]), given
        assert [output.name for output in about.outputs] == ["label", "probabilities"], about
    refused("NOT_FOUND", one.get_model_metadata, "nobody", headers=key(node))
    refused("NOT_FOUND", one.get_model_metadata, "iris", "2", headers=key(node))


def check_infer(node):
    same(ask(node, "iris", {"X": IRIS}), "iris", {"X": IRIS})
    same(ask(node, "iris", {"X": IRIS}, ["probabilities"]), "iris", {"X": IRIS})
    same(ask(node, "iris", {"X": IRIS}, model_version="1"), "iris", {"X": IRIS})
    pixels = np.linspace(0, 1, 5 * 64, dtype=np.float32).reshape(5, 1, 8, 8)
    same(ask(node, "digits", {"image": pixels}, ["probs"]), "digits", {"image": pixels})


def check_a_large_model_of_integers(node):
    tokens = (np.arange(2 * 2048, dtype=np.int32).reshape(2, 2048) * 7) % 257
    one = session("magika")
    inputs = {one.get_inputs()[0].name: tokens}
    output = [one.get_outputs()[0].name]
    same(ask(node, "magika", inputs, output), "magika", inputs, rtol=1e-3, atol=2e-5)


def check_every_datatype(node):
    for name, dtype in [
        ("bool", np.bool_), ("uint8", np.uint8), ("uint16", np.uint16), ("uint32", np.uint32),
        ("uint64", np.uint64), ("int8", np.int8), ("int16", np.int16), ("int32", np.int32),
        ("int64", np.int64), ("fp16", np.float16), ("fp32", np.float32), ("fp64", np.float64),
    ]:
        model = f"identity-{name}"
        node.put_model(model, model_file(model).read_bytes())
        array = np.resize(extremes(dtype), (2, 3))
        same(ask(node, model, {"x": array}), model, {"x": array})


def extremes(dtype):
    if dtype is np.bool_:
        return np.array([True, False, False])
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.array([limits.min, limits.max, 1, limits.max - 1], dtype)
    limits = np.finfo(dtype)
    return np.array([limits.min, limits.max, limits.tiny, 0.1], dtype)


def check_messages_of_many_megabytes(node):
    node.put_model("identity-fp32", model_file("identity-fp32").read_bytes())
    rows = np.arange(3 << 20, dtype=np.float32).reshape(-1, 3)
    same(ask(node, "identity-fp32", {"x": rows}), "identity-fp32", {"x": rows})


def check_infer_compressed(node):
    rows = np.tile(IRIS, (200, 1))
    for algorithm in [None, "gzip"]:
        given = ask(node, "iris", {"X": rows}, compression_algorithm=algorithm)
        same(given, "iris", {"X": rows})
    # The client offers deflate too, which gRPC lets a server refuse.
    refused("UNIMPLEMENTED", ask, node, "iris", {"X": rows}, compression_algorithm="deflate")


def check_a_gzip_bomb_is_refused(node):
    small = node.new_tenant("small", "free")
    node.call("PUT", "/api/v1/models/mul-add", model_file("mul-add").read_bytes(), small)
    zeros = {"x": np.zeros((1 << 22, 3), np.float32)}
    text = refused(
        "RESOURCE_EXHAUSTED", client(node).infer, "mul-add", tensors(zeros),
        headers={"authorization": f"Bearer {small}"}, compression_algorithm="gzip",
    )
    assert "1048576" in text, text


def check_infer_asynchronously(node):
    one, answers = client(node), queue.Queue()
    for _ in range(16):
        one.async_infer(
            "iris", tensors({"X": IRIS}), lambda result, error: answers.put((result, error)),
            headers=key(node),
        )
    for _ in range(16):
        result, error = answers.get(timeout=PATIENCE)
        assert error is None, error
        same(arrays(result), "iris", {"X": IRIS})
    one.async_infer(
        "nobody", tensors({"X": IRIS}), lambda result, error: answers.put((result, error)),
        headers=key(node),
    )
    result, error = answers.get(timeout=PATIENCE)
    assert result is None and error.status() == "StatusCode.NOT_FOUND", (result, error)


def check_a_call_can_be_cancelled(node):
    answers = queue.Queue()
    one = client(node)
    calls = [
        one.async_infer(
            "magika", tensors({"bytes": np.zeros((64, 2048), np.int32)}),
            lambda result, error: answers.put(error), headers=key(node),
        )
        for _ in range(16)
    ]
    # More than run at once, so that some wait.
    eventually(lambda: node.metric("sandpiper_inference_queue_depth") > 0)
    for call in calls:
        call.cancel()
    for _ in calls:
        assert "CANCELLED" in str(answers.get(timeout=PATIENCE))
    eventually(lambda: node.metric("sandpiper_inference_queue_depth") == 0)
    cancelled = 'nv_inference_request_failure{model="magika",version="1",tenant="acme",reason="CANCELED"}'
    eventually(lambda: node.metric(cancelled) > 0)
    assert node.metric('nv_inference_request_success{model="magika",version="1",tenant="acme"}') < len(calls)
    same(ask(node, "iris", {"X": IRIS}), "iris", {"X": IRIS})


def check_streams(node):
    one, answers = client(node), queue.Queue()
    one.start_stream(lambda result, error: answers.put((result, error)), headers=key(node))
    for number in range(40):
        model = "nobody" if number % 4 == 3 else "iris"
        row = np.full((1, 4), number, np.float32)
        one.async_stream_infer(model, tensors({"X": row}), request_id=str(number))
    for number in range(40):
        result, error = answers.get(timeout=PATIENCE)
        if number % 4 == 3:
            assert result is None and "nobody" in error.message(), (result, error)
            continue
        assert error is None and result.get_response().id == str(number), (number, result, error)
        same(arrays(result), "iris", {"X": np.full((1, 4), number, np.float32)})
    one.async_stream_infer("iris", tensors({"X": IRIS}), enable_empty_final_response=True)
    result, error = answers.get(timeout=PATIENCE)
    assert result.get_response().parameters["triton_final_response"].bool_param, (result, error)
    one.stop_stream()


def check_the_request_id_and_parameters(node):
    one = client(node)
    answer = one.infer(
        "iris", tensors({"X": IRIS}), request_id="my-7", priority=2, timeout=5_000_000,
        client_timeout=30, parameters={"mine": "stays mine"}, headers=key(node),
    )
    response = answer.get_response()
    assert (response.id, response.model_name, response.model_version) == ("my-7", "iris", "1")
    same(arrays(answer), "iris", {"X": IRIS})


def check_errors_have_words(node):
    one, good = client(node), tensors({"X": IRIS})
    assert "nobody" in refused("NOT_FOUND", one.infer, "nobody", good, headers=key(node))
    refused("NOT_FOUND", one.infer, "iris", good, model_version="9", headers=key(node))
    refused("UNAUTHENTICATED", one.infer, "iris", good)
    bad = {"headers": key(node)}
    double = tensors({"X": IRIS.astype(np.float64)})
    assert "FP64" in refused("INVALID_ARGUMENT", one.infer, "iris", double, **bad)
    assert "shape" in refused("INVALID_ARGUMENT", one.infer, "iris", tensors({"X": IRIS[:, :3]}), **bad)
    assert "`Y`" in refused("INVALID_ARGUMENT", one.infer, "iris", tensors({"Y": IRIS}), **bad)
    output = [triton.InferRequestedOutput("nothing")]
    refused("INVALID_ARGUMENT", one.infer, "iris", good, outputs=output, **bad)
    text = triton.InferInput("X", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"abc"], dtype=np.object_))
    assert "BYTES" in refused("INVALID_ARGUMENT", one.infer, "iris", [text], **bad)
    classes = [triton.InferRequestedOutput("probabilities", class_count=2)]
    refused("UNIMPLEMENTED", one.infer, "iris", good, outputs=classes, **bad)
    refused("UNIMPLEMENTED", one.infer, "iris", good, sequence_id=4, **bad)
    refused("UNIMPLEMENTED", one.get_system_shared_memory_status, **bad)
    refused("UNIMPLEMENTED", one.register_system_shared_memory, "r", "/r", 64, **bad)
    refused("UNIMPLEMENTED", one.get_cuda_shared_memory_status, **bad)


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
        texts(ask(node, model, inputs, names), model, inputs)
    about = client(node).get_model_metadata("strings-one-hot", headers=key(node))
    assert [(tensor.name, tensor.datatype) for tensor in about.inputs] == [("x", "BYTES")], about
    config = client(node).get_model_config("strings-one-hot", headers=key(node)).config
    assert config.input[0].data_type == config.output[0].data_type == 13, config


def check_config(node):
    one = client(node)
    for version in ["", "1"]:
        config = one.get_model_config("iris", version, headers=key(node)).config
        assert config.name == "iris" and config.backend == "tract", config
        batched = config.max_batch_size > 0
        (given,) = config.input
        # 11 is TYPE_FP32.
        assert (given.name, given.data_type) == ("X", 11), given
        assert list(given.dims) == ([4] if batched else [-1, 4]), config
        assert config.HasField("dynamic_batching") == batched, config
        assert not config.model_transaction_policy.decoupled
    refused("NOT_FOUND", one.get_model_config, "nobody", headers=key(node))


def check_statistics(node):
    one = client(node)

    def counted():
        (stats,) = one.get_inference_statistics("iris", headers=key(node)).model_stats
        assert (stats.name, stats.version) == ("iris", "1"), stats
        return stats

    before = counted()
    ask(node, "iris", {"X": IRIS[:1]})
    after = counted()
    success = [stats.inference_stats.success.count for stats in (before, after)]
    assert success[1] == success[0] + 1, (before, after)
    assert after.inference_count == before.inference_count + 1, (before, after)
    assert after.inference_stats.compute_infer.ns > 0, after
    assert after.last_inference > 1_700_000_000_000, after
    everything = one.get_inference_statistics(headers=key(node)).model_stats
    assert {"iris", "digits"} <= {stats.name for stats in everything}, everything
    one.get_inference_statistics("iris", "1", headers=key(node))
    refused("NOT_FOUND", one.get_inference_statistics, "nobody", headers=key(node))


def check_index_load_and_unload(node):
    one = client(node)

    def states():
        index = one.get_model_repository_index(headers=key(node)).models
        return {entry.name: (entry.version, entry.state) for entry in index}

    assert states()["mul-add"] == ("1", "READY"), states()
    one.unload_model("mul-add", headers=key(node))
    assert states()["mul-add"] == ("1", "UNAVAILABLE"), states()
    assert not one.is_model_ready("mul-add", headers=key(node))
    good = tensors({"x": np.zeros((1, 3), np.float32)})
    assert "not ready" in refused("UNAVAILABLE", one.infer, "mul-add", good, headers=key(node))
    one.load_model("mul-add", headers=key(node))
    assert one.is_model_ready("mul-add", headers=key(node))
    assert states()["mul-add"] == ("1", "READY"), states()
    refused("NOT_FOUND", one.load_model, "nobody", headers=key(node))
    refused("NOT_FOUND", one.unload_model, "nobody", headers=key(node))


def check_a_load_with_a_file_and_a_configuration(node):
    # Packed too, which is algorithm 2 of gRPC's.
    for name, options in [("loaded", []), ("packed", [("grpc.default_compression_algorithm", 2)])]:
        one = triton.InferenceServerClient(node.address, channel_args=options)
        load_and_ask(node, one, name)


def load_and_ask(node, one, name):
    def load(name=name, **what):
        one.load_model(name, headers=key(node), **what)

    def file(model):
        return {"file:1/model.onnx": model_file(model).read_bytes()}

    def answer():
        return arrays(one.infer(name, tensors({"x": x}), headers=key(node)))

    x = np.array([[0, 1, -1.5], [3, -2, 7]], np.float32)
    load(files=file("mul-add"))
    same(answer(), "mul-add", {"x": x})
    config = {"backend": "onnxruntime", "max_batch_size": 8, "response_cache": {"enable": True}}
    load(config=json.dumps(config), files=file("identity-fp32"))
    same(answer(), "identity-fp32", {"x": x})
    # What is shown is taken again, written as protobuf writes it: 64-bit numbers are texts.
    shown = one.get_model_config(name, headers=key(node), as_json=True)["config"]
    assert shown["response_cache"] == {"enable": True}, shown
    versions = one.get_model_metadata(name, headers=key(node)).versions
    load(files=file("identity-fp32"))
    assert one.get_model_metadata(name, headers=key(node)).versions == versions
    shown["response_cache"]["enable"] = False
    load(config=json.dumps(shown))
    assert not one.get_model_config(name, headers=key(node)).config.response_cache.enable
    same(answer(), "identity-fp32", {"x": x})
    load(name + "-large", config="{}", files=file("magika"))
    assert one.is_model_ready(name + "-large", headers=key(node))
    two = {**file("mul-add"), "file:2/model.onnx": b"other"}
    assert "one file" in refused("INVALID_ARGUMENT", load, config="{}", files=two)
    broken = {"file:1/model.onnx": b"no model"}
    assert "ONNX" in refused("INVALID_ARGUMENT", load, config="{}", files=broken)
    groups = json.dumps({"instance_group": [{"count": 2}]})
    assert "instance_group" in refused("INVALID_ARGUMENT", load, config=groups)
    refused("NOT_FOUND", load, "nobody", config="{}")
    same(answer(), "identity-fp32", {"x": x})


def check_a_granted_model_by_its_owners_name(node):
    node.models
    beta = {"authorization": f"Bearer {node.new_tenant('beta', 'standard')}"}
    one, inputs = client(node), tensors({"X": IRIS})
    refused("NOT_FOUND", one.infer, "acme/iris", inputs, headers=beta)
    node.call("PUT", "/api/v1/models/iris/grants", {"tenants": ["beta"]})
    answer = one.infer("acme/iris", inputs, headers=beta)
    assert answer.get_response().model_name == "acme/iris"
    same(arrays(answer), "iris", {"X": IRIS})
    refused("NOT_FOUND", one.infer, "iris", inputs, headers=beta)
    refused("PERMISSION_DENIED", one.unload_model, "acme/iris", headers=beta)


def check_settings_of_traces_and_logs(node):
    one = client(node)
    assert list(one.get_trace_settings(headers=key(node)).settings["trace_level"].value) == ["OFF"]
    assert one.get_log_settings(headers=key(node)).settings["log_error"].bool_param is True
    traces = {"trace_level": ["TIMESTAMPS"]}
    refused("UNIMPLEMENTED", one.update_trace_settings, settings=traces, headers=key(node))
    refused("UNIMPLEMENTED", one.update_log_settings, {"log_verbose_level": 1}, headers=key(node))
