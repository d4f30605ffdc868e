#!/usr/bin/env python3
"""Draws what the autoscaler makes of the simulated loads and of the recorded one.

  tests/bench/autoscaler/plot.py SIMULATE

SIMULATE is the built example `simulate` of sandpiper-control. Writes one SVG for each load and mode beside this file.
Needs matplotlib: `tests/.cache/venv/bin/python -m pip install matplotlib`.
"""

import csv
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "sandpiper"

import matplotlib.pyplot as plt  # noqa: E402

HERE = Path(__file__).parent


def draw(load, mode, rows):
    def column(name):
        return [float(row[name]) for row in rows]

    seconds = column("second")
    figure, (top, bottom) = plt.subplots(2, sharex=True, figsize=(9, 5), height_ratios=(1, 2))
    top.plot(seconds, column("rate"), color="black", linewidth=0.8)
    top.set_ylabel("requests/s")
    top.set_title(f"{load}, {mode}: {sum(column('cold')):.0f} requests found no sandbox ready")
    bottom.step(seconds, column("wanted"), label="wanted", where="post")
    bottom.step(seconds, column("ready"), label="ready", where="post", linewidth=0.8)
    bottom.plot(seconds, column("running"), label="running", linewidth=0.8)
    panic = [value > 0 for value in column("panicking")]
    bottom.fill_between(seconds, 0, 1, where=panic, transform=bottom.get_xaxis_transform(), alpha=0.15,
                        color="red", label="panic")
    bottom.set_ylabel("sandboxes")
    bottom.set_xlabel("seconds")
    bottom.legend(loc="upper right")
    figure.tight_layout()
    figure.savefig(HERE / f"{load}-{mode}.svg", metadata={"Date": None})
    plt.close(figure)


def main():
    recorded = HERE / "recorded.csv"
    output = subprocess.run([sys.argv[1], recorded], check=True, capture_output=True, text=True).stdout
    series = defaultdict(list)
    for row in csv.DictReader(output.splitlines()):
        series[row["load"], row["mode"]].append(row)
    for (load, mode), rows in series.items():
        # Two points a second are as many as can be seen; what came cold is a sum.
        for five in range(0, len(rows), 5):
            rows[five]["cold"] = sum(float(row["cold"]) for row in rows[five:five + 5])
        draw(load, mode, rows[::5])


main()
