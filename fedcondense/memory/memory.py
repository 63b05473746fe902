"""A memory under a budget: what a stream of labelled images leaves behind, as synthetic sets that replay it."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fedcondense.ambient import own_state
from fedcondense.condensing.meaning import meaning
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.files import write_file
from fedcondense.memory.budget import check_settings
from fedcondense.memory.contents import Contents
from fedcondense.memory.file import MemoryState, dump_memory, parse_memory, read_memory
from fedcondense.memory.fitting import fit
from fedcondense.memory.makers import Maker
from fedcondense.memory.updates import waited_enough
from fedcondense.sets.codecs import RAW

__all__ = ["Memory"]

_USUAL = {"codec": RAW, "real_codec": RAW, "balance": "class"}  # a file leaves these out


class Memory(Contents):
    """Sets of the groups seen so far, within a number of stored images that all groups share.

    A group is a class (or a class of a task); data of one group may come in any number of pieces. What is stored of a
    group shrinks as groups are added, unless their number is given. A budget that does not divide by the number of
    groups leaves the remainder unused.

    Args:
        images: Byte budget of all groups together, counted in uncompressed images; None: `max_bytes` alone.
        make: Makes the sets: a `Condenser`, a `Selector`, or anything called like them. Sets whose codes are shared
            (`Parametrization.shared`) cannot be left in part: they need ``"recondense"``, or a given number of groups.
        groups: How many groups there will be; None: the budget is shared among those seen so far.
        update: ``"recondense"`` makes a group's set of old synthetic and new real images together, and all sets again
            when the share shrinks. ``"reservoir"`` mixes a set of new images with the old by how many records each
            stands for; ``"append"`` makes each call of `add` its own group: both shrink by leaving out images.
            None: as suits the maker.
        real_fraction: The share of the budget for real images, chosen at random: a hybrid memory. It is one of bytes
            where these are bounded and images are coded.
        minimum: Real images of a group to wait for before it is condensed; meanwhile they are kept beside the budget,
            and counted in `nbytes`. Never more than the budget: beyond it, the group with the most is condensed.
        max_bytes: What `nbytes` may be after each call, that is the file with header, labels and record, and with what
            waits: half of it is kept for that if `minimum` is above 1. None: no such bound. `images` holds as well.
        codec: What packs the images that are made, by its name in `CODECS`: ``"bits-2"``, say. They are encoded once,
            and keep their bytes until they leave. With `max_bytes`, the number of images follows from what they take.
        real_codec: What packs real images, ``"jpeg-10"``, say; None: as `codec`. Those that wait are not packed.
        balance: Of the real images of a hybrid memory: ``"class"`` gives each group as many, ``"reservoir"`` by how
            many records it had, as one reservoir of the whole stream does.
        seed: All that is random follows from it.
    """

    def __init__(
        self,
        images: int | None,
        make: Maker,
        *,
        groups: int | None = None,
        update: str | None = None,
        real_fraction: float = 0.0,
        minimum: int = 1,
        max_bytes: int | None = None,
        codec: str = RAW,
        real_codec: str | None = None,
        balance: str = "class",
        seed: int = 0,
    ) -> None:
        self.images, self.make, self.groups = images, make, groups
        self.update = update or str(getattr(make, "update", "recondense"))
        self.real_fraction, self.minimum, self.max_bytes, self.seed = real_fraction, minimum, max_bytes, seed
        self.codec, self.real_codec, self.balance = codec, codec if real_codec is None else real_codec, balance
        check_settings(self)
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

    def resize(self, images: int | None) -> None:
        """Change the budget, in stored images; a smaller one makes sets again, or leaves out images.

        None leaves the number to `max_bytes`. No more than the new budget waits. `max_bytes` stays what it is.

        Raises:
            SettingError: There are more groups than that; the memory is as it was.
        """
        if type(images) is not int and (images is not None or self.max_bytes is None):
            raise SettingError(f"a memory of {images!r} images; needed: a whole number")
        with self._all_or_nothing():
            self.images = images
            self.added += bool(self.waiting)  # what need not wait any more is an addition
            self._fit()

    def check_room(self, spec: Spec) -> None:
        """Refuse a `max_bytes` that has no room for one image per group, of those that are known, in any stream.

        Of coded ones nothing is known, so there has to be room for all else.

        Raises:
            SettingError: It has none.
        """
        trial = self.copy()
        trial.spec, trial.added = spec, 1
        trial.sets = [trial.blank(["0"] if self.groups is None else list(map(str, range(self.groups))), 1)]
        least = len(trial.to_bytes()) - (trial.image_bytes if self.fits_coded else 0)
        if self.max_bytes is not None and least > self.max_bytes:
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
        state = {"max_bytes": None, "changes": 0, "beside": 0, **_USUAL} | state  # older checkpoints have none
        vars(self).update(state, sets=[], real=None, waiting={})
        if blob is not None:
            self.from_bytes(blob)
        self.changes = state["changes"]

    def settings(self) -> dict[str, Any]:
        """Return what a resumed memory must share: plain values, the maker by its settings and code."""
        keys = ["images", "groups", "update", "real_fraction", "minimum", "seed"]
        keys += ["max_bytes"] if self.max_bytes is not None else []
        keys += [key for key, usual in _USUAL.items() if getattr(self, key) != usual]
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
        most = self._may_wait
        ready = {name: self._way.group(name, self.added) for name in waited_enough(sizes, self.minimum, most)}
        self.waiting |= {group: self.waiting.pop(name) for name, group in ready.items()}
        if self.max_bytes is None or not self.names:
            self.remake(list(ready.values()), self.shares(self.share(len(self.names))), self.made)
        else:
            vars(self).update(vars(fit(self, list(ready.values()), most)))

    @property
    def _may_wait(self) -> int:
        """How many images may wait: the budget again, or half of the bytes."""
        if self.max_bytes is None:
            assert self.images is not None
            return self.images
        plain = self.max_bytes // math.prod(self.spec.shape) if self.spec else 0
        return min(plain, plain if self.images is None else self.images) // 2

    def _take_over(self, state: MemoryState) -> None:
        vars(self).update(state._asdict(), changes=self.changes + 1)
