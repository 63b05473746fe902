"""What a memory holds and how that changes when groups are ready: sets are made, mixed, cut and joined."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Self

import torch
from torch import Tensor

from fedcondense.data.images import Data, Spec
from fedcondense.data.shares import images_per_class
from fedcondense.errors import SettingError
from fedcondense.memory.file import REAL, WAITING
from fedcondense.memory.makers import Maker, as_large
from fedcondense.memory.stored import (
    bytes_by_class,
    count_stored,
    cut,
    image_bytes,
    join,
    merge,
    mix,
    real_set,
    with_inseparable,
)
from fedcondense.memory.updates import UPDATES, Update
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Contents"]

_LOG = logging.getLogger(__name__)


class Contents:
    """Sets of groups, real images beside them and those that wait; a `Memory` without what it is asked from outside."""

    images: int
    make: Maker
    groups: int | None
    update: str
    real_fraction: float
    max_bytes: int | None
    seed: int

    def __init__(self) -> None:
        self.spec: Spec | None = None
        self.sets: list[SyntheticSet] = []  # condensed, one per call of the maker
        self.real: SyntheticSet | None = None
        self.waiting: dict[str, Tensor] = {}  # uint8 images of groups that wait for `minimum`
        self.seen: dict[str, int] = {}  # real images that the sets of a group stand for
        self.added = 0
        self.device = torch.device("cpu")  # where sets are made; images are kept on the CPU

    @property
    def names(self) -> list[str]:
        """The groups that something is stored of, in order of appearance."""
        return list(dict.fromkeys([*self.seen, *self.waiting]))

    def share(self, groups: int) -> int:
        """Return the stored images that each of `groups` groups may take.

        Raises:
            SettingError: There would be none.
        """
        share = self.images // max(1, self.groups or groups, groups)
        if share < 1:
            raise SettingError(
                f"a memory of {self.images} stored images cannot hold {groups} groups; give it at least one a group"
            )
        return share

    @property
    def synthetic(self) -> SyntheticSet | None:
        """All that is replayed, as one set: of a group that is only waited for, its share of real images."""
        if not self.names:
            return None
        share = self.share(len(self.names))
        raw = {name: images[:share] for name, images in self.waiting.items() if name not in self.seen}
        return join([*self.sets, self.real, self._real_set(raw, WAITING)])

    @property
    def image_bytes(self) -> int:
        """The bytes of the stored images alone, those of groups that wait included."""
        return image_bytes(self.all_stored())

    def copy(self) -> Self:
        """Return a memory with the same contents, of which what is stored may be replaced."""
        trial = object.__new__(type(self))
        vars(trial).update(vars(self), seen=dict(self.seen), waiting=dict(self.waiting))
        return trial

    @property
    def _way(self) -> Update:
        return UPDATES[self.update]

    def remake(self, ready: Sequence[str], share: int, make: Callable[[Sequence[str], int], SyntheticSet]) -> None:
        """Make sets of the groups that are ready, and of those that take more than their share."""
        real_share = round(share * self.real_fraction)
        share -= real_share
        stored = count_stored(self.sets)
        again = list(ready)
        if self._way.condenses_stored:
            again = list(dict.fromkeys([*(name for name, n in stored.items() if n > share), *ready]))
            again = with_inseparable(self.sets, again)
        if share and again:
            new: SyntheticSet | None = make(again, share)
            keep = {name: share for name in stored if name not in again}
            if self._way.mixes and new is not None:
                old = {name: min(stored[name], self._old_share(name, share)) for name in again if name in stored}
                new = new.restrict(again, {name: share - n for name, n in old.items()})
                keep |= old
            self.sets = [one for one in (*self._cut(keep), new) if one is not None]
        else:
            self.sets = self._cut(dict.fromkeys(stored, share))
        if self.max_bytes is not None:
            self.sets = merge(self.sets)  # a record per piece of a stream would leave no bytes for images
        self.real = self._chosen(ready, real_share)
        for name in ready:
            self.seen[name] = self.seen.get(name, 0) + len(self.waiting.pop(name))

    def _old_share(self, name: str, share: int) -> int:
        """Return how much of a group's share is for its old images: by how many records there were, old and new.

        Rounded up or down at random: else, where little comes at a time, nothing new would ever enter.
        """
        before = self.seen.get(name, 0)
        return int(share * before / (before + len(self.waiting[name])) + self._uniform("share", name))

    def _uniform(self, *purpose: str) -> float:
        return float(torch.rand((), generator=stream(self.seed, *purpose, self.added)))

    def made(self, names: Sequence[str], ipc: int) -> SyntheticSet:
        """Make a set of groups: of what waits, and to recondense of what is stored, weighing its records."""
        assert self.spec is not None
        old = bytes_by_class(join([*self.sets, self.real])) if self._way.condenses_stored else {}
        mixed = mix(names, self.waiting, old, self.seen)
        data = Data(mixed.images, mixed.labels, replace(self.spec, classes=tuple(names))).to(self.device)
        if not all(name in self.seen for name in names) and (warning := images_per_class(data, ipc).warning):
            _LOG.warning(warning)
        made = self.make(data, ipc, child_seed(self.seed, self.added), mixed.stored)
        return made.with_record(counts=mixed.counts)

    def blank(self, names: Sequence[str], ipc: int) -> SyntheticSet:
        """Return what takes as many bytes as `made` would."""
        assert self.spec is not None
        counts = [self.seen.get(name, 0) + len(self.waiting.get(name, ())) for name in names]
        return as_large(self.make, replace(self.spec, classes=tuple(names)), ipc, counts)

    def _chosen(self, ready: Sequence[str], share: int) -> SyntheticSet | None:
        """Choose the real images of a hybrid memory: as a reservoir, old and new by how many records there were."""
        chosen = {name: images[:share] for name, images in bytes_by_class(self.real).items()}
        for name in ready if share else ():
            new = self.waiting[name]
            kept = chosen.get(name, new[:0])[: self._old_share(name, share)]
            order = torch.randperm(len(new), generator=stream(self.seed, "real", self.added))
            mixed = torch.cat([kept, new[order[: share - len(kept)]]])
            chosen[name] = mixed[torch.randperm(len(mixed), generator=stream(self.seed, "mix", self.added))]
        return self._real_set(chosen, REAL)

    def _cut(self, most: dict[str, int]) -> list[SyntheticSet]:
        return cut(self.sets, most, partial(self._uniform, "cut"))

    def all_stored(self) -> SyntheticSet | None:
        """Return all that is kept as one set, every image that waits included; None: nothing is."""
        return join([*self.sets, self.real, self._real_set(self.waiting, WAITING)])

    def _real_set(self, images: dict[str, Tensor], method: str) -> SyntheticSet | None:
        return None if self.spec is None else real_set(images, self.spec, method, self.seed)
