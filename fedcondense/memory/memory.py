"""A memory under a budget: what a stream of labelled images leaves behind, as synthetic sets that replay it."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import own_state
from fedcondense.data.images import Data, Spec
from fedcondense.data.shares import images_per_class
from fedcondense.errors import DataError, SettingError
from fedcondense.files import write_file
from fedcondense.memory.file import REAL, WAITING, MemoryState, dump_memory, parse_memory, read_memory
from fedcondense.memory.makers import Maker
from fedcondense.memory.stored import (
    bytes_by_class,
    count_stored,
    cut,
    image_bytes,
    join,
    mix,
    real_set,
    with_inseparable,
)
from fedcondense.memory.updates import UPDATES, Update, waited_enough
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Memory"]

_LOG = logging.getLogger(__name__)


class Memory:
    """Sets of the groups seen so far, within a number of stored images that all groups share.

    A group is a class (or a class of a task); data of one group may come in any number of pieces. What is stored of a
    group shrinks as groups are added, unless their number is given. A budget that does not divide by the number of
    groups leaves the remainder unused.

    Args:
        images: Byte budget of all groups together, counted in uncompressed images.
        make: Makes the sets: a `Condenser`, a `Selector`, or anything called like them. Sets whose codes are shared
            (`Parametrization.shared`) cannot be left in part: they need ``"recondense"``, or a given number of groups.
        groups: How many groups there will be; None: the budget is shared among those seen so far.
        update: ``"recondense"`` makes a group's set of old synthetic and new real images together, and all sets again
            when the share shrinks. ``"reservoir"`` mixes a set of new images with the old by how many records each
            stands for; ``"append"`` makes each call of `add` its own group: both shrink by leaving out images.
            None: as suits the maker.
        real_fraction: The share of the budget for real images, chosen at random: a hybrid memory.
        minimum: Real images of a group to wait for before it is condensed; meanwhile they are kept beside the budget,
            and counted in `nbytes`. Never more than the budget: beyond it, the group with the most is condensed.
        seed: All that is random follows from it.
    """

    def __init__(
        self,
        images: int,
        make: Maker,
        *,
        groups: int | None = None,
        update: str | None = None,
        real_fraction: float = 0.0,
        minimum: int = 1,
        seed: int = 0,
    ) -> None:
        if images < 1:
            raise SettingError(f"a memory of {images} images; needed: 1 or more")
        if groups is not None and not 1 <= groups <= images:
            raise SettingError(f"{images} stored images for {groups} groups; give each at least one")
        update = update or getattr(make, "update", "recondense")
        if update not in UPDATES:
            raise SettingError(f"update {update!r}; needed: one of {', '.join(UPDATES)}")
        if getattr(make, "shared", False) and UPDATES[update].leaves_out_images(groups):
            raise SettingError(
                f"update {update!r} leaves out stored images, but those of {make!r} share codes: choose "
                "update='recondense', or a parametrization that shares none ('pixels', 'multi-formation')"
            )
        if not 0 <= real_fraction <= 1:
            raise SettingError(f"real_fraction {real_fraction!r}; needed: a share from 0 to 1")
        if minimum < 1:
            raise SettingError(f"a minimum of {minimum} images; needed: 1 or more")
        self.images, self.make, self.groups, self.update = images, make, groups, update
        self.real_fraction, self.minimum, self.seed = real_fraction, minimum, seed
        self.spec: Spec | None = None
        self.sets: list[SyntheticSet] = []  # condensed, one per call of the maker
        self.real: SyntheticSet | None = None
        self.waiting: dict[str, Tensor] = {}  # uint8 images of groups that wait for `minimum`
        self.seen: dict[str, int] = {}  # real images that the sets of a group stand for
        self.added = 0
        self.device = torch.device("cpu")  # where sets are made; images are kept on the CPU
        self.note: dict[str, Any] = {}  # plain values that whoever uses the memory keeps with it
        self.seconds: list[float] = []  # of the maker, for each call of `add`

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

    def add(self, data: Data) -> None:
        """Take in real images; the classes of their spec are the names of groups.

        Raises:
            DataError: Their shape is another than before.
            SettingError: There are more groups than stored images.

        After an error of any kind the memory is as it was.
        """
        with self._all_or_nothing():
            began, self.added = time.monotonic(), self.added + 1
            self.spec, self.device = self.spec or data.spec, data.device
            if data.spec.shape != self.spec.shape:
                raise DataError(
                    f"images of {data.spec.shape}; this memory holds {self.spec.shape}: resize the stream's"
                )
            for c, count in enumerate(data.counts.tolist()):
                if count:
                    name, new = data.spec.classes[c], data.images[data.labels == c].cpu()
                    self.waiting[name] = torch.cat([self.waiting[name], new]) if name in self.waiting else new
            sizes = {name: len(images) for name, images in self.waiting.items()}
            ready = waited_enough(sizes, self.minimum, self.images)
            groups = {name: self._way.group(name, self.added) for name in ready}
            self.waiting |= {group: self.waiting.pop(name) for name, group in groups.items()}
            self._remake(list(groups.values()), self.share(len(self.names)))
            self.seconds.append(time.monotonic() - began)

    def resize(self, images: int) -> None:
        """Change the budget, in stored images; a smaller one makes sets again, or leaves out images.

        Raises:
            SettingError: There are more groups than that; the memory is as it was.
        """
        with self._all_or_nothing():
            self.images = images
            self._remake([], self.share(len(self.names)))

    @property
    def synthetic(self) -> SyntheticSet | None:
        """All that is replayed, as one set: of a group that is only waited for, its share of real images."""
        if not self.names:
            return None
        share = self.share(len(self.names))
        raw = {name: images[:share] for name, images in self.waiting.items() if name not in self.seen}
        return join([*self.sets, self.real, self._real_set(raw, WAITING)])

    @property
    def nbytes(self) -> int:
        """The bytes of all that persists: the length of the file that `save` writes; 0 while there is nothing."""
        return len(self.to_bytes()) if self.names else 0

    @property
    def image_bytes(self) -> int:
        """The bytes of the stored images alone, those of groups that wait included."""
        return image_bytes(self._all_stored())

    def to_bytes(self) -> bytes:
        """Return the bytes of the file: a synthetic set's, with this memory's settings beside the set's record."""
        stored = self._all_stored()
        if stored is None:
            raise SettingError("an empty memory; train on an experience before saving it")
        return dump_memory(stored, self.settings(), self.added, self.seen, self.note)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the memory as one safetensors file that opens as a synthetic set too; return its path."""
        return write_file(path, self.to_bytes(), overwrite)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote, for a memory of the same settings.

        Raises:
            UntrustedSetError: The file is no memory, or damaged.
            ResumeError: It was written with other settings.
        """
        self._take_over(read_memory(path, self.settings()))

    def from_bytes(self, blob: bytes) -> None:
        """Take over what `to_bytes` gave; as `load`."""
        self._take_over(parse_memory(blob, self.settings()))

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in ("sets", "real", "waiting")}
        return state | {"blob": self.to_bytes() if self.names else None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        blob = state.pop("blob")
        vars(self).update(state, sets=[], real=None, waiting={})
        if blob is not None:
            self.from_bytes(blob)

    def settings(self) -> dict[str, Any]:
        """Return what a resumed memory must share: plain values, the maker by its repr."""
        keys = ("images", "groups", "update", "real_fraction", "minimum", "seed")
        make = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(self.make))  # a function's address is another in each process
        return {key: getattr(self, key) for key in keys} | {"make": make}

    @property
    def _way(self) -> Update:
        return UPDATES[self.update]

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = vars(self) | {"seen": dict(self.seen), "waiting": dict(self.waiting)}
        try:
            with own_state():
                yield
        except BaseException:
            vars(self).update(before)
            raise

    def _remake(self, ready: Sequence[str], share: int) -> None:
        """Make sets of the groups that are ready, and of those that take more than their share."""
        real_share = round(share * self.real_fraction)
        share -= real_share
        stored = count_stored(self.sets)
        again = list(ready)
        if self._way.condenses_stored:
            again = list(dict.fromkeys([*(name for name, n in stored.items() if n > share), *ready]))
            again = with_inseparable(self.sets, again)
        if share and again:
            new: SyntheticSet | None = self._made(again, share)
            keep = {name: share for name in stored if name not in again}
            if self._way.mixes and new is not None:
                old = {name: min(stored[name], self._old_share(name, share)) for name in again if name in stored}
                new = new.restrict(again, {name: share - n for name, n in old.items()})
                keep |= old
            self.sets = [one for one in (*self._cut(keep), new) if one is not None]
        else:
            self.sets = self._cut(dict.fromkeys(stored, share))
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

    def _made(self, names: Sequence[str], ipc: int) -> SyntheticSet:
        """Make a set of groups: of what waits, and to recondense of what is stored, weighing its records."""
        assert self.spec is not None
        old = bytes_by_class(join([*self.sets, self.real])) if self._way.condenses_stored else {}
        mixed = mix(names, self.waiting, old, self.seen)
        data = Data(mixed.images, mixed.labels, replace(self.spec, classes=tuple(names))).to(self.device)
        if not all(name in self.seen for name in names) and (warning := images_per_class(data, ipc).warning):
            _LOG.warning(warning)
        made = self.make(data, ipc, child_seed(self.seed, self.added), mixed.stored)
        return made.with_record(counts=mixed.counts)

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

    def _take_over(self, state: MemoryState) -> None:
        vars(self).update(state._asdict())

    def _all_stored(self) -> SyntheticSet | None:
        return join([*self.sets, self.real, self._real_set(self.waiting, WAITING)])

    def _real_set(self, images: dict[str, Tensor], method: str) -> SyntheticSet | None:
        return None if self.spec is None else real_set(images, self.spec, method, self.seed)
