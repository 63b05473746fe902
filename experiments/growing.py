"""What a second round of sets is worth, and iterated rounds beside it: Fashion-MNIST, ten clients, Dirichlet 0.1.

    python experiments/growing.py --float32          # results/growing.json, resumes; about 45 CPU minutes
    python experiments/growing.py --only growing     # one kind of cells
    python experiments/growing.py --table            # Markdown, from what is there

Bytes are those of Flower's messages per client, up and down. ConvNet-3 width 32, nodes' own defaults (an image for ten
records of its class), 800 steps on a union, last step, 10,000 test images; a seed is that of the division, the sets and
the network. What each row is:

- growing: one-shot sets of 4 kB, then the union goes down and each client sends 4 kB of what it lacks (`Residual`), on
  four networks that it trains on the union, or on untrained ones;
- one-shot: as many bytes in one round, and half of them;
- again: as growing, but nothing goes down: in round 2 a client condenses 4 kB with another seed;
- rising, fedaf: FedDM with all rounds' sets at rising weight, and FedAF: three rounds around the global network at 10
  images per class, raw as nodes send them, 100 steps on 16 networks, 400 server steps a round; FedDM itself is in
  iterative.json (all with min-records 1);
- fedavg-8bit: the rounds whose bytes, both ways, are those of three rounds of FedDM, an epoch each, at the step size
  that was tuned on held-out images (experiments/fedavg.py); dynafed-8bit: the same, distilled after five rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.flower import Bench, Condense, LocalTraining, fedavg
from fedcondense.flower.caps import Caps
from fedcondense.flower.comparison.rows import Row, Runner, row_of
from fedcondense.flower.stores import Rising
from fedcondense.flower.strategies import STRATEGIES
from fedcondense.flower.strategies.entry import ServerSide
from fedcondense.flower.strategies.iterative import FedDM

PATH = RESULTS / "growing.json"
SEEDS = (0, 1)
NETWORK = "convnet3-w32"
EACH = 4000  # bytes of a reply
STEPS = 100  # of condensing, in each round and for each budget
ONCE, ITERATED = fc.Fit(steps=800), fc.Fit(steps=400)
ROUNDS = 3  # of FedDM and its kin
AVERAGED = 8  # rounds of FedAvg at 8 bits whose bytes, both ways, are those of three rounds of FedDM
LOCAL = LocalTraining(0.03)


def bench(seed: int, recipe: fc.Fit = ONCE, min_records: int = Caps.min_records) -> Bench:
    train, test = fc.load_data("fashion-mnist")
    held = fc.partition(train, 10, "dirichlet", alpha=0.1, seed=seed)
    return Bench(train, test, held.indices, NETWORK, seed, (seed,), recipe, min_records)


def ran(row: Row, budget: int, seed: int, recipe: fc.Fit = ONCE, **asked: Any) -> dict[str, Any]:
    """Run a row and keep what a table says."""
    question = Condense(budget=budget, parametrization="", network=NETWORK, seed=seed, **{"steps": STEPS, **asked})
    found = Runner(bench(seed, recipe, Caps.min_records if budget else 1), question).run(row)
    kept = ("accuracy", "bytes_up", "bytes_down", "images", "history", "client_seconds")
    return {key: found.row[key] for key in kept if key in found.row}


def growing(trained: int, seed: int) -> dict[str, Any]:
    row = row_of("growing")
    entry = replace(row.entry, settings=replace(row.entry.settings, trained=trained))
    return ran(row._replace(entry=entry), EACH, seed)


def again(seed: int) -> dict[str, Any]:
    """Ask twice, of which the second time is no other than the first but for the seed."""
    entry = STRATEGIES["growing"]

    def make(side: ServerSide) -> Any:
        strategy: Any = entry.make(side)
        strategy.union = lambda sets, shared: None
        return strategy

    return ran(Row("again", replace(entry, make=make), "growing", 2), EACH, seed)


def one_shot(budget: int, seed: int) -> dict[str, Any]:
    return ran(row_of("one-shot"), budget, seed)


def rising(seed: int) -> dict[str, Any]:
    entry = STRATEGIES["iterative"]

    def make(side: ServerSide) -> FedDM:
        strategy = entry.make(side)
        assert isinstance(strategy, FedDM)
        strategy.store = Rising()
        return strategy

    return ran(Row("rising", replace(entry, make=make), "iterative", ROUNDS), 0, seed, ITERATED, ipc=10)


def fedaf(seed: int) -> dict[str, Any]:
    return ran(row_of(f"fedaf-{ROUNDS}"), 0, seed, ITERATED, ipc=10)


def averaged(strategy: str, seed: int) -> dict[str, Any]:
    STRATEGIES["dynafed-8bit"] = replace(STRATEGIES["dynafed"], bits=8)
    rounds = fedavg(bench(seed, min_records=1), AVERAGED, LOCAL, strategy=strategy, evaluate_at=range(1, AVERAGED + 1))
    last = rounds[AVERAGED]
    history = [{"round": r, "accuracy": round(row.accuracy, 3)} for r, row in rounds.items()]
    return {
        "accuracy": last.accuracy,
        "bytes_up": last.bytes_up,
        "bytes_down": last.bytes_down,
        "history": history,
    }


KINDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "growing, trained networks": partial(growing, 4),
    "growing, untrained networks": partial(growing, 0),
    "one-shot, equal": partial(one_shot, 2 * EACH),
    "again": again,
    "fedaf": fedaf,
    "rising": rising,
    "fedavg-8bit": partial(averaged, "fedavg-8bit"),
    "dynafed-8bit": partial(averaged, "dynafed-8bit"),
}


def table() -> str:
    """Return a line per kind, the highest accuracy first, and one per round of those that have several."""
    results, lines = read(PATH), list[tuple[float, str]]()
    for kind in KINDS:
        cells = [results[name] for seed in (0, 1, 2) if (name := f"{kind} | seed {seed}") in results]
        if not cells:
            continue
        up, down = (statistics.fmean(cell[way] for cell in cells) / 1000 for way in ("bytes_up", "bytes_down"))
        lines.append(_line(kind, [cell["accuracy"] for cell in cells], f"{up:.1f} | {down:.1f} | {up + down:.1f}"))
        for k, at in enumerate(cells[0].get("history", [])[:-1]):
            accuracies = [cell["history"][k]["accuracy"] for cell in cells]
            lines.append(_line(f"{kind}, after round {at['round']}", accuracies, " | | "))
    head = "| row | kB up | kB down | kB in all | accuracy | seeds |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(text for _, text in sorted(lines, reverse=True))])


def _line(label: str, accuracies: list[float], size: str) -> tuple[float, str]:
    mean = statistics.fmean(accuracies)
    spread = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
    return mean, f"| {label} | {size} | {mean:.1f}{spread} | {len(accuracies)} |"


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", default=list(KINDS), choices=list(KINDS))
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells = {f"{kind} | seed {seed}": partial(KINDS[kind], seed) for seed in arguments.seeds for kind in arguments.only}
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
