"""Arrays of images and labels to the `Data` of a training and a test split, with one spec."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedcondense.data.catalogue import Arrays, Entry
from fedcondense.data.class_names import class_names
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.layouts import Uint8Images, batch_channels_last, first, to_bytes, to_numbers
from fedcondense.data.sizes import resized
from fedcondense.data.vocabulary import tell_of_gaps, tell_of_lacking, warn_of_alike
from fedcondense.errors import DataError

__all__ = ["Labels", "check_labels", "hold_out", "is_for_testing", "to_data", "to_dataset", "to_tensor"]

_LOG = logging.getLogger(__name__)

Labels = npt.NDArray[np.int64]

_MOST_CLASSES = 10_000
_TEST_SHARE = 5  # where a source has no test split, every fifth image of a class is for testing


def hold_out(images: Uint8Images, labels: Labels, name: str) -> list[tuple[Uint8Images, Labels]]:
    """Split each class by a fixed seed, every fifth image for testing."""
    test = is_for_testing(labels)
    if not test.any():
        raise DataError(
            f"{name}: no class has {_TEST_SHARE} images, so none is left for testing; add images or a test/ part"
        )
    if untested := sorted(set(labels.tolist()) - set(labels[test].tolist())):
        few = first(f"label {label}" for label in untested)
        _LOG.warning(
            "%s: %d classes of fewer than %d images are not tested (%s)", name, len(untested), _TEST_SHARE, few
        )
    return [(images[index], labels[index]) for index in (~test, test)]


def is_for_testing(labels: Labels) -> npt.NDArray[np.bool_]:
    """Return which records are for testing where a source has no test part, (N,): every fifth of a class, shuffled."""
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[labels[order].argsort(kind="stable")]
    starts = np.concatenate([[0], np.bincount(labels).cumsum()])[labels[order]]
    found = np.zeros(len(labels), dtype=np.bool_)
    found[order] = (np.arange(len(labels)) - starts) % _TEST_SHARE == _TEST_SHARE - 1
    return found


def to_dataset(
    name: str, arrays: Sequence[Arrays], classes: tuple[str, ...], entry: Entry | None, size: int = 0
) -> DataSet:
    """Return a training and a test split of arrays in any usual layout; a named set keeps its constants."""
    pixels, known = [], []
    for split, (images, labels) in zip(("train", "test"), arrays, strict=True):
        title = f"{name} {split}"
        pixels.append(resized(to_numbers(batch_channels_last(images, title, bool(size)), title), size))
        known.append(check_labels(labels, len(images), title))
    return DataSet(*to_data(name, list(zip(to_bytes(pixels, name), known, strict=True)), classes, entry))


def to_data(
    name: str, splits: Sequence[tuple[Uint8Images, Labels]], classes: tuple[str, ...], entry: Entry | None = None
) -> list[Data]:
    """Give all splits one spec: the entry's constants, or what the first split says."""
    images = splits[0][0]
    if not classes:
        classes = tuple(map(str, range(1 + max(int(labels.max(initial=0)) for _, labels in splits))))
        tell_of_gaps([labels for _, labels in splits], classes, name)
    if different := {other.shape[1:] for other, _ in splits} - {images.shape[1:]}:
        raise DataError(
            f"{name}: train images are {images.shape[1:]}, test images {different.pop()}; needed: one shape"
        )
    try:
        classes = class_names(classes)
    except DataError as error:
        raise DataError(f"{name}: {error}") from None
    channels = images.shape[-1]
    if entry and len(entry.mean) == channels:
        mean, std = entry.mean, entry.std
    else:
        mean, std = _moments(images)
    shape = (channels, images.shape[1], images.shape[2])
    spec = Spec(name, shape, classes, mean, std, *((entry.operations,) if entry else ()))
    warn_of_alike(classes, name)
    parts = [Data(to_tensor(images), torch.from_numpy(labels), spec) for images, labels in splits]
    if len(parts) == 2:
        tell_of_lacking(*parts)
    return parts


def _moments(images: Uint8Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel in [0, 1], from exact counts; a flat channel keeps a step of grey."""
    levels = np.arange(256) / 255
    shares = [np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(images.shape[-1])]
    mean = [float(share @ levels) for share in shares]
    std = [float(share @ (levels - m) ** 2) ** 0.5 for share, m in zip(shares, mean, strict=True)]
    return tuple(round(m, 4) for m in mean), tuple(round(max(s, 1 / 255), 4) for s in std)


def to_tensor(images: Uint8Images) -> Tensor:
    """Return (N, H, W, C) as (N, C, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def check_labels(labels: npt.NDArray[Any], count: int, name: str) -> Labels:
    """Return (N,) int64, from 0; the upper end is checked where the class names are known."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iub":
        given = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{name}: labels are {given}; needed: ({count},) whole numbers, one for each of the images")
    labels = labels.astype(np.uint8) if labels.dtype.kind == "b" else labels
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        span = f"{labels.min()} to {labels.max()}"
        raise DataError(
            f"{name}: labels go from {span}; needed: 0 to the number of classes less one, below {_MOST_CLASSES}"
        )
    return labels.astype(np.int64)
