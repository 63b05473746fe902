"""Ten clients, label-wise Dirichlet, Fashion-MNIST: one round of sets against the controls, and bytes against accuracy.

    python experiments/fedavg.py                  # the tuned baseline, once; results/fedavg.json
    python experiments/federated.py               # all other rows, resumes; results/federated.json
    python experiments/federated.py --table       # Markdown, from what is there
    python experiments/overview.py                # accuracy against bytes, results/overview.png

`fedcondense.flower.federate` runs each row: every client condenses its own partition (Gaussian start, at most half of
the records it has of a class) and the server trains a ConvNet-3 width 32 on the union, 800 steps, last step, all 10,000
test images. Three seeds: partition, sets and network change with it. Features in bfloat16. Bytes are those of Flower's
serialised messages, a client. `weighted` is the accuracy when images weigh as many records as they stand for.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.flower import Condense, Measured, federate

PATH = RESULTS / "federated.json"
SEEDS = (0, 1, 2)
IPC = (1, 2, 5, 10, 20)
MOST = 28  # images per class at a twentieth of the bytes of FedAvg's 20 rounds
NETWORK = "convnet3-w32"
FIT, LONGER = fc.Fit(steps=800), 3000
SETS = Path(tempfile.gettempdir()) / "fedcondense-federated"  # joined sets, for `--longer`
STEPS = {
    "pixels": {1: 400, 2: 400, 5: 400, 10: 500, 20: 400, MOST: 400},
    "multi-formation": {1: 300, 2: 300, 5: 200, 10: 150, 20: 100},
}
STATISTICS = ("ridge", "ridge-equal-bytes", "feature-statistics")

Key = tuple[float, int, str, str]  # alpha, images per class, row, parametrization


def keys() -> list[Key]:
    controls = [("random-real", ""), ("half-resolution-real", "")]
    ours = ("one-shot dm-ridge", "pixels")
    plain = ("one-shot dm", "pixels")
    rows: list[Key] = [(0.1, 10, *row) for row in (ours, *controls)]
    rows += [(0.1, ipc, *row) for ipc in (2, 20, 1, 5) for row in (ours, *controls)]
    rows += [(0.1, ipc, "one-shot dm-ridge", "multi-formation") for ipc in (1, 2, 10, 20, 5)]
    rows += [(0.1, 10, name, "") for name in STATISTICS]
    rows += [(0.1, 10, *plain), (0.1, 2, *plain)]
    rows += [(0.5, 10, *row) for row in (ours, *controls)]
    rows += [(0.1, 10, "one-shot dm", "multi-formation")]
    rows += [(0.5, 10, *plain)]
    rows += [(0.5, 10, f"one-shot {name}", "multi-formation") for name in ("dm-ridge", "dm")]
    rows += [(0.1, MOST, *ours)]
    kernel = "one-shot mmd-ridge"
    rows += [(0.1, 10, kernel, "pixels"), (0.1, 2, kernel, "multi-formation"), (0.1, 2, kernel, "pixels")]
    return rows


def name_of(key: Key, seed: int) -> str:
    alpha, ipc, row, storage = key
    return f"alpha{alpha} ipc{ipc:02d} {row} {storage} seed{seed}".replace("  ", " ")


def row(key: Key, seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        alpha, ipc, name, storage = key
        train, test = fc.load_data("fashion-mnist")
        kind, _, objective = name.partition(" ")
        result = federate(
            train,
            test,
            fc.partition(train, 10, "dirichlet", alpha=alpha, seed=seed),
            asked=Condense(
                ipc=ipc,
                objective=objective or "dm-ridge",
                parametrization=storage or "pixels",
                network=NETWORK,
                steps=STEPS[storage][ipc] if objective else 0,
                seed=seed,
            ),
            rows=[kind],
            measured=Measured(FIT, (seed,)),
            min_records=1,  # as all rows that are kept
        )
        kept = ("accuracy", "bytes_up", "bytes_down", "images", "client_seconds", "seconds")
        cell = {k: v for k, v in result.rows[kind].items() if k in kept} | {"partition": result.partition["hash"]}
        if result.joined is not None:
            result.joined.save(SETS / f"{name_of(key, seed)}.safetensors", overwrite=True)
            weighted = fc.evaluate(result.joined, test, network=NETWORK, recipe=FIT, seeds=[seed], weighted=True)
            cell["weighted"] = weighted.accuracy
        return cell

    return compute


def longer(key: Key, seed: int) -> Callable[[], dict[str, Any]]:
    """Train the server's network on the same joined set for longer: no more bytes, only the server's time."""

    def compute() -> dict[str, Any]:
        _, test = fc.load_data("fashion-mnist")
        joined = fc.SyntheticSet.load(SETS / f"{name_of(key, seed)}.safetensors")
        found = fc.evaluate(joined, test, network=NETWORK, recipe=replace(FIT, steps=LONGER), seeds=[seed])
        return {"accuracy": found.accuracy} | {"bytes_up": read(PATH)[name_of(key, seed)]["bytes_up"]}

    return compute


def summary(results: dict[str, Any], key: Key) -> dict[str, float] | None:
    """Return mean and spread of accuracy and the mean of everything else, over the seeds that are there."""
    found = [results[name_of(key, seed)] for seed in SEEDS if name_of(key, seed) in results]
    if not found:
        return None
    numbers = {
        k: statistics.fmean(cell[k] for cell in found) for k in found[0] if isinstance(found[0][k], (int, float))
    }
    accuracies = [cell["accuracy"] for cell in found]
    if "client_seconds" in numbers:  # the machine was shared: the median is the least disturbed
        numbers["client_seconds"] = statistics.median(cell["client_seconds"] for cell in found)
    return numbers | {"std": statistics.stdev(accuracies) if len(found) > 1 else 0.0, "seeds": len(found)}


def fedavg_rows(alpha: float, epochs: int = 1) -> dict[int, dict[str, float]]:
    all_rows = read(RESULTS / "fedavg.json").get("rows", {})
    runs = [v for k, v in all_rows.items() if k.startswith(f"alpha {alpha} epochs {epochs} ")]
    rows: dict[int, dict[str, float]] = {}
    for number in (1, 5, 10, 20):
        cells = [run["rounds"][str(number)] for run in runs if str(number) in run["rounds"]]
        if cells:
            accuracies = [cell["accuracy"] for cell in cells]
            rows[number] = {
                "accuracy": statistics.fmean(accuracies),
                "std": statistics.stdev(accuracies) if len(cells) > 1 else 0.0,
                "bytes_up": statistics.fmean(cell["bytes_up"] for cell in cells),
                "bytes_down": statistics.fmean(cell["bytes_down"] for cell in cells),
                "seeds": len(cells),
            }
    return rows


def table() -> str:
    results = read(PATH)
    lines = ["| Dirichlet | row | images per class | kB up per client | kB down | accuracy | s per client | seeds |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for key in sorted(keys()):
        cell = summary(results, key)
        if cell:
            alpha, ipc, name, storage = key
            name += ", factor 2" if storage == "multi-formation" else ""
            size = f"{cell['bytes_up'] / 1000:.1f} | {cell['bytes_down'] / 1000:.1f}"
            per_class = "" if name in STATISTICS else str(ipc)
            spent = f"{cell['client_seconds']:.0f}" if "client_seconds" in cell else ""
            accuracy = f"{cell['accuracy']:.1f} ± {cell['std']:.1f}"
            lines.append(f"| {alpha} | {name} | {per_class} | {size} | {accuracy} | {spent} | {cell['seeds']} |")
    for alpha, epochs in ((0.1, 1), (0.1, 3), (0.5, 1)):
        for rounds, cell in fedavg_rows(alpha, epochs).items():
            size = f"{cell['bytes_up'] / 1000:.0f} | {cell['bytes_down'] / 1000:.0f}"
            accuracy = f"{cell['accuracy']:.1f} ± {cell['std']:.1f}"
            name = f"FedAvg, {rounds} round(s) of {epochs} epoch(s)"
            lines.append(f"| {alpha} | {name} | | {size} | {accuracy} | | {cell['seeds']} |")
    return "\n".join(lines)


def curve(axes: Any) -> None:
    """Draw accuracy against bytes at Dirichlet 0.1 on matplotlib axes."""
    results = read(PATH)
    rows = (
        ("one-shot dm-ridge", "pixels", "distilled", "C0"),
        ("one-shot dm-ridge", "multi-formation", "distilled, factor 2", "C3"),
        ("random-real", "", "random real images", "C1"),
        ("half-resolution-real", "", "half-resolution real", "C2"),
    )
    for name, storage, label, colour in rows:
        found = [cell for ipc in IPC if (cell := summary(results, (0.1, ipc, name, storage)))]
        _line(axes, found, label, color=colour, marker="o")
    for epochs, marker in ((1, "s"), (3, "D")):
        found = list(fedavg_rows(0.1, epochs).values())
        rounds = ", ".join(map(str, fedavg_rows(0.1, epochs)))
        longer = "" if epochs == 1 else f" of {epochs} epochs"
        _line(axes, found, f"FedAvg, {rounds} rounds{longer}", color="C7", marker=marker)
    for name, marker in zip(STATISTICS, "^v*", strict=True):
        cell = summary(results, (0.1, 10, name, ""))
        _line(axes, [cell] if cell else [], name, color="C4", marker=marker, linestyle="")
    axes.set(xscale="log", xlabel="kB up per client (log)", ylabel="accuracy, %")
    axes.set_title("Fashion-MNIST, 10 clients, Dirichlet 0.1: one round (FedAvg: more)", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _line(axes: Any, cells: Sequence[Mapping[str, float]], label: str, **style: Any) -> None:
    if cells:
        size = [cell["bytes_up"] / 1000 for cell in cells]
        axes.errorbar(size, [c["accuracy"] for c in cells], [c["std"] for c in cells], label=label, **style)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--longer", action="store_true", help=f"the server trains {LONGER} steps on sets made before")
    parser.add_argument("--alpha", type=float, nargs="+", default=(0.1, 0.5))
    parser.add_argument("--ipc", type=int, nargs="+", default=(*IPC, MOST))
    parser.add_argument("--only", help='one row, as "one-shot mmd-ridge"')
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    chosen = [
        key
        for key in keys()
        if key[0] in arguments.alpha and key[1] in arguments.ipc and arguments.only in (None, key[2])
    ]
    cells = {name_of(key, seed): row(key, seed) for key in chosen for seed in arguments.seeds}
    if arguments.longer:
        again: list[Key] = [(0.1, ipc, "one-shot dm-ridge", "pixels") for ipc in arguments.ipc]
        cells = {f"{name_of(key, seed)} longer": longer(key, seed) for key in again for seed in arguments.seeds}
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
