"""What it is worth that a process keeps the memory that it frees (`fedcondense.machine.keep_memory`).

    python experiments/freed.py

A child process per measurement, with and without in turn, seven times each; CPU seconds without by those with, lowest,
median and highest, and the median peaks in MB. Fashion-MNIST, ConvNet-3 width 32, one thread: 60 steps of training in
batches of 64 and 256, 20 steps of `dm-ridge` at 10 images per class. Writes results/freed.json.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from typing import Any

from cells import RESULTS, read, run_cells

PATH = RESULTS / "freed.json"
REPEATS = 7
WORK = ("training, batches of 64", "training, batches of 256", "condensing")


def child(work: str, keeps: bool) -> None:
    """Do some work, and print its CPU seconds and the peak of the process."""
    import torch

    import fedcondense as fc
    from fedcondense.machine import keep_memory
    from fedcondense.networks import build
    from fedcondense.training.fit import fit_on

    torch.set_num_threads(1)
    if keeps:
        keep_memory()
    train, _ = fc.load_data("fashion-mnist")

    def run(steps: int) -> None:
        if work == "condensing":
            fc.condense(train, 10, "dm-ridge", network="convnet3-w32", steps=steps)
        else:
            network = build("convnet3-w32", train.spec.shape, 10, 0)
            fit_on(network, train, fc.Fit(steps=steps, batch=int(work.rpartition(" ")[2])))

    run(2)
    began = time.process_time()
    run(20 if work == "condensing" else 60)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps([time.process_time() - began, peak]))


def measured(work: str) -> dict[str, Any]:
    """Return the ratios of CPU seconds, and the peaks."""
    free = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    found: dict[bool, list[list[float]]] = {False: [], True: []}
    for _ in range(REPEATS):
        for keeps, runs in found.items():
            command = [sys.executable, __file__, work, str(int(keeps))]
            runs.append(json.loads(subprocess.run(command, env=free, capture_output=True, check=True).stdout))
    ratios = sorted(a[0] / b[0] for a, b in zip(found[False], found[True], strict=True))
    left, kept = (round(statistics.median(run[1] for run in found[keeps])) for keeps in (False, True))
    return {
        "ratio": [round(ratio, 2) for ratio in (ratios[0], statistics.median(ratios), ratios[-1])],
        "MB": [left, kept],
    }


def table() -> str:
    """Return a row for each kind of work as Markdown."""
    lines = ["| | CPU seconds by those with kept memory | peak MB, left and kept |", "|---|---|---|"]
    for work, row in read(PATH).items():
        low, median, high = row["ratio"]
        lines.append(f"| {work} | {low} / **{median}** / {high} | {', '.join(map(str, row['MB']))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        child(sys.argv[1], sys.argv[2] == "1")
    else:
        run_cells(PATH, {work: partial(measured, work) for work in WORK})
