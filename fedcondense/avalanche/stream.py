"""Between Avalanche's data sets and ours: an experience as `Data`, a memory as samples like the stream's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskAwareSupervisedClassificationDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedcondense.errors import DataError

__all__ = ["Experience", "Layout", "Range", "as_dataset", "group_name", "label_and_task", "read"]


class Range(NamedTuple):
    """The stream's values that the stored bytes 0 and 255 stand for, one per channel."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    @classmethod
    def of(cls, images: Tensor) -> Range:
        """Return the range of images (N, C, H, W)."""
        low, high = images.amin((0, 2, 3)), images.amax((0, 2, 3))
        return cls(tuple(low.tolist()), tuple(torch.maximum(high, low + 1e-6).tolist()))

    @classmethod
    def normalised(cls, mean: Sequence[float], std: Sequence[float]) -> Range:
        """Return the range of images in [0, 1] after `torchvision.transforms.Normalize` with the same arguments."""
        pairs = list(zip(mean, std, strict=True))
        return cls(tuple(-m / s for m, s in pairs), tuple((1 - m) / s for m, s in pairs))

    def to_bytes(self, images: Tensor) -> Tensor:
        """Round images of the stream to uint8."""
        low, high = self._columns(images)
        return ((images - low) / (high - low)).mul(255).round().clamp(0, 255).to(torch.uint8)

    def to_stream(self, images: Tensor) -> Tensor:
        """Take images in [0, 1] to the stream's values."""
        low, high = self._columns(images)
        return images * (high - low) + low

    def share_outside(self, images: Tensor) -> float:
        """Return the share of values that `to_bytes` clips by more than half a byte's step."""
        low, high = self._columns(images)
        slack = (high - low) / 510
        return float(((images < low - slack) | (images > high + slack)).float().mean())

    def _columns(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return images.new_tensor(self.low).view(1, -1, 1, 1), images.new_tensor(self.high).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Layout:
    """The form of the stream's samples, which the memory's share: both are collated into one batch.

    Args:
        tasks: Whether the task label comes third.
        tensors: Whether the label is a tensor, not an int.
    """

    tasks: bool
    tensors: bool


class Experience(NamedTuple):
    """The contents of an experience's data set."""

    images: Tensor  # (N, C, H, W), float32, as the stream's evaluation transform gives them
    labels: Tensor  # (N,), int64
    tasks: Tensor  # (N,), int64; zero where the stream has none
    layout: Layout


def read(dataset: AvalancheDataset) -> Experience:
    """Read all of a data set once, without the augmentations of its training transform.

    Raises:
        DataError: It is empty, its samples are no images with a label, or the images differ in size.
    """
    dataset = dataset.eval()
    if not len(dataset):
        raise DataError("an experience without samples; leave it out of the stream")
    first = dataset[0]
    if len(first) not in (2, 3) or not isinstance(first[0], Tensor) or first[0].ndim != 3:
        given = ", ".join(f"{tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in first)
        raise DataError(f"samples of ({given}); needed: (image tensor (C, H, W), label) or with a task label third")
    layout = Layout(tasks=len(first) == 3, tensors=isinstance(first[1], Tensor))
    try:
        batches = DataLoader(dataset, batch_size=512, generator=torch.Generator())  # leaves the global one alone
        columns = list(zip(*batches, strict=True))
    except RuntimeError as error:
        raise DataError(f"samples that do not stack: {error}; give the stream's images one size") from None
    images, labels = torch.cat(columns[0]).float(), torch.cat(columns[1]).long()
    if not bool(images.isfinite().all()):
        raise DataError("images with values that are not finite; look at the stream's transform")
    tasks = torch.cat(columns[2]).long() if layout.tasks else torch.zeros_like(labels)
    return Experience(images, labels, tasks, layout)


def group_name(label: int, task: int) -> str:
    """Return the name of a class in a memory; the same label in another task is another class."""
    return f"{label}@{task}" if task else str(label)


def label_and_task(name: str) -> tuple[int, int]:
    """Return the arguments of `group_name`; the text after ``#`` belongs to the memory.

    >>> label_and_task("7"), label_and_task("7@2#5")
    ((7, 0), (7, 2))
    """
    label, _, task = name.partition("#")[0].partition("@")
    return int(label), int(task or 0)


class _Samples(Dataset[tuple[Tensor, Any]]):
    """Images in memory, each with its label in the stream's form."""

    def __init__(self, images: Tensor, labels: Tensor, layout: Layout) -> None:
        self.images = images
        self.labels = list(labels) if layout.tensors else labels.tolist()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.images[index].clone(), self.labels[index]


def as_dataset(
    images: Tensor, labels: Tensor, tasks: Tensor, layout: Layout, extra: Sequence[DataAttribute] = ()
) -> AvalancheDataset:
    """Return samples in the stream's form, which stock plugins mix with it, on benchmarks with and without tasks."""
    samples = _Samples(images, labels, layout)
    attributes = [DataAttribute(labels.tolist(), "targets")]
    if not layout.tasks:
        return AvalancheDataset([samples], data_attributes=[*attributes, *extra])
    attributes.append(DataAttribute(tasks.tolist(), "targets_task_labels", use_in_getitem=True))
    return TaskAwareSupervisedClassificationDataset([samples], data_attributes=[*attributes, *extra])
