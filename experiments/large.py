"""Large budgets: what to put into a file where coded real images lead condensed ones.

    python experiments/large.py --float32             # the rows that held-out images chose, on the test images
    python experiments/large.py --float32 --held-out  # the same, seed 0, on the last 10,000 training images
    python experiments/large.py --table               # Markdown, from what is there

ConvNet-3 width 32, 1,000 steps of 64 images, last step, hard labels, one thread. Real images are drawn by chance, as
many as the budget holds beside the ready set (`zoo.py`, 10 images per class, two CPU minutes) where a row
has one; bytes are those of the file. Seeds 0 to 2 are of the draw and of the network; held out: seed 0. Resumes.
`results/large-tried.json` keeps what was tried on the same held-out images by prototypes that lost and are not kept.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision
from zoo import original

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.training.fit import Fit

PATH, TRIED_PATH = RESULTS / "large.json", RESULTS / "large-tried.json"
NETWORK, STEPS, SEEDS, HELD_OUT = "convnet3-w32", 1000, (0, 1, 2), 10_000
BUDGETS = {"cifar10": 307_200, "fashion-mnist": 78_400}

CHOSEN = (  # data, the codec of the ready set or none, the codec of the real images
    ("cifar10", "bits-1", "jpeg-15"),
    ("fashion-mnist", "bits-2", "webp-20"),
    ("cifar10", "", "jpeg-10"),
    ("fashion-mnist", "", "webp-20"),
)


def load(name: str, held_out: bool) -> tuple[Data, Data]:
    """Return what is drawn from, and what is tested on."""
    train, test = fc.load_data(name)
    if not held_out:
        return train, test
    first, last = torch.arange(len(train)).split([len(train) - HELD_OUT, HELD_OUT])
    return (Data(train.images[rows], train.labels[rows], train.spec) for rows in (first, last))  # type: ignore[return-value]


def filled(train: Data, ready: fc.SyntheticSet | None, codec: str, budget: int, seed: int) -> fc.SyntheticSet:
    """Return a set of at most `budget` bytes: a condensed one, if any, and as many real images as fit beside it."""

    def joined(per_class: int) -> fc.SyntheticSet:
        real = fc.select(train, per_class, "random", seed=seed).recode(codec)
        return real if ready is None else fc.SyntheticSet.join([ready, real])

    fixed = ready.nbytes if ready is not None else 0
    per_class, most = 100, int(train.counts.min())
    for _ in range(4):  # bytes are all but proportional to images
        size = joined(per_class).nbytes
        per_class = min(most, int(per_class * (budget - fixed) / (size - fixed)))
    while per_class > 1 and joined(per_class).nbytes > budget:
        per_class -= 1
    while per_class < most and joined(per_class + 1).nbytes <= budget:
        per_class += 1
    return joined(per_class)


def row(data: str, condensed: str, real: str, seed: int, held_out: bool) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = load(data, held_out)
        ready = original(f"{data}-ipc10").recode(condensed) if condensed else None
        synthetic = filled(train, ready, real, BUDGETS[data], seed)
        result = fc.evaluate(synthetic, test, network=NETWORK, recipe=Fit(steps=STEPS), seeds=[seed])
        return {"accuracy": result.accuracy, "nbytes": synthetic.nbytes, "images": len(synthetic)}

    return compute


def name_of(data: str, condensed: str, real: str, seed: int, held_out: bool) -> str:
    what = f"{condensed} condensed and {real} real" if condensed else f"{real} real"
    return f"{data} {BUDGETS[data]} {what} seed{seed}" + " held out" * held_out


def table(held_out: bool = False) -> str:
    """Return rows of all data sets."""
    results = read(PATH)
    lines = [
        "| data, budget | condensed, ready | real images | bytes | images | accuracy |",
        "|---|---|---|---|---|---|",
    ]
    for data, condensed, real in sorted(CHOSEN):
        cells = [results.get(name_of(data, condensed, real, seed, held_out)) for seed in SEEDS]
        found = [cell for cell in cells if cell]
        if found:
            accuracies = [cell["accuracy"] for cell in found]
            spread = f" ± {statistics.stdev(accuracies):.1f}" if len(found) > 1 else ""
            size, images = (round(statistics.fmean(cell[key] for cell in found)) for key in ("nbytes", "images"))
            lines.append(
                f"| {data}, {BUDGETS[data]:,} | {condensed} | {real} | {size:,} | {images:,} | "
                f"{statistics.fmean(accuracies):.1f}{spread} |"
            )
    return "\n".join(lines)


def tried() -> str:
    """Return what prototypes gave, one seed, on held-out training images."""
    lines = ["| data, steps of training | tried | images | bytes | accuracy |", "|---|---|---|---|---|"]
    for cell in read(TRIED_PATH)["rows"]:
        size = f"{cell['nbytes']:,}"
        lines.append(
            f"| {cell['data']}, {cell['steps']:,} | {cell['tried']} | {cell['images']:,} | {size} "
            f"| {cell['accuracy']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--held-out", action="store_true", help="test on training images, seed 0")
    parser.add_argument("--only", default="", help="cells whose name has this text")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(arguments.held_out), tried(), sep="\n\n")
        return
    logging.disable(logging.WARNING)
    held_out = arguments.held_out
    cells = {
        name_of(data, condensed, real, seed, held_out): row(data, condensed, real, seed, held_out)
        for data, condensed, real in CHOSEN
        for seed in (SEEDS[:1] if held_out else SEEDS)
    }
    run_at_precision(arguments, PATH, {k: v for k, v in cells.items() if arguments.only in k})


if __name__ == "__main__":
    main()
