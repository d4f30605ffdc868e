"""What the comparisons of tests/bench share: servers in process groups of their own, wrk, and tables in Markdown."""

import json
import os
import re
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "bench"
PROGRAM = ROOT / "target" / "release" / "sandpiper"
MAGIKA = ROOT / "target" / "bench" / "magika"
MODELS = {
    "iris": ROOT / "examples/iris/model/iris.onnx",
    "digits": ROOT / "examples/digits/model/digits.onnx",
    "magika": MAGIKA / "magika/models/standard_v3_3/model.onnx",
}


def say(text):
    print(text, file=sys.stderr, flush=True)


def call(*command, **options):
    return subprocess.run([str(part) for part in command], check=True, **options)



def build(*guests):
    """Builds the server, the probes and these guests."""
    say("building")
    call("cargo", "build", "--release", "-p", "sandpiper", "-p", "sandpiper-bench", cwd=ROOT)
    for guest in guests:
        folder = ROOT / "tests" / "guests"
        call("cargo", "build", "--release", "--target", "wasm32-wasip2", "-p", guest, cwd=folder)


def fetch_magika():
    """The model is Google's and not ours to keep here."""
    if not MAGIKA.exists():
        pins = (ROOT / "tests/expected/requirements.txt").read_text().splitlines()
        pin = next(line for line in pins if line.lower().startswith("magika=="))
        call(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", MAGIKA, pin)


# --- servers --------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """A server in a process group of its own."""

    key = None

    def launch(self, command, env=None, cwd=None):
        self.log = tempfile.NamedTemporaryFile("w+", suffix=f"-{self.name}.log")
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
            env={**os.environ, **(env or {})}, cwd=cwd, start_new_session=True,
        )

    def wait(self, ready, seconds=60):
        end = time.time() + seconds
        while time.time() < end and self.process.poll() is None:
            if (result := ready()) is not None:
                return result
            time.sleep(0.05)
        self.stop()
        raise SystemExit(f"{self.name} did not start:\n{Path(self.log.name).read_text()[-4000:]}")

    def cpu_seconds(self):
        """CPU time of all its processes so far."""
        ticks = 0
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = stat.read_text().rpartition(") ")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[2]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def stop(self):
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
                self.process.wait(10)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                pass


class Sandpiper(Server):
    """Our own server. Tenants are made with `tenant`."""

    def __init__(self, policies=None):
        self.name = "Sandpiper"
        self.folder = tempfile.TemporaryDirectory()
        self.operator = secrets.token_hex(32)
        command = [PROGRAM, "--json", "serve", "--listen", "127.0.0.1:0", "--data", f"{self.folder.name}/data"]
        if policies:
            command += ["--policies", policies]
        self.launch(command, {"SANDPIPER_OPERATOR_KEY": self.operator, "SANDPIPER_LOG": "warn"})
        pattern = re.compile(r'"listening": *"(http://[^"]*)"')
        self.address = self.wait(lambda: pattern.search(Path(self.log.name).read_text()))[1]

    def environment(self, tenant, key):
        return {
            **os.environ, "SANDPIPER_SERVER": self.address, "SANDPIPER_KEY": key, "SANDPIPER_TENANT": tenant,
        }

    def cli(self, tenant, key, *arguments):
        environment = self.environment(tenant, key)
        output = call(PROGRAM, "--json", *arguments, env=environment, stdout=subprocess.PIPE).stdout
        return json.loads(output or b"null")

    def tenant(self, name, tier, models, functions=()):
        """Makes a tenant with these models and these guests; gives its key."""
        self.cli(name, self.operator, "tenant", "create", name, "--tier", tier)
        key = self.cli(name, self.operator, "key", "create")["key"]
        for model in models:
            self.cli(name, key, "models", "push", MODELS[model], "--name", model)
        for function in functions:
            folder = Path(self.folder.name) / name / function
            folder.mkdir(parents=True)
            manifest = f'name = "{function}"\nauth = "key"\n[limits]\nwall_ms = 10000\n[scale]\nmax = 512\n'
            (folder / "sandpiper.toml").write_text(manifest)
            component = ROOT / f"tests/guests/target/wasm32-wasip2/release/{function}.wasm"
            self.cli(name, key, "deploy", folder, "--component", component)
        return key


# --- measuring ------------------------------------------------------------------------------------------------------


def load(url, key, text, connections, seconds):
    """Requests per second, p50 and p99 in µs, and the number of requests, by wrk. One answer that is not 2xx ends everything."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as body:
        body.write(text)
        body.flush()
        env = {
            **os.environ, "BENCH_KEY": key or "", "BENCH_BODY": body.name,
            "BENCH_TYPE": "application/json",
        }
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "--timeout", "20s"]
        command += ["-s", HERE / "request.lua", url]
        out = call(*command, env=env, stdout=subprocess.PIPE, text=True).stdout
    if re.search("Non-2xx|Socket errors", out):
        raise SystemExit(f"requests to {url} failed under load:\n{out}")
    rate = float(re.search(r"Requests/sec: *([\d.]+)", out)[1])
    count = int(re.search(r"(\d+) requests in", out)[1])
    spans = {"us": 1, "ms": 1e3, "s": 1e6}
    latencies = {}
    for part in ("50", "99"):
        value, unit = re.search(rf"{part}% +([\d.]+)(us|ms|s)\b", out).groups()
        latencies[part] = float(value) * spans[unit]
    return rate, latencies["50"], latencies["99"], count


def probe(*arguments):
    program = ROOT / "target" / "release" / "sandpiper-bench"
    return call(program, *arguments, stdout=subprocess.PIPE, text=True).stdout.split()


def machine():
    """The machine in words."""
    cpu = re.search("model name[^:]*: (.*)", Path("/proc/cpuinfo").read_text())[1]
    return f"{os.cpu_count()} cores, {cpu}, Linux {os.uname().release}; load before the start {os.getloadavg()[0]:.1f}"


def median(values):
    return statistics.median(values)


def ratio(ours, theirs):
    ratios = [mine[0] / other[0] for mine, other in zip(ours, theirs)]
    return median(ratios), min(ratios), max(ratios)


def row(*cells):
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def head(*cells):
    print()
    row(*cells)
    print("|" + "---|" * len(cells), flush=True)
