"""FedDM round by round beside one-shot sets and FedAvg at equal bytes: Fashion-MNIST, ten clients, Dirichlet 0.1.

    python experiments/iterative.py             # results/iterative.json, resumes; about 20 CPU minutes per seed
    python experiments/iterative.py --table     # Markdown, from what is there

FedDM asks five times for 10 images per class around the global network, whose weights go down each time. `one-shot,
equal` sends in its one round as many bytes as FedDM sends and receives in five; `one-shot` at its own 10 per class is a
row of experiments/federated.py with the same seeds. FedAvg takes the numbers of rounds whose weights, up and down, are
just fewer and just more bytes than that, with three local epochs and the step size that was tuned on held-out images
(experiments/fedavg.py). All: ConvNet-3 width 32, 800 steps on a union (FedDM: 400 in each round), last step, 10,000
test images, seeds 0 to 2: division, sets and network change with it. Every client uses all of its records (min-records
1). Bytes are those of Flower's messages, per client.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.flower import Bench, Condense, LocalTraining, fedavg
from fedcondense.flower.comparison.rows import Runner, row_of

PATH = RESULTS / "iterative.json"
SEEDS = (0, 1, 2)
NETWORK = "convnet3-w32"
ROUNDS = 5
ONCE, EACH = fc.Fit(steps=800), fc.Fit(steps=400)
EQUAL = 300  # one-shot images per class that cost about what FedDM sends and receives in five rounds
ROWS: dict[str, tuple[str, int, int]] = {  # row of `federate`, images per class, condensing steps
    "iterative": (f"iterative-{ROUNDS}", 10, 100),
    "one-shot, equal": ("one-shot", EQUAL, 60),
}
AVERAGED = (3, 4)
DOWN_ONCE = 400.0  # bytes of the question of a one-shot round, which federated.json does not keep


def bench(seed: int, recipe: fc.Fit) -> Bench:
    train, test = fc.load_data("fashion-mnist")
    held = fc.partition(train, 10, "dirichlet", alpha=0.1, seed=seed)
    return Bench(train, test, held.indices, NETWORK, seed, (seed,), recipe)


def sets(name: str, seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        row, ipc, steps = ROWS[name]
        recipe = EACH if row.startswith("iterative") else ONCE
        ran = Runner(bench(seed, recipe), Condense(ipc, steps=steps, seed=seed, network=NETWORK)).run(row_of(row))
        kept = ("accuracy", "bytes_up", "bytes_down", "images", "history", "client_seconds")
        return {key: ran.row[key] for key in kept if key in ran.row}

    return compute


def averaged(seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        rows = fedavg(bench(seed, ONCE), max(AVERAGED), LocalTraining(0.03, epochs=3), evaluate_at=AVERAGED)
        return {str(r): [row.accuracy, row.bytes_up, row.bytes_down] for r, row in rows.items()}

    return compute


def line(label: str, cells: list[tuple[float, float, float]]) -> str:
    """Return a row: kB up, down and in all per client, accuracy and spread over seeds."""
    accuracy = [cell[0] for cell in cells]
    up, down = (statistics.fmean(cell[k] for cell in cells) / 1000 for k in (1, 2))
    spread = f" ± {statistics.stdev(accuracy):.1f}" if len(accuracy) > 1 else ""
    size = f"{up:,.0f} | {down:,.0f} | {up + down:,.0f}"
    return f"| {label} | {size} | {statistics.fmean(accuracy):.1f}{spread} | {len(cells)} |"


def table() -> str:
    """Return what is there; the row of the highest accuracy first."""
    results, lines = read(PATH), []
    for name in ROWS:
        cells = [results[f"{name} seed{seed}"] for seed in SEEDS if f"{name} seed{seed}" in results]
        if cells:
            numbers = [(cell["accuracy"], cell["bytes_up"], cell["bytes_down"]) for cell in cells]
            label = f"{name}, {ROUNDS} rounds" if name == "iterative" else name
            lines.append(
                (statistics.fmean(n[0] for n in numbers), line(f"{label}, {ROWS[name][1]} per class", numbers))
            )
        if cells and name == "iterative":
            for number in range(1, ROUNDS):
                at = [
                    (
                        c["history"][number - 1]["accuracy"],
                        *(c[k] * number / ROUNDS for k in ("bytes_up", "bytes_down")),
                    )
                    for c in cells
                ]
                lines.append((statistics.fmean(n[0] for n in at), line(f"iterative, after round {number}", at)))
    once = read(RESULTS / "federated.json")
    own = [once[name] for s in SEEDS if (name := f"alpha0.1 ipc10 one-shot mmd-ridge pixels seed{s}") in once]
    at = [(cell["accuracy"], cell["bytes_up"], DOWN_ONCE) for cell in own]
    lines.append((statistics.fmean(n[0] for n in at), line("one-shot, 10 per class", at)))
    for number in AVERAGED:
        at = [tuple(results[f"fedavg seed{s}"][str(number)]) for s in SEEDS if f"fedavg seed{s}" in results]
        if at:
            lines.append((statistics.fmean(n[0] for n in at), line(f"FedAvg, {number} rounds of 3 epochs", at)))
    head = "| row | kB up | kB down | kB in all | accuracy | seeds |\n|---|---|---|---|---|---|"
    return "\n".join([head, *(text for _, text in sorted(lines, reverse=True))])


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--only", nargs="+", default=[*ROWS, "fedavg"])
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells: dict[str, Callable[[], dict[str, Any]]] = {}
    for seed in arguments.seeds:
        for name in arguments.only:
            cells[f"{name} seed{seed}"] = averaged(seed) if name == "fedavg" else sets(name, seed)
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
