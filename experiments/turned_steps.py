"""MNIST turned in twenty steps: one set of fixed size that domain after domain is condensed into, at one place.

    python experiments/turned_steps.py --float32    # results/turned_steps.json, resumes
    python experiments/turned_steps.py --table

The setting is that of domain-incremental dataset distillation (ASU: ICLR 2026): no domain is seen again, and after the
last the set alone trains a network, which is tested on all domains. Here: twenty domains of 3,000 training images each
(no image twice), turned by 9 degrees more each, 0 to 171; 500 test images of each. ConvNet-3 width 32, 1,000 steps on
the set, last step. Rows, all of 1 or 20 plain images per class (10 images at 28 x 28 are 7,840 bytes):

- memory: `Memory` condenses the stored images, each weighed by the records it stands for, and a domain's together;
- memory, four in one: the same with four images of half the side in the bytes of each (multi-formation);
- finetune: each domain alone, from the images that the one before has left;
- reservoir: random real images of all domains so far;
- joint: condensed once, of all domains.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision
from torchvision.transforms.functional import InterpolationMode, rotate

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.memory import Condenser, Memory, Selector

PATH = RESULTS / "turned_steps.json"
DOMAINS, DEGREES, EACH, TEST_EACH = 20, 9.0, 3000, 500
NETWORK, FIT = "convnet3-w32", fc.Fit(steps=1000)
SIZES, SEEDS = (1, 20), (0, 1, 2)
MADE = Condenser("dm-ridge", "pixels", NETWORK, steps=100)
MEMORIES: dict[str, Condenser | Selector] = {
    "memory": MADE,
    "memory, four in one": Condenser("dm-ridge", "multi-formation", NETWORK, steps=100),
    "reservoir": Selector("random"),
}
ROWS = ("joint", *MEMORIES, "finetune")
PUBLISHED = {  # accuracy at 1 and 20 images per class, as printed in that paper
    "joint": (80.2, 91.5),
    "ASU": (58.6, 59.0),
    "finetune": (38.9, 41.9),
}


def _turned(data: Data, each: int, seed: int) -> list[Data]:
    """Return as many images for each domain, turned by its angle; no image is in two."""
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    pieces = [data.subset(index) for index in order[: each * DOMAINS].split(each)]
    return [
        Data(rotate(piece.images, DEGREES * k, InterpolationMode.BILINEAR), piece.labels, piece.spec)
        for k, piece in enumerate(pieces)
    ]


def _joined(domains: Sequence[Data]) -> Data:
    return Data(torch.cat([one.images for one in domains]), torch.cat([one.labels for one in domains]), domains[0].spec)


@lru_cache(1)
def load(seed: int) -> tuple[list[Data], Data]:
    """Return the training images of each domain, and the test images of all."""
    train, test = fc.load_data("mnist")
    return _turned(train, EACH, seed), _joined(_turned(test, TEST_EACH, seed))


def remembered(make: Condenser | Selector, ipc: int, domains: Sequence[Data], seed: int) -> fc.SyntheticSet:
    memory = Memory(10 * ipc, make, groups=10, seed=seed)
    for domain in domains:
        memory.add(domain)
    kept = memory.synthetic
    assert kept is not None
    return kept


def condensed(ipc: int, data: Data, seed: int, before: fc.SyntheticSet | None = None) -> fc.SyntheticSet:
    """Condense as the memory does, of one domain or of all at once; from the images of a set, if there is one."""

    def start(data: Data, counts: list[int], generator: torch.Generator) -> torch.Tensor:
        assert before is not None
        return before.pixels().images

    begin: Any = MADE.start if before is None else start
    how: dict[str, Any] = {"network": NETWORK, "steps": MADE.steps, "seed": seed, "start": begin}
    return fc.condense(data, ipc, MADE.objective, MADE.parametrization, **how)


def cell(row: str, ipc: int, seed: int) -> dict[str, Any]:
    domains, test = load(seed)
    if row in MEMORIES:
        made = remembered(MEMORIES[row], ipc, domains, seed)
    elif row == "joint":
        made = condensed(ipc, _joined(domains), seed)
    else:
        made = condensed(ipc, domains[0], seed)
        for k, domain in enumerate(domains[1:], 1):
            made = condensed(ipc, domain, seed + 1000 * k, made)
    found = fc.evaluate(made, test, network=NETWORK, recipe=FIT, seeds=(seed,))
    return {"accuracy": round(found.accuracy, 3), "images": len(made), "bytes": made.nbytes}


def table() -> str:
    """Return a row per way as Markdown, the highest accuracy at 20 images per class first."""
    results, lines = read(PATH), list[tuple[float, str]]()
    for row in ROWS:
        texts, last, seeds = [], 0.0, 0
        for ipc in SIZES:
            found = [results[key] for seed in SEEDS if (key := f"{row} | {ipc} | seed {seed}") in results]
            values = [one["accuracy"] for one in found]
            seeds, last = max(seeds, len(values)), statistics.fmean(values) if values else 0.0
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            texts += [f"{last:.1f}{spread}", f"{found[0]['bytes'] / 1000:.1f}"] if values else ["", ""]
        if seeds:
            lines.append((last, f"| {row} | {' | '.join(texts)} | {seeds} |"))
    head = "| row | 1 per class | kB | 20 per class | kB | seeds |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(text for _, text in sorted(lines, reverse=True))])


def published() -> str:
    """Return the paper's figures as Markdown."""
    lines = [f"| {name} | {one:.1f} | {twenty:.1f} |" for name, (one, twenty) in PUBLISHED.items()]
    return "\n".join(["| published | 1 per class | 20 per class |", "|---|---|---|", *lines])


def main() -> None:
    parser = command(__doc__)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(), published(), sep="\n\n")
        return
    cells: dict[str, Callable[[], dict[str, Any]]] = {
        f"{row} | {ipc} | seed {seed}": partial(cell, row, ipc, seed) for seed in SEEDS for ipc in SIZES for row in ROWS
    }
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
