"""onnxruntime behind LitServe, one model, with its batching."""

import os
import sys

import litserve
import numpy as np

import common


class Served(litserve.LitAPI):
    def __init__(self, path, **options):
        super().__init__(**options)
        self.path = path

    def setup(self, device):
        self.session = common.session(self.path, int(os.environ.get("ORT_THREADS", "1")))
        self.names = [output.name for output in self.session.get_outputs()]
        self.model = os.path.basename(self.path).removesuffix(".onnx")
        self.input = self.session.get_inputs()[0].name

    def decode_request(self, request):
        return common.inputs(request)[self.input]

    def batch(self, inputs):
        self.rows = [len(rows) for rows in inputs]
        return np.concatenate(inputs)

    def predict(self, rows):
        return self.session.run(None, {self.input: rows})

    def unbatch(self, output):
        ends = np.cumsum(self.rows)[:-1]
        return list(zip(*(np.split(values, ends) for values in output)))

    def encode_response(self, output):
        return common.answer(self.model, self.names, output)


if __name__ == "__main__":
    port, path = sys.argv[1:]
    api = Served(
        path,
        api_path="/infer",
        max_batch_size=int(os.environ.get("BATCH", "1")),
        batch_timeout=float(os.environ.get("BATCH_TIMEOUT", "0")),
    )
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=int(os.environ.get("WORKERS", "1")), timeout=60,
    )
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False)
