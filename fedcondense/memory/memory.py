"""A memory under a budget: what a stream of labelled images leaves behind, as synthetic sets that replay it."""

from __future__ import annotations

import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fedcondense.condensing import Progress, prepare, run
from fedcondense.condensing.starts import STARTS, from_memory_or
from fedcondense.contract import Objective, Parametrization, Recipe
from fedcondense.data.images import Data, Spec
from fedcondense.data.shares import images_per_class
from fedcondense.errors import DataError, ResumeError, SettingError, UntrustedSetError, look_up
from fedcondense.files import write_file
from fedcondense.networks import NetworkMaker
from fedcondense.objectives import OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS, Pixels
from fedcondense.randomness import child_seed, stream
from fedcondense.sets.format import Limits, dump, read_beside
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import Part, Record, SyntheticSet

__all__ = ["Condenser", "Maker", "Memory", "Selector"]

_LOG = logging.getLogger(__name__)
_UPDATES = ("recondense", "reservoir", "append")
_REAL, _WAITING = "real", "waiting"  # methods in the records of parts that hold real images
_LIMITS = Limits(nbytes=1 << 32, decoded=1 << 24, decoded_bytes=1 << 36, header=1 << 28, parts=1 << 20)  # our own file


class Maker(Protocol):
    """Makes a set of what is to be remembered, a class a group."""

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Return a set with the bytes of `ipc` plain images for each class of the data.

        Args:
            data: New real images, and what a memory holds of the same classes.
            ipc: Images per class whose bytes a class may take.
            seed: All that is random follows from it.
            stored: (N,) bool, which of the data the memory holds.
        """


@dataclass(frozen=True)
class Condenser:
    """Condenses: the arguments of `condense`, as a value.

    Args:
        objective: A name in `OBJECTIVES`, or an objective. ``"mmd"`` was better where the final shares of classes are
            known: `strategies/condensed-replay`.
        parametrization: A name in `PARAMETRIZATIONS`, or a parametrization.
        network: A name in `NETWORKS`, or a function that builds a module; None: as the image size asks.
        steps: Optimisation steps; None: the recipe's.
        recipe: Optimizer, step size, schedule; None: the objective's own.
        start: A name in `STARTS`; None: the recipe's.
        precision: ``"bfloat16"``, ``"float16"`` or ``"float32"`` for features; None: as the caller's autocast says.
        prefixes: As in `condense`: for a memory whose `update` is ``"reservoir"``, which shrinks by leaving images out.
        device: Where to condense; None: where the images are, in a memory those that were added last.
        progress: As in `condense`.
    """

    objective: str | Objective = "dm-ridge"
    parametrization: str | Parametrization = "multi-formation"
    network: str | NetworkMaker | None = None
    steps: int | None = None
    recipe: Recipe | None = None
    start: str | None = None
    precision: str | None = None
    prefixes: bool = False
    device: str | None = None
    progress: Callable[[Progress], None] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.precision not in (None, "float32", "bfloat16", "float16"):
            raise SettingError(f"precision {self.precision!r}; needed: 'float32', 'bfloat16', 'float16' or None")

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""
        return self._made_by().start_count(1)

    @property
    def shared(self) -> bool:
        """Whether images of its sets share codes."""
        return self._made_by().shared

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Condense; what is stored is the start of its classes, since a sample of a few images would lose much."""
        objective = (
            look_up("objective", self.objective, OBJECTIVES) if isinstance(self.objective, str) else self.objective
        )
        start = self.start or (self.recipe or objective.recipe).start
        device = torch.device(self.device) if self.device else data.device
        half = getattr(torch, self.precision) if self.precision not in (None, "float32") else None
        precise = torch.autocast(device.type, half, enabled=half is not None, cache_enabled=False)
        with precise if self.precision else nullcontext():
            loop = prepare(
                data,
                ipc,
                self.objective,
                self.parametrization,
                network=self.network,
                seed=seed,
                steps=self.steps,
                start=from_memory_or(look_up("start", start, STARTS), stored),
                recipe=self.recipe,
                prefixes=self.prefixes,
                device=device,
            )
            return run(loop, progress=self.progress)

    def _made_by(self) -> Parametrization:
        kind = self.parametrization
        return look_up("parametrization", kind, PARAMETRIZATIONS)() if isinstance(kind, str) else kind


@dataclass(frozen=True)
class Selector:
    """Selects real images: the control at equal bytes.

    Args:
        method: A name in `SELECTIONS`.
    """

    method: str = "random"

    update: ClassVar[str] = "reservoir"  # a selection of a selection would be blurred or biased

    @property
    def per_image(self) -> int:
        """How many images it makes in the bytes of one."""
        return look_up("selection", self.method, SELECTIONS)[1].start_count(1)

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        """Select."""
        return select_quietly(data, ipc, self.method, seed)


class Memory:
    """Sets of the groups seen so far, within a number of stored images that all groups share.

    A group is a class (or a class of a task); data of one group may come in any number of pieces. What is stored of a
    group shrinks as groups are added, unless their number is given. A budget that does not divide by the number of
    groups leaves the remainder unused.

    Args:
        images: Plain images whose bytes all groups together may take.
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
        if update not in _UPDATES:
            raise SettingError(f"update {update!r}; needed: one of {', '.join(_UPDATES)}")
        if getattr(make, "shared", False) and (update == "reservoir" or (update == "append" and groups is None)):
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
        self.sets: list[SyntheticSet] = []  # condensed, one a call of the maker
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
            ready = self._ready()
            if self.update == "append":
                self.waiting |= {f"{name}#{self.added}": self.waiting.pop(name) for name in ready}
                ready = [f"{name}#{self.added}" for name in ready]
            self._remake(ready, self.share(len(self.names)))
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
        return _join([*self.sets, self.real, self._plain(raw, _WAITING)])

    @property
    def nbytes(self) -> int:
        """The bytes of all that persists: the length of the file that `save` writes; 0 while there is nothing."""
        return len(self.to_bytes()) if self.names else 0

    @property
    def image_bytes(self) -> int:
        """The bytes of the stored images alone, those of groups that wait included."""
        stored = _join([*self.sets, self.real, self._plain(self.waiting, _WAITING)])
        codes = [code for part in stored.parts for code in part.codes.values()] if stored else []
        return sum(code.numel() * code.element_size() for code in codes)

    def to_bytes(self) -> bytes:
        """Return the bytes of the file: a synthetic set's, with this memory's settings beside the set's record."""
        stored = _join([*self.sets, self.real, self._plain(self.waiting, _WAITING)])
        if stored is None:
            raise SettingError("an empty memory; train on an experience before saving it")
        state = {"settings": self.settings(), "added": self.added, "seen": self.seen, "note": self.note}
        return dump(stored, memory=state)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the memory as one safetensors file that opens as a synthetic set too; return its path."""
        return write_file(path, self.to_bytes(), overwrite)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Take over what `save` wrote, for a memory of the same settings.

        Raises:
            UntrustedSetError: The file is no memory, or damaged.
            ResumeError: It was written with other settings.
        """
        try:
            with open(path, "rb") as file:
                blob = file.read(_LIMITS.nbytes + 1)
            self.from_bytes(blob)
        except OSError as error:
            raise UntrustedSetError(f"{path}: {error.strerror}; give the path of a memory that `save` wrote") from None
        except UntrustedSetError as error:
            raise UntrustedSetError(f"{path}: {error}") from None
        except ResumeError as error:
            raise ResumeError(f"{path}: {error}") from None

    def from_bytes(self, blob: bytes) -> None:
        """Take over what `to_bytes` gave; as `load`."""
        stored = SyntheticSet.from_bytes(blob, _LIMITS)
        try:
            state = read_beside(blob, "memory")
            settings, added, seen = dict(state["settings"]), state["added"], dict(state["seen"])
            note = dict(state["note"])
        except (KeyError, TypeError, ValueError):
            raise UntrustedSetError("no memory; give a file that a memory's `save` wrote") from None
        if not all(type(n) is int and n >= 0 for n in (added, *seen.values())):
            raise UntrustedSetError("a memory whose counts are no whole numbers from 0")
        made = {name for part in stored.parts if part.record.method != _WAITING for name in part.record.classes}
        if not made <= set(seen):
            raise UntrustedSetError("a memory that holds images of groups which its description leaves out")
        mine = self.settings()
        differs = [f"{k} was {settings.get(k)!r}, is {mine[k]!r}" for k in mine if settings.get(k) != mine[k]]
        if differs:
            raise ResumeError(f"a memory of other settings: {'; '.join(differs)}")
        record = stored.record
        told = (record.data, record.shape, record.classes, record.mean, record.std, record.augmentation)
        self.spec, self.added, self.seen, self.note = Spec(*told), added, seen, note
        self.sets, self.real, self.waiting = [], None, {}
        for part in stored.parts:
            one = SyntheticSet([part])
            if part.record.method == _REAL:
                self.real = one
            elif part.record.method == _WAITING:
                self.waiting = _by_class(one)
            else:
                self.sets.append(one)

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

    @contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        before = vars(self) | {"seen": dict(self.seen), "waiting": dict(self.waiting)}
        try:
            yield
        except BaseException:
            vars(self).update(before)
            raise

    def _remake(self, ready: Sequence[str], share: int) -> None:
        """Make sets of the groups that are ready, and of those that take more than their share."""
        real_share = round(share * self.real_fraction)
        share -= real_share
        stored = self._stored()
        again = list(ready)
        if self.update == "recondense":
            again = list(dict.fromkeys([*(name for name, n in stored.items() if n > share), *ready]))
            again = self._with_inseparable(again)
        if share and again:
            new: SyntheticSet | None = self._made(again, share)
            keep = {name: share for name in stored if name not in again}
            if self.update == "reservoir" and new is not None:
                old = {name: min(stored[name], self._old_share(name, share)) for name in again if name in stored}
                new = new.restrict(again, {name: share - n for name, n in old.items()})
                keep |= old
            self.sets = [one for one in (*self._cut(keep), new) if one is not None]
        else:
            self.sets = self._cut(dict.fromkeys(stored, share))
        self.real = self._chosen(ready, real_share)
        for name in ready:
            self.seen[name] = self.seen.get(name, 0) + len(self.waiting.pop(name))

    def _ready(self) -> list[str]:
        """Return the groups that waited for long enough, and the largest others while too many images wait."""
        sizes = {name: len(images) for name, images in self.waiting.items()}
        ready = [name for name, n in sizes.items() if n >= self.minimum]
        rest = {name: n for name, n in sizes.items() if n < self.minimum}
        while sum(rest.values()) > self.images:
            ready.append(max(rest, key=lambda name: rest[name]))
            del rest[ready[-1]]
        return ready

    def _stored(self) -> dict[str, int]:
        """Return how many stored images each group has in all sets."""
        counts: Counter[str] = Counter()
        for one in self.sets:
            counts.update(_stored(one))
        return dict(counts)

    def _old_share(self, name: str, share: int) -> int:
        """Return how much of a group's share is for its old images: by how many records there were, old and new.

        Rounded up or down at random: else, where little comes at a time, nothing new would ever enter.
        """
        before = self.seen.get(name, 0)
        return int(share * before / (before + len(self.waiting[name])) + self._uniform("share", name))

    def _uniform(self, *purpose: str) -> float:
        return float(torch.rand((), generator=stream(self.seed, *purpose, self.added)))

    def _with_inseparable(self, names: Sequence[str]) -> list[str]:
        """Return groups with those that share soft labels or codes with them, which are made again with them."""
        found = dict.fromkeys(names)
        for one in self.sets:
            if not found.keys().isdisjoint(one.classes) and not all(part.is_separable for part in one.parts):
                found |= dict.fromkeys(one.classes)
        return list(found)

    def _cut(self, most: Mapping[str, int]) -> list[SyntheticSet]:
        """Return the sets with at most so many stored images of each group.

        A group in several sets is cut in all of them, each of its images as likely as another (systematic sampling).
        """
        total, before, kept = self._stored(), Counter[str](), []
        for one in self.sets:
            stored, keep = _stored(one), {}
            for name, n in stored.items():
                part, offset = min(most.get(name, 0), total[name]) / max(1, total[name]), self._uniform("cut", name)
                keep[name] = int(part * (before[name] + n) + offset) - int(part * before[name] + offset)
            before.update(stored)
            if any(keep.values()):
                kept.append(one if keep == stored else one.restrict([name for name, n in keep.items() if n], keep))
        return [one for one in kept if one is not None]

    def _made(self, names: Sequence[str], ipc: int) -> SyntheticSet:
        """Make a set of groups: of what waits, and to recondense of what is stored, weighing its records."""
        assert self.spec is not None
        old = _by_class(_join([*self.sets, self.real])) if self.update == "recondense" else {}
        images, labels, stored, counts = [], [], [], []
        for label, name in enumerate(names):
            new = self.waiting.get(name)
            pieces = [] if new is None else [new]
            if name in old:
                repeats = 1 if new is None else max(1, round(self.seen[name] / len(old[name])))
                pieces.append(old[name].repeat(repeats, 1, 1, 1))
            stored += [torch.full((len(piece),), piece is not new) for piece in pieces]
            images += pieces
            labels += [label] * sum(map(len, pieces))
            counts.append((self.seen.get(name, 0) if name in old else 0) + (0 if new is None else len(new)))
        spec = replace(self.spec, classes=tuple(names))
        data = Data(torch.cat(images), torch.tensor(labels), spec).to(self.device)
        if not all(name in self.seen for name in names) and (warning := images_per_class(data, ipc).warning):
            _LOG.warning(warning)
        made = self.make(data, ipc, child_seed(self.seed, self.added), torch.cat(stored))
        return made.with_record(counts=tuple(counts))

    def _chosen(self, ready: Sequence[str], share: int) -> SyntheticSet | None:
        """Choose the real images of a hybrid memory: as a reservoir, old and new by how many records there were."""
        chosen = {name: images[:share] for name, images in _by_class(self.real).items()}
        for name in ready if share else ():
            new = self.waiting[name]
            kept = chosen.get(name, new[:0])[: self._old_share(name, share)]
            order = torch.randperm(len(new), generator=stream(self.seed, "real", self.added))
            mixed = torch.cat([kept, new[order[: share - len(kept)]]])
            chosen[name] = mixed[torch.randperm(len(mixed), generator=stream(self.seed, "mix", self.added))]
        return self._plain(chosen, _REAL)

    def _plain(self, groups: dict[str, Tensor], method: str) -> SyntheticSet | None:
        """Return real images, by group, as a set of plain pixels."""
        if self.spec is None or not any(map(len, groups.values())):
            return None
        spec = replace(self.spec, classes=tuple(groups))
        labels = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(i) for i in groups.values()]))
        data = Data(torch.cat(list(groups.values())), labels, spec)
        record = replace(Record.of(data, method, 0, self.seed), start="real")
        targets = labels.to(torch.uint8 if len(groups) <= 256 else torch.int16)
        return SyntheticSet([Part({"images": data.images}, targets, Pixels(), record)])


def _join(sets: Iterable[SyntheticSet | None]) -> SyntheticSet | None:
    there = [one for one in sets if one is not None]
    return SyntheticSet.join(there) if there else None


def _by_class(synthetic: SyntheticSet | None) -> dict[str, Tensor]:
    """Return the decoded images of each class that has some, uint8."""
    if synthetic is None:
        return {}
    images, targets = synthetic.pixels()
    labels, images = targets.argmax(1), images.mul(255).round().to(torch.uint8)
    found = {name: images[labels == c] for c, name in enumerate(synthetic.classes)}
    return {name: mine for name, mine in found.items() if len(mine)}


def _stored(synthetic: SyntheticSet) -> dict[str, int]:
    """Return how many stored images each class has; of codes that are shared, plain images whose place they take."""
    counts: Counter[str] = Counter()
    for part in synthetic.parts:
        labels = part.labels()
        found = torch.bincount(labels, minlength=len(part.record.classes)).tolist()
        if part.parametrization.shared:
            shapes = {name: tuple(code.shape) for name, code in part.codes.items()}
            decoded = part.parametrization.decoded(shapes, part.record.shape)
            per_row = decoded / max(1, len(labels)) / part.parametrization.start_count(1)
            found = [math.ceil(round(n * per_row, 6)) for n in found]
        counts.update(dict(zip(part.record.classes, found, strict=True)))
    return dict(counts)
