#!/usr/bin/env python3
"""Records a load for the autoscaler's simulation: requests per second, one number for each 100 ms.

  tests/bench/autoscaler/record.py BINARY COMPONENT [SECONDS] > tests/bench/autoscaler/recorded.csv

Starts a server on the loopback with a data folder of its own, deploys the component with `scale.min = 1`, and lets
clients come and go at random (a fixed seed), each asking one request after the other with pauses. What is written is
what the server counted (`sandpiper_invocations_total`), not what the clients meant to do. The server is stopped at the
end.
"""

import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time

KEY = "operator-key-of-the-bench-0123456789"
TICK = 0.1


def ask(address, method, path, body=None, headers=None):
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request(method, path, body, {"authorization": f"Bearer {KEY}", **(headers or {})})
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    if answer.status >= 300:
        raise SystemExit(f"{method} {path} answered {answer.status}: {data[:300]!r}")
    return data


def deploy(address, component):
    ask(address, "POST", "/api/v1/tenants", json.dumps({"name": "bench", "tier": "dedicated"}),
        {"content-type": "application/json"})
    mark = "bench-boundary-7d1f"
    parts = [("component", component), ("manifest", b'name = "f"\nauth = "public"\n[scale]\nmin = 1\n')]
    body = b"".join(
        f'--{mark}\r\ncontent-disposition: form-data; name="{name}"; filename="{name}"\r\n\r\n'.encode() + data + b"\r\n"
        for name, data in parts
    ) + f"--{mark}--\r\n".encode()
    ask(address, "PUT", "/api/v1/functions/f", body,
        {"content-type": f"multipart/form-data; boundary={mark}", "x-sandpiper-tenant": "bench"})


def client(address, until, pause, seed):
    chance = random.Random(seed)
    connection = http.client.HTTPConnection(address, timeout=30)
    while time.monotonic() < until:
        connection.request("GET", "/fn/bench/f/")
        connection.getresponse().read()
        time.sleep(chance.expovariate(1 / pause))
    connection.close()


def count(address):
    text = ask(address, "GET", "/metrics").decode()
    lines = (line for line in text.splitlines() if line.startswith("sandpiper_invocations_total{"))
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if 'function="f"' in line)


def record(address, seconds):
    chance = random.Random(4)
    threads = []

    def crowd():
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            stay = chance.uniform(2, 15)
            for _ in range(chance.choice([1, 1, 2, 3, 8])):
                until = min(end, time.monotonic() + stay)
                thread = threading.Thread(target=client, args=(address, until, chance.choice([0.02, 0.1, 0.5]), len(threads)))
                thread.start()
                threads.append(thread)
            time.sleep(chance.expovariate(1 / 4))

    threading.Thread(target=crowd, daemon=True).start()
    print("second,rate")
    began, before, last = time.monotonic(), count(address), time.monotonic()
    for tick in range(1, int(seconds / TICK) + 1):
        time.sleep(max(0.0, began + tick * TICK - time.monotonic()))
        now, at = count(address), time.monotonic()
        print(f"{tick * TICK:.1f},{(now - before) / (at - last):.1f}")
        before, last = now, at
    for thread in threads:
        thread.join()


def main():
    binary, component = sys.argv[1:3]
    seconds = float(sys.argv[3]) if len(sys.argv) > 3 else 60
    with tempfile.TemporaryDirectory() as folder, open(component, "rb") as file:
        arguments = [binary, "--json", "serve", "--listen", "127.0.0.1:0", "--data", f"{folder}/data"]
        server = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                  env={"SANDPIPER_OPERATOR_KEY": KEY})
        try:
            said = ""
            while True:
                said += server.stdout.readline().decode()
                try:
                    address = json.loads(said)["listening"].removeprefix("http://")
                    break
                except ValueError:
                    continue
            deploy(address, file.read())
            record(address, seconds)
        finally:
            server.terminate()
            server.wait()


main()
