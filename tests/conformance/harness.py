"""Runs the checks of the scripts beside this file against one real server, and counts them.

A script is any other `*.py` here, or `checks.py` in a folder here. Each function `check_…(node)` in it is a check: it
returns when all is well and raises when something is not. `node` is a `Node`: a server of its own for the script,
with a tenant, its key, and the models uploaded.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import urllib.error
import urllib.request
from functools import cached_property
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EXPECTED = ROOT / "tests" / ".cache" / "expected"
OPERATOR_KEY = "operator-key-of-the-conformance-tests"


def model_file(name):
    """The ONNX file of a model: an example's, `magika`, or one of the corpus."""
    if name in ("digits", "iris"):
        return ROOT / "examples" / name / "model" / f"{name}.onnx"
    path = EXPECTED / "magika.onnx" if name == "magika" else EXPECTED / "models" / f"{name}.onnx"
    if not path.exists():
        raise SystemExit(f"{path.relative_to(ROOT)} is missing: run tests/run, which computes it")
    return path


class Node:
    """A server with the tenant `acme`, whose key may do everything."""

    def __init__(self):
        binary = os.environ.get("SANDPIPER_BIN", ROOT / "target" / "debug" / "sandpiper")
        if not Path(binary).exists():
            raise SystemExit(f"{binary} is missing: run tests/run, which builds it")
        self.folder = tempfile.TemporaryDirectory(prefix="sandpiper-conformance-")
        self.log = open(Path(self.folder.name) / "log", "w+")
        command = [binary, "--json", "serve", "--listen", "127.0.0.1:0", "--until-stdin-ends"]
        self.process = subprocess.Popen(
            [*command, "--data", Path(self.folder.name) / "data"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env={**os.environ, "SANDPIPER_OPERATOR_KEY": OPERATOR_KEY},
        )
        self.url = self._listening()
        self.address = self.url.removeprefix("http://")
        self.key = self.new_tenant("acme", "dedicated")

    @property
    def headers(self):
        """The headers of a call, made anew each time: tritonclient writes into what it is given."""
        return {"Authorization": f"Bearer {self.key}"}

    def _listening(self):
        said = b""
        while line := self.process.stdout.readline():
            said += line
            try:
                return json.loads(said)["listening"]
            except ValueError:
                pass
        raise SystemExit(f"the server did not start:\n{self.said()}")

    def said(self):
        self.log.flush()
        return Path(self.log.name).read_text()

    def call(self, method, path, body=None, key=None):
        """A request to the control plane; its JSON."""
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data, method=method)
        request.add_header("Authorization", f"Bearer {key or self.key}")
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null")

    def metric(self, series):
        """What a series of the metrics says now; 0 where it is not there."""
        request = urllib.request.Request(self.url + "/metrics")
        request.add_header("Authorization", f"Bearer {OPERATOR_KEY}")
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        found = (line.removeprefix(series) for line in lines if line.startswith(series + " "))
        return float(next(found, 0))

    def new_tenant(self, name, tier):
        """Makes a tenant; its key."""
        self.call("POST", "/api/v1/tenants", {"name": name, "tier": tier}, OPERATOR_KEY)
        return self.call("POST", f"/api/v1/tenants/{name}/keys", {}, OPERATOR_KEY)["key"]

    def put_model(self, name, onnx):
        """Uploads a model under a name."""
        return self.call("PUT", f"/api/v1/models/{name}", onnx)

    @cached_property
    def models(self):
        """The usual models, uploaded at first use: their names."""
        names = ["iris", "digits", "magika", "mul-add"]
        for name in names:
            self.put_model(name, model_file(name).read_bytes())
        return names

    def alive(self):
        return self.process.poll() is None

    def stop(self):
        self.process.stdin.close()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()
        self.folder.cleanup()


def session(name):
    """An onnxruntime session of a model, to compare with."""
    import onnxruntime

    return onnxruntime.InferenceSession(model_file(name), providers=["CPUExecutionProvider"])


def same(given, model, named, rtol=1e-5, atol=1e-6):
    """Compares outputs by name with what onnxruntime says to the same inputs."""
    import numpy as np

    one = session(model)
    names = [output.name for output in one.get_outputs()]
    expected = dict(zip(names, one.run(names, named)))
    assert given and set(given) <= set(expected), given.keys()
    for name, array in given.items():
        assert array.dtype == expected[name].dtype, (name, array.dtype, expected[name].dtype)
        assert array.shape == expected[name].shape, (name, array.shape)
        if array.dtype.kind == "f":
            np.testing.assert_allclose(array, expected[name], rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(array, expected[name])


def scripts(wanted):
    found = [path for path in HERE.glob("*.py") if path != Path(__file__).resolve()]
    found += HERE.glob("*/checks.py")
    named = {path: path.stem if path.parent == HERE else path.parent.name for path in found}
    chosen = [
        (name, path)
        for path, name in sorted(named.items(), key=lambda item: item[1])
        if not wanted or any(name.startswith(prefix) for prefix in wanted)
    ]
    if not chosen:
        raise SystemExit(f"there is no script of that name; there are {', '.join(sorted(named.values()))}")
    return chosen


def load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [(key, value) for key, value in vars(module).items() if key.startswith("check_")]


def main():
    wanted = sys.argv[1:]
    if wanted[:1] == ["--alone"]:
        return run([pair for pair in scripts([]) if pair[0] == wanted[1]])
    # Each in a process of its own: clients bring message types of the same names, of which a process can have one.
    command = [sys.executable, __file__, "--alone"]
    codes = {name: subprocess.run([*command, name]).returncode for name, _ in scripts(wanted)}
    failed = [name for name, code in codes.items() if code]
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def run(chosen):
    sys.path.insert(0, str(HERE))
    # The scripts import this file as `harness`; it is running as the main module.
    sys.modules["harness"] = sys.modules["__main__"]
    passed, failed = 0, []
    for name, path in chosen:
        checks = load(name, path)
        if not checks:
            raise SystemExit(f"{name} holds no check")
        node = Node()
        try:
            for key, check in checks:
                began = time.monotonic()
                try:
                    check(node)
                    assert node.alive(), "the server has ended"
                    outcome, passed = "ok  ", passed + 1
                except Exception:
                    outcome = "FAIL"
                    failed.append(f"{name}.{key}")
                    traceback.print_exc()
                print(f"{outcome} {name}.{key} ({time.monotonic() - began:.2f} s)", flush=True)
            if failed:
                print(f"--- the server's log ---\n{node.said()[-4000:]}---")
        finally:
            node.stop()
    print(f"{passed} checks passed, {len(failed)} failed{': ' if failed else ''}{', '.join(failed)}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
