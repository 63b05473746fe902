"""A store within a number of bytes: where sets of many rounds pile up, images are left out evenly."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from fedcondense.errors import SettingError
from fedcondense.flower.contract import Answer, Store
from fedcondense.flower.settings import number
from fedcondense.flower.stores import Latest
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Bounded"]


@dataclass(frozen=True)
class Bounded:
    """Another store's sets, cut so that the file of their union keeps to a number of bytes.

    Of the class that has most images the last one goes, from the site that has most of them, until the union fits: all
    classes keep about as many. Nothing is encoded again, so that what stays is as it arrived.

    Args:
        store: Says which sets there are.
        nbytes: Of the union's file; 0: any number.
    """

    store: Store = Latest()
    nbytes: int = number(0, 0)

    def take(
        self, server_round: int, answers: Sequence[Answer[SyntheticSet]], kept: Mapping[str, SyntheticSet]
    ) -> dict[str, SyntheticSet]:
        """Return what the store keeps, cut.

        Raises:
            SettingError: One image of each class is too much, or images cannot be left out of a set.
        """
        sets = self.store.take(server_round, answers, kept)
        if not self.nbytes or not sets or _nbytes(sets) <= self.nbytes:
            return sets
        order = _last_first({site: _stored(one) for site, one in sets.items()})
        size = partial(_size_without, sets, order)
        gone = bisect_left(range(len(order) + 1), -self.nbytes, key=lambda count: -size(count))
        if gone > len(order):
            raise SettingError(
                f"a memory of {self.nbytes} bytes cannot hold one image of each class that was sent; needed: "
                f"{size(len(order))} bytes"
            )
        return _without(sets, order[:gone])


def _nbytes(sets: Mapping[str, SyntheticSet]) -> int:
    return SyntheticSet.join(sets.values()).nbytes


def _size_without(sets: Mapping[str, SyntheticSet], order: Sequence[tuple[str, str]], count: int) -> int:
    return _nbytes(_without(sets, order[:count]))


def _stored(one: SyntheticSet) -> Counter[str]:
    """Return how many images of each class a set stores, by name."""
    found: Counter[str] = Counter()
    for part in one.parts:
        counts = torch.bincount(part.labels(), minlength=len(part.record.classes)).tolist()
        found.update({name: n for name, n in zip(part.record.classes, counts, strict=True) if n})
    return found


def _last_first(stored: Mapping[str, Counter[str]]) -> list[tuple[str, str]]:
    """Return the site and the class that lose an image next, until each class has one."""
    left = {site: Counter(counts) for site, counts in stored.items()}
    total: Counter[str] = sum(left.values(), Counter())
    order = []
    for _ in range(sum(total.values()) - len(total)):
        name = max(reversed(list(total)), key=lambda name: total[name])
        site = max(reversed(list(left)), key=lambda site: left[site][name])
        left[site][name] -= 1
        total[name] -= 1
        order.append((site, name))
    return order


def _without(sets: Mapping[str, SyntheticSet], gone: Sequence[tuple[str, str]]) -> dict[str, SyntheticSet]:
    """Return sets without an image of each site and class; a site of which nothing is left is left out."""
    left_out, found = Counter(gone), {}
    for site, one in sets.items():
        most = {name: n - left_out[site, name] for name, n in _stored(one).items() if left_out[site, name]}
        cut = one.restrict(one.classes, most) if most else one
        if cut is not None:
            found[site] = cut
    return found
