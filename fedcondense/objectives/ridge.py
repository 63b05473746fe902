"""Ridge regression on random features, and beside matched class means.

The regression is FRePo's objective (Zhou et al., NeurIPS 2022, https://arxiv.org/abs/2206.00719) without its trained
networks: here the networks are random and frozen, so all that it needs of the real data is taken once a draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from fedcondense.contract import Recipe
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import FeatureObjective, FeatureRows, Sum
from fedcondense.sources import Pool

__all__ = ["MeansAndRidge", "RidgeRegression", "means_and_ridge"]

_ENOUGH = 10  # decoded images of a class with which its mean is matched at full weight


@dataclass(frozen=True)
class RidgeRegression(FeatureObjective):
    r"""Choose synthetic images on which a ridge regression predicts the labels of real ones.

    .. math:: \tfrac12 \lVert \Phi_r \Phi_s^\top (\Phi_s \Phi_s^\top + \lambda_N \bar d\, I)^{-1} Y_s - Y_r \rVert^2 / M

    with features :math:`\Phi`, centred targets :math:`Y` and the mean diagonal :math:`\bar d` of the kernel. Regression
    learns what separates classes, which class means ignore. On its own it overfits the pool, and with one class it has
    no signal. Besides the passes over the synthetic images a step solves an N x N system: cheap up to some thousand
    images.

    Args:
        layer: Which features: ``"embedding"`` or ``"logits"``.
        per_class: Real images of a class that a draw keeps, 2 bytes a feature each.
        penalty: The ridge, as a share of the mean diagonal, for up to 100 synthetic images; for more it grows with
            their number to the power 1.5. Measured: 0.01 serves 100 images, and costs 4 points at 500.
        learn_labels: Learn the targets, too.
    """

    layer: str = "embedding"
    per_class: int | None = 64
    penalty: float = 0.01
    learn_labels: bool = False

    separable: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.02, source=partial(Pool, size=96))

    def summarise(self, rows: Tensor, targets: Tensor) -> FeatureRows:
        """Keep the rows."""
        return FeatureRows(rows.half(), targets)

    def merge(self, pieces: Sequence[FeatureRows]) -> FeatureRows:
        """Put the rows together."""
        return FeatureRows(*(torch.cat(column) for column in zip(*pieces, strict=True)))

    def compare(self, observed: FeatureRows, rows: Tensor, targets: Tensor) -> Tensor:
        """Return half the mean squared error of the prediction on the real rows."""
        # targets are centred over the classes that the real data have: a client knows nothing of the others
        present = (observed.targets.sum(0) > 0).to(targets.dtype)
        centre = present / present.sum().clamp_min(1)
        predicted = self.predict(rows, targets - centre, observed.rows)
        error: Tensor = (predicted - (observed.targets - centre)).square().sum(1)
        return error.mean() / 2

    def predict(self, rows: Tensor, targets: Tensor, at: Tensor) -> Tensor:
        """Return what a regression on rows (N, D) with centred targets (N, K) says at others (M, D), as (M, K)."""
        rows = rows.float()
        kernel = rows @ rows.T
        growth = max(1.0, len(rows) / 100) ** 1.5
        ridge = self.penalty * growth * kernel.detach().diagonal().mean()
        system = kernel + ridge * torch.eye(len(rows), dtype=rows.dtype, device=rows.device)
        weights, _ = torch.linalg.solve_ex(system, targets)  # no wait for a device's error code
        predicted: Tensor = at.to(rows.dtype) @ (rows.T @ weights)
        return predicted


@dataclass(frozen=True)
class MeansAndRidge(Sum):
    """Matched class means and the regression, where the means step back if a class has few images.

    Held to the mean of its class, a single image is a blur; several share that load. With n decoded images for each
    class of the real data, the means weigh (n / 10) to the power 4, from a hundredth to one: `experiments/` has the
    measurements. They keep their weight where a single class is at hand, of which the regression learns nothing.
    """

    def weigh(self, observed: tuple[Any, ...], targets: Tensor) -> Sequence[float | Tensor]:
        """Return the factors of the means and of the regression."""
        classes = (observed[1].targets.sum(0) > 0).sum()  # learned targets say a little of every class
        share = ((len(targets) / (_ENOUGH * classes.clamp_min(1))) ** 4).clamp(0.01, 1)
        # a number in place of ones would be copied to the device, which no CUDA graph can hold
        return self.weights[0] * torch.where(classes > 1, share, torch.ones_like(share)), self.weights[1]


def means_and_ridge(
    per_class: int | None = 64, ridge: float = 1.0, penalty: float = 0.01, learn_labels: bool = False
) -> MeansAndRidge:
    """Return `dm-ridge`: relative distribution matching plus `ridge` times the regression, on the same rows.

    Means hold each class where it belongs for any number of classes at hand; the regression adds what separates them.
    Measured against either alone in `experiments/`.

    Args:
        per_class: Real images of a class that a draw sees.
        ridge: The regression's weight.
        penalty: The regression's ridge.
        learn_labels: Learn the targets, too: two bytes per class and image more, which are counted.
    """
    means = DistributionMatching(per_class=per_class, relative=True)
    return MeansAndRidge((means, RidgeRegression(per_class=per_class, penalty=penalty)), (1.0, ridge), learn_labels)
