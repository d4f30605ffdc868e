"""KServe's `InferenceRESTClient`, unmodified, with the protocol v2."""

import asyncio

import numpy as np
from kserve import InferInput, InferRequest, InferenceRESTClient, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

from harness import session

IRIS = np.array([[5.1, 3.5, 1.4, 0.2], [6.3, 3.3, 6.0, 2.5]], np.float32)


def run(node, work):
    """Runs `work(client)`, a coroutine."""
    node.models

    async def all_of_it():
        client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
        try:
            return await work(client)
        finally:
            await client.close()

    return asyncio.run(all_of_it())


def request(binary):
    tensor = InferInput("X", list(IRIS.shape), "FP32")
    tensor.set_data_from_numpy(IRIS, binary_data=binary)
    return [tensor]


def same(response):
    names = ["label", "probabilities"]
    for name, expected in zip(names, session("iris").run(names, {"X": IRIS})):
        (output,) = [output for output in response.outputs if output.name == name]
        np.testing.assert_allclose(output.as_numpy(), expected, rtol=1e-5, atol=1e-6)
    assert response.model_name == "iris", response


def check_health(node):
    async def work(client):
        assert await client.is_server_live(node.url) is True
        assert await client.is_server_ready(node.url) is True

    run(node, work)


def check_model_readiness(node):
    async def work(client):
        assert await client.is_model_ready(node.url, "iris", headers=node.headers) is True
        assert await client.is_model_ready(node.url, "nobody", headers=node.headers) is False

    run(node, work)


def check_infer(node):
    async def work(client):
        for binary in [False, True]:
            asked = InferRequest("iris", request(binary), request_id="k-1")
            response = await client.infer(node.url, asked, model_name="iris", headers=node.headers)
            same(response)
            assert response.id == "k-1", response

    run(node, work)


def check_infer_with_binary_outputs(node):
    async def work(client):
        for outputs in [
            {"request_outputs": [
                RequestedOutput("label", {"binary_data": True}),
                RequestedOutput("probabilities", {"binary_data": False}),
            ]},
            {"parameters": {"binary_data_output": True}},
        ]:
            asked = InferRequest("iris", request(True), **outputs)
            same(await client.infer(node.url, asked, model_name="iris", headers=node.headers))

    run(node, work)


def check_errors_have_words(node):
    async def work(client):
        for model, headers, status in [("nobody", node.headers, "404"), ("iris", None, "401")]:
            try:
                asked = InferRequest(model, request(False))
                await client.infer(node.url, asked, model_name=model, headers=headers)
            except Exception as error:
                assert status in str(error), error
            else:
                raise AssertionError(f"{model} was answered")

    run(node, work)
