"""Every objective's step: iterations a second, peak memory, share of the convolution peak; and memory as curves.

    python experiments/bench.py steps      # all objectives and the naive loops, interleaved; bench.json
    python experiments/bench.py windows    # trajectory matching: memory and seconds over the inner steps, and gradients
    python experiments/bench.py pools      # what a cached pool holds, over its size
    python experiments/bench.py figure     # both curves, results/memory.png

Fashion-MNIST, 10 classes, 10 images per class, ConvNet-3 width 32, float32, one thread, CPU time of the process. Each
objective runs as its own recipe says, on networks and pools that are warm: what the real data cost once a pool entry
(or an expert) is left out, training between steps is in. A naive loop (`naive.py`) sees as many real images of a class
as the objective does; families that are not published class by class have none. Memory is the peak of two steps beyond
what the process held before, each in a process of its own (Linux).
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cells import RESULTS, read, run_cells
from loops import NETWORK, Naive
from naive import (
    absolute_gradient_loss,
    characteristic_loss,
    distribution_matching_loss,
    gradient_matching_loss,
    kernel_means_loss,
)
from speed import convolution_peak, resident
from torch.utils.flop_counter import FlopCounterMode

import fedcondense as fc
from fedcondense.condensing import prepare
from fedcondense.condensing.loop import Loop
from fedcondense.data.images import Data
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.sources import Pool
from fedcondense.sources.trajectories import Trajectories

PATH = RESULTS / "bench.json"
REPEATS = 5
POOL = 4  # entries: all of them are warm after as many steps
NAIVE = {
    "dm": (distribution_matching_loss, 256),
    "mmd": (kernel_means_loss, 64),
    "ncfm": (characteristic_loss, 256),
    "dsa": (gradient_matching_loss, 256),
    "idc": (absolute_gradient_loss, 64),
}
WINDOWS = (1, 2, 4, 8, 16, 32)
POOLS = (0, 12, 24, 48, 96, 192)


def warm(name: str, data: Data, **settings: Any) -> Loop:
    """Return the loop of an objective after its real side was paid: a small pool, or experts of a few snapshots."""
    objective = fc.OBJECTIVES[name]
    if settings:
        objective = replace(objective, **settings)  # type: ignore[type-var]  # all of ours are dataclasses
    recipe = objective.recipe
    kind = getattr(recipe.source, "func", recipe.source)
    if kind is Pool:
        recipe = replace(recipe, source=partial(Pool, size=POOL))
    elif kind is Trajectories:
        recipe = replace(recipe, source=partial(Trajectories, experts=1, latest=0, interval=5))
    loop = prepare(data, 10, objective, "pixels", network=NETWORK, recipe=recipe)
    for _ in range(POOL):
        loop.step()
    return loop


def steps() -> dict[str, Any]:
    train, _ = fc.load_data("fashion-mnist")
    loops: dict[str, Callable[[], Any]] = {name: warm(name, train).step for name in fc.OBJECTIVES}
    for name, (loss, per_class) in NAIVE.items():
        loops[f"naive {name}"] = Naive(train, 0, loss, per_class).step
    operations = {}
    for name, step in loops.items():
        with FlopCounterMode(display=False) as counter:
            step()
        operations[name] = counter.get_total_flops()
    times: dict[str, list[float]] = {name: [] for name in loops}
    inner = dict.fromkeys(loops, 1)
    for name, step in loops.items():  # about half a second a turn
        began = time.process_time()
        step()
        inner[name] = max(1, min(20, int(0.5 / (time.process_time() - began))))
    for _ in range(REPEATS):
        for name, step in loops.items():
            began = time.process_time()
            for _ in range(inner[name]):
                step()
            times[name].append((time.process_time() - began) / inner[name])
    peak = convolution_peak()["GFLOP/s"]["convolution"]
    rows = {}
    for name in fc.OBJECTIVES:
        middle = statistics.median(times[name])
        rows[name] = {
            "iterations_per_s": round(1 / middle, 2),
            "gflop": round(operations[name] / 1e9, 2),
            "share_of_peak": round(operations[name] / middle / 1e9 / peak, 3),
        }
        if name in NAIVE:
            ratios = sorted(a / b for a, b in zip(times[f"naive {name}"], times[name], strict=True))
            rows[name]["naive / ours"] = [round(x, 2) for x in (ratios[0], statistics.median(ratios), ratios[-1])]
    return {"convolution_gflops": peak, "rows": rows}


def windows(size: int) -> Callable[[], dict[str, Any]]:
    """Measure an N-step match by each way of finding its gradient, and how far the direct part is from the whole."""

    def compute() -> dict[str, Any]:
        train, _ = fc.load_data("fashion-mnist")
        found: dict[str, Any] = {}
        gradients = {}
        for method in ("unroll", "recompute", "direct"):
            loop = warm("mtt", train, window=size, gradient=method)
            began = time.process_time()
            loop.step()
            found[method] = {"seconds": round(time.process_time() - began, 3), "MB": alone("mtt", size, method)}
            gradients[method] = gradient_of(train, size, method)
        for method in ("recompute", "direct"):
            a, b = gradients[method], gradients["unroll"]
            found[method]["cosine"] = round(float(F.cosine_similarity(a, b, dim=0)), 6)
            found[method]["norm_ratio"] = round(float(a.norm() / b.norm()), 4)
        return found

    return compute


def gradient_of(data: Data, size: int, method: str) -> torch.Tensor:
    """Return the gradient in the images at the start of a run, the same draw for all methods."""
    objective = TrajectoryMatching(window=size, gradient=method)
    recipe = replace(objective.recipe, source=partial(Trajectories, experts=1, latest=0, interval=5, seed=0))
    loop = prepare(data, 10, objective, "pixels", network=NETWORK, recipe=recipe)
    loop.step()
    gradient = loop.codes["images"].grad
    assert gradient is not None
    return gradient.flatten()


def alone(name: str, *settings: Any) -> float:
    command = [sys.executable, __file__, "memory", name, *map(str, settings)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def memory(name: str, *settings: str) -> None:
    """Print the peak of two steps of an objective beyond what the process held, in MB."""
    train, _ = fc.load_data("fashion-mnist")
    if name.startswith("naive "):
        loss, per_class = NAIVE[name.removeprefix("naive ")]
        step: Callable[[], Any] = Naive(train, 0, loss, per_class).step
    elif name == "pool":
        recipe = replace(fc.OBJECTIVES["dm-ridge"].recipe, source=partial(Pool, size=max(1, int(settings[0]))))
        loop = prepare(train, 10, "dm-ridge", "pixels", network=NETWORK, recipe=recipe)
        before = resident("VmRSS")
        for _ in range(int(settings[0])):
            loop.step()
        print(round((resident("VmRSS") - before) / 1000, 1))
        return
    else:
        told = {"window": int(settings[0]), "gradient": settings[1]} if settings else {}
        step = warm(name, train, **told).step
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the warm steps freed would serve these two unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of what came before
    before = resident("VmRSS")
    step()
    step()
    print(round((resident("VmHWM") - before) / 1000, 1))


def figure() -> None:
    """Draw memory over the inner steps, and over the size of a pool."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = read(PATH)
    drawing, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for method, label in (("unroll", "unrolled (mtt)"), ("recompute", "recomputed"), ("direct", "direct (tesla)")):
        found = [(n, results[key][method]["MB"]) for n in WINDOWS if (key := f"window {n:02d}") in results]
        left.plot(*zip(*found, strict=True), marker="o", label=label)
    left.set(xlabel="inner steps N", ylabel="MB beyond what was held", title="Trajectory matching", xscale="log")
    left.set_xticks(WINDOWS, [str(n) for n in WINDOWS])
    left.minorticks_off()
    left.legend()
    found = [(n, results[key]["MB"]) for n in POOLS if (key := f"pool {n:03d}") in results]
    right.plot(*zip(*found, strict=True), marker="o")
    right.set(xlabel="entries of the pool", ylabel="MB", title="dm-ridge: networks and what was observed")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_ylim(bottom=0)
    drawing.savefig(RESULTS / "memory.png", dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "windows", "pools", "figure", "memory"])
    parser.add_argument("rest", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    if arguments.what == "memory":
        memory(*arguments.rest)
    elif arguments.what == "figure":
        figure()
    elif arguments.what == "steps":
        cells = {"steps": steps}
        names = [*fc.OBJECTIVES, *(f"naive {name}" for name in NAIVE)]
        cells |= {f"memory {name}": lambda name=name: {"MB": alone(name)} for name in names}  # type: ignore[misc]
    elif arguments.what == "windows":
        cells = {f"window {size:02d}": windows(size) for size in WINDOWS}
    else:
        cells = {f"pool {size:03d}": lambda size=size: {"MB": alone("pool", size)} for size in POOLS}  # type: ignore[misc]
    run_cells(PATH, cells)


if __name__ == "__main__":
    main()
