"""In how many bits a stream's sums are best kept: accuracy on held-out training images, by the bytes that are kept.

    python experiments/analytic_bits.py            # results/analytic_bits.json; about five CPU minutes
    python experiments/analytic_bits.py --table    # Markdown

CIFAR-10, 45,000 training images in five tasks of two classes at five sites (label-wise Dirichlet 0.5 within a task),
5,000 others to test on, as many features of an untrained ConvNet-3 width 64 as the bytes have room for. The seed says
the order of the classes, the division, the network and the projection. Sites send factors at 8 bits, as the strategy
`analytic` has it; the server's is rounded anew after each task, to 8 or 16 bits.
"""

from __future__ import annotations

import argparse
from functools import lru_cache, partial
from typing import Any

import torch
from cells import RESULTS, read, run_cells
from torch import Tensor

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.flower.strategies.factors import extended, factor_of, factored, least_squares, products_of, summed
from fedcondense.flower.strategies.features import embedded, projection
from fedcondense.flower.strategies.ridge import ridge_dims

PATH = RESULTS / "analytic_bits.json"
SEEDS, KILOBYTES = (7, 8), (20, 46, 100, 150, 200, 300, 461)
TRAVELS, FORMS = "int8-deflated", {8: "int8-deflated", 16: "float16"}
NETWORK, HEADER = "convnet3-w64", 200  # bytes


@lru_cache(1)
def parts() -> tuple[Data, Data]:
    train, _ = fc.load_data("cifar10")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(7))
    return train.subset(order[5000:]), train.subset(order[:5000])


@lru_cache(1)
def features(seed: int) -> tuple[Tensor, Tensor, list[list[Tensor]]]:
    """Return all features of both parts, and whose records are whose, task by task."""
    train, test = parts()
    held = []
    for task, classes in enumerate(torch.randperm(10, generator=torch.Generator().manual_seed(seed)).split(2)):
        index = torch.isin(train.labels, classes).nonzero().flatten()
        divided = fc.partition(train.subset(index), 5, "dirichlet", alpha=0.5, seed=10 * seed + task)
        held.append([index[mine] for mine in divided])
    return embedded(train, NETWORK, seed), embedded(test, NETWORK, seed), held


def cell(seed: int, nbytes: int, form: str) -> dict[str, Any]:
    """Add a stream's tasks up, and classify what no site holds."""
    (train, test), (known, unknown, held) = parts(), features(seed)
    dims = min(known.shape[1], ridge_dims(nbytes - HEADER, 10, form))
    basis = projection(known.shape[1], dims, seed)
    x, y = extended(known @ basis, train)
    kept = None
    for task in held:
        sent = [products_of(factored(x[mine], y[mine], TRAVELS), dims + 1, 10, TRAVELS) for mine in task]
        if kept is not None:
            sent.append(products_of(kept, dims + 1, 10, form))
        kept = factor_of(*summed(sent), form)
    assert kept is not None
    solution = least_squares([products_of(kept, dims + 1, 10, form)], None).float()
    right = (extended(unknown @ basis, test)[0] @ solution).argmax(1) == test.labels
    return {"accuracy": round(100 * float(right.float().mean()), 2), "dims": dims, "bytes": len(kept.to_bytes())}


def table() -> str:
    """Return a row for each number of bytes."""
    results = read(PATH)
    lines = ["| kB at most | features | 8 bits | features | 16 bits |", "|---|---|---|---|---|"]
    for kilobytes in KILOBYTES:
        said = [str(kilobytes)]
        for bits in FORMS:
            found = [one for seed in SEEDS if (one := results.get(_key(seed, kilobytes, bits)))]
            said += [str(found[0]["dims"]), ", ".join(f"{one['accuracy']:.1f}" for one in found)] if found else ["", ""]
        lines.append(f"| {' | '.join(said)} |")
    return "\n".join(lines)


def _key(seed: int, kilobytes: int, bits: int) -> str:
    return f"seed {seed} | {kilobytes:03} kB | {bits:02} bits"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="print Markdown from what is there")
    if parser.parse_args().table:
        print(table())
        return
    wanted = [(seed, kilobytes, bits) for seed in SEEDS for kilobytes in KILOBYTES for bits in FORMS]
    run_cells(PATH, {_key(*one): partial(cell, one[0], 1000 * one[1], FORMS[one[2]]) for one in wanted})


if __name__ == "__main__":
    main()
