"""Between Avalanche's data sets and ours: an experience as `Data`, a memory as samples like the stream's."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute, TaskAwareSupervisedClassificationDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from fedcondense.data.layouts import channels_come_first
from fedcondense.errors import DataError, SettingError

__all__ = ["Experience", "Layout", "Range", "as_dataset", "first_image", "noted", "read", "read_note"]

_LOG = logging.getLogger(__name__)
_OUTSIDE = 1e-3  # share of an experience's values that may be clipped silently
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64),
        *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    )
}


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

    @classmethod
    def given(cls, mean: Sequence[float] | None, std: Sequence[float] | None) -> Range | None:
        """Return the range that a stream's transform tells; None where neither is given.

        Raises:
            SettingError: Only one of them is, or a std is not above 0.
        """
        if len(mean or ()) != len(std or ()) or not all(s > 0 for s in std or ()):
            raise SettingError(
                f"mean {mean} and std {std}; give both of the stream's transform, std above 0, or neither"
            )
        return cls.normalised(mean, std) if mean and std else None

    def to_bytes(self, images: Tensor) -> Tensor:
        """Round images of the stream to uint8."""
        low, high = self._columns(images)
        return ((images - low) / (high - low)).mul(255).round().clamp(0, 255).to(torch.uint8)

    def to_stream(self, images: Tensor) -> Tensor:
        """Take images in [0, 1] to the stream's values."""
        low, high = self._columns(images)
        return images * (high - low) + low

    def to_bytes_or_warn(self, images: Tensor) -> Tensor:
        """Round images of the stream to uint8; where more than a few values are clipped, the log is told."""
        if (outside := self.share_outside(images)) > _OUTSIDE:
            _LOG.warning(
                "%.1f %% of the stream's values are outside of what a byte stands for, %s to %s, and are clipped; give "
                "the buffer mean and std of the stream's transform",
                100 * outside,
                self.low,
                self.high,
            )
        return self.to_bytes(images)

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
        tensors: Whether the label is a tensor, not a number.
        column: Whether that tensor is of shape (1,).
        label: The dtype of the label's tensor, by name.
        images: The dtype of the images, by name.
    """

    tasks: bool
    tensors: bool
    column: bool = False
    label: str = "int64"
    images: str = "float32"

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the images."""
        return _dtype(self.images)

    def cast(self, images: Tensor) -> Tensor:
        """Take float32 images in the stream's values to its dtype, rounded if that holds whole numbers."""
        if self.dtype.is_floating_point:
            return images.to(self.dtype)
        most = torch.iinfo(self.dtype)
        return images.round().clamp(most.min, most.max).to(self.dtype)

    def label_form(self, labels: Tensor) -> Tensor:
        """Take labels (N,) to the form that a batch of the stream has them in."""
        labels = labels.to(_dtype(self.label)) if self.tensors else labels
        return labels.unsqueeze(1) if self.column else labels


def noted(span: Range, layout: Layout) -> dict[str, Any]:
    """Return both as plain values, of which `read_note` makes them again; what is usual is left out."""
    usual = Layout(layout.tasks, layout.tensors)
    unusual = {k: v for k, v in vars(layout).items() if v != getattr(usual, k)}
    return {**span._asdict(), "tasks": layout.tasks, "tensors": layout.tensors, **unusual}


def read_note(note: Mapping[str, Any]) -> tuple[Range, Layout]:
    """Read what `noted` gave.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It is none.
    """
    low, high = (tuple(float(v) for v in note[side]) for side in ("low", "high"))
    if not all(math.isfinite(a) and math.isfinite(b) and a < b for a, b in zip(low, high, strict=True)):
        raise ValueError("a range that is none")
    usual = Layout(bool(note["tasks"]), bool(note["tensors"]))
    label, images = (str(note.get(name, getattr(usual, name))) for name in ("label", "images"))
    for name in (label, images):
        _dtype(name)
    column = bool(note.get("column", usual.column))
    return Range(low, high), replace(usual, column=column, label=label, images=images)


def _dtype(name: str) -> torch.dtype:
    """Return the dtype of a name that may come from a file."""
    if name not in _DTYPES:
        raise ValueError(f"no dtype of a stream is called {name!r}")
    return _DTYPES[name]


class Experience(NamedTuple):
    """The contents of an experience's data set."""

    images: Tensor  # (N, C, H, W), float32, as the stream's evaluation transform gives them
    labels: Tensor  # (N,), int64
    tasks: Tensor  # (N,), int64; zero where the stream has none
    layout: Layout


def read(dataset: AvalancheDataset) -> Experience:
    """Read all of a data set once, without the augmentations of its training transform.

    Task labels are those of its attribute `targets_task_labels`; where samples show it, it comes last in them.

    Raises:
        DataError: It is empty, its samples are no images with a label, or the images differ in size.
    """
    dataset, attribute, shown = _opened(dataset)
    try:
        batches = DataLoader(dataset, batch_size=512, generator=torch.Generator())  # leaves the global one alone
        columns = list(zip(*batches, strict=True))
        images, labels = torch.cat(columns[0]).float(), torch.cat(columns[1])
    except (RuntimeError, TypeError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"samples that do not stack: {said}; give the stream's images one size") from None
    if not bool(images.isfinite().all()):
        raise DataError("images with values that are not finite; look at the stream's transform")
    layout = _layout(dataset[0], shown, labels)
    if attribute is None:
        tasks = torch.zeros(len(images), dtype=torch.int64)
    else:
        tasks = torch.cat(columns[2]).long() if shown else torch.tensor([int(task) for task in attribute])
    return Experience(images, labels.flatten().long(), tasks, layout)


def first_image(dataset: AvalancheDataset) -> tuple[Tensor, Tensor]:
    """Return the first image (1, C, H, W) of a data set, as it is, and its task label (1,).

    Raises:
        DataError: As `read`, of the first sample.
    """
    dataset, attribute, _ = _opened(dataset)
    return dataset[0][0].unsqueeze(0), torch.tensor([0 if attribute is None else int(attribute[0])])


def _opened(dataset: AvalancheDataset) -> tuple[AvalancheDataset, Any, bool]:
    """Return a data set as evaluation sees it, its attribute of task labels, and whether samples show that."""
    if not isinstance(dataset, AvalancheDataset):
        raise DataError(f"a {type(dataset).__name__}; give an AvalancheDataset, as experiences have in `dataset`")
    dataset = dataset.eval()
    if not len(dataset):
        raise DataError("an experience without samples; leave it out of the stream")
    attribute = getattr(dataset, "targets_task_labels", None)
    shown = bool(getattr(attribute, "use_in_getitem", False))
    _check_sample(dataset[0], shown)
    return dataset, attribute, shown


def _check_sample(first: Any, shown: bool) -> None:
    """Refuse what is not an image and its label, with the task label if it is shown."""
    fields = first if isinstance(first, (tuple, list)) else [first]
    image = fields[0]
    is_one = isinstance(image, Tensor) and image.ndim == 3 and image.dtype in _DTYPES.values()
    if turned := channels_come_first(image.shape) if is_one else "":
        raise DataError(f"samples of images {tuple(image.shape)}; needed: (C, H, W), {turned}")
    if len(fields) == 2 + shown and is_one:
        return
    given = ", ".join(f"{tuple(v.shape)}" if isinstance(v, Tensor) else type(v).__name__ for v in fields)
    dtype = f" of {image.dtype}" if isinstance(image, Tensor) else ""
    raise DataError(
        f"samples of ({given}){dtype}; needed: (image tensor (C, H, W), label), and a task label only where the data "
        "set has `targets_task_labels`: a synthetic image has no further fields, leave them out of the stream"
    )


def _layout(first: Sequence[Any], shown: bool, labels: Tensor) -> Layout:
    """Return the form of samples; refuse labels that are no whole numbers from 0."""
    if labels.ndim > 2 or (labels.ndim == 2 and labels.shape[1] != 1):
        raise DataError(f"a label of shape {tuple(labels.shape[1:])}; needed: one whole number, as in `targets`")
    flat = labels.flatten()
    if flat.is_complex() or bool((flat != flat.long()).any()) or bool((flat.long() < 0).any()):
        raise DataError(f"labels such as {flat[0].item()}; needed: whole numbers from 0, the places of model outputs")
    tensors = isinstance(first[1], (Tensor, np.ndarray))
    name = str(labels.dtype).removeprefix("torch.")
    return Layout(
        shown,
        tensors,
        column=labels.ndim == 2,
        label=name if tensors and name in _DTYPES else "int64",
        images=str(first[0].dtype).removeprefix("torch."),
    )


class _Samples(Dataset[tuple[Tensor, Any]]):
    """Images of a working copy, each with its label in the stream's form; no second copy of them."""

    def __init__(self, image: Callable[[int], Tensor], labels: Tensor, layout: Layout) -> None:
        self.image, self.layout = image, layout
        self.labels = list(layout.label_form(labels)) if layout.tensors else labels.tolist()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        label = self.labels[index]
        image = self.layout.cast(self.image(index))
        return image, label.clone() if isinstance(label, Tensor) else label  # both theirs to change


def as_dataset(
    image: Callable[[int], Tensor],
    labels: Tensor,
    tasks: Tensor,
    layout: Layout,
    extra: Sequence[DataAttribute] = (),
) -> AvalancheDataset:
    """Return samples in the stream's form, which stock plugins mix with it, on benchmarks with and without tasks.

    Args:
        image: Returns the image of a place, (C, H, W) float32 in the stream's values, as a copy.
        labels: (N,) int64.
        tasks: (N,) int64.
        layout: The stream's form.
        extra: More attributes of the samples.
    """
    samples = _Samples(image, labels, layout)
    attributes = [DataAttribute(labels.tolist(), "targets")]
    if not layout.tasks:
        return AvalancheDataset([samples], data_attributes=[*attributes, *extra])
    attributes.append(DataAttribute(tasks.tolist(), "targets_task_labels", use_in_getitem=True))
    return TaskAwareSupervisedClassificationDataset([samples], data_attributes=[*attributes, *extra])
