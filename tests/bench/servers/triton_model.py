"""A model of Triton's Python backend: every request of a batch in one run of onnxruntime."""

import json
import sys

# The stub of this release needs numpy 1, and takes no path from its environment.
sys.path.insert(0, "@PACKAGES@")

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402
import triton_python_backend_utils as pb  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(parameters["threads"]["string_value"])
        options.inter_op_num_threads = 1
        path = parameters["path"]["string_value"]
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        self.outputs = [output.name for output in self.session.get_outputs()]

    def execute(self, requests):
        inputs = [pb.get_input_tensor_by_name(request, self.input).as_numpy() for request in requests]
        if len(inputs) == 1:
            values = self.session.run(None, {self.input: inputs[0]})
            return [self.respond(values)]
        values = self.session.run(None, {self.input: np.concatenate(inputs)})
        responses, start = [], 0
        for rows in map(len, inputs):
            responses.append(self.respond([value[start : start + rows] for value in values]))
            start += rows
        return responses

    def respond(self, values):
        tensors = [pb.Tensor(name, value) for name, value in zip(self.outputs, values)]
        return pb.InferenceResponse(output_tensors=tensors)
