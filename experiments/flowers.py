"""Flower's own strategies, each tuned: Fashion-MNIST, ten clients, Dirichlet 0.1, weights in float32 and at 8 bits.

    python experiments/flowers.py tune --float32     # on held-out training images, results/flowers.json, resumes
    python experiments/flowers.py rows --float32     # twenty rounds, at the settings that were best there
    python experiments/flowers.py --table            # Markdown, from what is there

ConvNet-3 width 32, all clients in every round, one local epoch of SGD at a step size of 0.03 with momentum 0.9, which
was best for FedAvg (experiments/fedavg.py). What a strategy adds is tuned by the accuracy after five rounds, on 500
training images of each class that no client holds and a division of its own (seed 7): FedProx's weight of the proximal
term, FedAvgM's momentum, FedAdam's step size at the server, with tau 0.001. Rows are of all training images and the
test images, the last step, one seed a division.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from anchored import CHOOSING, bench_of
from cells import RESULTS, add_precision, read, run_at_precision
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx

from fedcondense.flower import LocalTraining, fedavg
from fedcondense.flower.strategies import STRATEGIES
from fedcondense.flower.strategies.averaging import averaging

PATH = RESULTS / "flowers.json"
TUNED_BY, ROUNDS, SHOWN = 5, 20, (1, 2, 5, 10, 20)
LOCAL = LocalTraining(0.03)
DIVISIONS = (1, 0, 2)


class Tuned(NamedTuple):
    """A strategy, the values that its setting is tuned over, and what it is called in a table."""

    make: Callable[..., FedAvg]
    label: str
    setting: str = ""
    values: tuple[float, ...] = (0.0,)


KINDS = {
    "fedavg": Tuned(FedAvg, "FedAvg"),
    "fedprox": Tuned(FedProx, "FedProx", "proximal_mu", (0.001, 0.01, 0.1)),
    "fedavgm": Tuned(FedAvgM, "FedAvgM", "server_momentum", (0.3, 0.6, 0.9)),
    "fedadam": Tuned(partial(FedAdam, tau=0.001), "FedAdam", "eta", (0.001, 0.003, 0.01)),
}


def computed(name: str, value: float, bits: int, seed: int, rounds: int, held_out: bool) -> dict[str, Any]:
    """Return accuracy and bytes of a strategy, at a value of its setting, after some of its rounds."""
    kind = KINDS[name]
    own = {kind.setting: value} if kind.setting else {}
    STRATEGIES["tuned"] = averaging(kind.make, kind.label, bits=bits, **own)
    bench = bench_of("fashion-mnist", 0.1, seed, Path(), held_out)
    found = fedavg(bench, rounds, LOCAL, strategy="tuned", evaluate_at=SHOWN)
    return {"rounds": {str(r): [round(row.accuracy, 3), row.bytes_up, row.bytes_down] for r, row in found.items()}}


def best(name: str) -> float:
    """Return the value of a strategy's setting that was best on held-out images."""
    results = read(PATH)
    return max(KINDS[name].values, key=lambda value: _tuning(results, name, value)[0])


def _tuning(results: dict[str, Any], name: str, value: float) -> list[float]:
    found: list[float] = results[f"tune | {name} | {value:g}"]["rounds"][str(TUNED_BY)]
    return found


def row(name: str, bits: int, seed: int) -> dict[str, Any]:
    value = best(name) if KINDS[name].setting else 0.0
    return computed(name, value, bits, seed, ROUNDS, False) | {"value": value}


def table() -> str:
    """Return rows as Markdown, the best at the end first."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for key, cell in read(PATH).items():
        if key.startswith("row | "):
            _, name, bits, _ = key.split(" | ")
            found.setdefault((name, bits), []).append(cell)
    lines = [f"| row | setting | {' | '.join(f'round {r}' for r in SHOWN)} | kB up, down | divisions |"]
    lines.append("|---" * (len(SHOWN) + 4) + "|")

    def last(cells: list[dict[str, Any]]) -> float:
        return statistics.fmean(cell["rounds"][str(ROUNDS)][0] for cell in cells)

    for (name, bits), cells in sorted(found.items(), key=lambda item: -last(item[1])):
        texts = []
        for r in SHOWN:
            values = [cell["rounds"][str(r)][0] for cell in cells]
            spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
            texts.append(f"{statistics.fmean(values):.1f}{spread}")
        up, down = (statistics.fmean(cell["rounds"][str(ROUNDS)][way] for cell in cells) / 1000 for way in (1, 2))
        label = KINDS[name].label + (", 8 bits" if bits == "8" else "")
        setting = KINDS[name].setting and f"{KINDS[name].setting} {cells[0]['value']:g}"
        lines.append(f"| {label} | {setting} | {' | '.join(texts)} | {up:,.0f}, {down:,.0f} | {len(cells)} |")
    return "\n".join(lines)


def tuning() -> str:
    """Return what was tried on held-out images."""
    results, lines = read(PATH), ["| strategy | setting | after five rounds |", "|---|---|---|"]
    for name, kind in KINDS.items():
        for value in kind.values:
            if f"tune | {name} | {value:g}" in results:
                text = f"{_tuning(results, name, value)[0]:.1f}"
                lines.append(f"| {kind.label} | {kind.setting and f'{kind.setting} {value:g}'} | {text} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", nargs="?", choices=("tune", "rows"))
    parser.add_argument("--divisions", type=int, nargs="+", default=DIVISIONS)
    parser.add_argument("--bits", type=int, nargs="+", default=(8, 0), choices=(0, 8))
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--table", action="store_true")
    add_precision(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.kind == "tune":
        cells = {
            f"tune | {name} | {value:g}": partial(computed, name, value, 0, CHOOSING, TUNED_BY, True)
            for name, kind in KINDS.items()
            for value in kind.values
        }
        run_at_precision(given, PATH, cells)
    elif given.kind == "rows":
        run_at_precision(
            given,
            PATH,
            {
                f"row | {name} | {bits} | {seed}": partial(row, name, bits, seed)
                for seed in given.divisions
                for bits in given.bits
                for name in KINDS
            },
        )
    if given.table or not given.kind:
        print(tuning(), table(), sep="\n\n")


if __name__ == "__main__":
    main()
