"""Sites of different domains: MNIST, five sites, each of which sees its digits turned by another angle.

    python experiments/turned.py --float32    # results/turned.json, resumes; about 7 CPU minutes a seed
    python experiments/turned.py --table

Each site holds 2,000 training images of all classes, turned by 0, 18, 36, 54 or 72 degrees; it is tested on 2,000
test images turned by as much, and a row's accuracy is that over all 10,000. Sets take 4 kB a site, 100 steps, in what
bits the rate rule chooses; all rows train a ConvNet-3 width 32. A site alone trains on all its records and is tested
on all angles, which is what it would meet elsewhere.
"""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision
from torchvision.transforms.functional import InterpolationMode, rotate

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.flower import Condense, LocalTraining, Measured, federate

PATH = RESULTS / "turned.json"
ANGLES, EACH = (0, 18, 36, 54, 72), 2000
ROWS = ["one-shot", "random-real", "anchored-2", "fedavg-5", "local-only"]
SEEDS = (0, 1, 2)


def turned(data: Data, seed: int) -> tuple[Data, tuple[torch.Tensor, ...]]:
    """Return as many images a site, turned by its angle, and whose is which."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[: EACH * len(ANGLES)]
    drawn = data.subset(order)
    pieces = [
        rotate(images, angle, InterpolationMode.BILINEAR)
        for images, angle in zip(drawn.images.split(EACH), ANGLES, strict=True)
    ]
    return Data(torch.cat(pieces), drawn.labels, drawn.spec), torch.arange(len(order)).split(EACH)


def cell(seed: int) -> dict[str, Any]:
    train, test = fc.load_data("mnist")
    held, sites = turned(train, seed)
    counts = torch.stack([torch.bincount(held.labels[index], minlength=10) for index in sites])
    names = tuple(f"turned-by-{angle}" for angle in ANGLES)
    division = fc.Partition(sites, counts, held.spec.name, held.spec.classes, "sites", {"turned": list(ANGLES)}, names)
    result = federate(
        held,
        turned(test, seed)[0],
        division,
        asked=Condense(budget=4000, parametrization="", steps=100, seed=seed),
        rows=ROWS,
        measured=Measured(seeds=(seed,), fedavg_grid=(LocalTraining(0.05),)),
    )
    kept = ("accuracy", "bytes_up", "bytes_down")
    return {name: {key: row[key] for key in kept} for name, row in result.rows.items()}


def table() -> str:
    """Return a row per strategy as Markdown, the highest accuracy first."""
    cells = list(read(PATH).values())
    lines = list[tuple[float, str]]()
    for name in ROWS:
        values = [one[name]["accuracy"] for one in cells]
        up, down = (statistics.fmean(one[name][way] for one in cells) / 1000 for way in ("bytes_up", "bytes_down"))
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        mean = statistics.fmean(values)
        lines.append((mean, f"| {name} | {up:.1f} | {down:.1f} | {mean:.1f}{spread} | {len(values)} |"))
    head = "| row | kB up | kB down | accuracy on all angles | seeds |\n|---|---|---|---|---|"
    return "\n".join([head, *(text for _, text in sorted(lines, reverse=True))])


def main() -> None:
    parser = command(__doc__)
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    run_at_precision(arguments, PATH, {f"seed {seed}": partial(cell, seed) for seed in SEEDS})


if __name__ == "__main__":
    main()
