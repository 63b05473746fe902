"""One data holder: accuracy at 1, 10 and 50 images per class against the controls at equal bytes.

    python experiments/central.py                 # all cells but DSA, resumes; results/central.json
    python experiments/central.py --only dsa
    python experiments/central.py --longer        # networks trained for 1,000 steps, 10 images per class
    python experiments/central.py --longer --only "mmd and ridge 1 : 3, 600 steps" --seeds 3 4 5 6 7 8
    python experiments/central.py --longer --only mmd-ridge --data fashion-mnist --seeds 9 10 11 12 13 14
    python experiments/central.py --table         # the Markdown table, from what is there

ConvNet-3 width 32, features in bfloat16 (autocast) for every row, one thread. Three sets a row (seeds 0 to 2), one
network each, 400 steps, last step, all test images. Distilled sets start from class Gaussians and hold no real image.
Steps are chosen so that a set takes about a minute of one CPU core, and two where the row names its steps
(`cpu_condense_s` says what it took on a shared machine).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.objectives.features import Sum
from fedcondense.objectives.gradient import GradientMatching
from fedcondense.objectives.mmd import KernelMeans
from fedcondense.objectives.ridge import RidgeRegression
from fedcondense.training.fit import Fit

DATA = ("fashion-mnist", "mnist", "cifar10")
IPC = (1, 10, 50)
SEEDS = (0, 1, 2)
UNSEEN = (
    (3, 4, 5),
    (6, 7, 8),
    (9, 10, 11),
    (12, 13, 14),
)  # weights were chosen on none, 720 steps on 9 to 11
NETWORK = "convnet3-w32"

CONTROLS = tuple((name, "pixels") for name in ("random", "herding", "k-means", "half-resolution"))
TRAINED, LONGER = 400, 1000  # steps of the networks that are tested

OBJECTIVES = {
    **fc.OBJECTIVES,
    "dsa": GradientMatching(per_class=64),  # a quarter of the published real images: 2 to 3 minutes a set
    "mmd and ridge 1 : 3": Sum((KernelMeans(), RidgeRegression()), (1.0, 3.0)),
}
MIXED = "mmd and ridge 1 : 3, 600 steps"

STEPS = {  # by objective, parametrization and images per class
    ("dm-ridge", "pixels"): {1: 1200, 10: 1200, 50: 300},
    ("dm-ridge", "multi-formation"): {1: 1000, 10: 300, 50: 60},
    ("dm-ridge, 600 steps", "multi-formation"): {10: 600},
    (MIXED, "multi-formation"): {10: 600},
    ("mmd-ridge", "pixels"): {1: 1000, 10: 1000, 50: 300},
    ("mmd-ridge", "multi-formation"): {10: 720},
    ("dm", "pixels"): {1: 1200, 10: 1200, 50: 300},
    ("dsa", "pixels"): {1: 300, 10: 300},
}


def row(data: str, ipc: int, method: str, storage: str, seed: int, trained: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data(data)
        cpu = time.process_time()
        if method in fc.SELECTIONS:
            synthetic = fc.select(train, ipc, method, seed=seed)
        else:
            steps = STEPS[method, storage][ipc]
            objective = OBJECTIVES[method.partition(",")[0]]
            recipe = replace(objective.recipe, steps=steps, lr=0.04 if method in (MIXED, "mmd-ridge") else 0.02)
            synthetic = fc.condense(train, ipc, objective, storage, network=NETWORK, seed=seed, recipe=recipe)
        cpu = time.process_time() - cpu
        result = fc.evaluate(synthetic, test, network=NETWORK, recipe=Fit(steps=trained), seeds=[seed])
        return {
            "accuracy": result.accuracy,
            "nbytes": synthetic.nbytes,
            "images": len(synthetic),
            "steps": synthetic.record.steps,
            "cpu_condense_s": round(cpu, 1),
        }

    return compute


def methods(data: str, ipc: int, trained: int = TRAINED) -> list[tuple[str, str]]:
    if trained == LONGER:
        distilled = [(name, "multi-formation") for name in ("dm-ridge, 600 steps", MIXED, "mmd-ridge")]
        return [*CONTROLS, *distilled] if data != "mnist" and ipc == 10 else []
    distilled = [("dm", "pixels"), ("dm-ridge", "pixels"), ("mmd-ridge", "pixels")]
    if data == "cifar10" or (data == "fashion-mnist" and ipc < 50):
        distilled.append(("dm-ridge", "multi-formation"))
        if ipc == 10:
            distilled.append(("dm-ridge, 600 steps", "multi-formation"))
    if ipc < 50:
        distilled.append(("dsa", "pixels"))
    return [*CONTROLS, *distilled]


def name_of(data: str, ipc: int, method: str, storage: str, seed: int, trained: int = TRAINED) -> str:
    return f"{data} ipc{ipc:02d} {method} {storage} seed{seed}" + f" trained {trained}" * (trained != TRAINED)


def table(path: Path, trained: int = TRAINED) -> str:
    results = read(path)
    lines = [
        "| data | images per class | bytes | row | accuracy | CPU s per set | sets |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in DATA:
        for ipc in IPC:
            rows = [(*row, seeds) for row in methods(data, ipc, trained) for seeds in (SEEDS, *UNSEEN)]
            for method, storage, seeds in rows:
                cells = [results.get(name_of(data, ipc, method, storage, seed, trained)) for seed in seeds]
                found = [cell for cell in cells if cell]
                if found:
                    accuracies = [cell["accuracy"] for cell in found]
                    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(found) > 1 else ""
                    name = f"{method}, factor 2" if storage == "multi-formation" else method
                    name += "" if seeds == SEEDS else f", sets {seeds[0]} to {seeds[-1]}"
                    cpu = statistics.fmean(cell["cpu_condense_s"] for cell in found)
                    mean = statistics.fmean(accuracies)
                    size = round(statistics.fmean(cell["nbytes"] for cell in found))
                    lines.append(
                        f"| {data} | {ipc} | {size:,} | {name} | {mean:.1f}{spread} | {cpu:.0f} | {len(found)} |"
                    )
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--data", nargs="+", default=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--ipc", nargs="+", type=int, default=IPC)
    parser.add_argument("--only", help="one method; dsa runs when it is asked for")
    parser.add_argument("--longer", action="store_true", help=f"train for {LONGER} steps instead of {TRAINED}")
    parser.add_argument("--output", type=Path, default=RESULTS / "central.json")
    arguments = parser.parse_args()
    trained = LONGER if arguments.longer else TRAINED
    if arguments.table:
        print(table(arguments.output, trained))
        return
    cells = {
        name_of(data, ipc, method, storage, seed, trained): row(data, ipc, method, storage, seed, trained)
        for seed in arguments.seeds
        for data in arguments.data
        for ipc in arguments.ipc
        for method, storage in methods(data, ipc, trained)
        if (method == "dsa") == (arguments.only == "dsa") and arguments.only in (None, method)
    }
    run_at_precision(arguments, arguments.output, cells)


if __name__ == "__main__":
    main()
