"""How fast a step and an accuracy are reached, against the published loops written naively (`naive.py`).

    python experiments/speed.py steps        # ratios of a step, interleaved; peak memory; share of the convolution peak
    python experiments/speed.py accuracy     # CPU seconds to the accuracy that the naive loop reaches
    python experiments/speed.py replay       # time per iteration of Avalanche's replay with each memory, interleaved

Fashion-MNIST, 10 classes, 10 images per class, ConvNet-3 width 32, one thread, CPU time of the process. Ratios of the
naive median to ours, with their range over interleaved repeats. Writes results/speed.json.
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
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, run_cells
from loops import NETWORK, Naive, cached, fresh
from naive import (
    distribution_matching_loss,
    gradient_matching_loss,
)

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.gradient import GradientMatching
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Pool

REPEATS = 7


def variants(data: Data) -> dict[str, dict[str, Callable[[], Any]]]:
    dm = DistributionMatching(per_class=256)
    dsa = GradientMatching(per_class=64)
    return {
        "dm": {
            "naive": Naive(data, 0, distribution_matching_loss).step,
            "fresh": fresh(dm, data).step,
            "cached": cached(dm, data).step,
            "dm-ridge, cached": cached("dm-ridge", data).step,
        },
        "dsa": {
            "naive": Naive(data, 0, gradient_matching_loss, 64).step,
            "ours": fresh(dsa, data).step,
        },
    }


def steps(kind: str, precision: str) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, _ = fc.load_data("fashion-mnist")
        times: dict[str, list[float]] = {}
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            choices = variants(train)[kind]
            for repeat in range(REPEATS + 1):
                for name, step in choices.items():
                    inner = 1 if name in ("naive", "fresh", "ours") else 5
                    naive_precision = torch.autocast("cpu", enabled=precision == "bfloat16" and name != "naive")
                    began = time.process_time()
                    with naive_precision:
                        for _ in range(inner):
                            step()
                    if repeat:  # the first one warms up
                        times.setdefault(name, []).append((time.process_time() - began) / inner)
        result: dict[str, Any] = {"ms": {k: round(1000 * statistics.median(v), 1) for k, v in times.items()}}
        for name in times:
            if name != "naive":
                ratios = sorted(a / b for a, b in zip(times["naive"], times[name], strict=True))
                middle = statistics.median(times["naive"]) / statistics.median(times[name])
                result[f"naive / {name}"] = [round(x, 2) for x in (ratios[0], middle, ratios[-1])]
        return result

    return compute


def peak_memory(kind: str, name: str) -> Callable[[], dict[str, Any]]:
    """Measure in a process of its own: the peak of two steps beyond what it held before them (Linux)."""

    def compute() -> dict[str, Any]:
        command = [sys.executable, __file__, "memory", kind, name]
        return {"MB": float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)}

    return compute


def memory(kind: str, name: str) -> None:
    train, _ = fc.load_data("fashion-mnist")
    step = variants(train)[kind][name]
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what was freed before would serve these two unseen
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak of loading
    before = resident("VmRSS")
    step()
    step()
    print(round((resident("VmHWM") - before) / 1000, 1))


def resident(field: str) -> int:
    """Return a number of kB from the kernel's account of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def convolution_peak() -> dict[str, Any]:
    """Compare the arithmetic of a cached step with what large matrix products and the same convolutions alone reach."""
    train, _ = fc.load_data("fashion-mnist")
    loop = cached(DistributionMatching(per_class=256), train)
    flops = 2 * 100 * 2 * 9 * (1 * 32 * 32 * 32 + 32 * 32 * 16 * 16 + 32 * 32 * 8 * 8)  # forward and input gradient
    matrix = torch.randn(1024, 1024)
    middle, weights = torch.randn(20, 32, 16, 16), torch.randn(32, 32, 3, 3)

    def rate(run: Callable[[], Any], operations: float, repeats: int) -> float:
        run()
        began = time.process_time()
        for _ in range(repeats):
            run()
        return repeats * operations / (time.process_time() - began) / 1e9

    found: dict[str, list[float]] = {"step": [], "matmul": [], "convolution": []}
    with torch.no_grad():
        for _ in range(5):
            with torch.enable_grad():
                found["step"].append(rate(loop.step, flops, 5))
            found["matmul"].append(rate(lambda: matrix @ matrix, 2 * 1024**3, 10))
            once = 2 * 9 * 20 * 32 * 32 * 16 * 16
            found["convolution"].append(rate(lambda: torch.conv2d(middle, weights, padding=1), once, 50))
    gigaflops = {name: statistics.median(values) for name, values in found.items()}
    return {"GFLOP/s": {k: round(v, 1) for k, v in gigaflops.items()}} | {
        "share of the convolution peak": round(gigaflops["step"] / gigaflops["convolution"], 3),
        "share of the matrix peak": round(gigaflops["step"] / gigaflops["matmul"], 3),
    }


def to_accuracy(seed: int) -> Callable[[], dict[str, Any]]:
    """Follow naive DM, plain DM and `dm-ridge` on a pool: (CPU seconds, accuracy) at growing budgets."""

    def compute() -> dict[str, Any]:
        train, test = fc.load_data("fashion-mnist")
        curves: dict[str, list[list[float]]] = {"naive": [], "dm": [], "dm-ridge": []}

        def note(name: str, seconds: float, synthetic: SyntheticSet) -> None:
            accuracy = fc.evaluate(synthetic, test, network=NETWORK, seeds=range(2)).accuracy
            curves[name].append([round(seconds, 1), round(accuracy, 2)])

        naive, spent = Naive(train, seed, distribution_matching_loss), 0.0
        for target in (30, 60, 120):
            began = time.process_time()
            while naive.steps < target:
                naive.step()
            spent += time.process_time() - began
            note("naive", spent, naive.finished())
        for name in ("dm", "dm-ridge"):
            recipe = fc.OBJECTIVES[name].recipe
            for number, size in ((20, 8), (40, 12), (80, 16), (160, 32), (320, 48)):
                began = time.process_time()
                short = replace(recipe, steps=number, source=partial(Pool, size=size), lr=max(recipe.lr, 0.03))
                synthetic = fc.condense(train, 10, _few(name), network=NETWORK, seed=seed, recipe=short)
                note(name, time.process_time() - began, synthetic)
                if curves[name][-1][1] > curves["naive"][-1][1] + 1:
                    break
        best = max(accuracy for _, accuracy in curves["naive"])
        first = next(s for s, accuracy in curves["naive"] if accuracy == best)
        result: dict[str, Any] = {"curves": curves, "accuracy": best}
        for name in ("dm", "dm-ridge"):
            reached = [s for s, accuracy in curves[name] if accuracy >= best]
            result[f"naive / {name}"] = round(first / reached[0], 2) if reached else None
        return result

    return compute


def replay() -> dict[str, Any]:
    """Time iterations of 128 images of the stream and 64 of a memory of 100 plain ones, in the second experience."""
    from avalanche.core import SupervisedPlugin
    from avalanche.training import Naive
    from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin
    from avalanche.training.storage_policy import ClassBalancedBuffer

    from fedcondense.avalanche import CondensedBuffer, CondensedReplayPlugin, split_benchmark
    from fedcondense.memory import Condenser, Selector
    from fedcondense.networks import ConvNet

    class Clock(SupervisedPlugin):  # type: ignore[misc]
        """Notes when iterations begin."""

        def __init__(self) -> None:
            super().__init__()
            self.times: list[float] = []

        def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
            self.times.append(time.process_time())

    train, test = fc.load_data("fashion-mnist")
    train = train.subset(train.per_class(2000, torch.Generator().manual_seed(0)))
    first, second = split_benchmark(train, test).train_stream[:2]
    quick = Condenser(steps=1)
    buffers: dict[str, Callable[[], Any]] = {
        "stock": lambda: ClassBalancedBuffer(100),
        "stock, condensed": lambda: CondensedBuffer(400, condenser=quick),
        "ours, real": lambda: CondensedBuffer(100, condenser=Selector()),
        "ours, condensed": lambda: CondensedBuffer(400, condenser=quick),
    }
    medians: dict[str, list[float]] = {name: [] for name in buffers}
    for _ in range(REPEATS):
        for name, make in buffers.items():
            buffer, clock = make(), Clock()
            if name.startswith("stock"):
                plugin: Any = ReplayPlugin(buffer.max_size, batch_size_mem=64, storage_policy=buffer)
            else:
                plugin = CondensedReplayPlugin(storage_policy=buffer, batch_size_mem=64)
            torch.manual_seed(0)
            model = ConvNet(train.spec.shape, 10, 32, 3, "group")
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            criterion = torch.nn.CrossEntropyLoss()
            told = {"train_mb_size": 128, "train_epochs": 1, "evaluator": EvaluationPlugin()}
            strategy = Naive(model=model, optimizer=optimizer, criterion=criterion, plugins=[plugin, clock], **told)
            strategy.train(first)
            clock.times.clear()
            strategy.train(second)
            medians[name].append(statistics.median(b - a for a, b in pairwise(clock.times)))
    stock = medians.pop("stock")
    result: dict[str, Any] = {"stock_ms": round(1000 * statistics.median(stock), 1)}
    for name, values in medians.items():
        ratios = sorted(value / base for value, base in zip(values, stock, strict=True))
        result[f"{name} / stock"] = [round(r, 3) for r in (ratios[0], statistics.median(ratios), ratios[-1])]
    return result


def _few(name: str) -> Any:
    return DistributionMatching(per_class=64) if name == "dm" else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["steps", "accuracy", "memory", "replay"])
    parser.add_argument("rest", nargs="*")
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.what == "memory":
        memory(*arguments.rest)
        return
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    if arguments.what == "replay":
        cells = {"replay": replay}
    elif arguments.what == "steps":
        cells = {f"step {kind} {p}": steps(kind, p) for kind in ("dm", "dsa") for p in ("float32", "bfloat16")}
        names = [("dm", name) for name in ("naive", "fresh", "cached", "dm-ridge, cached")]
        names += [("dsa", "naive"), ("dsa", "ours")]
        cells |= {f"memory {kind} {name}": peak_memory(kind, name) for kind, name in names}
        cells["convolution peak"] = convolution_peak
    else:
        cells = {f"accuracy seed{seed}": to_accuracy(seed) for seed in arguments.seeds}
    run_cells(RESULTS / "speed.json", cells)


if __name__ == "__main__":
    main()
