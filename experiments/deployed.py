"""The byte axis with a model as people deploy it: ResNet-18 trained on the sets that small networks condensed.

    python experiments/deployed.py           # results/deployed.json, resumes
    python experiments/deployed.py --table

The clients of `federated.py` (Dirichlet 0.1) condense with ConvNet-3 width 32 as before; the server trains
torchvision's ResNet-18 (small-image stem, group norm with a group a channel) on the union, 300 steps of 32 images. What
weights would cost is the length of its state in float32, which FedAvg sends both ways in every round; FedAvg itself is
run for one round of one epoch, on request.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from cells import RESULTS, read, run_cells

import fedcondense as fc
from fedcondense.flower import Bench, Condense, LocalTraining, Measured, fedavg, federate
from fedcondense.networks import build

NETWORK = "resnet18"
PATH = RESULTS / "deployed.json"


def sets(ipc: int, kind: str, seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data("fashion-mnist")
        split = fc.partition(train, 10, "dirichlet", alpha=0.1, seed=seed)
        if kind == "one-shot":
            asked = Condense(ipc, steps=600, seed=seed, network="convnet3-w32")
            measured = Measured(fc.Fit(steps=1), (seed,))
            result = federate(train, test, split, asked=asked, rows=[kind], measured=measured, min_records=1)
            assert result.joined is not None  # the one-shot row makes it
            joined, sent = result.joined, result.rows[kind]["bytes_up"]
        else:
            chosen = [fc.select(train.subset(i), ipc, seed=seed + k, limit=0.5) for k, i in enumerate(split.indices)]
            joined, sent = fc.SyntheticSet.join(chosen), sum(one.nbytes for one in chosen) / 10
        found = fc.evaluate(joined, test, network=NETWORK, recipe=fc.Fit(steps=300, batch=32), seeds=[seed])
        return {"accuracy": found.accuracy, "bytes_up": sent, "images": len(joined)}

    return compute


def averaged(seed: int) -> Callable[[], dict[str, Any]]:
    def compute() -> dict[str, Any]:
        train, test = fc.load_data("fashion-mnist")
        split = fc.partition(train, 10, "dirichlet", alpha=0.1, seed=seed)
        training = LocalTraining(lr=0.03, epochs=1)
        (row,) = fedavg(Bench(train, test, split.indices, NETWORK, seed), 1, training).values()
        return {"accuracy": row.accuracy, "bytes_up": row.bytes_up}

    return compute


def weights() -> dict[str, Any]:
    state = build(NETWORK, (1, 28, 28), 10, 0).state_dict()
    return {"bytes": sum(value.numel() * value.element_size() for value in state.values())}


def table() -> str:
    results = read(PATH)
    size = results["weights"]["bytes"]
    lines = [
        "| row | kB up per client | ResNet-18 accuracy | its weights, once, are so many times larger |",
        "|---|---|---|---|",
    ]
    for name, cell in results.items():
        if "accuracy" in cell:
            sent = cell["bytes_up"]
            lines.append(f"| {name} | {sent / 1000:,.1f} | {cell['accuracy']:.1f} | {size / sent:,.0f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--fedavg", action="store_true", help="also FedAvg, one round: about ten minutes a seed")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    torch.set_num_threads(1)
    cells: dict[str, Callable[[], dict[str, Any]]] = {"weights": weights}
    for seed in arguments.seeds:
        for kind in ("one-shot", "random-real"):
            cells[f"{kind} ipc10 seed{seed}"] = sets(10, kind, seed)
        if arguments.fedavg:
            cells[f"fedavg-1 seed{seed}"] = averaged(seed)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        run_cells(PATH, cells)


if __name__ == "__main__":
    main()
