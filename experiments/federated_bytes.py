"""Accuracy against bytes per client: coded sets, coded real images, ridge statistics and FedAvg at few bits.

    python experiments/federated_bytes.py choose --float32  # on held-out training images: codecs, FedAvg's steps
    python experiments/federated_bytes.py sets --float32    # one-shot, condensed; so `real`, `ridge` and `fedavg`
    python experiments/federated_bytes.py --table           # Markdown and crossing points, from what is there

Ten clients, Dirichlet 0.1, nodes' own defaults (an image for ten records of its class), Fashion-MNIST and CIFAR-10. A
budget is that of a client's reply as Flower sends it. What each row is:

- sets: `mmd-ridge` under the budget, images and bits by the rate rule (`condensing/rate.py`), 200 steps (64 kB: 100);
- real: random real images, at full or half resolution, in the codec that is best on held-out training images;
- ridge: as many dimensions of a random network's features as fit, in float32, 16 and 8 bits; not beyond the network's;
- fedavg: Flower's FedAvg with 8 bits both ways, its step size and epochs chosen on held-out training images.

Sets train a ConvNet-3 width 32 for 800 steps, last step, all test images; FedAvg trains it, and one of width 16, of
which more rounds fit. Three seeds: of the division, the sets and the networks. Resumes.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from itertools import pairwise
from typing import Any

import torch
from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.flower import Bench, Condense, LocalTraining, Measured, fedavg, federate
from fedcondense.flower.caps import Caps
from fedcondense.flower.strategies import features
from fedcondense.flower.strategies.ridge import ridge_dims

PATH = RESULTS / "federated_bytes.json"
SEEDS = (0, 1, 2)
CLIENTS, ALPHA, HELD_OUT = 10, 0.1, 500  # of each class
FIT, STEPS, FEWER, LARGE = fc.Fit(steps=800), 200, 100, 64_000  # steps of condensing; fewer at large budgets
NETWORK, WIDE, NARROW = "convnet3-w32", "convnet3-w64", "convnet3-w16"
BUDGETS = {"fashion-mnist": (2000, 4000, 8000, 16_000, 64_000), "cifar10": (4000, 8000, 16_000, 64_000)}
CHOSEN_AT = (4000, 16_000)  # what is best at the first serves budgets below the second
REAL = {
    "fashion-mnist": (
        "random-real-webp-10",
        "random-real-webp-20",
        "random-real-jpeg-10",
        "half-resolution-real-webp-20",
    ),
    "cifar10": ("random-real-jpeg-10", "random-real-jpeg-25", "random-real-webp-10", "half-resolution-real-jpeg-25"),
}
PRECISIONS = {"ridge": "float32", "ridge-half": "float16", "ridge-8bit": "int8"}
BESIDE = 480  # bytes of a reply beside sums
LOCAL = (LocalTraining(0.03), LocalTraining(0.1), LocalTraining(0.03, epochs=3))
ROUNDS = {NETWORK: 2, NARROW: 8}

Cells = dict[str, Callable[[], dict[str, Any]]]


@lru_cache(2)
def load(name: str, held_out: bool) -> tuple[Data, Data]:
    """Return training and test images; held out: the training images but for the last of each class, and those."""
    train, test = fc.load_data(name)
    if not held_out:
        return train, test
    last = torch.cat([torch.where(train.labels == c)[0][-HELD_OUT:] for c in range(len(train.spec.classes))])
    first = torch.ones(len(train), dtype=torch.bool).index_fill(0, last, False)
    return train.subset(first), train.subset(last)


def row(name: str, kind: str, budget: int, seed: int, held_out: bool = False, network: str = NETWORK) -> dict[str, Any]:
    """Run one row of `federate` under a budget."""
    train, test = load(name, held_out)
    division = fc.partition(train, CLIENTS, "dirichlet", alpha=ALPHA, seed=seed)
    steps = FEWER if budget >= LARGE else STEPS
    asked = Condense(budget=budget, parametrization="", network=network, steps=steps, seed=seed)
    result = federate(train, test, division, asked=asked, rows=[kind], measured=Measured(FIT, (seed,)))
    kept = ("accuracy", "bytes_up", "bytes_down", "images", "clients")
    return {k: v for k, v in result.rows[kind].items() if k in kept} | {"partition": result.partition["hash"]}


def averaged(name: str, network: str, training: LocalTraining, seed: int, held_out: bool = False) -> dict[str, Any]:
    """Run FedAvg at eight bits, and keep all of its rounds."""
    train, test = load(name, held_out)
    division = fc.partition(train, CLIENTS, "dirichlet", alpha=ALPHA, seed=seed)
    bench = Bench(train, test, division.indices, network, seed, min_records=Caps.min_records)
    rounds = ROUNDS[network]
    found = fedavg(bench, rounds, training, strategy="fedavg-8bit", evaluate_at=range(1, rounds + 1))
    kept = ("accuracy", "bytes_up", "bytes_down", "failed")
    return {"rounds": {str(r): {k: v for k, v in one._asdict().items() if k in kept} for r, one in found.items()}}


def choices(data: Sequence[str]) -> Cells:
    """Return what is compared on held-out training images, with one seed."""
    cells: Cells = {}
    for name in data:
        for budget in CHOSEN_AT:
            for kind in REAL[name]:
                cells[f"choose | {name} | {budget:05} | {kind}"] = partial(row, name, kind, budget, 0, True)
        for network in ROUNDS:
            for local in LOCAL:
                cells[f"choose | {name} | {network} | {_said(local)}"] = partial(
                    averaged, name, network, local, 0, True
                )
    return cells


def chosen_real(name: str, budget: int) -> str | None:
    """Return the row of real images that was best on held-out images; None before that was measured."""
    results, at = read(PATH), CHOSEN_AT[0] if budget < CHOSEN_AT[1] else CHOSEN_AT[1]
    found = {kind: results.get(f"choose | {name} | {at:05} | {kind}") for kind in REAL[name]}
    if not all(found.values()):
        return None
    return max(found, key=lambda kind: found[kind]["accuracy"])  # type: ignore[index]


def chosen_local(name: str, network: str) -> LocalTraining | None:
    """Return the local training of the best mean accuracy over all rounds on held-out images."""
    results = read(PATH)
    found = {local: results.get(f"choose | {name} | {network} | {_said(local)}") for local in LOCAL}
    if not all(found.values()):
        return None
    return max(found, key=lambda local: statistics.fmean(r["accuracy"] for r in found[local]["rounds"].values()))  # type: ignore[index]


def _said(local: LocalTraining) -> str:
    return f"lr {local.lr:g} epochs {local.epochs}"


def sets(name: str, budgets: Sequence[int], seed: int) -> Cells:
    return {_key("one-shot", name, b, seed): partial(row, name, "one-shot", b, seed) for b in budgets}


def real(name: str, budgets: Sequence[int], seed: int) -> Cells:
    kinds = {budget: kind for budget in budgets if (kind := chosen_real(name, budget))}

    def compute(kind: str, budget: int) -> dict[str, Any]:
        return row(name, kind, budget, seed) | {"row": kind}

    return {_key("real", name, b, seed): partial(compute, kind, b) for b, kind in kinds.items()}


def ridge(name: str, budgets: Sequence[int], seed: int) -> Cells:
    """Return cells of each precision on the narrowest network that has as many features as fit."""
    most = features.feature_dims(NETWORK, load(name, False)[0].spec.shape, seed)

    def compute(kind: str, budget: int) -> dict[str, Any]:
        dims = ridge_dims(budget - BESIDE, 10, PRECISIONS[kind])
        network = NETWORK if dims <= most else WIDE
        return row(name, f"{kind}-equal-bytes", budget, seed, network=network) | {"dims": dims, "network": network}

    return {_key(kind, name, b, seed): partial(compute, kind, b) for kind in PRECISIONS for b in budgets}


def rounds(name: str, budgets: Sequence[int], seed: int) -> Cells:
    chosen = {network: local for network in ROUNDS if (local := chosen_local(name, network))}

    def compute(network: str, local: LocalTraining) -> dict[str, Any]:
        return averaged(name, network, local, seed) | {"training": _said(local)}

    return {
        f"fedavg | {name} | {network} | seed {seed}": partial(compute, network, local)
        for network, local in chosen.items()
    }


STAGES: Mapping[str, Callable[[str, Sequence[int], int], Cells]] = {
    "sets": sets,
    "real": real,
    "ridge": ridge,
    "fedavg": rounds,
}


def _key(kind: str, name: str, budget: int, seed: int) -> str:
    return f"{kind} | {name} | {budget:05} | seed {seed}"


def _once(embedded: Callable[[Data, str, int], torch.Tensor]) -> Callable[[Data, str, int], torch.Tensor]:
    """Return a function that keeps the features of the last division and network."""
    kept: dict[tuple[str, str, int], torch.Tensor] = {}

    def by_content(data: Data, network: str, seed: int) -> torch.Tensor:
        key = (data.fingerprint, network, seed)
        if key not in kept:
            if any(other[1:] != key[1:] for other in kept):
                kept.clear()
            kept[key] = embedded(data, network, seed)
        return kept[key]

    return by_content


Point = tuple[float, float, float, int]  # bytes, accuracy, its deviation, seeds


def curves(name: str) -> dict[str, list[Point]]:
    """Return each row's points, in ascending bytes, over the seeds that are there."""
    results, found = read(PATH), dict[str, list[Point]]()
    for kind in ("one-shot", "real", *PRECISIONS):
        for budget in BUDGETS[name]:
            cells = [results[key] for seed in SEEDS if (key := _key(kind, name, budget, seed)) in results]
            if cells:
                found.setdefault(kind, []).append(_point(cells))
    for network in ROUNDS:
        runs = [results[key] for seed in SEEDS if (key := f"fedavg | {name} | {network} | seed {seed}") in results]
        for number in range(1, ROUNDS[network] + 1) if runs else ():
            point = _point([run["rounds"][str(number)] for run in runs])
            found.setdefault(f"fedavg-8bit, {network.removeprefix('convnet3-')}", []).append(point)
    return found


def _point(cells: Sequence[Mapping[str, Any]]) -> Point:
    accuracies = [cell["accuracy"] for cell in cells]
    spread = statistics.stdev(accuracies) if len(cells) > 1 else 0.0
    return statistics.fmean(cell["bytes_up"] for cell in cells), statistics.fmean(accuracies), spread, len(cells)


def crossing(ours: Sequence[Point], rival: Sequence[Point]) -> str:
    """Say who is ahead where, in words: accuracies are read off lines over the logarithm of bytes."""
    begin, end = max(ours[0][0], rival[0][0]), min(ours[-1][0], rival[-1][0])
    if begin > end:
        return "no bytes that both have"
    grid = [begin * (end / begin) ** (k / 200) for k in range(201)]
    ahead = [_at(ours, size) - _at(rival, size) for size in grid]
    changes = [k for k in range(1, 201) if (ahead[k] > 0) != (ahead[k - 1] > 0)]
    span = f"from {begin / 1000:.1f} to {end / 1000:.1f} kB"
    most = f"{min(ahead):+.1f} to {max(ahead):+.1f} points"
    if not changes:
        return f"{'ahead' if ahead[0] > 0 else 'behind'} {span} ({most})"
    places = ", ".join(f"{'behind' if ahead[k] <= 0 else 'ahead'} from {grid[k] / 1000:.1f} kB on" for k in changes)
    return f"{'ahead' if ahead[0] > 0 else 'behind'} at {begin / 1000:.1f} kB, {places}, {span} ({most})"


def _at(points: Sequence[Point], size: float) -> float:
    for (x0, y0, *_), (x1, y1, *_) in pairwise(points):
        if x0 <= size <= x1:
            return y0 + (y1 - y0) * (math.log(size / x0) / math.log(x1 / x0) if x1 > x0 else 0)
    return points[0][1] if size < points[0][0] else points[-1][1]


def table() -> str:
    """Return a table per data set, a point per cell, and the crossing points of the condensed sets in words."""
    pieces = []
    for name in BUDGETS:
        if not (found := curves(name)):
            continue
        lines = [f"**{name}**", "", "| row | kB up per client: accuracy |", "|---|---|"]
        for kind, points in found.items():
            cells = [f"{size / 1000:.1f}: {mean:.1f} ± {std:.1f} ({n})" for size, mean, std, n in points]
            lines.append(f"| {kind} | {'; '.join(cells)} |")
        if "one-shot" in found:
            rivals = {kind: points for kind, points in found.items() if kind != "one-shot" and len(points) > 1}
            said = [f"- Sets against {kind}: {crossing(found['one-shot'], points)}." for kind, points in rivals.items()]
            lines += ["", *said] if said else []
        pieces.append("\n".join(lines))
    return "\n\n".join(pieces)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("stage", nargs="*", help=f"choose, then {', '.join(STAGES)}; none: all of these")
    parser.add_argument("--data", nargs="+", default=tuple(BUDGETS), choices=tuple(BUDGETS))
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--budgets", type=int, nargs="+", help="bytes; by default all")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    once = _once(features.embedded)
    features.embedded = once  # type: ignore[assignment]  # features of all precisions and dimensions are those of one pass
    stages = arguments.stage or ["choose", *STAGES]
    if "choose" in stages:
        run_at_precision(arguments, PATH, choices(arguments.data))
    for stage in (stage for stage in stages if stage != "choose"):
        for seed in arguments.seeds:
            for name in arguments.data:
                budgets = [b for b in BUDGETS[name] if arguments.budgets is None or b in arguments.budgets]
                run_at_precision(arguments, PATH, STAGES[stage](name, budgets, seed))


if __name__ == "__main__":
    main()
