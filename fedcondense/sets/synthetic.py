"""The synthetic set: what every method produces, every adapter ships, stores or replays."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import TensorDataset

from fedcondense.ambient import in_own_state
from fedcondense.arguments import device_of
from fedcondense.contract import Batch
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.files import write_file
from fedcondense.sets.cards import card_of
from fedcondense.sets.checks import plain_evaluation
from fedcondense.sets.format import Limits, dump, parse
from fedcondense.sets.parts import Part, Record, check_joinable, to_storage
from fedcondense.sets.recoding import decoders, recode_part
from fedcondense.sets.viewed import as_tensors, labels_of, shown

__all__ = ["Part", "Record", "SyntheticSet", "to_storage"]


class SyntheticSet:
    """A few synthetic images that stand for many real ones, with all that is needed to use them.

    Args:
        parts: One or more, each with its own parametrization and record; their images must have one shape.
        evaluation: What `evaluate` measured on it, after rounding: `Evaluation.to_dict()`.
    """

    def __init__(self, parts: Iterable[Part], evaluation: Mapping[str, Any] | None = None) -> None:
        self.parts = tuple(parts)
        self.evaluation = None if evaluation is None else plain_evaluation(evaluation)
        check_joinable(self.parts)

    @classmethod
    def join(cls, sets: Iterable[SyntheticSet]) -> SyntheticSet:
        """Put sets together, part by part; classes are united by name, in order of appearance."""
        return cls([part for one in sets for part in one.parts])

    def __len__(self) -> int:
        """Return the number of decoded images."""
        return sum(self._sizes)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Return an image (C, H, W) in [0, 1] and its label: a place in `classes`, or soft probabilities (K,)."""
        return self._pixels.images[index].clone(), self._labels[index].clone()  # past the last an IndexError

    def to(self, device: torch.device | str) -> TensorDataset:
        """Return all decoded images and labels on a device, as indexing gives them."""
        return as_tensors(self, device)

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return shown(self)

    def __repr__(self) -> str:
        made = ", ".join(sorted({part.record.method for part in self.parts}))
        return (
            f"SyntheticSet({self.name}, {len(self)} images in {self.nbytes} bytes, {len(self.parts)} part(s), {made})"
        )

    def card(self) -> str:
        """Return a page in Markdown to publish beside the file: how it was made, its classes, what it is worth."""
        return card_of(self)

    @property
    def record(self) -> Record:
        """The first part's record; of a joined set, one of many."""
        return self.parts[0].record

    @property
    def seconds(self) -> float:
        """What making all parts took; those of a federation are made side by side."""
        return sum(part.record.seconds for part in self.parts)

    @property
    def name(self) -> str:
        """The data set's name."""
        return self.record.data

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a decoded image."""
        return self.record.shape

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The class names of all parts, in order of appearance."""
        tables = dict.fromkeys(part.record.classes for part in self.parts)  # most parts of a federation have the same
        return tuple(dict.fromkeys(name for table in tables for name in table))

    @in_own_state
    def pixels(self, device: torch.device | str = "cpu") -> Batch:
        """Decode to images in [0, 1], (N, C, H, W), and probabilities over `classes`, (N, K), both float32."""
        images, targets = (kept.to(device_of(device), copy=True) for kept in self._pixels)  # edits leave the set alone
        return Batch(images, targets)

    @in_own_state
    def decode(self, device: torch.device | str = "cpu") -> Batch:
        """Decode to normalised images, (N, C, H, W), and probabilities over `classes`, (N, K), both float32."""
        device = device_of(device)
        images, targets = self._pixels.images.to(device), self._pixels.targets.to(device, copy=True)
        normalised = torch.empty_like(images)
        of_parts = zip(self.parts, images.split(self._sizes), normalised.split(self._sizes), strict=True)
        for part, given, out in of_parts:
            mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (part.record.mean, part.record.std))
            torch.sub(given, mean, out=out).div_(std)
        return Batch(normalised, targets)

    @in_own_state
    def weights(self) -> Tensor:
        """Return how many records each decoded image stands for, (N,) float32 on the CPU; 1 where no part says."""
        pieces = []
        for part, targets in zip(self.parts, self._pixels.targets.split(self._sizes), strict=True):
            if not sum(part.record.counts):
                pieces.append(torch.ones(len(targets), dtype=torch.float32))
                continue
            counts = torch.zeros(len(self.classes), dtype=torch.float32)
            counts[self._columns(part)] = torch.tensor(part.record.counts, dtype=torch.float32)
            pieces.append((targets * (counts / targets.sum(0).clamp_min(1e-9))).sum(1))
        return torch.cat(pieces)

    @in_own_state
    def counts(self) -> Tensor:
        """Return how many decoded images each class has, (K,) int64; a soft label counts for its largest entry."""
        return torch.bincount(self._pixels.targets.argmax(1), minlength=len(self.classes))

    def with_evaluation(self, evaluation: Mapping[str, Any]) -> SyntheticSet:
        """Return the same set with what was measured on it (`Evaluation.to_dict()`) in its record.

        Where its codec is not exact, `decoder` says which library's images were measured, unless `evaluation` does.
        """
        return SyntheticSet(self.parts, {**decoders(self.parts), **evaluation})

    def recode(self, codec: str | None = None, *, labels: str | None = None) -> SyntheticSet:
        """Return the set with its images in another codec; its evaluation is left out, since it was of other images.

        Everything else keeps coded bytes: `load`, `save`, `join`, `restrict`, `with_evaluation`.

        Args:
            codec: ``"bits-2"``, ``"bits-2-patch"``, ``"jpeg-10"``, ``"webp-20"``, ``"palette-16"`` (`CODECS`) or
                ``"raw"``. Codes that none takes (bases, latents) keep their bytes, and the log is told. None: as is.
            labels: How soft labels are stored, ``"top-3"`` say: the likeliest three, in 8 bits each. None: as is.

        Raises:
            SettingError: An unknown name, or images that the codec does not take.
        """
        parts = [recode_part(part, codec, labels) for part in self.parts]
        same = all(new is old for new, old in zip(parts, self.parts, strict=True))
        return self if same else SyntheticSet(parts)

    def with_record(self, **changes: Any) -> SyntheticSet:
        """Return the same set with some fields of every part's record replaced."""
        return SyntheticSet([replace(p, record=replace(p.record, **changes)) for p in self.parts], self.evaluation)

    @in_own_state
    def restrict(self, classes: Iterable[str], most: Mapping[str, int] | None = None) -> SyntheticSet | None:
        """Return a set of some classes alone, and of the first stored images of each; None if nothing is left.

        Args:
            classes: Names; those that the set does not have are passed over.
            most: Stored images that a class may keep, by name; all of those not named. Nothing cut: the set itself.

        Raises:
            SettingError: The set has soft labels, or codes that are shared between images: it cannot be cut by rows.
        """
        wanted, left = set(classes), dict(most or {})
        parts = []
        for part in self.parts:
            record = part.record
            if not part.is_separable:
                raise SettingError(f"{record.method}: shared codes or soft labels; condense again at the size wanted")
            kept = [c for c, name in enumerate(record.classes) if name in wanted]
            targets = part.targets.long()
            order = targets.argsort(stable=True)
            sizes = torch.bincount(targets, minlength=len(record.classes))
            begins = (sizes.cumsum(0) - sizes)[targets[order]]
            rank = torch.empty_like(targets)
            rank[order] = 1 + torch.arange(len(targets)) - begins  # how many of its class so far, itself included
            limits = torch.tensor([left.get(name, len(targets)) for name in record.classes])
            rows = torch.isin(targets, torch.tensor(kept, dtype=torch.int64)) & (rank <= limits[targets])
            for c, n in enumerate(torch.bincount(targets[rows], minlength=len(record.classes)).tolist()):
                if record.classes[c] in left:
                    left[record.classes[c]] -= n
            if not bool(rows.any()):
                continue
            labels = torch.zeros(len(record.classes), dtype=torch.uint8 if len(kept) <= 256 else torch.int16)
            labels[kept] = torch.arange(len(kept)).to(labels.dtype)
            counts = tuple(record.counts[c] for c in kept) if record.counts else ()
            record = replace(record, classes=tuple(record.classes[c] for c in kept), counts=counts)
            if bool(rows.all()) and len(kept) == len(part.record.classes):
                parts.append(part)
            else:
                codes = part.rows(rows.nonzero().flatten())
                parts.append(Part(codes, labels[targets[rows]], part.parametrization, record))
        if not parts:
            return None
        return self if list(map(id, parts)) == list(map(id, self.parts)) else SyntheticSet(parts)

    @property
    def codec(self) -> str:
        """The names of what packs the parts' codes, in order of appearance; ``"raw"`` where nothing does."""
        return ", ".join(dict.fromkeys(part.codec for part in self.parts))

    @cached_property
    def nbytes(self) -> int:
        """The bytes of the file, and of the message: codes, labels, record and header."""
        return len(self.to_bytes())

    def to_bytes(self) -> bytes:
        """Return the file's bytes; `from_bytes` gives an equal set, bit by bit."""
        return dump(self.parts, self.evaluation)

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits | None = None) -> SyntheticSet:
        """Parse bytes of unknown origin.

        Args:
            blob: What `to_bytes` gave, or anything else.
            limits: What it may hold, checked before memory is allocated; None: the defaults of `Limits`.

        Raises:
            UntrustedSetError: The bytes are no synthetic set, or break a limit; the message says which.
        """
        return cls(*parse(blob, limits or Limits()))

    def save(self, path: str | os.PathLike[str], overwrite: bool = False, limits: Limits | None = None) -> Path:
        """Write one safetensors file, whole or not at all, and return its path.

        Args:
            path: Where.
            overwrite: Replace what is there.
            limits: What whoever loads it allows; the same argument of `load` has to allow it then.

        Raises:
            OutputError: The path exists and `overwrite` is false, or it cannot be written.
            SettingError: The file would be refused when it is loaded.
        """
        blob = self.to_bytes()
        try:
            parse(blob, limits or Limits())
        except UntrustedSetError as error:
            why = f"{path}: not written, since it could not be loaded: {error}"
            raise SettingError(f"{why}; save less in a file, or give wider limits here and to `load`") from None
        return write_file(path, blob, overwrite)

    @classmethod
    @in_own_state
    def load(cls, path: str | os.PathLike[str], limits: Limits | None = None) -> SyntheticSet:
        """Read a file that `save` wrote, or that somebody says it did (`from_bytes`)."""
        limits = limits or Limits()
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size or limits.nbytes  # a pipe has none
                blob = file.read(min(size, limits.nbytes) + 1)
        except OSError as error:
            raise UntrustedSetError(f"{path}: {error.strerror}; give the path of a set that `save` wrote") from None
        try:
            return cls.from_bytes(blob, limits)
        except UntrustedSetError as error:
            raise UntrustedSetError(f"{path}: {error}") from None

    @cached_property
    def _pixels(self) -> Batch:
        if len(self.parts) == 1:
            return self.parts[0].decode()
        plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
        images = torch.empty(len(self), *self.shape, **plain)
        targets, begin = torch.zeros(len(self), len(self.classes), **plain), 0
        for part, size in zip(self.parts, self._sizes, strict=True):
            rows = slice(begin, begin + size)
            images[rows], decoded = part.decode()
            targets[rows, self._columns(part)] = decoded
            begin += size
        return Batch(images, targets)

    @cached_property
    def _labels(self) -> Tensor:
        return labels_of(self._pixels.targets)

    @cached_property
    def _sizes(self) -> list[int]:
        return [part.parametrization.decoded(part.shapes, part.record.shape) for part in self.parts]

    def _columns(self, part: Part) -> list[int]:
        return [self._places[name] for name in part.record.classes]

    @cached_property
    def _places(self) -> dict[str, int]:
        return {name: k for k, name in enumerate(self.classes)}
