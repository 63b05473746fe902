"""What soft labels of a teacher buy in the bytes of one image per class: 9 relabelled against 10 as they are.

    python experiments/labels.py                  # Fashion-MNIST and CIFAR-10, resumes; results/labels.json
    python experiments/labels.py --table

`dm-ridge` in factor 2, ConvNet-3 width 32, the steps of `central.py`, one teacher of the same kind (1,000 steps of 64
real images), features in bfloat16, one thread; a network a set that is trained for 1,000 steps, last step, all test
images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from cells import RESULTS, command, read, run_at_precision
from central import LONGER, NETWORK, SEEDS, STEPS

import fedcondense as fc

PATH = RESULTS / "labels.json"
DATA = ("fashion-mnist", "cifar10")
ROWS = {"as they are": 10, "relabelled": 9}  # images per class


def row(data: str, labels: str, seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data(data)
        began = time.process_time()
        steps = STEPS["dm-ridge", "multi-formation"][10]
        made = fc.condense(train, ROWS[labels], "dm-ridge", "multi-formation", network=NETWORK, seed=seed, steps=steps)
        if labels == "relabelled":
            made = fc.relabel(made, train, network=NETWORK, seed=seed)
        spent = time.process_time() - began
        found = fc.evaluate(made, test, network=NETWORK, recipe=fc.Fit(steps=LONGER), seeds=[seed])
        result = {"accuracy": round(found.accuracy, 2), "nbytes": made.nbytes, "images": len(made)}
        return result | {"cpu_condense_s": round(spent, 1)}

    return compute


def name_of(data: str, labels: str, seed: int) -> str:
    return f"{data} {labels} seed{seed}"


def table() -> str:
    results = read(PATH)
    lines = [
        "| data | labels | images per class | bytes | accuracy | CPU s per set | sets |",
        "|---|---|---|---|---|---|---|",
    ]
    for data in DATA:
        for labels, ipc in ROWS.items():
            cells = [results[name] for seed in SEEDS if (name := name_of(data, labels, seed)) in results]
            if cells:
                mean = {
                    key: statistics.fmean(cell[key] for cell in cells)
                    for key in ("nbytes", "accuracy", "cpu_condense_s")
                }
                spread = f" ± {statistics.stdev(cell['accuracy'] for cell in cells):.1f}" if len(cells) > 1 else ""
                lines.append(
                    f"| {data} | {labels} | {ipc} | {mean['nbytes']:,.0f} | {mean['accuracy']:.1f}{spread} "
                    f"| {mean['cpu_condense_s']:.0f} | {len(cells)} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = command(__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=DATA)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    cells = {
        name_of(data, labels, seed): row(data, labels, seed)
        for seed in arguments.seeds
        for data in arguments.data
        for labels in ROWS
    }
    run_at_precision(arguments, PATH, cells)


if __name__ == "__main__":
    main()
