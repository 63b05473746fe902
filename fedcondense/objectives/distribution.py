"""Distribution matching (DM): Zhao and Bilen, WACV 2023, https://arxiv.org/abs/2110.04181"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from fedcondense.contract import Recipe
from fedcondense.objectives.features import ClassSums, SumObjective
from fedcondense.sources import Fresh, Pool

__all__ = ["ClassSums", "DistributionMatching", "FirstMoment", "class_sums"]


def class_sums(rows: Tensor, targets: Tensor) -> ClassSums:
    """Sum feature rows by class, weighted by the targets.

    Args:
        rows: (N, D), floating point.
        targets: (N, K) probabilities; a one-hot row counts for one class.
    """
    return ClassSums(targets.T @ rows.float(), targets.sum(0))


class FirstMoment(SumObjective):
    """Objectives that compare class means of feature rows; a subclass says how far two means are apart."""

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """Return how far two (K, D) means are apart, (K,); the squared Euclidean distance unless overridden."""
        return (real - synthetic).square().sum(1)

    def added_by(self, rows: Tensor) -> Tensor:
        """Return the rows themselves."""
        return rows.float()

    def from_sums(self, sums: ClassSums) -> ClassSums:
        """Return the sums themselves."""
        return sums

    def summarise(self, rows: Tensor, targets: Tensor) -> ClassSums:
        """Return the class sums."""
        return class_sums(rows, targets)

    def merge(self, pieces: Sequence[ClassSums]) -> ClassSums:
        """Add the sums up."""
        return ClassSums(*(torch.stack(column).sum(0) for column in zip(*pieces, strict=True)))

    def compare(self, observed: ClassSums, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of distances over the classes that both sides have."""
        synthetic = class_sums(rows, targets)
        # multiplied, not indexed: indexing would make a GPU wait for the number of classes
        present = (observed.counts > 0) & (synthetic.counts > 0)
        return (self.distance(observed.means, synthetic.means) * present).sum()


@dataclass(frozen=True)
class DistributionMatching(FirstMoment):
    r"""Bring the class means of synthetic features to those of real features.

    .. math:: \sum_c \lVert \mu_c(\mathrm{real}) - \mu_c(\mathrm{synthetic}) \rVert_2^2

    A step costs a forward and a backward pass over the synthetic images. A pool of draws pays the real side once
    a draw; with `published`, each step also passes `per_class` real images of each class forward.

    Args:
        layer: Which features are matched: ``"embedding"``, as published, or ``"logits"``.
        per_class: Real images of a class that a draw sees; 256 as published.
        relative: Divide by the spread of the real class means, so that draws of any scale weigh the same.
    """

    layer: str = "embedding"
    per_class: int | None = 256
    relative: bool = False

    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.02, source=partial(Pool, size=96))
    published: ClassVar[Recipe] = Recipe(
        steps=20_000, lr=1.0, source=Fresh, optimizer="sgd", betas=(0.5, 0.0), decay=1.0, start="real", normalised=True
    )

    def compare(self, observed: ClassSums, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss; relative to the spread of the real means if asked for."""
        loss = super().compare(observed, rows, targets)
        return loss / _spread(observed) if self.relative else loss


def _spread(observed: ClassSums) -> Tensor:
    """Return the mean squared distance of the real class means from their centre; of one class, from zero."""
    present = (observed.counts > 0).to(observed.sums.dtype)
    number = present.sum().clamp_min(1)
    centre = (observed.means * present.unsqueeze(1)).sum(0) / number
    between = ((observed.means - centre).square().sum(1) * present).sum() / number
    size = (observed.means.square().sum(1) * present).sum() / number
    return torch.where(number > 1, between, size).clamp_min(1e-12) * number
