"""Characteristic function matching (NCFM): Wang et al., CVPR 2025, https://arxiv.org/abs/2502.20653"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Recipe
from fedcondense.objectives.features import ClassSums, SumObjective
from fedcondense.randomness import stream
from fedcondense.sources import Pool

__all__ = ["CharacteristicFunction", "WaveSums", "frequencies"]

_FLOOR = 1e-12  # of a squared distance: the root's slope is infinite at zero; as published


class WaveSums(NamedTuple):
    """Sums of cosines and sines by class: the characteristic functions at the frequencies; they add up over clients."""

    real: Tensor  # (K, F)
    imaginary: Tensor  # (K, F)
    counts: Tensor  # (K,), how many rows each holds


@dataclass(frozen=True)
class CharacteristicFunction(SumObjective):
    r"""Bring the characteristic functions of synthetic features of a class to those of real ones.

    .. math:: \sum_c \overline{\sqrt{\alpha (|\Phi_r| - |\Phi_s|)^2 + (1 - \alpha)\,
        2 (|\Phi_r| |\Phi_s| - \operatorname{Re} \Phi_r \overline{\Phi_s})}}, \qquad
        \Phi(t) = \overline{e^{i \langle t, \phi / \lVert \phi \rVert \rangle}}

    averaged over frequencies t from a normal distribution: the first term compares how spread the features are, the
    second where they are. Two distributions are equal if and only if their characteristic functions are.

    Besides the passes over the synthetic images a step multiplies their features by D x F numbers. A draw keeps
    2 F + 1 numbers a class, whatever the number of real images. The frequencies are the same at each step, so that
    sums can be kept and added; what meets them are the features of another random network at each draw. The
    authors' factor of 300 is left out, and their networks, trained on the real data, with the cross-entropy of one
    of them, are a teacher's part: neither is here.

    Args:
        layer: Which features: ``"embedding"``, as published, or ``"logits"``.
        per_class: Real images of a class that a draw sees; 1024 as published.
        count: Frequencies; 4096 in the authors' settings, 1024 in the paper, where more gained nothing.
        amplitude: The share alpha; one half in the authors' settings, which is the distance in the complex plane.
        seed: Determines the frequencies.
    """

    layer: str = "embedding"
    per_class: int | None = 256
    count: int = 1024
    amplitude: float = 0.5
    seed: int = 0

    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.02, source=partial(Pool, size=96))

    def added_by(self, rows: Tensor) -> Tensor:
        """Return the cosines and then the sines of each row, (N, 2 F)."""
        angles = self.angles(rows)
        return torch.cat([angles.cos(), angles.sin()], 1)

    def from_sums(self, sums: ClassSums) -> WaveSums:
        """Take the sums of cosines and of sines apart."""
        real, imaginary = sums.sums.chunk(2, dim=1)
        return WaveSums(real, imaginary, sums.counts)

    def angles(self, rows: Tensor) -> Tensor:
        """Return the products of normalised rows (N, D) with the frequencies, (N, F) float32."""
        rows = F.normalize(rows.float(), dim=1)
        return rows @ frequencies(rows.shape[1], self.count, self.seed, rows.device)

    def summarise(self, rows: Tensor, targets: Tensor) -> WaveSums:
        """Return sums of cosines and sines by class, weighted by the targets."""
        angles = self.angles(rows)
        return WaveSums(targets.T @ angles.cos(), targets.T @ angles.sin(), targets.sum(0))

    def merge(self, pieces: Sequence[WaveSums]) -> WaveSums:
        """Add the sums up."""
        return WaveSums(*(torch.stack(column).sum(0) for column in zip(*pieces, strict=True)))

    def compare(self, observed: WaveSums, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of distances over the classes that both sides have."""
        synthetic = self.summarise(rows, targets)
        present = (observed.counts > 0) & (synthetic.counts > 0)
        return (wave_distance(means(observed), means(synthetic), self.amplitude) * present).sum()


def means(sums: WaveSums) -> tuple[Tensor, Tensor]:
    """Return the real and imaginary parts, (K, F) each; zero for a class that is absent."""
    counts = sums.counts.clamp_min(torch.finfo(sums.counts.dtype).tiny).unsqueeze(1)
    return sums.real / counts, sums.imaginary / counts


def wave_distance(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], amplitude: float) -> Tensor:
    """Return how far two characteristic functions are apart, (K,): their real and imaginary parts, (K, F) each.

    With the squared distance d in the complex plane and the difference r of moduli, the formula's second term is
    d - r**2; written as here, equal functions are at distance zero without cancellation.
    """
    squared = (a[0] - b[0]).square() + (a[1] - b[1]).square()
    moduli = [(x.square() + y.square()).clamp_min(_FLOOR).sqrt() for x, y in (a, b)]
    mixed = (1 - amplitude) * squared + (2 * amplitude - 1) * (moduli[0] - moduli[1]).square()
    return mixed.clamp_min(_FLOOR).sqrt().mean(1)


@lru_cache(maxsize=8)
def frequencies(width: int, count: int, seed: int, device: torch.device) -> Tensor:
    """Return frequencies from a normal distribution, (width, count) float32: equal seeds, equal frequencies."""
    with torch.inference_mode(False):  # what is kept may be used where gradients are
        drawn = stream(seed, "frequencies", width)
        return torch.randn(width, count, generator=drawn, dtype=torch.float32, device="cpu").to(device)
