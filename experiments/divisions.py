"""Rows on the ten-client lists that FedVCK publishes: Fashion-MNIST, Dirichlet 0.02 and 0.05.

    git clone https://github.com/Youth-49/FedVCK_2024
    python experiments/divisions.py FedVCK_2024/dataset/split_file     # results/divisions.json, resumes
    python experiments/divisions.py --table                            # Markdown, from what is there

The lists stay where they are (MIT licence); results keep their names and SHA-256. One-shot: 10 images per class, 100
steps; ridge: 8 bits in 8 kB; FedAvg: 8 bits, 5 rounds of 1 local epoch, the step size that was tuned on held-out images
(experiments/fedavg.py, Dirichlet 0.1). All: ConvNet-3 width 32, nodes' own default of min-records (10), 800 steps on a
union, one seed, last step, 10,000 test images. Bytes are those of Flower's messages, per client.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cells import RESULTS, command, read, run_at_precision

import fedcondense as fc
from fedcondense.flower import Bench, Condense, LocalTraining, fedavg
from fedcondense.flower.comparison.rows import Runner, row_of

PATH = RESULTS / "divisions.json"
NETWORK = "convnet3-w32"
FILES = {alpha: f"FMNIST_client_num=10_alpha={alpha}.json" for alpha in ("0.02", "0.05")}
ROUNDS = (1, 3, 5)
ROWS = {"one-shot": "one-shot, 10 per class", "ridge-8bit": "ridge, 8 bits", "fedavg-8bit": "FedAvg, 8 bits"}
MIN_RECORDS = 10


def bench(path: Path) -> tuple[Bench, dict[str, Any]]:
    train, test = fc.load_data("fashion-mnist")
    held = fc.partition(train, 10, f"file:{path}")
    about = {"division": held.hash, **held.settings}
    return Bench(train, test, held, NETWORK, 0, (0,), fc.Fit(steps=800), MIN_RECORDS), about


def cell(row: str, path: Path) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        held, about = bench(path)
        if row == "fedavg-8bit":
            found = fedavg(held, max(ROUNDS), LocalTraining(0.03), strategy=row, evaluate_at=ROUNDS)
            return about | {"rounds": {str(r): [at.accuracy, at.bytes_up, at.bytes_down] for r, at in found.items()}}
        asked = Condense(10, steps=100, seed=0, network=NETWORK)
        ran = Runner(held, asked).run(row_of(row))
        return about | {key: ran.row[key] for key in ("accuracy", "bytes_up", "bytes_down")}

    return compute


def table() -> str:
    """Return what is there."""
    results, lines = read(PATH), []
    for alpha in FILES:
        for row, label in ROWS.items():
            found = results.get(f"alpha{alpha} {row}")
            if found is None:
                continue
            many = found.get("rounds") or {"": [found[key] for key in ("accuracy", "bytes_up", "bytes_down")]}
            for number, (accuracy, up, down) in many.items():
                rounds = f", after round {number}" if number else ""
                lines.append(f"| {alpha} | {label}{rounds} | {up / 1000:,.1f} | {down / 1000:,.1f} | {accuracy:.1f} |")
    return "\n".join(["| alpha | row | kB up | kB down | accuracy |", "|---|---|---|---|---|", *lines])


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("folder", nargs="?", type=Path, help="FedVCK's dataset/split_file")
    parser.add_argument("--only", nargs="+", default=list(ROWS), choices=ROWS)
    parser.add_argument("--alpha", nargs="+", default=list(FILES), choices=FILES)
    arguments = parser.parse_args()
    if arguments.table or arguments.folder is None:
        print(table())
        return
    cells = {
        f"alpha{a} {row}": cell(row, arguments.folder / FILES[a]) for a in arguments.alpha for row in arguments.only
    }
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
