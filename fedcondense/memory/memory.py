"""A memory under a budget: what a stream of labelled images leaves behind, as synthetic sets that replay it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import own_state
from fedcondense.budgets import budget_bytes
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.memory.budget import check_settings
from fedcondense.memory.fitting import fit
from fedcondense.memory.gathering import Gathered, Piece, as_piece, joined, tell_of_odd
from fedcondense.memory.kept import Kept
from fedcondense.memory.makers import Maker
from fedcondense.memory.updates import waited_enough
from fedcondense.sets.codecs import RAW

__all__ = ["Memory"]


class Memory(Kept):
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
        max_bytes: What `nbytes` may be after each call, ``40_000`` or ``"40 kB"``: the file with header, labels and
            record, and with what waits; half of it is kept for that if `minimum` is above 1. None: no such bound.
            `images` holds as well.
        codec: What packs the images that are made, by its name in `CODECS`: ``"bits-2"``, say. They are encoded once,
            and keep their bytes until they leave. With `max_bytes`, the number of images follows from what they take.
        real_codec: What packs real images, ``"jpeg-10"``, say; None: as `codec`. Those that wait are not packed.
        balance: Of the real images of a hybrid memory: ``"class"`` gives each group as many, ``"reservoir"`` by how
            many records it had, as one reservoir of the whole stream does.
        every_samples: For streams without boundaries: what comes is held in RAM, in no file and not in `nbytes`, until
            there are so many images, and then condensed. The same images in the same order give the same memory,
            however many come at a time. A power cut costs what came since.
        every_seconds: The same by the clock, at the first call so long after the first image that is held; what is
            condensed together then depends on how fast images come. Of both, whichever is due first.
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
        max_bytes: int | str | None = None,
        codec: str = RAW,
        real_codec: str | None = None,
        balance: str = "class",
        every_samples: int | None = None,
        every_seconds: float | None = None,
        seed: int = 0,
    ) -> None:
        self.images, self.make, self.groups = images, make, groups
        self.update = update or str(getattr(make, "update", "recondense"))
        self.real_fraction, self.minimum, self.seed = real_fraction, minimum, seed
        self.max_bytes = None if max_bytes is None else budget_bytes(max_bytes, "max_bytes")
        self.codec, self.real_codec, self.balance = codec, codec if real_codec is None else real_codec, balance
        self.gathered = Gathered(every_samples, every_seconds)
        check_settings(self)
        super().__init__()
        self.changes = 0  # how often what is stored was replaced: what others made of it holds until then
        self.beside = 0  # bytes that whoever uses the memory keeps with each decoded image, and `max_bytes` counts
        self.note: dict[str, Any] = {}  # plain values that whoever uses the memory keeps with it
        self.seconds: list[float] = []  # of the maker, for each time that images were taken in

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
        if self.gathered.waits:
            self._gather(Piece(data.to("cpu"), False, note), data.device)
            return
        with self._all_or_nothing():
            self.device = data.device
            self._take_in(data, note)

    def observe(self, images: Any, labels: Sequence[str | int] | Tensor) -> None:
        """Take in images of which nothing but their classes is known: a stream in a loop of one's own.

        Without `every_samples` and `every_seconds`, each call condenses. The mean and std that networks are given are
        those of the first images that are condensed; no image is mirrored (`add` says otherwise).

        >>> memory = Memory(20, Selector("random"), every_samples=100)  # doctest: +SKIP
        >>> for frame, name in camera:  # doctest: +SKIP
        ...     memory.observe(frame[None], [name])

        Args:
            images: (N, C, H, W) uint8, an array or a Tensor; C is 1 or 3.
            labels: (N,) the name of each image's class; a whole number is a name, too.

        Raises:
            DataError: They are something else, or of another shape than before.
            SettingError: As `add`. After an error of any kind the memory is as it was.
        """
        piece = as_piece(images, labels)
        self._gather(piece, torch.as_tensor(images).device)

    def flush(self) -> None:
        """Condense what `every_samples` or `every_seconds` holds in RAM, however little it is: before a shutdown."""
        if pieces := self.gathered.pieces:
            with self._all_or_nothing():
                self.gathered = replace(self.gathered, pieces=())
                self._take_in_pieces(pieces)

    def drop(self, name: str) -> None:
        """Forget a class: its images leave, those that wait or are held in RAM too, and its bytes are free.

        Other classes get them as images come: their share is that of a memory which never had the class; with a number
        of groups given, they are for a class that comes in its place. Sets that share codes or soft labels with the
        class are made again without it. Images of others that were condensed beside its own stay as they are, and a
        file that was saved before still has it.

        Raises:
            SettingError: There is no such class.
        """
        with self._all_or_nothing():
            gathered = self.gathered.without(name)
            if not self.leave(name) and len(gathered) == len(self.gathered):
                raise SettingError(f"no class {name!r} in this memory; it has {', '.join(self.names) or 'none'}")
            self.gathered, self.added = gathered, self.added + 1
            if self.max_bytes is not None and self.names and self.total_bytes > self.max_bytes:
                self._fit()  # what was made again is coded otherwise

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

    def _gather(self, piece: Piece, device: torch.device) -> None:
        """Hold a piece in RAM, and take in what is due."""
        self._check_shape(piece.data)
        known, classes = [*self.names, *self.gathered.names], piece.data.spec.classes
        self.share(len({*known, *classes}), piece.data.spec.shape)  # refuses a class too many before it is held
        tell_of_odd(classes, list(dict.fromkeys(map(self.class_of, known))))
        chunks, gathered = self.gathered.take(piece)
        if not chunks:
            self.gathered = gathered
            return
        with self._all_or_nothing():
            self.gathered, self.device = gathered, device
            for chunk in chunks:
                self._take_in_pieces(chunk)

    def _take_in_pieces(self, pieces: Sequence[Piece]) -> None:
        noted = [piece.note for piece in pieces if piece.note is not None]
        self._take_in(joined(pieces, self.spec), noted[-1] if noted else None)

    def _take_in(self, data: Data, note: Mapping[str, Any] | None) -> None:
        """Have images wait, and make sets of the groups that have waited."""
        began, self.added = time.monotonic(), self.added + 1
        self._check_shape(data)
        self.spec = self.spec or data.spec
        for c, count in enumerate(data.counts.tolist()):
            if count:
                name, new = data.spec.classes[c], data.images[data.labels == c].cpu()
                self.waiting[name] = torch.cat([self.waiting[name], new]) if name in self.waiting else new
        self.note = self.note if note is None else dict(note)
        self._fit()
        self.seconds = [*self.seconds, time.monotonic() - began]

    def _check_shape(self, data: Data) -> None:
        if self.spec is not None and data.spec.shape != self.spec.shape:
            raise DataError(f"images of {data.spec.shape}; this memory holds {self.spec.shape}: resize the stream's")

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
