"""A memory under a budget: what a stream of labelled images leaves behind, as synthetic sets that replay it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedcondense.ambient import own_state
from fedcondense.condensing.meaning import meaning
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.files import write_file
from fedcondense.memory.budget import check_settings, largest_share
from fedcondense.memory.contents import Contents
from fedcondense.memory.file import MemoryState, dump_memory, parse_memory, read_memory
from fedcondense.memory.makers import Maker
from fedcondense.memory.updates import waited_enough

__all__ = ["Memory"]


class Memory(Contents):
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
        max_bytes: What `nbytes` may be after each call, that is the file with header, labels and record, and with what
            waits: half of it is kept for that if `minimum` is above 1. None: no such bound. `images` holds as well.
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
        max_bytes: int | None = None,
        seed: int = 0,
    ) -> None:
        update = update or str(getattr(make, "update", "recondense"))
        check_settings(images, make, groups, update, real_fraction, minimum, max_bytes)
        self.images, self.make, self.groups, self.update = images, make, groups, update
        self.real_fraction, self.minimum, self.max_bytes, self.seed = real_fraction, minimum, max_bytes, seed
        super().__init__()
        self.changes = 0  # how often what is stored was replaced: what others made of it holds until then
        self.beside = 0  # bytes that whoever uses the memory keeps with each decoded image, and `max_bytes` counts
        self.note: dict[str, Any] = {}  # plain values that whoever uses the memory keeps with it
        self.seconds: list[float] = []  # of the maker, for each call of `add`

    def add(self, data: Data, note: Mapping[str, Any] | None = None) -> None:
        """Take in real images; the classes of their spec are the names of groups.

        Args:
            data: The images.
            note: Plain values to keep with the memory from now on; None: those that it has.

        Raises:
            DataError: Their shape is another than before.
            SettingError: There are more groups than stored images, or than `max_bytes` has room for.

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
            self.note = self.note if note is None else dict(note)
            self._fit()
            self.seconds = [*self.seconds, time.monotonic() - began]

    def resize(self, images: int) -> None:
        """Change the budget, in stored images; a smaller one makes sets again, or leaves out images.

        No more than the new budget waits. `max_bytes` stays what it is.

        Raises:
            SettingError: There are more groups than that; the memory is as it was.
        """
        if type(images) is not int:
            raise SettingError(f"a memory of {images!r} images; needed: a whole number")
        with self._all_or_nothing():
            self.images = images
            self.added += bool(self.waiting)  # what need not wait any more is an addition
            self._fit()

    def check_room(self, spec: Spec) -> None:
        """Refuse a `max_bytes` that has no room for one image per group, of those that are known, in any stream.

        Raises:
            SettingError: It has none.
        """
        trial = self.copy()
        trial.spec, trial.added = spec, 1
        trial.sets = [trial.blank(["0"] if self.groups is None else list(map(str, range(self.groups))), 1)]
        if self.max_bytes is not None and (least := len(trial.to_bytes())) > self.max_bytes:
            raise SettingError(
                f"a memory of {self.max_bytes} bytes; needed: {least} at least, the file of one image per group"
            )

    def refit(self, beside: int) -> None:
        """Make room for more bytes beside each decoded image (`beside`), within `max_bytes`.

        Raises:
            SettingError: There is none; the memory is as it was.
        """
        if beside != self.beside:
            with self._all_or_nothing():
                self.beside = beside
                if self.max_bytes is not None and self.names:
                    self._fit()

    @property
    def nbytes(self) -> int:
        """The bytes of all that persists: the length of the file that `save` writes; 0 while there is nothing."""
        return len(self.to_bytes()) if self.names else 0

    @property
    def total_bytes(self) -> int:
        """What `max_bytes` bounds: `nbytes`, and what is kept beside each decoded image (`refit`)."""
        synthetic = self.synthetic if self.beside else None
        return self.nbytes + (0 if synthetic is None else self.beside * len(synthetic))

    def to_bytes(self) -> bytes:
        """Return the bytes of the file: a synthetic set's, with this memory's settings beside the set's record."""
        stored = self.all_stored()
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
        state = {"max_bytes": None, "changes": 0, "beside": 0} | state  # older checkpoints have none
        vars(self).update(state, sets=[], real=None, waiting={})
        if blob is not None:
            self.from_bytes(blob)
        self.changes = state["changes"]

    def settings(self) -> dict[str, Any]:
        """Return what a resumed memory must share: plain values, the maker by its settings and code."""
        keys = ["images", "groups", "update", "real_fraction", "minimum", "seed"]
        keys += ["max_bytes"] if self.max_bytes is not None else []
        return {key: getattr(self, key) for key in keys} | {"make": meaning(self.make)}

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = vars(self) | {"seen": dict(self.seen), "waiting": dict(self.waiting)}
        try:
            with own_state():
                yield
            self.changes += 1
        except BaseException:
            vars(self).update(before)
            raise

    def _fit(self) -> None:
        """Make sets of the groups that have waited, with the largest share that the budget allows."""
        sizes = {name: len(images) for name, images in self.waiting.items()}
        most = self.images if self.max_bytes is None else self.images // 2
        ready = {name: self._way.group(name, self.added) for name in waited_enough(sizes, self.minimum, most)}
        self.waiting |= {group: self.waiting.pop(name) for name, group in ready.items()}
        share = self.share(len(self.names))
        if self.max_bytes is None or not self.names:
            self.remake(list(ready.values()), share, self.made)
            return
        forecast = partial(self._forecast, list(ready.values()), most)
        share = largest_share(share, self.max_bytes, len(self.names), forecast)
        while True:
            trial = self.copy()
            trial.remake(list(ready.values()), share, trial.made)
            if trial.total_bytes <= self.max_bytes:
                break
            share -= 1  # the maker took more than it had said, or says nothing
            if share < 1:
                raise SettingError(
                    f"a memory of {self.max_bytes} bytes cannot hold {len(self.names)} groups of the sets that "
                    f"{self.make!r} makes; give it more"
                )
        vars(self).update(vars(trial))

    def _forecast(self, ready: Sequence[str], waiting: int, share: int) -> int:
        """Return the bytes that there would be with a share, before anything is made.

        Counted are places for groups that are still to come, where their number is given, and for what may wait.
        """
        assert self.spec is not None
        trial = self.copy()
        trial.remake(ready, share, trial.blank)
        more = (self.groups or 0) - len(self.names)
        at_once = max(1, len(ready))
        for begin in range(0, more, at_once):
            trial.sets.append(trial.blank([f"group {k}" for k in range(begin, min(more, begin + at_once))], share))
        total = trial.total_bytes
        left = waiting - sum(map(len, trial.waiting.values())) if self.minimum > 1 else 0
        if left > 0:  # of one more group, with the longest name there is
            image = torch.zeros(1, *self.spec.shape, dtype=torch.uint8).expand(left, -1, -1, -1)
            without = trial.nbytes
            trial.waiting[max(self.names, key=len) + "+"] = image
            total += trial.nbytes - without
        return total

    def _take_over(self, state: MemoryState) -> None:
        vars(self).update(state._asdict(), changes=self.changes + 1)
