"""KServe's `InferenceGRPCClient`, unmodified: its own proto, its own load and unload."""

import asyncio

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest

from harness import session

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)


def run(node, work):
    """Runs `work(client, metadata)`, a coroutine."""
    node.models

    async def all_of_it():
        async with InferenceGRPCClient(node.address, retries=0) as client:
            await work(client, (("authorization", f"Bearer {node.key}"),))

    asyncio.run(all_of_it())


def request(binary, model="iris", array=IRIS, datatype="FP32"):
    tensor = InferInput("X", list(array.shape), datatype)
    tensor.set_data_from_numpy(array, binary_data=binary)
    return InferRequest(model, [tensor], request_id="k-1")


async def refused(code, call):
    try:
        await call
    except grpc.RpcError as error:
        assert error.code() == code and error.details(), error
        return error.details()
    raise AssertionError("the call was not refused")


def check_health(node):
    async def work(client, metadata):
        assert await client.is_server_live() is True
        assert await client.is_server_ready() is True

    run(node, work)


def check_model_readiness(node):
    async def work(client, metadata):
        assert await client.is_model_ready("iris", headers=metadata) is True
        assert await client.is_model_ready("nobody", headers=metadata) is False
        await refused(grpc.StatusCode.UNAUTHENTICATED, client.is_model_ready("iris"))

    run(node, work)


def check_infer(node):
    async def work(client, metadata):
        for binary in [False, True]:
            response = await client.infer(request(binary), headers=metadata)
            assert (response.model_name, response.id) == ("iris", "k-1"), response
            names = ["label", "probabilities"]
            for name, expected in zip(names, session("iris").run(names, {"X": IRIS})):
                (output,) = [output for output in response.outputs if output.name == name]
                given = output.as_numpy()
                assert given.dtype == expected.dtype and given.shape == expected.shape, output
                np.testing.assert_allclose(given, expected, rtol=1e-5, atol=1e-6)

    run(node, work)


def check_errors_have_words(node):
    async def work(client, metadata):
        not_found, invalid = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT
        text = await refused(not_found, client.infer(request(True, "nobody"), headers=metadata))
        assert "nobody" in text, text
        await refused(invalid, client.infer(request(True, array=IRIS[:, :3]), headers=metadata))
        double = request(False, array=IRIS.astype(np.float64), datatype="FP64")
        text = await refused(invalid, client.infer(double, headers=metadata))
        assert "FP64" in text, text
        await refused(grpc.StatusCode.UNAUTHENTICATED, client.infer(request(True)))

    run(node, work)


def check_load_and_unload_by_kserves_fields(node):
    """The client has no such calls; its stub does, and its fields have other numbers than Triton's."""
    from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    async def work(client, metadata):
        async with grpc.aio.insecure_channel(node.address) as channel:
            stub = GRPCInferenceServiceStub(channel)
            unload = messages.RepositoryModelUnloadRequest(model_name="mul-add")
            answer = await stub.RepositoryModelUnload(unload, metadata=metadata)
            assert (answer.model_name, answer.isUnloaded) == ("mul-add", True), answer
            assert await client.is_model_ready("mul-add", headers=metadata) is False
            load = messages.RepositoryModelLoadRequest(model_name="mul-add")
            answer = await stub.RepositoryModelLoad(load, metadata=metadata)
            assert (answer.model_name, answer.isLoaded) == ("mul-add", True), answer
            assert await client.is_model_ready("mul-add", headers=metadata) is True
            about = await stub.ModelMetadata(
                messages.ModelMetadataRequest(name="iris"), metadata=metadata
            )
            assert about.name == "iris" and about.inputs[0].datatype == "FP32", about

    run(node, work)
