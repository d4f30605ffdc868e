"""The ONNX project's backend cases through the loader and `/v2/models/{m}/infer` of a real server.

Each case's model is uploaded, asked with the case's inputs as binary tensors, compared with the case's outputs at the
tolerance that the case states, and deleted. All cases that need no download run twice: as shipped, and with the inputs after the
first turned into weights (what exporters write, where the cases have everything as an input).

Every case is one of

- pass;
- rounding: not within the tolerance, but listed in ROUNDING and no further from the expected values than it says (the
  cases' tolerance is 1e-3 of each value and 1e-7, so that a value near 0 among larger ones may miss it);
- unsupported: refused at upload with 422, a code and a reason;
- type: the model is served, and the case's values (sequences, optional values) cannot be sent or received as tensors;
- error: the inference was answered with an error;
- mismatch: other values than expected, silently.

RESULTS.md and results.json beside this file are the outcome of the last run that was well, without times, so that a
change of them shows; those of one that was not lie in tests/.cache/conformance/onnx. The check fails on any mismatch, on fewer passes than tract's own importer has, on a case that passed in the committed
results and no longer does, and when the server has ended.
"""

import collections
import http.client
import json
import os
import struct
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
FAILED = HERE.parent.parent / ".cache" / "conformance" / "onnx"
sys.path.insert(0, str(HERE))

import cases as backend  # noqa: E402

# Before the server starts: tract makes a backtrace of each of its thousands of refusals otherwise.
os.environ["RUST_BACKTRACE"] = "0"

WORKERS = 4
# What tract 0.23.9 passes of the node cases as shipped when called directly.
NODE_PASSES_MIN = 1035
# Cases that miss their tolerance by rounding alone: how far they may be from the expected values, and why they are.
TERMS = "terms of a sum that cancel; the largest values are above 100"
ROUNDING = {
    "test_attention_4d_causal_fp16_expanded": (0.001, "one unit in the last place of 16-bit floats"),
    "test_attention_4d_gqa_with_past_and_present_fp16_expanded": (0.001, "one unit in the last place of 16-bit floats"),
    "test_causal_conv_with_state_silu_fp16_expanded": (0.003, "two units in the last place of 16-bit floats"),
    "test_dft": (2e-5, TERMS),
    "test_dft_axis": (2e-5, TERMS),
    "test_dft_rfft": (2e-5, TERMS),
    "test_dft_opset19": (2e-5, TERMS),
    "test_dft_axis_opset19": (2e-5, TERMS),
    "test_dft_rfft_opset19": (2e-5, TERMS),
    "test_gru_bidirectional": (1e-6, "tanh and sigmoid are approximations, and the tolerance at 0.0003 is 0.0000003"),
    "test_gru_seq_length": (1e-6, "tanh and sigmoid are approximations, and the tolerance at 0.0003 is 0.0000003"),
}

DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    **{f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
DTYPES = {name: np.dtype(dtype) for dtype, name in DATATYPES.items()}
TEXT = "OSU"


def datatype(value):
    return "BYTES" if value.dtype.kind in TEXT else DATATYPES[value.dtype.name]


def encoded(value):
    """Elements as they travel; each string is its length, 32 bits, and its bytes."""
    if value.dtype.kind not in TEXT:
        return value.tobytes()
    texts = [text if isinstance(text, bytes) else str(text).encode() for text in value.reshape(-1)]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def decoded(data, kind, shape):
    if kind != "BYTES":
        return np.frombuffer(data, DTYPES[kind]).reshape(shape)
    texts = []
    while data:
        (length,) = struct.unpack_from("<I", data)
        texts.append(data[4 : 4 + length].decode())
        data = data[4 + length :]
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(shape)


class Client:
    """One connection, kept alive."""

    def __init__(self, node):
        self.node = node
        self.connection = http.client.HTTPConnection(node.address, timeout=60)

    def call(self, method, path, body=b"", headers=()):
        """(status, headers, body); waits where the server asks to."""
        for _ in range(100):
            try:
                self.connection.request(method, path, body, {**self.node.headers, **dict(headers)})
                answer = self.connection.getresponse()
                content = answer.read()
            except (http.client.HTTPException, OSError):
                self.connection.close()
                if not self.node.alive():
                    raise
                continue
            if answer.status not in (429, 503) or answer.headers.get("retry-after") is None:
                return answer.status, answer.headers, content
            time.sleep(0.05)
        raise AssertionError(f"{method} {path}: {answer.status} {content[:500]}")

    def infer(self, model, inputs):
        """Outputs by name, or the text of the error."""
        arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in inputs.items()}
        parts = {name: encoded(value) for name, value in arrays.items()}
        head = {
            "inputs": [
                {
                    "name": name,
                    "shape": list(value.shape),
                    "datatype": datatype(value),
                    "parameters": {"binary_data_size": len(parts[name])},
                }
                for name, value in arrays.items()
            ],
            "parameters": {"binary_data_output": True},
        }
        head = json.dumps(head).encode()
        body = head + b"".join(parts.values())
        length = {"Inference-Header-Content-Length": str(len(head))}
        status, headers, content = self.call("POST", f"/v2/models/{model}/infer", body, length)
        if status != 200:
            return json.loads(content)["error"]
        length = int(headers.get("inference-header-content-length", len(content)))
        answer, rest = json.loads(content[:length]), content[length:]
        outputs = {}
        for output in answer["outputs"]:
            size = output["parameters"]["binary_data_size"]
            data, rest = rest[:size], rest[size:]
            outputs[output["name"]] = decoded(data, output["datatype"], output["shape"])
        assert not rest, "bytes after the last output"
        return outputs


def is_tensor(value):
    if not isinstance(value, (np.ndarray, np.generic)):
        return False
    texts = value.dtype.kind in TEXT and all(isinstance(text, (str, bytes)) for text in np.reshape(value, -1))
    return texts or value.dtype.name in DATATYPES


def run(client, name, case):
    """(outcome, text)"""
    status, _, content = client.call("PUT", f"/api/v1/models/{name}", case.model.SerializeToString())
    if status == 422:
        error = json.loads(content)["error"]
        return "unsupported", f"{error['code']}: {error['message']}"
    if status != 201:
        return "error", f"upload: {status} {content.decode()[:300]}"
    try:
        return answers(client, name, case)
    finally:
        status, _, content = client.call("DELETE", f"/api/v1/models/{name}")
        assert status in (200, 204), f"{status} {content}"


def answers(client, name, case):
    worst = "pass", ""
    for inputs, expected in case.data_sets:
        if not all(is_tensor(value) for value in [*inputs.values(), *expected.values()]):
            return "type", ""
        outputs = client.infer(name, inputs)
        if isinstance(outputs, str):
            return "error", outputs
        for key, theirs in expected.items():
            if key not in outputs:
                return "mismatch", f"no output {key}"
            outcome, text = compare(np.asarray(theirs), outputs[key], case)
            if outcome == "mismatch":
                return outcome, f"{key}: {text}"
            if outcome != "pass":
                worst = outcome, text
    return worst


def compare(theirs, ours, case):
    if ours.shape != theirs.shape:
        return "mismatch", f"the shape {ours.shape}, not {theirs.shape}"
    if ours.dtype.kind == "O" and theirs.dtype.kind in TEXT:
        return ("pass", "") if ours.tolist() == theirs.tolist() else ("mismatch", "other strings")
    if ours.dtype != theirs.dtype:
        return "mismatch", f"the type {ours.dtype}, not {theirs.dtype}"
    try:
        np.testing.assert_allclose(ours, theirs, case.rtol, case.atol)
        return "pass", ""
    except AssertionError as error:
        text = " ".join(str(error).split())[:200]
    if case.name not in ROUNDING or theirs.dtype.kind != "f":
        return "mismatch", text
    bound, why = ROUNDING[case.name]
    # Infinities and NaN must be the same.
    close = np.allclose(ours.astype(np.float64), theirs.astype(np.float64), 0, bound, equal_nan=True)
    return ("rounding", f"at most {bound}: {why}") if close else ("mismatch", text)


def run_all(node, cases):
    """Outcomes in the order of the cases."""
    local = threading.local()

    def one(numbered):
        number, case = numbered
        if not hasattr(local, "client"):
            local.client = Client(node)
        return run(local.client, f"case-{number}", case)

    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(one, enumerate(cases)))


def check_backend_cases(node):
    shipped = backend.load()
    fixed = [copy for case in shipped for copy in backend.with_later_inputs_fixed(case)]
    began = time.monotonic()
    results = {}
    for variant, cases in (("as shipped", shipped), ("later inputs as weights", fixed)):
        outcomes = run_all(node, cases)
        results[variant] = [
            {"suite": case.suite, "case": case.name, "operators": case.operators, "outcome": outcome, "text": text}
            for case, (outcome, text) in zip(cases, outcomes)
        ]
    print(f"{len(shipped) + len(fixed)} cases in {time.monotonic() - began:.0f} s")
    for variant, counts in summary(results).items():
        print(f"{variant}: {counts}")
    problems = judge(results)
    # What fails does not become what the next run is compared with.
    folder = FAILED if problems else HERE
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "results.json").write_text(listing(results))
    (folder / "RESULTS.md").write_text(report(results))
    assert not problems, "\n".join(problems)
    assert node.alive(), "the server has ended"


def judge(results):
    """What is not as it must be, in words."""
    problems = [
        f"{variant}: {row['case']}: {row['text']}"
        for variant, rows in results.items()
        for row in rows
        if row["outcome"] == "mismatch"
    ]
    node = sum(row["suite"] == "node" and row["outcome"] == "pass" for row in results["as shipped"])
    if node < NODE_PASSES_MIN:
        problems.append(f"only {node} of the node cases pass as shipped")
    committed = HERE / "results.json"
    if committed.exists():
        before = set(map(tuple, json.loads(committed.read_text())["pass"]))
        problems += [f"passed before: {' '.join(case)}" for case in sorted(before - passes(results))]
    return problems


def listing(results):
    """Every case by outcome as JSON, a case on each line."""
    parts = []
    for outcome in OUTCOMES:
        rows = [
            json.dumps([variant, row["suite"], row["case"], *([row["text"]] if row["text"] else [])])
            for variant, rows in results.items()
            for row in rows
            if row["outcome"] == outcome
        ]
        parts.append(f'"{outcome}": [\n' + ",\n".join(rows) + "\n]")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def passes(results):
    return {
        (variant, row["suite"], row["case"])
        for variant, rows in results.items()
        for row in rows
        if row["outcome"] == "pass"
    }


def summary(results):
    return {
        variant: dict(collections.Counter(row["outcome"] for row in rows).most_common())
        for variant, rows in results.items()
    }


OUTCOMES = ("pass", "rounding", "unsupported", "type", "error", "mismatch")


def report(results):
    """The outcome as Markdown."""
    lines = ["# The ONNX project's backend cases", ""]
    lines += ["Written by `tests/conformance/run onnx`; `results.json` has every case. What the columns mean, and what"]
    lines += ["makes the check fail, is said in `checks.py`.", ""]
    for variant, rows in results.items():
        lines += [f"## Cases {variant}", "", "| suite | cases | " + " | ".join(OUTCOMES) + " |"]
        lines += ["|---|" + "--:|" * (len(OUTCOMES) + 1)]
        suites = [*dict.fromkeys(row["suite"] for row in rows), "all"]
        for suite in suites:
            own = [row for row in rows if suite in ("all", row["suite"])]
            counts = collections.Counter(row["outcome"] for row in own)
            cells = [str(counts[outcome]) for outcome in OUTCOMES]
            lines.append(f"| {suite} | {len(own)} | " + " | ".join(cells) + " |")
        lines += [""]
    both = [row for rows in results.values() for row in rows]
    lines += ["## Operators", "", "Of the node cases of one operator, in both variants.", ""]
    lines += ["| operator | cases | " + " | ".join(OUTCOMES) + " |", "|---|" + "--:|" * (len(OUTCOMES) + 1)]
    operators = collections.defaultdict(collections.Counter)
    for row in both:
        if row["suite"] == "node" and len(row["operators"]) == 1:
            operators[row["operators"][0]][row["outcome"]] += 1
    for operator, counts in sorted(operators.items()):
        cells = [str(counts[outcome] or "") for outcome in OUTCOMES]
        lines.append(f"| {operator} | {counts.total()} | " + " | ".join(cells) + " |")
    lines += ["", "## Why cases are refused", "", "| code | cases |", "|---|--:|"]
    codes = collections.Counter(row["text"].split(":")[0] for row in both if row["outcome"] == "unsupported")
    lines += [f"| `{code}` | {count} |" for code, count in codes.most_common()]
    uses = sorted({row["text"].split(": ", 1)[1] for row in both if row["text"].startswith("unsupported_variant")})
    lines += ["", "Uses of operators that would be answered wrongly, and are refused at upload:", ""]
    lines += [f"- {use}" for use in uses]
    lines += ["", "## Rounding and errors", ""]
    odd = {(row["case"], row["outcome"], row["text"]) for row in both if row["outcome"] in ("rounding", "error")}
    lines += [f"- `{case}`: {outcome}: {text}" for case, outcome, text in sorted(odd)]
    return "\n".join(lines) + "\n"
