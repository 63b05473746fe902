"""Why ridge statistics of few bits are a triangular factor: accuracy on held-out training images by what is rounded.

    python experiments/ridge_bits.py            # results/ridge_bits.json; about two CPU minutes
    python experiments/ridge_bits.py --table    # Markdown

Fashion-MNIST, ten clients, Dirichlet 0.1, 10,000 training images, 3,000 others to test on, features of a random
ConvNet-3 width 32, float32, the ridge's usual strength, three seeds of the division, the network and the projection.
`equal` gives each number of bits as many dimensions as fit into a number of bytes; `same` gives all the same number.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from cells import RESULTS, read, run_cells
from torch import Tensor
from torch.nn import functional as F

import fedcondense as fc
from fedcondense.data.images import Data
from fedcondense.flower.strategies.features import embedded

PATH = RESULTS / "ridge_bits.json"
SEEDS, BYTES, SAME = (0, 1, 2), (3500, 7500, 15_500), (160, 512)
BITS = (32, 16, 8, 6, 5, 4)
STRENGTH, NETWORK = 1e-4, "convnet3-w32"


def rounded(rows: Tensor, bits: int) -> Tensor:
    """Round each row to whole multiples of its largest number over 2**(bits - 1) - 1; from 16 bits on, to a float."""
    scale = rows.abs().amax(1, True).clamp_min(1e-30)
    if bits >= 16:
        return (rows / scale).to(torch.float16 if bits == 16 else torch.float32).double() * scale
    most = 2 ** (bits - 1) - 1
    whole: Tensor = (rows / scale * most).round() * scale / most
    return whole


def of_factor(x: Tensor, y: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return the products that a rounded triangular factor holds."""
    size = x.shape[1]
    factor = rounded(torch.linalg.qr(torch.cat([x, y], 1), mode="r")[1][:size], bits)
    return factor[:, :size].T @ factor[:, :size], factor[:, :size].T @ factor[:, size:]


def of_gram(x: Tensor, y: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Return products that are rounded themselves, each over the norms of its two features."""
    norms = x.square().sum(0).sqrt().clamp_min(1e-30).unsqueeze(1)
    gram = rounded((x.T @ x / norms / norms.T).reshape(1, -1), bits).reshape(len(norms), -1)
    return gram * norms * norms.T, rounded(x.T @ y / norms, bits) * norms


def dims_of(nbytes: int, bits: int) -> int:
    """Return how many dimensions of so many bits fit."""
    dims = 1
    while ((dims + 2) * (dims + 3) // 2 + (dims + 2) * 10) * bits / 8 + 4 * (dims + 2) * (bits < 32) <= nbytes:
        dims += 1
    return dims


@lru_cache
def features(seed: int) -> tuple[Tensor, Tensor, Data, Data]:
    """Return all features of the images to train and to test on, and those."""
    train = fc.load_data("fashion-mnist").train
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(1))
    fit, held_out = train.subset(order[:10_000]), train.subset(order[-3000:])
    return embedded(fit, NETWORK, seed), embedded(held_out, NETWORK, seed), fit, held_out


def accuracy(dims: int, bits: int, form: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]) -> dict[str, Any]:
    found = []
    for seed in SEEDS:
        *both, fit, held_out = features(seed)
        width = both[0].shape[1]
        drawn = torch.randn(width, dims, generator=torch.Generator().manual_seed(seed)) / dims**0.5
        x, test = (F.pad(each @ drawn if dims < width else each, (0, 1), value=1.0).double() for each in both)
        y = F.one_hot(fit.labels, 10).double()
        gram, products = torch.zeros(x.shape[1], x.shape[1]).double(), torch.zeros(x.shape[1], 10).double()
        for rows in fc.partition(fit, 10, "dirichlet", alpha=0.1, seed=seed):
            mine = form(x[rows], y[rows], bits)
            gram, products = gram + mine[0], products + mine[1]
        gram.diagonal().add_(STRENGTH * gram.diagonal().mean())
        right = (test @ torch.linalg.solve(gram, products)).argmax(1) == held_out.labels
        found.append(round(100 * float(right.float().mean()), 2))
    return {"dims": dims, "accuracies": found}


Cells = dict[str, Callable[[], dict[str, Any]]]


def cells() -> Cells:
    same: Cells = {
        f"same | {dims:03} | {name} | {bits:02} bits": partial(accuracy, dims, bits, form)
        for dims in SAME
        for name, form in (("factor", of_factor), ("gram", of_gram))
        for bits in (32, 16, 8)
    }
    equal: Cells = {
        f"equal | {nbytes:05} | factor | {bits:02} bits": partial(accuracy, dims_of(nbytes, bits), bits, of_factor)
        for nbytes in BYTES
        for bits in BITS
    }
    return same | equal


def table() -> str:
    """Return a row per cell."""
    lines = ["| compared at | rounded | bits | dimensions | accuracy |", "|---|---|---|---|---|"]
    for name, cell in read(PATH).items():
        kind, size, form, bits = name.split(" | ")
        at = f"{int(size)} {'dimensions' if kind == 'same' else 'bytes'}"
        mean, std = statistics.fmean(cell["accuracies"]), statistics.stdev(cell["accuracies"])
        lines.append(f"| {at} | {form} | {int(bits.split()[0])} | {cell['dims']} | {mean:.1f} ± {std:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    if arguments.table:
        print(table())
        return
    torch.set_num_threads(1)
    run_cells(PATH, cells())


if __name__ == "__main__":
    main()
