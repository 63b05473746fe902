"""What of the sites' sets goes down to all of them, within a number of bytes that does not grow with the sites."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedcondense.condensing import condense
from fedcondense.data import Data, Spec
from fedcondense.flower.contract import State
from fedcondense.flower.payloads import Sums
from fedcondense.flower.sites import site_and_round
from fedcondense.sets.fitting import Within
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["ANCHORS", "Condensed", "Nothing", "Shared", "kept_as_tensors", "saw", "who_shares"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


_LEAST = 0.25  # of a site's images of a class: fewer, and its header takes more than they do


@dataclass(frozen=True)
class Shared:
    """The sets of the sites that share theirs (``share-with = sites``), as they came where they fit.

    Where they do not, each site's images of a class are cut alike, to a quarter at most; where that is not enough, only
    some sites' go down, in an order by their names' hashes. None is encoded again.

    Args:
        nbytes: The most that the file may take.
    """

    nbytes: int = 100_000

    def __call__(self, sets: Mapping[str, SyntheticSet], shared: frozenset[str]) -> SyntheticSet | None:
        """Return what goes down; None: nobody shares, or nothing fits."""
        chosen = {name: sets[name] for name in sorted(shared & set(sets), key=_hash)}
        if not chosen or not self.nbytes:
            return None
        whole = SyntheticSet.join(chosen.values())
        if whole.nbytes <= self.nbytes:
            return whole
        most = max(max(one.counts().tolist()) for one in chosen.values())
        least = max(1, int(_LEAST * most))
        found = self._largest(lambda count: _cut(chosen.values(), count), least, most - 1)
        if found is None:
            some = list(chosen.values())
            found = self._largest(lambda count: _cut(some[:count], least), 1, len(some) - 1)
        if found is None:
            _LOG.warning("the images of one site take more than %d bytes: no anchors go down", self.nbytes)
        return found

    def _largest(self, of: Callable[[int], SyntheticSet], low: int, high: int) -> SyntheticSet | None:
        """Return the set of the largest number that fits, by bisection; None if none does."""
        found = None
        while low <= high:
            middle = (low + high) // 2
            tried = of(middle)
            if tried.nbytes <= self.nbytes:
                found, low = tried, middle + 1
            else:
                high = middle - 1
        return found


def _cut(sets: Iterable[SyntheticSet], most: int) -> SyntheticSet:
    """Return the union of sets, each with so many images of a class at most, where they can be cut."""
    kept = [
        one.restrict(one.classes, dict.fromkeys(one.classes, most)) if all(p.is_separable for p in one.parts) else one
        for one in sets
    ]
    return SyntheticSet.join([one for one in kept if one is not None])


def _hash(name: str) -> bytes:
    return hashlib.sha256(name.encode()).digest()


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


def saw(strategy: Any) -> str:
    """Return who has seen what in a run of `Anchored`."""
    state, seen = strategy.state, "no site sees another's images"
    if "anchors" in state.tensors:
        is_made = isinstance(strategy.anchors, Condensed)
        seen = "images that the server condensed from those of all" if is_made else f"images of {who_shares(state)}"
        seen = f"sites see {seen}"
    has_sums = any(isinstance(answer.payload, Sums) for answer in strategy.answers)  # in place of weights
    weights = ", weights" if state.round > 1 + has_sums else ""
    sums = ", sums of features" if has_sums else ""
    return f"the server sees each site's synthetic images, class counts{weights}{sums}; {seen}"


def who_shares(state: State) -> str:
    """Say how many of the sites whose sets are kept share theirs."""
    sites = {site_and_round(name)[0] for name in state.sets}
    shares = sum(f"shares/{name}" in state.numbers for name in sites)
    return f"sites that share theirs, {shares} of {len(sites)} at the end"


Anchors = Callable[[Mapping[str, SyntheticSet], frozenset[str]], SyntheticSet | None]

ANCHORS: dict[str, Callable[[int], Anchors]] = {"shared": Shared, "condensed": Condensed, "none": Nothing}
"""What goes down, by name; each takes the bytes that it may have."""


def kept_as_tensors(
    make: Callable[[Mapping[str, SyntheticSet], frozenset[str]], SyntheticSet | None],
    sets: Mapping[str, SyntheticSet],
    shared: frozenset[str],
) -> dict[str, Tensor]:
    """Make anchors of the first round's sets, say how many, and return their file as a state keeps it."""
    anchors = make(sets, shared)
    if anchors is None:
        if not isinstance(make, Nothing):
            _LOG.info("no anchors go down: %d of %d sites share their sets (share-with)", len(shared), len(sets))
        return {}
    blob = anchors.with_record(seconds=0.0).to_bytes()  # how long a site took is not for others, nor in a seed
    _LOG.info("anchors: %d images, %d bytes, go to each site once", len(anchors), len(blob))
    return {"anchors": torch.frombuffer(bytearray(blob), dtype=torch.uint8)}
