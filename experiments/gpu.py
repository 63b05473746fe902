"""On a GPU: the published width on CIFAR-10, and what a step takes there.

    python experiments/gpu.py speed               # a step against the published loops, eager and as a graph
    python experiments/gpu.py accuracy            # one set a row, five networks; resumes; results/gpu.json
    python experiments/gpu.py --table

CIFAR-10, 10 images per class, ConvNet-3 width 128, features in bfloat16. Networks are trained on a set as published:
1,000 steps of at most 256 images (2,000 for the 400 images of factor 2), step size 0.01 and a tenth of it from half
way, one augmentation an image, last step; sets of factor 2 also for 1,000 epochs in batches of 64, half of them mixed
by CutMix, as their methods are published. `dm` is the published recipe (20,000 steps from real images, SGD) on a pool
of a thousand networks; other distilled rows start from class Gaussians, `dm-ridge` sees 256 real images of a class.
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from cells import RESULTS, read, run_cells
from loops import Naive
from naive import distribution_matching_loss, gradient_matching_loss

import fedcondense as fc
from fedcondense.condensing import prepare
from fedcondense.condensing.loop import Loop
from fedcondense.contract import Objective, Recipe
from fedcondense.data.images import Data
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import Sum
from fedcondense.objectives.gradient import AbsoluteGradientMatching, GradientMatching
from fedcondense.objectives.mmd import KernelMeans
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge
from fedcondense.sources import Fresh, Pool, TrainedOnReal, TrainedPool
from fedcondense.training import PROTOCOLS

PATH = RESULTS / "gpu.json"
NETWORK = "convnet3-w128"
NETWORKS = 5
REPEATS = 5


@dataclass(frozen=True)
class Row:
    """A way to make a set: a selection of real images by its name, or an objective."""

    made: str | Objective
    recipe: Recipe | None = None
    storage: str = "pixels"


RIDGE = means_and_ridge(per_class=256)
KERNEL = fc.OBJECTIVES["mmd-ridge"]
IDC = AbsoluteGradientMatching()


def ridge(steps: int, storage: str = "multi-formation", age: int = 0) -> Row:
    return Row(
        RIDGE, replace(RIDGE.recipe, steps=steps, source=partial(TrainedPool, age=age) if age else Pool), storage
    )


def kernel_means(steps: int) -> Row:
    terms = (KernelMeans(per_class=256), RidgeRegression(per_class=256))
    return Row(Sum(terms, (1.0, 3.0)), replace(RIDGE.recipe, steps=steps, lr=0.04), "multi-formation")


def idc(steps: int, start: str) -> Row:
    source = partial(TrainedOnReal, outer=100, batches=8, cutmix=0.5)
    return Row(IDC, replace(IDC.recipe, steps=steps, source=source, start=start), "multi-formation")


ROWS = {
    "random": Row("random"),
    "half-resolution": Row("half-resolution"),
    "dm": Row(DistributionMatching(), replace(DistributionMatching.published, source=partial(Pool, size=1000))),
    "dsa": Row(GradientMatching(), replace(GradientMatching.recipe, steps=2000)),
    "dm-ridge": ridge(4000, "pixels"),
    "mmd-ridge": Row(KERNEL, replace(KERNEL.recipe, steps=4000)),
    "dm-ridge, factor 2": ridge(4000),
    "dm-ridge, factor 2, aged 400": ridge(4000, age=400),
    "mmd and ridge 1 : 3, factor 2": kernel_means(3000),
    "idc, factor 2": idc(900, "real"),
}


def row(name: str, seed: int, sets: Path | None) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = (part.to("cuda") for part in fc.load_data("cifar10"))
        how = ROWS[name]
        began = time.monotonic()
        if isinstance(how.made, str):
            synthetic = fc.select(train, 10, how.made, seed=seed)
        else:
            synthetic = fc.condense(train, 10, how.made, how.storage, network=NETWORK, seed=seed, recipe=how.recipe)
        torch.cuda.synchronize()
        seconds = time.monotonic() - began
        if sets is not None:
            synthetic.save(sets / f"{re.sub('[^a-z0-9]+', '-', name)}-seed{seed}.safetensors", overwrite=True)
        images = len(synthetic.decode().images)
        result = {
            "nbytes": synthetic.nbytes,
            "images": images,
            "steps": synthetic.record.steps,
            "seconds": round(seconds, 1),
            "device": torch.cuda.get_device_name(),
        }
        plain = PROTOCOLS["published"].recipe
        mixed = replace(plain, batch=64, cutmix=0.5)
        for key, fit in {"": plain, "cutmix_": mixed}.items():
            if key and images == 100:
                continue
            of_its_own = range(NETWORKS * seed, NETWORKS * (seed + 1))
            found = fc.evaluate(synthetic, test, network=NETWORK, recipe=fit, seeds=of_its_own)
            result[f"{key}accuracy"], result[f"{key}std"] = round(found.accuracy, 2), round(found.accuracy_std, 2)
            result[f"{key}evaluation_s"] = round(found.seconds, 1)
            print(name, key, result, flush=True)
        return result

    return compute


def speed() -> dict[str, Any]:
    """Time each loop's step in turns; every turn ends when the device has nothing left to do."""
    train = fc.load_data("cifar10").train.to("cuda")
    result: dict[str, Any] = {"device": torch.cuda.get_device_name()}
    for precision in ("float32", "bfloat16"):
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False):
            loops = variants(train)
            times: dict[str, list[float]] = {}
            for repeat in range(REPEATS + 1):
                for name, step in loops.items():
                    inner = 20 if "cached" in name else 2
                    torch.cuda.synchronize()
                    began = time.perf_counter()
                    for _ in range(inner):
                        step()
                    torch.cuda.synchronize()
                    if repeat:  # the first one warms up
                        times.setdefault(name, []).append((time.perf_counter() - began) / inner)
        found = result[precision] = {"ms": {name: round(1000 * statistics.median(t), 2) for name, t in times.items()}}
        pairs = [(name, naive) for name in loops if (naive := naive_of(name)) in loops]
        pairs += [(f"{name}, graph", name) for name in loops if f"{name}, graph" in loops]
        for ours, other in pairs:
            ratios = sorted(a / b for a, b in zip(times[other], times[ours], strict=True))
            found[f"{other} / {ours}"] = [round(x, 2) for x in (ratios[0], statistics.median(ratios), ratios[-1])]
    return result


def naive_of(name: str) -> str:
    return f"naive {name.partition(',')[0].split()[0]}"


def variants(data: Data) -> dict[str, Callable[[], Any]]:
    def loop(objective: Objective, source: Any, storage: str = "pixels", graph: bool = False) -> Loop:
        recipe = replace(objective.recipe, source=source)
        made = prepare(data, 10, objective, storage, network=NETWORK, recipe=recipe)
        made.graph = made.graph if graph else None
        for _ in range(4):
            made.step()
        return made

    pool = partial(Pool, size=4)
    dm = DistributionMatching()
    loops: dict[str, Callable[[], Any]] = {
        "naive dm": Naive(data, 0, distribution_matching_loss, width=128).step,
        "dm fresh": loop(dm, Fresh).step,
        "naive dsa": Naive(data, 0, gradient_matching_loss, width=128).step,
        "dsa": loop(GradientMatching(), Fresh).step,
        "dsa, graph": loop(GradientMatching(), Fresh, graph=True).step,
    }
    for name, storage in (("dm", "pixels"), ("dm-ridge", "pixels"), ("dm-ridge", "multi-formation")):
        objective = dm if name == "dm" else RIDGE
        key = f"{name} cached" + (" factor 2" if storage != "pixels" else "")
        loops[key] = loop(objective, pool, storage).step
        loops[f"{key}, graph"] = loop(objective, pool, storage, graph=True).step
    return loops


def table() -> str:
    results = read(PATH)
    lines = [
        "| row | bytes | images | steps | s per set | accuracy | with CutMix | sets |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ROWS:
        cells = [cell for key, cell in results.items() if key.rpartition(" seed")[0] == name]
        if cells:
            mean = {k: statistics.fmean(c[k] for c in cells) for k in ("seconds", "nbytes")}
            first, mixed = cells[0], [cell for cell in cells if "cutmix_accuracy" in cell]
            lines.append(
                f"| {name} | {mean['nbytes']:,.0f} | {first['images']} | {first['steps']:,} | {mean['seconds']:.0f} "
                f"| {_score(cells, '')} | {_score(mixed, 'cutmix_')} | {len(cells)} |"
            )
    return "\n".join(lines)


def _score(cells: list[dict[str, Any]], key: str) -> str:
    """Return the mean over sets and its spread; of a single set the spread of its networks."""
    if not cells:
        return ""
    accuracies = [cell[f"{key}accuracy"] for cell in cells]
    spread = statistics.stdev(accuracies) if len(cells) > 1 else cells[0][f"{key}std"]
    return f"{statistics.fmean(accuracies):.1f} ± {spread:.1f}"


def speeds() -> str:
    """Return what a step takes, in Markdown."""
    found = read(PATH)["speed"]
    lines = ["| step | float32, ms | bfloat16, ms | naive / ours, float32 |", "|---|---|---|---|"]
    for name in found["float32"]["ms"]:
        cells = [f"{found[precision]['ms'][name]:.1f}" for precision in ("float32", "bfloat16")]
        ratio = found["float32"].get(f"{naive_of(name)} / {name}", [])
        lines.append(f"| {name} | {' | '.join(cells)} | {' / '.join(map(str, ratio))} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", choices=["speed", "accuracy"], default="accuracy")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--output", type=Path, default=PATH)
    parser.add_argument("--sets", type=Path, help="a folder for the sets")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    torch.set_num_threads(1)
    if arguments.what == "speed":
        run_cells(arguments.output, {"speed": speed})
        return
    cells = {
        f"{name} seed{seed}": row(name, seed, arguments.sets) for seed in arguments.seeds for name in arguments.rows
    }
    with torch.autocast("cuda", torch.bfloat16, cache_enabled=False):
        run_cells(arguments.output, cells)


if __name__ == "__main__":
    main()
