"""What each part of `dm-ridge` buys: rows that leave one part out, or put another in its place.

    python experiments/ablation.py --ipc 1                # Fashion-MNIST and CIFAR-10, resumes; results/ablation.json
    python experiments/ablation.py --ipc 10 50 --data cifar10 --seeds 0 1 2
    python experiments/ablation.py --table

"all" is `dm-ridge` on multi-formation of factor 2 with a pool of 96 draws, started from class Gaussians. ConvNet-3
width 32, features in bfloat16, one thread, two networks a set, last step, all test images. Rows of a size take
equal steps, except for fresh networks: they pass real images in every step, and take a quarter of the steps. "kernel
means" is the objective and step size of `mmd-ridge`.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.contract import NetworkFactory, Objective
from fedcondense.objectives.features import Sum
from fedcondense.objectives.ridge import means_and_ridge
from fedcondense.sources import Fresh, Pool

PATH = RESULTS / "ablation.json"
DATA = ("fashion-mnist", "cifar10")
SEEDS = (0, 1, 2)
NETWORK = "convnet3-w32"
STEPS = {1: 400, 10: 300, 50: 60}


def without_augmentation(build: NetworkFactory, operations: tuple[str, ...], classes: int) -> Pool:
    return Pool(build, (), classes)


ALL = means_and_ridge()
KERNEL = fc.OBJECTIVES["mmd-ridge"]
FULL_WEIGHT = "means at full weight"  # at 10 images per class and more, that is "all"


@dataclass(frozen=True)
class Row:
    """A departure from the whole."""

    objective: Objective = ALL
    storage: str = "multi-formation"
    source: Any = ALL.recipe.source
    start: str = "gaussian"
    lr: float = ALL.recipe.lr
    steps: float = 1.0  # as a share


ROWS = {
    "all": Row(),
    "pixels": Row(storage="pixels"),
    "without the regression": Row(ALL.terms[0]),
    "without the means": Row(ALL.terms[1]),
    FULL_WEIGHT: Row(Sum(ALL.terms, ALL.weights)),
    "kernel means": Row(KERNEL, lr=KERNEL.recipe.lr),
    "without augmentation": Row(source=without_augmentation),
    "24 draws": Row(source=partial(Pool, size=24)),
    "fresh networks": Row(source=Fresh, steps=0.25),
    "from noise": Row(start="noise"),
    "from real images": Row(start="real"),
}


def row(data: str, ipc: int, name: str, seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data(data)
        how = ROWS[name]
        steps = max(1, round(how.steps * STEPS[ipc]))
        recipe = replace(ALL.recipe, steps=steps, lr=how.lr, source=how.source, start=how.start)
        began = time.process_time()
        synthetic = fc.condense(train, ipc, how.objective, how.storage, network=NETWORK, seed=seed, recipe=recipe)
        spent = time.process_time() - began
        found = fc.evaluate(synthetic, test, network=NETWORK, seeds=(2 * seed, 2 * seed + 1))
        accuracies = [round(a, 2) for a in found.accuracies]
        return {"accuracies": accuracies, "steps": steps, "cpu_condense_s": round(spent, 1)}

    return compute


def name_of(data: str, ipc: int, name: str, seed: int) -> str:
    return f"{data} ipc{ipc:02d} {name} seed{seed}"


def table() -> str:
    results = read(PATH)
    lines = [
        "| data | images per class | row | accuracy | CPU s per set | steps | sets |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in DATA:
        for ipc in STEPS:
            for name in ROWS:
                cells = [results[key] for seed in SEEDS if (key := name_of(data, ipc, name, seed)) in results]
                if cells:
                    accuracies = [a for cell in cells for a in cell["accuracies"]]
                    score = f"{statistics.fmean(accuracies):.1f} ± {statistics.stdev(accuracies):.1f}"
                    seconds = statistics.fmean(cell["cpu_condense_s"] for cell in cells)
                    counts = f"{cells[0]['steps']} | {len(cells)}"
                    lines.append(f"| {data} | {ipc} | {name} | {score} | {seconds:.0f} | {counts} |")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--ipc", nargs="+", type=int, choices=STEPS, default=list(STEPS))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells = {
        name_of(data, ipc, name, seed): row(data, ipc, name, seed)
        for ipc in arguments.ipc
        for seed in arguments.seeds
        for data in arguments.data
        for name in arguments.rows
        if name != FULL_WEIGHT or ipc == 1
    }
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
