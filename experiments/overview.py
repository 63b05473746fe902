"""The README's picture: what three clients sent, and accuracy against bytes (from results/federated.json).

python experiments/overview.py       # about a minute; writes results/overview.png
"""

from __future__ import annotations

import torch
from cells import RESULTS
from federated import curve
from matplotlib.figure import Figure

import fedcondense as fc

CLIENTS, COLUMNS = 3, 5


def main() -> None:
    torch.set_num_threads(1)
    train, _ = fc.load_data("fashion-mnist")
    split = fc.partition(train, 10, "dirichlet", alpha=0.1, seed=0)
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(1.15, 1))[0]
    panels = left.subfigures(1, CLIENTS)
    left.suptitle("What clients send: a few synthetic images of the classes they hold", fontsize=11)
    for k, panel in enumerate(panels):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            synthetic = fc.condense(train.subset(split[k]), COLUMNS, "dm-ridge", seed=k, steps=400, limit=0.5)
        images, targets = synthetic.pixels()
        labels = targets.argmax(1)
        axes = panel.subplots(10, COLUMNS)
        panel.supxlabel(f"client {k}: {synthetic.nbytes / 1000:.0f} kB", fontsize=9)
        for axis in axes.flat:
            axis.axis("off")
        for c in range(10):
            for column, image in enumerate(images[labels == c]):
                axes[c, column].imshow(image[0], cmap="gray", vmin=0, vmax=1)
    curve(right.subplots())
    figure.savefig(RESULTS / "overview.png", dpi=110)


if __name__ == "__main__":
    main()
