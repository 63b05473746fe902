"""What a memory holds and how that changes when groups are ready: sets are made, mixed, cut and joined."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from fedcondense.data.images import Data, Spec
from fedcondense.data.shares import images_per_class
from fedcondense.errors import SettingError
from fedcondense.memory.budget import takes_whole_classes
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
    thin,
    with_inseparable,
)
from fedcondense.memory.updates import UPDATES, Update
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.codecs import RAW
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Contents", "Making", "Shares"]

_LOG = logging.getLogger(__name__)
_WAVERS = 1.25  # how much more than its share a group may have before it is condensed again, where sizes are coded

_LITTLE_MORE = 1.1  # how much more than its share a group may keep there: cutting takes time, and gains nobody much

Making = Callable[[Sequence[str], int], SyntheticSet]
"""Makes a set of groups with so many stored images each."""


class Shares(NamedTuple):
    """Stored images that each group may take."""

    made: int  # by the maker
    real: int  # chosen, of a hybrid memory


class Contents:
    """Sets of groups, real images beside them and those that wait; a `Memory` without what it is asked from outside."""

    images: int | None
    make: Maker
    groups: int | None
    update: str
    real_fraction: float
    max_bytes: int | None
    codec: str
    real_codec: str
    balance: str
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

    def share(self, groups: int, shape: Sequence[int] = ()) -> int:
        """Return the stored images that each of `groups` groups may take.

        Without a number of images, it is as many as the bytes would hold; where they are coded, as any group has
        records.

        Args:
            groups: How many there are.
            shape: Of the images, while the memory has seen none.

        Raises:
            SettingError: There would be none.
        """
        images = self.images
        if images is None and self.fits_coded:
            return max([1, *self._records.values()])
        many = max(1, self.groups or groups, groups)
        if images is None:
            assert self.max_bytes is not None
            plain = math.prod(shape if self.spec is None else self.spec.shape)
            if (images := self.max_bytes // plain) < many:
                raise SettingError(
                    f"a memory of {self.max_bytes} bytes cannot hold {many} groups, whose images take {plain} bytes "
                    f"each; give it more than {many * plain}, or a codec, such as 'bits-2'"
                )
        if images < many:
            raise SettingError(f"a memory of {images} stored images cannot hold {many} groups; give it {many} or more")
        return images // many

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

    def shares(self, share: int) -> Shares:
        """Divide a share between images that are made and real ones, by their numbers."""
        real = round(share * self.real_fraction)
        return Shares(share - real, real)

    def remake(self, ready: Sequence[str], shares: Shares, make: Making, again: Sequence[str] | None = None) -> None:
        """Make sets of the groups that are ready, and of those that take more than their share.

        Args:
            ready: Groups of which enough images wait.
            shares: What each group may take.
            make: Makes a set of groups, of so many stored images each; it is encoded here.
            again: The groups that are made; None: those that `made_again` names.
        """
        share, stored = shares.made, count_stored(self.sets)
        again = self.made_again(ready, share) if again is None else again
        if share and again:
            new: SyntheticSet | None = make(again, share)
            keep = {name: share for name in stored if name not in again}
            if self._way.mixes and new is not None:
                old = {name: min(stored[name], self._old_share(name, share)) for name in again if name in stored}
                new = new.restrict(again, {name: share - n for name, n in old.items()})
                keep |= old
            coded = None if new is None else new.recode(self.codec)
            self.sets = [one for one in (*self._cut(keep), coded) if one is not None]
        else:
            self.sets = self._cut(dict.fromkeys(stored, share))
        if self.max_bytes is not None:
            self.sets = merge(self.sets)  # a record per piece of a stream would leave no bytes for images
        self.real = self.chosen(ready, shares.real)
        for name in ready:
            self.seen[name] = self.seen.get(name, 0) + len(self.waiting.pop(name))

    def made_again(self, ready: Sequence[str], share: int) -> list[str]:
        """Return the groups of which a set is made: those that are ready, and those condensed to a smaller share.

        Coded sizes are not known beforehand, so shares waver: within bytes, a quarter less leaves out images instead.
        """
        if not self._way.condenses_stored:
            return list(ready)
        most = share * _WAVERS if self.fits_coded else share
        large = (name for name, n in count_stored(self.sets).items() if n > most)
        return with_inseparable(self.sets, list(dict.fromkeys([*large, *ready])))

    @property
    def fits_coded(self) -> bool:
        """Whether sizes that are known only once images are encoded have to stay within bytes."""
        return self.max_bytes is not None and (self.codec, self.real_codec) != (RAW, RAW)

    def _old_share(self, name: str, share: int) -> int:
        """Return how much of a group's share is for its old images: by how many records there were, old and new.

        Rounded up or down at random: else, where little comes at a time, nothing new would ever enter.
        """
        before = self.seen.get(name, 0)
        return int(share * before / (before + len(self.waiting[name])) + self._uniform("share", name))

    def _uniform(self, *purpose: str) -> float:
        return float(torch.rand((), generator=stream(self.seed, *purpose, self.added)))

    def class_of(self, group: str) -> str:
        """Return the class of a group."""
        return group.partition("#")[0] if self._way.renames else group

    def leave(self, name: str) -> bool:
        """Take a class out, with all its groups; say whether there was one."""
        gone = {g for g in self.names if self.class_of(g) == name}
        stored = count_stored(self.sets)
        again = [g for g in with_inseparable(self.sets, [g for g in stored if g in gone]) if g not in gone]
        new = self.made(again, max(stored[g] for g in again), stored_too=True).recode(self.codec) if again else None
        keep = {g: n for g, n in stored.items() if g not in gone and g not in again}
        self.sets = [one for one in (*self._leave_out(self.sets, keep), new) if one is not None]
        if self.real is not None:
            left = {g: n for g, n in count_stored([self.real]).items() if g not in gone}
            self.real = join(self._leave_out([self.real], left))
        self.seen = {g: n for g, n in self.seen.items() if g not in gone}
        self.waiting = {g: images for g, images in self.waiting.items() if g not in gone}
        return bool(gone)

    def made(self, names: Sequence[str], ipc: int, *, stored_too: bool | None = None) -> SyntheticSet:
        """Make a set of groups: of what waits, and to recondense of what is stored, weighing its records.

        Args:
            names: The groups.
            ipc: Stored images of each.
            stored_too: Whether it is made of what is stored, too; None: as the update says.
        """
        assert self.spec is not None
        is_old = self._way.condenses_stored if stored_too is None else stored_too
        old = bytes_by_class(join([*self.sets, self.real])) if is_old else {}
        mixed = mix(names, self.waiting, old, self.seen)
        data = Data(mixed.images, mixed.labels, replace(self.spec, classes=tuple(names))).to(self.device)
        budget = f"{self.max_bytes:,} bytes" if self.max_bytes is not None else f"{self.images} images"
        warning = images_per_class(data, ipc, given=f"a memory of {budget}").warning
        if warning and not all(name in self.seen for name in names):
            _LOG.warning(warning)
        made = self.make(data, ipc, child_seed(self.seed, self.added), mixed.stored)
        return made.with_record(counts=mixed.counts)

    def blank(self, names: Sequence[str], ipc: int) -> SyntheticSet:
        """Return what takes as many bytes as `made` would."""
        assert self.spec is not None
        counts = [self.seen.get(name, 0) + len(self.waiting.get(name, ())) for name in names]
        return as_large(self.make, replace(self.spec, classes=tuple(names)), ipc, counts)

    def chosen(self, ready: Sequence[str], share: int) -> SyntheticSet | None:
        """Choose the real images of a hybrid memory: as a reservoir, old and new by how many records there were."""
        there = {} if self.real is None else count_stored([self.real])
        most, new = self._real_shares(share), {}
        is_whole = takes_whole_classes(self.real_codec)  # bytes are what bounds them then
        keep = {name: n if is_whole else self._spared(n, most.get(name, share)) for name, n in there.items()}
        for name in ready if share else ():
            keep[name] = min(keep.get(name, 0), self._old_share(name, most[name]))
            order = torch.randperm(len(self.waiting[name]), generator=stream(self.seed, "real", self.added))
            new[name] = self.waiting[name][order[: most[name] - keep[name]]]
        added = self._real_set(new, REAL)
        old = [] if self.real is None or not share else self._leave_out([self.real], keep, "real cut")
        found = merge([*old, *([] if added is None else [added.recode(self.real_codec)])])
        return join(found)

    def _real_shares(self, share: int) -> dict[str, int]:
        """Return how many real images each group may have: the same, or by how many records there were."""
        records = self._records
        if self.balance == "class":
            return dict.fromkeys(records, share)
        everything = sum(records.values())
        return {name: share * len(records) * n // everything for name, n in records.items()}

    @property
    def _records(self) -> dict[str, int]:
        """How many real images each group had, those that wait included."""
        return {name: self.seen.get(name, 0) + len(self.waiting.get(name, ())) for name in self.names}

    def _cut(self, most: dict[str, int]) -> list[SyntheticSet]:
        if self.fits_coded:  # what cannot be cut stays whole: bytes are the bound
            is_whole = takes_whole_classes(self.codec)
            whole = [one for one in self.sets if is_whole or not all(part.is_separable for part in one.parts)]
            most = {name: self._spared(n, most[name]) for name, n in count_stored(self.sets).items() if name in most}
            most |= {name: n for name, n in count_stored(whole).items() if name in most}
        if self.max_bytes is not None and not getattr(self.make, "prefixes", False):
            return self._leave_out(self.sets, most)  # they are merged: the first images are the oldest
        return cut(self.sets, most, partial(self._uniform, "cut"))

    def _spared(self, stored: int, share: int) -> int:
        """Return how many images of a group stay: its share, or all if they are little more and bytes decide."""
        is_spared = share and self.fits_coded and self.images is None and stored <= _LITTLE_MORE * share
        return stored if is_spared else min(stored, share)

    def _leave_out(self, sets: list[SyntheticSet], most: Mapping[str, int], why: str = "cut") -> list[SyntheticSet]:
        uniform = partial(self._uniform, why)
        return cut(sets, most, uniform, leave=partial(thin, uniform=uniform))

    def all_stored(self) -> SyntheticSet | None:
        """Return all that is kept as one set, every image that waits included; None: nothing is."""
        return join([*self.sets, self.real, self._real_set(self.waiting, WAITING)])

    def _real_set(self, images: dict[str, Tensor], method: str) -> SyntheticSet | None:
        return None if self.spec is None else real_set(images, self.spec, method, self.seed)
