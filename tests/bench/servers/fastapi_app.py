"""onnxruntime behind FastAPI and uvicorn, one process.

The leanest form: no pydantic model checks the body, orjson reads and writes it, and the run is in the handler, which is
faster than a thread pool for runs of this length.
"""

import os
import sys

import orjson
import uvicorn
from fastapi import FastAPI, Request, Response

import common

app = FastAPI()
models = {}


@app.post("/v2/models/{model}/infer")
async def infer(model: str, request: Request):
    session, names = models[model]
    values = session.run(None, common.inputs(orjson.loads(await request.body())))
    return Response(orjson.dumps(common.answer(model, names, values)), media_type="application/json")


def main():
    port, *paths = sys.argv[1:]
    threads = int(os.environ.get("ORT_THREADS", "1"))
    for path in paths:
        session = common.session(path, threads)
        name = os.path.basename(path).removesuffix(".onnx")
        models[name] = session, [output.name for output in session.get_outputs()]
    uvicorn.run(
        app, host="127.0.0.1", port=int(port), loop="uvloop", http="httptools",
        access_log=False, log_level="warning",
    )


main()
