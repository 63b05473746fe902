"""What the synthetic images start from, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.randomness import Drawn

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = [
    "FROM_MEMORY_OR_REAL",
    "STARTS",
    "WITHOUT_RECORDS",
    "Start",
    "from_memory_or",
    "gaussian",
    "grey",
    "noise",
    "real",
]

Start = Callable[["Data", "list[int]", torch.Generator], Tensor]
"""Takes the data, how many images of each class, and a generator; returns (N, C, H, W) in [0, 1], class by class."""

_FEW = 10  # a class with fewer records starts from public grey: its mean nearly is one of them
_SOME = 40  # with fewer, from its mean and white noise: principal directions would be records
_DIRECTIONS = 20
FROM_MEMORY_OR_REAL = "from_memory_or_real"
"""What a record says of images that started from a memory's, and from records where it had too few."""


@in_own_state
def gaussian(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
    """Sample each class's Gaussian: its mean and the 20 largest principal directions of its pixels.

    No record is copied; small classes fall back to less (mean and white noise below 40 records, grey below 10). Costs
    about a tenth of a second a class for 5,000 images of 32x32x3.
    """
    pieces = []
    for c, count in enumerate(counts):
        if not count:
            continue
        records = data.images[data.labels == c].flatten(1).float().cpu() / 255
        if len(records) < _FEW:
            pieces.append(_grey(data, count, generator))
            continue
        mean = records.mean(0)
        if len(records) < _SOME:
            deviation = (records - mean).square().mean().sqrt()
            sample = mean + 0.5 * deviation * torch.randn(count, len(mean), generator=generator)
        else:
            rank = min(_DIRECTIONS, *records.shape)  # tiny images have fewer values
            # the randomised decomposition takes no generator
            with Drawn(int(torch.randint(2**31, (), generator=generator))):
                _, size, directions = torch.pca_lowrank(records, q=rank, niter=2)
            size = size / len(records) ** 0.5
            sample = mean + (torch.randn(count, rank, generator=generator) * size) @ directions.T
        pieces.append(sample.clamp(0, 1).view(count, *data.spec.shape))
    return torch.cat(pieces).to(data.device)


@in_own_state
def grey(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
    """Start around the data set's mean colour, which is public, with noise of its deviation: no class statistics."""
    return _grey(data, sum(counts), generator).to(data.device)


@in_own_state
def noise(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
    """Start from uniform noise in [0, 1]."""
    return torch.rand(sum(counts), *data.spec.shape, generator=generator).to(data.device)


@in_own_state
def real(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
    """Start from random real images, as the papers do. Whoever sees the set may recognise them: never by default."""
    index = data.per_class(max(counts), generator)
    labels = data.labels.cpu()[index]
    pieces = []
    for c, count in enumerate(counts):
        of_class = index[labels == c]
        pieces.append(of_class.repeat(-(-count // max(1, len(of_class))))[:count])
    return data.images[torch.cat(pieces).to(data.device)].float() / 255


def from_memory_or(start: Start, stored: Tensor) -> Start:
    """Return a start from the images that a memory holds already, and from `start` where it has too few or none.

    No image begins twice: two that are equal get equal gradients, and stay equal however long they are condensed.

    Args:
        start: For the other images.
        stored: (N,) bool, which of the data are the memory's own; each class takes its first ones that differ.
    """

    def from_memory_or_new(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
        pieces = list(start(data, counts, generator).split(counts))
        for c, count in enumerate(counts):
            own = (stored.to(data.device) & (data.labels == c)).nonzero().squeeze(1)
            if count and len(own):
                kept = _different(data.images[own])[:count]
                pieces[c] = torch.cat([kept.float() / 255, pieces[c][len(kept) :].to(kept.device)])
        return torch.cat(pieces)

    if start is real:
        from_memory_or_new.__name__ = FROM_MEMORY_OR_REAL
    return from_memory_or_new


def _different(images: Tensor) -> Tensor:
    """Return images (N, C, H, W) without those that are equal to one before them."""
    _, which = torch.unique(images.flatten(1), dim=0, return_inverse=True)
    places = torch.arange(len(images), device=images.device)
    first = torch.full_like(places, len(images)).scatter_reduce(0, which, places, "amin")
    return images[first[first < len(images)].sort().values]


def _grey(data: Data, count: int, generator: torch.Generator) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in (data.spec.mean, data.spec.std))
    sample = mean + 0.5 * std * torch.randn(count, *data.spec.shape, generator=generator)
    return sample.clamp(0, 1)


STARTS: dict[str, Start] = {"gaussian": gaussian, "grey": grey, "noise": noise, "real": real}
"""``"real"`` alone shows records; federated code takes it only if the client allows it."""

WITHOUT_RECORDS = ("grey", "noise")
"""Starts that serve a holder who keeps the records."""
