"""What the servers compared share: a model in onnxruntime, and the bodies of the Open Inference Protocol."""

import numpy as np
import onnxruntime

TYPES = {"FP32": np.float32, "INT32": np.int32, "INT64": np.int64}
NAMES = {"float32": "FP32", "int32": "INT32", "int64": "INT64"}


def session(path, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def inputs(body):
    return {
        tensor["name"]: np.array(tensor["data"], TYPES[tensor["datatype"]]).reshape(tensor["shape"])
        for tensor in body["inputs"]
    }


def answer(model, names, values):
    outputs = [
        {
            "name": name,
            "datatype": NAMES[value.dtype.name],
            "shape": list(value.shape),
            "data": value.ravel().tolist(),
        }
        for name, value in zip(names, values)
    ]
    return {"model_name": model, "outputs": outputs}
