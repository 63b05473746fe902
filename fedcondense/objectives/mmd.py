"""Maximum mean discrepancy of each class, as in M3D: Zhang et al., AAAI 2024, https://arxiv.org/abs/2312.15927"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fedcondense.contract import Recipe
from fedcondense.objectives.features import FeatureObjective, FeatureRows
from fedcondense.sources import Pool

__all__ = ["KernelMeans", "KernelRows", "gaussian_mixture", "squared_spread"]


class KernelRows(NamedTuple):
    """Real feature rows, and what of the discrepancy depends on them alone."""

    rows: Tensor  # (M, D), float16: a pool keeps many of these
    targets: Tensor  # (M, K)
    spread: Tensor  # (), the mean squared distance of two rows, which bandwidths are multiples of
    within: Tensor  # (K,), the mean kernel value of two rows of a class


@dataclass(frozen=True)
class KernelMeans(FeatureObjective):
    r"""Bring the distribution of synthetic features of a class to that of real ones: all their moments, not the mean.

    .. math:: \sum_c \overline{k(r, r')} + \overline{k(s, s')} - 2\, \overline{k(r, s)}, \qquad
        k(a, b) = \tfrac1J \sum_j e^{-\lVert a - b \rVert^2 / (b_j d)}

    over real rows r and synthetic rows s of class c (a row meets itself, too), with the mean squared distance d of two
    real rows of any class. The loss is zero only for equal distributions, at most 2 per class, and invariant to the
    features' scale. Unlike class means it pushes similar images apart; a single image moves to where real ones are
    dense.

    Besides the passes over the synthetic images a step takes N x M kernel values, for N synthetic and M real rows.
    M3D matches on networks that were trained for some steps, and enlarges its codes; here the networks are random
    and frozen, so that a pool pays for the real rows once, and enlarging is the parametrization's business.

    Args:
        layer: Which features: ``"embedding"``, as published, or ``"logits"``.
        per_class: Real images of a class that a draw keeps, 2 bytes a feature each.
        bandwidths: Those of the mixture, in mean squared distances; powers of two about one, the usual choice.
    """

    layer: str = "embedding"
    per_class: int | None = 64
    bandwidths: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0)

    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.02, source=partial(Pool, size=96))

    def summarise(self, rows: Tensor, targets: Tensor) -> FeatureRows:
        """Keep the rows."""
        return FeatureRows(rows.half(), targets)

    def merge(self, pieces: Sequence[FeatureRows | KernelRows]) -> KernelRows:
        """Put the rows together, those of merged pieces as well, and compare them with each other."""
        rows, targets = (torch.cat(column) for column in zip(*(piece[:2] for piece in pieces), strict=True))
        full, shares = rows.float(), class_shares(targets)
        spread = squared_spread(full)
        return KernelRows(rows, targets, spread, self.means(full, shares, full, shares, spread))

    def compare(self, observed: KernelRows, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of discrepancies over the classes that both sides have."""
        rows, shares = rows.float(), class_shares(targets)
        real_shares = class_shares(observed.targets)
        between = self.means(rows, shares, observed.rows.float(), real_shares, observed.spread)
        own = self.means(rows, shares, rows, shares, observed.spread)
        present = (real_shares.sum(0) > 0) & (shares.sum(0) > 0)
        return ((observed.within + own - 2 * between) * present).sum()

    def means(self, a: Tensor, a_shares: Tensor, b: Tensor, b_shares: Tensor, spread: Tensor) -> Tensor:
        """Return the mean kernel value of each class, (K,), of rows (N, D) and (M, D) with shares (N, K) and (M, K)."""
        kernel = gaussian_mixture(a, b, [width * spread for width in self.bandwidths])
        return (a_shares * (kernel @ b_shares)).sum(0)


def gaussian_mixture(a: Tensor, b: Tensor, bandwidths: Sequence[Tensor]) -> Tensor:
    """Return the mean over bandwidths of exp(-distance squared / bandwidth), (N, M), of rows (N, D) and (M, D)."""
    squared = (a.square().sum(1).unsqueeze(1) + b.square().sum(1) - 2 * a @ b.T).clamp_min(0)
    # added one by one: stacked, the copy and the way back through the mean took as long as the exponentials
    total = sum((torch.exp(squared / -width) for width in bandwidths), torch.zeros_like(squared))
    return total / len(bandwidths)


def squared_spread(rows: Tensor) -> Tensor:
    """Return the mean squared distance of two of the rows (M, D), each with itself included; of one, its square."""
    spread = 2 * (rows - rows.mean(0)).square().sum(1).mean()
    size = rows.square().sum(1).mean()
    return torch.where(spread > 1e-6 * size, spread, size).clamp_min(torch.finfo(rows.dtype).tiny)


def class_shares(targets: Tensor) -> Tensor:
    """Return each row's share in its classes, (N, K): columns sum to one, or to zero for a class that is absent."""
    return targets / targets.sum(0).clamp_min(torch.finfo(targets.dtype).tiny)
