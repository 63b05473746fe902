"""What of the sites' sets goes down to all of them, within a number of bytes that does not grow with the sites."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from fedcondense.condensing import condense
from fedcondense.data import Data, Spec
from fedcondense.sets.fitting import Within
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["ANCHORS", "Condensed", "Nothing", "Shared"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


@dataclass(frozen=True)
class Shared:
    """The sets of the sites that share theirs (``share-with = sites``), as they came where they fit.

    Where they do not, each site's images are cut alike, until the file fits; none is encoded again.

    Args:
        nbytes: The most that the file may take.
    """

    nbytes: int = 100_000

    def __call__(self, sets: Mapping[str, SyntheticSet], shared: frozenset[str]) -> SyntheticSet | None:
        """Return what goes down; None: nobody shares."""
        chosen = [sets[name] for name in sorted(shared & set(sets))]
        if not chosen or not self.nbytes:
            return None
        whole = SyntheticSet.join(chosen)
        if whole.nbytes <= self.nbytes:
            return whole
        counts = [dict(zip(one.classes, one.counts().tolist(), strict=True)) for one in chosen]
        low, high, found = 1, max(max(count.values()) for count in counts), None
        while low <= high:  # the most images of a site and class that fit
            most = (low + high) // 2
            cut = [one.restrict(one.classes, dict.fromkeys(one.classes, most)) for one in chosen]
            tried = SyntheticSet.join([one for one in cut if one is not None])
            if tried.nbytes <= self.nbytes:
                found, low = tried, most + 1
            else:
                high = most - 1
        if found is None:
            _LOG.warning("one image per site and class takes more than %d bytes: no anchors go down", self.nbytes)
        return found


@dataclass(frozen=True)
class Condensed:
    """A set that the server condenses from all of them: no image of a site's goes down, whoever shares.

    Args:
        nbytes: The most that the file may take.
        steps: Of condensing.
    """

    nbytes: int = 100_000
    steps: int = 200

    def __call__(self, sets: Mapping[str, SyntheticSet], shared: frozenset[str]) -> SyntheticSet | None:
        """Return what goes down."""
        if not self.nbytes:
            return None
        union = SyntheticSet.join(sets.values())
        batch, record = union.pixels(), union.record
        spec = Spec(record.data, union.shape, union.classes, record.mean, record.std)
        images = (batch.images.clamp(0, 1) * 255).round().to(torch.uint8)
        data = Data(images, batch.targets.argmax(1), spec)
        return condense(data, Within(self.nbytes, seeds=0), steps=self.steps, start="gaussian")


@dataclass(frozen=True)
class Nothing:
    """Nothing goes down but weights.

    Args:
        nbytes: Of no effect.
    """

    nbytes: int = 0

    def __call__(self, sets: Mapping[str, SyntheticSet], shared: frozenset[str]) -> None:
        """Return None."""


Anchors = Callable[[Mapping[str, SyntheticSet], frozenset[str]], SyntheticSet | None]

ANCHORS: dict[str, Callable[[int], Anchors]] = {"shared": Shared, "condensed": Condensed, "none": Nothing}
"""What goes down, by name; each takes the bytes that it may have."""
