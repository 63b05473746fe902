"""A replay buffer that condenses: it holds a few synthetic images of each class instead of a few real ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, concat_datasets
from avalanche.training.storage_policy import ExemplarsBuffer
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.avalanche.budget import stored_images
from fedcondense.avalanche.decoded import Decoded, Working, decode
from fedcondense.avalanche.naming import check_classes, group_name, label_and_task
from fedcondense.avalanche.saved import read_saved
from fedcondense.avalanche.stream import Layout, Range, as_dataset, noted, read
from fedcondense.budgets import budget_bytes
from fedcondense.data.augment import OPERATIONS
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, SettingError, look_up
from fedcondense.memory import Condenser, Maker, Memory
from fedcondense.memory.gathering import KEEPS_LABELS, measured_spec
from fedcondense.sets.codecs import RAW

__all__ = ["CondensedBuffer"]

_DEFAULT = Condenser()


class Group(NamedTuple):
    """One class of a buffer, as `MIRPlugin` reads it."""

    buffer: AvalancheDataset


class CondensedBuffer(ExemplarsBuffer):
    """Holds condensed sets of all classes seen, in the place of `ClassBalancedBuffer`.

    It works in Avalanche's `ReplayPlugin`, and in `GDumbPlugin`, `ER_ACE` and `MIRPlugin` once assigned to their
    `storage_policy`; samples have the stream's form, with or without task labels. The buffer never reads the model.
    Images are stored as bytes; each class takes an equal share of the bytes, whatever the parametrization.

    >>> from fedcondense.avalanche import CondensedBuffer  # doctest: +SKIP
    >>> buffer = CondensedBuffer(400)  # doctest: +SKIP
    >>> plugin = ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer)  # doctest: +SKIP

    Args:
        max_size: Decoded images; with multi-formation of factor 2, the default, four of them take the bytes of one.
        max_bytes: What `nbytes` may be instead, at any time, such as ``"64 kB"``: the whole file, with header, labels,
            record and what waits (half of the bytes is kept for that with `min_samples` above 1). `max_size` then is as
            many images as would fit without all these, since Avalanche asks for a number at once and for all.
        shape: (C, H, W) of the stream's images, needed with `max_bytes`.
        condenser: Makes the sets: a `Condenser` with any objective and parametrization by name, or a `Selector`
            of real images, the control.
        adaptive_size: Share the budget among the classes seen so far; False: share it among `total_num_groups`.
        total_num_groups: How many classes there will be, if the size is not adaptive.
        update: ``"recondense"``, ``"reservoir"`` or ``"append"``, see `Memory`; None: the one that suits the condenser.
        real_fraction: Share of the budget for real images; of its bytes where `max_bytes` and codecs are given.
        codec: What packs condensed images, by name: ``"bits-2"``, say (`fedcondense.sets.codecs`). With `max_bytes`,
            there are then as many as their bytes allow, which are measured; `max_size` is the number of bytes, since no
            image takes less than one, and `shape` need not be given.
        real_codec: What packs real images, ``"jpeg-10"``, say; None: as `codec`.
        balance: Of real images: ``"class"`` or ``"reservoir"``, as many of each class or by how many there were.
        min_samples: Real images of a class to wait for before it is condensed, for online streams; until then they are
            kept beside the budget, counted in `nbytes`, and as many replayed as the class's share allows. They take
            no more than the budget again (of `max_bytes`, half): beyond it, the class with the most is condensed.
        every_samples: For streams without boundaries: samples are held in RAM, in no file and not in `nbytes`, and not
            replayed, until there are so many, and condensed then; the same however many come at a time (`Memory`).
        every_seconds: The same by the clock.
        classes: What labels are called, in their order: the names of classes in the file, in place of numbers.
        operations: Augmentations that keep a label true in this stream; not the mirror image, unless named.
        mean: What the stream's transform subtracts, one value per channel; None: the range of the first experience's
            values becomes that of the bytes, which is exact for 8-bit images in which black and white occur.
        std: What it divides by then, one value per channel.
        working_bytes: What the decoded images may take in memory while an experience is trained on, beside what is
            stored. They are decoded once after each update, to float32 numbers if that fits, else to 8 bits.
        seed: All that is random follows from it.
    """

    def __init__(
        self,
        max_size: int | None = None,
        *,
        max_bytes: int | str | None = None,
        shape: tuple[int, int, int] | None = None,
        condenser: Maker = _DEFAULT,
        adaptive_size: bool = True,
        total_num_groups: int | None = None,
        update: str | None = None,
        real_fraction: float = 0.0,
        codec: str = RAW,
        real_codec: str | None = None,
        balance: str = "class",
        min_samples: int = 1,
        every_samples: int | None = None,
        every_seconds: float | None = None,
        classes: Sequence[str] = (),
        operations: tuple[str, ...] = KEEPS_LABELS,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        working_bytes: int = 1 << 30,
        seed: int = 0,
    ) -> None:
        if (max_size is None) == (max_bytes is None):
            raise SettingError(f"max_size {max_size!r} and max_bytes {max_bytes!r}; give one of them")
        most = None if max_bytes is None else budget_bytes(max_bytes, "max_bytes")
        if adaptive_size == (total_num_groups is not None):
            raise SettingError("give total_num_groups with adaptive_size=False, and only then")
        for name in operations:
            look_up("augmentation", name, dict.fromkeys(OPERATIONS))
        check_classes(classes)
        per_image = condenser.per_image
        is_coded = most is not None and (codec, real_codec or codec) != (RAW, RAW)
        images = stored_images(max_size, most, shape, per_image, is_coded, total_num_groups)
        super().__init__(images if is_coded else images * per_image)
        self.memory = Memory(
            None if is_coded else images,
            condenser,
            groups=total_num_groups,
            update=update,
            real_fraction=real_fraction,
            minimum=min_samples,
            max_bytes=most,
            codec=codec,
            real_codec=real_codec,
            balance=balance,
            every_samples=every_samples,
            every_seconds=every_seconds,
            seed=seed,
        )
        if most is not None and shape is not None:  # refused now where no stream could do
            self.memory.check_room(Spec("stream", shape, (), (0.0,) * shape[0], (1.0,) * shape[0], operations))
        self.shape, self.operations, self.working_bytes = shape, operations, working_bytes
        self.classes = tuple(classes)
        self.range = Range.given(mean, std)
        self.layout: Layout | None = None
        self._cache: dict[str, Any] = {}

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Take in an experience: condense its classes, and old ones again if their share shrinks."""
        self.update_from_dataset(exp.dataset, getattr(agent, "device", "cpu"))

    def update(self, strategy: Any, **kwargs: Any) -> None:
        """Take in a strategy's experience: what Avalanche 0.6 calls, and warns that 0.7 will call `post_adapt`."""
        self.post_adapt(strategy, strategy.experience)

    @in_own_state
    def update_from_dataset(self, dataset: AvalancheDataset, device: torch.device | str = "cpu") -> None:
        """Take in the samples of a data set, condensing on a device; after an error the buffer is unchanged.

        Raises:
            DataError: Its images have another shape than before, or are no images.
            SettingError: More classes than the budget has stored images.
        """
        found = read(dataset)
        shape = (found.images.shape[1], found.images.shape[2], found.images.shape[3])
        if self.shape not in (None, shape):
            raise DataError(f"images of {shape}; this buffer was made for {self.shape}: resize the stream's")
        span = self.range or Range.of(found.images)
        if len(span.low) != shape[0]:
            raise DataError(f"images of {shape}; the mean and std given are of {len(span.low)} channels")
        images = span.to_bytes_or_warn(found.images)
        pairs = zip(found.labels.tolist(), found.tasks.tolist(), strict=True)
        names = [group_name(*pair, self.classes) for pair in pairs]
        classes = tuple(dict.fromkeys(names))
        number = {name: c for c, name in enumerate(classes)}
        spec = replace(self.memory.spec or measured_spec(images, self.operations), classes=classes)
        data = Data(images, torch.tensor([number[name] for name in names]), spec).to(device)
        self.memory.add(data, noted(span, found.layout))
        self.shape, self.range, self.layout = shape, span, found.layout

    def resize(self, strategy: Any, new_size: int) -> None:
        """Change the budget to `new_size` decoded images; if it shrinks, stored images are condensed again.

        What `max_bytes` says stays the bound of bytes.

        Raises:
            SettingError: It is less than one stored image per class; the buffer is unchanged.
        """
        per_image = self.memory.make.per_image
        if new_size < per_image:
            raise SettingError(f"a buffer of {new_size} decoded images; a stored one decodes to {per_image}")
        self.memory.resize(new_size // per_image)
        self.max_size = new_size // per_image * per_image

    def flush(self) -> None:
        """Condense what `every_samples` or `every_seconds` holds in RAM, however little it is: before a shutdown."""
        self.memory.flush()

    def drop(self, label: str | int, task: int = 0) -> None:
        """Forget a class, as `Memory.drop`: its bytes are free, and a file that is saved from now on has nothing of it.

        Args:
            label: The stream's label, or what it is called in `classes`.
            task: The stream's task label.

        Raises:
            SettingError: There is no such class.
        """
        called = str(label) if isinstance(label, str) else group_name(label, 0, self.classes)
        self.memory.drop(f"{called}@{task}" if task else called)

    @property
    def buffer(self) -> AvalancheDataset:
        """All samples with hard labels; of a soft label its largest entry."""
        return self._cached("buffer", lambda: self._dataset(slice(None)))

    @buffer.setter
    def buffer(self, new_buffer: AvalancheDataset) -> None:
        raise SettingError("a condensed buffer is made by `update`, not set")

    @property
    def buffer_groups(self) -> dict[int, Group]:
        """The samples of each label."""

        def make() -> dict[int, Group]:
            decoded = self.working
            if decoded is None:
                return {}
            labels = decoded.labels[decoded.targets.argmax(1)]
            return {c: Group(self._dataset(labels == c)) for c in labels.unique().tolist()}

        groups: dict[int, Group] = self._cached("groups", make)
        return dict(groups)

    @property
    def seen_classes(self) -> set[int]:
        """The labels of which the buffer holds images."""
        return {label_and_task(name, self.classes)[0] for name in self.memory.names}

    @property
    def decoded(self) -> Decoded | None:
        """A copy of the replayed images, as tensors in the stream's values; None before the first experience."""
        return None if self.working is None else self.working.decoded

    @property
    def nbytes(self) -> int:
        """The bytes of everything that persists: images, labels, record, and real images that still wait."""
        return self.memory.nbytes

    @property
    def seconds(self) -> list[float]:
        """The seconds of each update, condensing included."""
        return list(self.memory.seconds)

    def save(self, path: str | os.PathLike[str], overwrite: bool = False) -> Path:
        """Write the memory to one safetensors file, which opens as a synthetic set too (`fedcondense show`)."""
        return self.memory.save(path, overwrite)

    def load(self, path: str | os.PathLike[str]) -> None:
        """Load what a buffer of the same settings saved.

        Raises:
            UntrustedSetError: The file is damaged, or no memory.
            ResumeError: It was saved with other settings, or for a stream of other images.
        """
        fresh, span, layout = read_saved(self.memory, path, self.shape, self.classes)
        assert fresh.spec is not None
        self.memory, self.range, self.layout, self.shape = fresh, span, layout, fresh.spec.shape

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update({"classes": ()} | state, _cache={})

    @property
    def working(self) -> Working | None:
        """What `decoded` copies, and every reader shares: change nothing in it."""
        make = partial(decode, self.memory, self.range, self.working_bytes, self.classes)
        working: Working | None = self._cached("decoded", make)
        return working

    def _dataset(self, index: Tensor | slice) -> AvalancheDataset:
        working = self.working
        if working is None or self.layout is None:
            return concat_datasets([])
        rows = torch.arange(len(working.images))[index]
        column = working.targets.argmax(1)[rows]
        image = partial(working.image, rows)
        return as_dataset(image, working.labels[column], working.tasks[column], self.layout, self._beside(rows))

    def _beside(self, rows: Tensor) -> list[DataAttribute]:
        """Return what samples have beside image and labels."""
        return []

    @in_own_state
    def _cached(self, name: str, make: Callable[[], Any]) -> Any:
        memory, changes = self._cache.get("of", (None, 0))
        if memory is not self.memory or changes != self.memory.changes:
            self._cache = {"of": (self.memory, self.memory.changes)}
        if name not in self._cache:
            self._cache[name] = make()
        return self._cache[name]
