"""Flower's own strategies, each tuned: ten clients, label-wise Dirichlet 0.1, weights in float32 and at 8 bits.

    python experiments/flowers.py tune --float32     # on held-out training images, results/flowers.json, resumes
    python experiments/flowers.py rows --float32     # twenty rounds, at the settings that were best there
    python experiments/flowers.py tune --data cifar10 --float32; ... rows --data cifar10 --bits 8   # fifty rounds
    python experiments/flowers.py --table            # Markdown, from what is there

ConvNet-3 width 32, all clients in every round, one local epoch of SGD with momentum 0.9. On Fashion-MNIST the step size
is 0.03, which was best for FedAvg (experiments/fedavg.py); on CIFAR-10 FedAvg's is tuned here, and the others keep it.
What a strategy adds is tuned by the accuracy after five rounds, on 500 training images of each class that no client
holds and a division of its own (seed 7): FedProx's weight of the proximal term, FedAvgM's momentum, FedAdam's step
size at the server, with tau 0.001. Rows are of all training images and the test images, the last step, one seed a
division.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from anchored import CHOOSING, bench_of
from cells import RESULTS, command, read, run_at_precision
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedProx

from fedcondense.flower import LocalTraining, fedavg
from fedcondense.flower.strategies import STRATEGIES
from fedcondense.flower.strategies.averaging import averaging

PATH = RESULTS / "flowers.json"
TUNED_BY, SHOWN = 5, (1, 2, 5, 10, 20, 50)
ROUNDS = {"fashion-mnist": 20, "cifar10": 50}
DIVISIONS = (1, 0, 2)


class Tuned(NamedTuple):
    """A strategy, what it is called in a table, and the values that its setting is tuned over.

    `near` are those that were best on Fashion-MNIST and beside it: other data are tuned over these alone.
    """

    make: Callable[..., FedAvg]
    label: str
    setting: str = ""
    values: tuple[float, ...] = ()
    near: tuple[float, ...] = ()


KINDS = {
    "fedavg": Tuned(FedAvg, "FedAvg"),
    "fedprox": Tuned(FedProx, "FedProx", "proximal_mu", (0.001, 0.01, 0.1, 1.0), (0.01, 0.1)),
    "fedavgm": Tuned(FedAvgM, "FedAvgM", "server_momentum", (0.3, 0.6, 0.9), (0.6, 0.9)),
    "fedadam": Tuned(partial(FedAdam, tau=0.001), "FedAdam", "eta", (0.001, 0.003, 0.01, 0.03, 0.1, 0.3), (0.03, 0.1)),
}
STEP_SIZES = {"fashion-mnist": (0.03,), "cifar10": (0.03, 0.1)}


def values(data: str, name: str) -> tuple[float, ...]:
    """Return what a strategy's setting is tuned over; FedAvg's is the step size of a client."""
    if not KINDS[name].setting:
        return STEP_SIZES[data]
    return KINDS[name].values if data == "fashion-mnist" else KINDS[name].near


def computed(data: str, name: str, value: float, bits: int, seed: int, rounds: int, held_out: bool) -> dict[str, Any]:
    """Return accuracy and bytes of a strategy, at a value of its setting, after some of its rounds."""
    kind = KINDS[name]
    own = {kind.setting: value} if kind.setting else {}
    STRATEGIES["tuned"] = averaging(kind.make, kind.label, bits=bits, **own)
    bench = bench_of(data, 0.1, seed, Path(), held_out)
    local = LocalTraining(best(data, "fedavg") if kind.setting else value)
    found = fedavg(bench, rounds, local, strategy="tuned", evaluate_at=SHOWN)
    return {"rounds": {str(r): [round(row.accuracy, 3), row.bytes_up, row.bytes_down] for r, row in found.items()}}


def best(data: str, name: str) -> float:
    """Return the value of a strategy's setting that was best on held-out images."""
    tried = values(data, name)
    if len(tried) == 1:
        return tried[0]
    results = read(PATH)
    return max(tried, key=lambda value: _tuning(results, data, name, value))


def _key(*parts: str | float) -> str:
    return " | ".join(part if isinstance(part, str) else f"{part:g}" for part in parts)


def _tuning(results: dict[str, Any], data: str, name: str, value: float) -> float:
    found: float = results[_key("tune", data, name, value)]["rounds"][str(TUNED_BY)][0]
    return found


def row(data: str, name: str, bits: int, seed: int, value: float | None = None) -> dict[str, Any]:
    value = best(data, name) if value is None else value
    return computed(data, name, value, bits, seed, ROUNDS[data], False) | {"value": value}


def table(data: str = "fashion-mnist") -> str:
    """Return rows as Markdown, the best at the end first."""
    found: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for key, cell in read(PATH).items():
        kind, of, name, bits = [*key.split(" | "), ""][:4]
        if (kind, of) == ("row", data):
            found.setdefault((name, bits, cell["value"]), []).append(cell)
    shown = [r for r in SHOWN if r <= ROUNDS[data]]
    lines = [f"| row | setting | {' | '.join(f'round {r}' for r in shown)} | kB up, down | divisions |"]
    lines.append("|---" * (len(shown) + 4) + "|")

    def last(cells: list[dict[str, Any]]) -> float:
        return statistics.fmean(cell["rounds"][str(ROUNDS[data])][0] for cell in cells)

    for (name, bits, value), cells in sorted(found.items(), key=lambda item: -last(item[1])):
        texts = []
        for r in shown:
            percents = [cell["rounds"][str(r)][0] for cell in cells]
            spread = f" ± {statistics.stdev(percents):.1f}" if len(percents) > 1 else ""
            texts.append(f"{statistics.fmean(percents):.1f}{spread}")
        up, down = (statistics.fmean(cell["rounds"][str(ROUNDS[data])][way] for cell in cells) / 1000 for way in (1, 2))
        label = KINDS[name].label + (", 8 bits" if bits == "8" else "")
        setting = f"{KINDS[name].setting or 'step size'} {value:g}"
        lines.append(f"| {label} | {setting} | {' | '.join(texts)} | {up:,.0f}, {down:,.0f} | {len(cells)} |")
    return "\n".join(lines)


def tuning() -> str:
    """Return what was tried on held-out images."""
    results, lines = read(PATH), ["| data | strategy | setting | after five rounds |", "|---|---|---|---|"]
    for data in ROUNDS:
        for name, kind in KINDS.items():
            for value in values(data, name):
                if _key("tune", data, name, value) in results:
                    percent = f"{_tuning(results, data, name, value):.1f}"
                    lines.append(f"| {data} | {kind.label} | {kind.setting or 'step size'} {value:g} | {percent} |")
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("kind", nargs="?", choices=("tune", "rows"))
    parser.add_argument("--data", choices=tuple(ROUNDS), default="fashion-mnist")
    parser.add_argument("--strategies", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument(
        "--value", type=float, help="of what a strategy adds, in the place of the best on held-out images"
    )
    parser.add_argument("--divisions", type=int, nargs="+", default=DIVISIONS)
    parser.add_argument("--bits", type=int, nargs="+", default=(8, 0), choices=(0, 8))
    given = parser.parse_args()
    if given.kind == "tune":
        for name in given.strategies:  # FedAvg's step size first, which the others keep
            cells = {
                _key("tune", given.data, name, value): partial(
                    computed, given.data, name, value, 0, CHOOSING, TUNED_BY, True
                )
                for value in values(given.data, name)
            }
            run_at_precision(given, PATH, cells)
    elif given.kind == "rows":
        said = () if given.value is None else (given.value,)
        cells = {
            _key("row", given.data, name, bits, seed, *said): partial(row, given.data, name, bits, seed, given.value)
            for seed in given.divisions
            for bits in given.bits
            for name in given.strategies
        }
        run_at_precision(given, PATH, cells)
    if given.table or not given.kind:
        print(tuning(), *map(table, ROUNDS), sep="\n\n")


if __name__ == "__main__":
    main()
