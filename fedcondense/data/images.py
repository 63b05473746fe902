"""Real data: a data set, by name, folder, file or torch `Dataset`, becomes one uint8 tensor on a device."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.arguments import device_of
from fedcondense.data.augment import OPERATIONS, check_augmentations
from fedcondense.data.class_names import class_names
from fedcondense.data.layouts import channels_come_first
from fedcondense.errors import DataError, SettingError
from fedcondense.plain import finite_number, listed, plain_text, whole_number

__all__ = ["Batch", "Data", "DataSet", "Spec", "settle_spec"]

_NAME = 60  # characters of an augmentation's name
_SIDE = 4096  # most channels, rows or columns
_LARGEST = 1e6  # of a mean or deviation: what is normalised by them stays finite in single precision
_SMALLEST = 1e-6  # of a deviation


class Batch(NamedTuple):
    """Images with their targets."""

    images: Tensor  # (N, C, H, W), floating point
    targets: Tensor  # (N, K) probabilities


@dataclass(frozen=True)
class Spec:
    """What a data set's images and labels are.

    Values become plain Python when it is made: numpy's numbers, lists and names as bytes are taken.

    Args:
        name: The name it was loaded by.
        shape: (C, H, W) of an image; C is 1 or 3.
        classes: The class names, by label (`class_names`).
        mean: One value per channel, in [0, 1] space.
        std: One value per channel, in [0, 1] space.
        operations: The augmentations that keep a label true here; digits are not mirrored.

    Raises:
        DataError: Class names that nobody can read, or that repeat.
        SettingError: An augmentation that is not registered, or another value is none that a file could hold.
    """

    name: str
    shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    operations: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        settle_spec(self, "name", "operations")
        check_augmentations(self.operations)

    def normalise(self, images: Tensor) -> Tensor:
        """Take images from [0, 1] to zero mean and unit deviation, (N, C, H, W)."""
        mean, std = (images.new_tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (images - mean) / std


def settle_spec(of: Any, name: str, operations: str) -> None:
    """Check what `Spec` and the record of a set both say, and make it plain; called while a frozen one is made.

    Names of augmentations are texts here, so that a set is read where its own ones are not known.

    Args:
        of: Has `shape`, `classes`, `mean` and `std`.
        name: The attribute that holds the data set's name.
        operations: The attribute that holds the augmentations.
    """
    shape = listed(of.shape, "shape")
    if len(shape) != 3:
        raise SettingError(f"images of shape {shape!r:.100}; needed: (C, H, W)")
    if turned := channels_come_first(shape):
        raise SettingError(f"images of shape {shape}; needed: (C, H, W), {turned}")
    shape = tuple(whole_number(side, "images with a side of", 1, _SIDE + 1) for side in shape)
    names = tuple(plain_text(word, "augmentation", _NAME) for word in listed(getattr(of, operations), "augmentation"))
    if not all(names) or len(set(names)) < len(names):
        raise SettingError(f"augmentation {names!r:.100}; needed: names, each once")
    settled = {
        name: plain_text(getattr(of, name), "data set's name"),
        operations: names,
        "shape": shape,
        "classes": class_names(of.classes),
    }
    for moment, least in (("mean", -_LARGEST), ("std", _SMALLEST)):
        values = listed(getattr(of, moment), moment)
        if len(values) != shape[0]:
            raise SettingError(f"{moment} {values!r:.100}; needed: {shape[0]} numbers, one per channel")
        settled[moment] = tuple(finite_number(value, moment, least, _LARGEST) for value in values)
    for attribute, value in settled.items():
        object.__setattr__(of, attribute, value)


class DataSet(NamedTuple):
    """A train and a test split."""

    train: Data
    test: Data


class Data:
    """Labelled images on one device, normalised when a batch is asked for.

    Args:
        images: (N, C, H, W), uint8.
        labels: (N,), int64, each below ``len(spec.classes)``; classes may be absent.
        spec: What the images are.
        broken: Names of the files that were left out, since they cannot be read.
    """

    def __init__(self, images: Tensor, labels: Tensor, spec: Spec, broken: tuple[str, ...] = ()) -> None:
        if images.dtype != torch.uint8 or tuple(images.shape[1:]) != spec.shape:
            given = f"{images.dtype} {tuple(images.shape)}"
            raise DataError(
                f"{spec.name}: images are {given}; needed: torch.uint8 (N, {', '.join(map(str, spec.shape))})"
            )
        if labels.shape != images.shape[:1]:
            raise DataError(
                f"{spec.name}: {len(images)} images but labels of shape {tuple(labels.shape)}; give one an image"
            )
        if labels.is_floating_point() or labels.is_complex():
            raise DataError(
                f"{spec.name}: labels are {labels.dtype}; needed: whole numbers, as labels.long() gives them"
            )
        labels = labels.to(torch.int64)
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= len(spec.classes)):
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise DataError(
                f"{spec.name}: labels go from {span}; needed: 0 to {len(spec.classes) - 1}, one a class name"
            )
        self.images, self.labels, self.spec, self.broken = images, labels, spec, broken

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"Data({self.spec.name}, {len(self)} images of {self.spec.shape}, {len(self.spec.classes)} classes)"

    @property
    def device(self) -> torch.device:
        """Where the tensors are."""
        return self.images.device

    @property
    def counts(self) -> Tensor:
        """How many images each class has, (K,) int64 on the CPU; the caller's own."""
        return self._counts.clone()

    @cached_property
    def _counts(self) -> Tensor:
        return torch.bincount(self.labels.cpu(), minlength=len(self.spec.classes))

    @cached_property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of labels and images: equal data, equal text."""
        digest = hashlib.sha256(self.labels.cpu().contiguous().numpy().tobytes())
        digest.update(self.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()[:16]

    def to(self, device: torch.device | str) -> Data:
        """Return the same data on another device.

        Raises:
            SettingError: There is none of this name here.
        """
        device = device_of(device)
        return Data(self.images.to(device), self.labels.to(device), self.spec, self.broken)

    @in_own_state
    def subset(self, index: Tensor) -> Data:
        """Return the examples at `index`, (M,) int64 or a mask (N,)."""
        index = torch.as_tensor(index, device=self.device)
        index = index if index.numel() else index.long()  # an empty list is of no kind
        return Data(self.images[index], self.labels[index], self.spec)

    def named(self, name: str) -> Data:
        """Return the same data under another name."""
        return Data(self.images, self.labels, replace(self.spec, name=name), self.broken)

    @in_own_state
    def batch(self, index: Tensor | slice = slice(None)) -> Batch:
        """Return normalised float32 images and one-hot targets (M, K) of the examples at `index`."""
        if isinstance(index, Tensor):
            index = index.to(self.device, non_blocking=True)
        images = self.spec.normalise(self.images[index].float().div_(255))
        return Batch(images, torch.nn.functional.one_hot(self.labels[index], len(self.spec.classes)).float())

    @in_own_state
    def per_class(self, count: int | None, generator: torch.Generator) -> Tensor:
        """Draw `count` examples of each class without replacement, or all a class has if it has fewer.

        Returns:
            Indices, int64 on the CPU, class by class.
        """
        if count is None:
            return self._by_class.clone()
        offsets = self._counts.cumsum(0) - self._counts
        labels = self._labels_by_class
        order = (labels + torch.rand(len(labels), generator=generator, dtype=torch.float64)).argsort()
        # labels stay sorted: only the order inside a class changed
        rank = torch.arange(len(labels), device="cpu") - offsets[labels]
        return self._by_class[order[rank < count]]

    @cached_property
    def _by_class(self) -> Tensor:
        return self.labels.cpu().argsort(stable=True)

    @cached_property
    def _labels_by_class(self) -> Tensor:
        return self.labels.cpu()[self._by_class]
