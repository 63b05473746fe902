"""Sets in bytes: ready sets through every codec, and real images that are coded, too, at equal bytes.

    python experiments/coded.py choose --float32     # on held-out training images: the codec of each control and budget
    python experiments/coded.py ready --float32      # the ready sets, recoded, on the test images
    python experiments/coded.py real --float32       # the controls at the codecs that were chosen, on the test images
    python experiments/coded.py condensed --float32  # condensed at a budget, likewise
    python experiments/coded.py speed                # MB/s of decoded pixels
    python experiments/coded.py agreement OLD        # what another Pillow, installed into the folder OLD, decodes
    python experiments/coded.py --table              # Markdown, from what is there
    python experiments/coded.py leaves FOLDER        # once: train/ and test/ of FOLDER as leaves64.npz in the data root

Width 32, 1,000 steps of batches of 64 (leaf photographs, and `ready` as the ready sets were made: 400), last step,
hard labels. A budget is that of the file as it is written: header, labels and record included. `choose` trains a
network on images drawn from the training images without the last 5,000 (of the leaves, the last 50 a class), tests it
on those, and two more where codecs are within a point; the choices are in `results/coded.json`, from which the other
commands read them. On the test images, three seeds: of the selection or the set, and of the network. Resumes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import coded_codecs
import coded_tables
import numpy as np
import torch
from cells import command, read, run_at_precision
from coded_plan import (
    BUDGETS,
    CANDIDATES,
    CLOSE,
    CONDENSED,
    FULL,
    HALF,
    HELD_OUT,
    PATH,
    READY,
    READY_NAMES,
    READY_STEPS,
    SEEDS,
    SMALL,
    STEPS,
)
from zoo import original

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.sets.fitting import Within
from fedcondense.training.fit import Fit

Cells = dict[str, Callable[[], dict[str, Any]]]


def load(name: str, held_out: bool) -> tuple[Data, Data]:
    """Return training and test images; held out: those of the training images before the last, and the last."""
    train, test = fc.load_data(name)
    if not held_out:
        return train, test
    count = HELD_OUT[name]
    if name == "leaves64":
        last = torch.cat([(train.labels == c).nonzero()[-count:, 0] for c in train.labels.unique()])
    else:
        last = torch.arange(len(train) - count * len(train.spec.classes), len(train))
    first = torch.ones(len(train), dtype=torch.bool).index_fill(0, last, False).nonzero()[:, 0]
    return part_of(train, first), part_of(train, last)


def part_of(data: Data, rows: torch.Tensor) -> Data:
    return Data(data.images[rows], data.labels[rows], data.spec)


def fitting(data: Data, method: str, codec: str, budget: int, seed: int, guess: int = 8) -> fc.SyntheticSet | None:
    """Return as many real images of a method as a file of `budget` bytes holds; None: not one a class."""
    most = int(data.counts.min()) // (4 if method == HALF else 1)  # a class's images, once each
    best: fc.SyntheticSet | None = None
    tried: set[int] = set()
    ipc = min(guess, most)
    while ipc and ipc not in tried and len(tried) < 8:
        tried.add(ipc)
        synthetic = fc.select(data, ipc, method, seed=seed).recode(codec)
        if synthetic.nbytes <= budget and (best is None or ipc > best.record.ipc):
            best = synthetic
        ipc = max(1, min(most, int(ipc * (budget - 700) / (synthetic.nbytes - 700))))
        if best is None and ipc in tried:
            ipc -= 1
        elif best is not None and ipc <= best.record.ipc:
            break
    return best


def of_real(name: str, method: str, codec: str, budget: int, seed: int, held_out: bool) -> dict[str, Any]:
    train, test = load(name, held_out)
    guess = 8
    if method == "k-means":  # each fit clusters anew: begin where random images end
        random = fitting(train, FULL, codec, budget, seed)
        guess = random.record.ipc if random else 8
    synthetic = fitting(train, method, codec, budget, seed, guess)
    if synthetic is None:
        return {"codec": codec, "images": 0}
    return measured(synthetic, test, STEPS[name], [seed])


def measured(synthetic: fc.SyntheticSet, test: Data, steps: int, seeds: Iterable[int]) -> dict[str, Any]:
    result = fc.evaluate(synthetic, test, recipe=Fit(steps=steps), seeds=seeds)
    said = {"codec": synthetic.parts[0].codec, "nbytes": synthetic.nbytes, "ipc": synthetic.record.ipc}
    said |= {"images": len(synthetic), "accuracy": round(result.accuracy, 2)}
    return said | ({"std": round(result.accuracy_std, 2)} if len(result.accuracies) > 1 else {})


def of_ready(name: str, codec: str) -> dict[str, Any]:
    data = name.rpartition("-ipc")[0]
    return measured(original(name).recode(codec), load(data, False)[1], READY_STEPS, SEEDS)


def of_condensed(name: str, budget: int, seed: int) -> dict[str, Any]:
    train, test = load(name, False)
    recipe = replace(fc.OBJECTIVES[CONDENSED].recipe, steps=720, lr=0.04)
    made = fc.condense(train, Within(budget, seeds=1), network="convnet3-w32", seed=seed, recipe=recipe)
    return measured(made, test, STEPS[name], [seed]) | {"condense_s": made.record.seconds}


def choices() -> Cells:
    """Return the cells that choose, on held-out training images: one network each, and three where it is close."""
    results = read(PATH)
    cells: Cells = {}
    for seed in SEEDS:
        for (name, budget), methods in CANDIDATES.items():
            for method, codecs in methods.items():
                for codec in codecs:
                    if not seed or is_close(results, name, budget, method, codec):
                        key = f"choose | {name} | {budget} | {method} | {codec} | seed {seed}"
                        cells[key] = partial(of_real, name, method, codec, budget, seed, True)
    return cells


def is_close(results: dict[str, Any], name: str, budget: int, method: str, codec: str) -> bool:
    """Return whether a candidate and another one are within `CLOSE` points of the best."""
    first = {key: accuracies[0] for key, accuracies in coded_tables.tried(results, name, budget, method).items()}
    leaders = [key for key, accuracy in first.items() if accuracy > max(first.values()) - CLOSE]
    return len(leaders) > 1 and codec in leaders


def chosen(results: dict[str, Any], name: str, budget: int, method: str) -> str | None:
    """Return which candidate was best on held-out training images; None: none was tried."""
    family = FULL if method in ("herding", "k-means") else method
    return coded_tables.leader(results, name, budget, family)


def reals() -> Cells:
    """Return the cells of coded real images, on the test images."""
    results = read(PATH)
    cells: Cells = {}
    for seed in SEEDS:
        for name, budgets in BUDGETS.items():
            for budget in budgets:
                for method in (FULL, HALF, "herding", "k-means"):
                    if method == "k-means" and budget > 250_000:  # 450 centres of 5,000 images a class: an hour
                        continue
                    if (codec := chosen(results, name, budget, method)) is not None:
                        key = f"real | {name} | {budget} | {method} | seed {seed} | {codec}"
                        cells[key] = partial(of_real, name, method, codec, budget, seed, False)
    return cells


def condensed() -> Cells:
    """Return the cells of condensed sets at a budget, on the test images."""
    return {
        f"condensed | {name} | {budget} | seed {seed}": partial(of_condensed, name, budget, seed)
        for seed in SEEDS
        for name, budget in SMALL
    }


def ready() -> Cells:
    """Return the cells of the ready sets."""
    return {
        f"ready | {name} | {codec}": partial(of_ready, name, codec)
        for codec in READY
        for name in READY_NAMES
        if codec.count("-") < 2 or name.endswith("ipc10")
    }


def write_leaves(folder: Path) -> None:
    """Write the leaf photographs at 64 pixels (Pillow, Lanczos) into the data root."""
    from PIL import Image

    arrays: dict[str, Any] = {}
    classes = sorted(path.name for path in (folder / "train").iterdir())
    for part in ("train", "test"):
        files = [(path, k) for k, name in enumerate(classes) for path in sorted((folder / part / name).glob("*.jpg"))]
        sized = (Image.open(path).convert("RGB").resize((64, 64), Image.Resampling.LANCZOS) for path, _ in files)
        arrays |= {
            f"x_{part}": np.stack([np.asarray(one) for one in sized]),
            f"y_{part}": np.array([k for _, k in files]),
        }
    np.savez(Path(os.environ["FEDCONDENSE_DATA"]) / "leaves64.npz", classes=np.array(classes), **arrays)


KINDS = {"choose": choices, "ready": ready, "real": reals, "condensed": condensed, "speed": coded_codecs.speeds}


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("kind", nargs="?", choices=[*KINDS, "agreement", "leaves"])
    parser.add_argument("folder", nargs="?", type=Path, help="of `agreement` or `leaves`")
    parser.add_argument("--only", nargs="+", default=[""], help="cells whose names hold one of these")
    arguments = parser.parse_args()
    if arguments.table or not arguments.kind:
        print(*(make() for make in coded_tables.TABLES.values()), sep="\n\n")
        return
    if arguments.kind == "leaves":
        write_leaves(arguments.folder)
        return
    cells = coded_codecs.agreements(arguments.folder) if arguments.kind == "agreement" else KINDS[arguments.kind]()
    wanted = {name: cell for name, cell in cells.items() if any(one in name for one in arguments.only)}
    run_at_precision(arguments, PATH, wanted)


if __name__ == "__main__":
    main()
