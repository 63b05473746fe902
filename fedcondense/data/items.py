"""A map-style torch `Dataset`, item by item, as `Data`: images in one way, labels by the names of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data.decoding import channels_last, lost_as_rgb
from fedcondense.data.folders import is_hidden, why_no_classes
from fedcondense.data.images import Data, Spec
from fedcondense.data.layouts import first, stack, to_bytes
from fedcondense.data.sizes import checked_size
from fedcondense.data.splits import check_labels, to_data, to_tensor
from fedcondense.data.vocabulary import texts, to_classes, vocabulary_of
from fedcondense.errors import DataError

__all__ = ["from_dataset"]

_KEYS = (("image", "img"), ("label", "labels"))  # of items that are dicts, as Hugging Face's are


@in_own_state
def from_dataset(
    dataset: Any, spec: Spec | str = "dataset", classes: Sequence[str] | None = None, size: int | None = None
) -> Data:
    """Turn a map-style torch Dataset into `Data`: each item an image and a whole-number label.

    Labels are matched by the names of their classes, through `Subset`, `ConcatDataset` and whatever else has a
    `dataset`; the classes of joined data sets are all of theirs. Only what names no classes goes by its numbers.

    Args:
        dataset: Its items are (image, label), or dicts with the keys ``image`` or ``img`` and ``label`` or ``labels``.
            Images are PIL images, arrays (H, W), (H, W, C) or (C, H, W), or tensors, of uint8 or of floating point in
            [0, 1]: leave `Normalize` out of its transform. Grey ones among coloured ones become coloured. Transparent
            ones are laid on white.
        spec: What the images are, as ``train.spec`` for a test split, whose classes it must know; or a name, and mean
            and std are computed.
        classes: The class names, by label, whatever the data set calls them; by default the spec's, the data set's own
            `classes`, or numbers.
        size: Pixels a side that images are brought to (`resized`); None: they have one size.

    Raises:
        DataError: An item cannot be read, is no image with a label, or is of a class that `spec` does not know.
    """
    name = spec if isinstance(spec, str) else spec.name
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        given = type(dataset).__name__
        raise DataError(f"{name}: {given} is not a map-style Dataset; needed: len() and [i] that gives (image, label)")
    if not len(dataset):
        raise DataError(f"{name}: the data set is empty; needed: at least one image")
    first_item, key = _item(dataset, 0, name)
    vocabulary = vocabulary_of(dataset, name, key, is_strict=classes is None)
    for source in vocabulary.sources:
        _check_folders(source, name)
    images, labels, side = [], [], checked_size(size)
    for i in range(len(dataset)):
        image, label = first_item if i == 0 else _item(dataset, i, name)[0]
        labels.append(_whole(label, f"{name}: item {i}"))
        source, index = vocabulary.sources[vocabulary.which[i]], int(vocabulary.where[i])
        _check_loader(source, index, image, f"{name}: item {i}")
        images.append(channels_last(image, f"{name}: item {i}", side))
    stacked = stack(to_bytes(images, name), name, lambda i: f"item {i}")
    wanted = spec.classes if isinstance(spec, Spec) else None
    if classes is not None:
        wanted = texts(classes)
        if all(names == vocabulary.names[0] for names in vocabulary.names):  # another name for each label
            vocabulary = vocabulary._replace(names=[None] * len(vocabulary.names))
    found, mapped = to_classes(vocabulary, np.array(labels), name, wanted)
    known = check_labels(mapped, len(stacked), name)
    if isinstance(spec, str):
        return to_data(name, [(stacked, known)], found)[0]
    return Data(to_tensor(stacked), torch.from_numpy(known), replace(spec, classes=found))


def _item(dataset: Any, i: int, name: str) -> tuple[tuple[Any, Any], str | None]:
    """Return an item's image and label, and the key of the label where items are dicts."""
    try:
        item = dataset[i]
    except Exception as error:  # whatever a data set of somebody's own raises
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise DataError(f"{name}: item {i} cannot be read ({why}); mend it or leave it out with Subset") from error
    if isinstance(item, Mapping):
        found = [[key for key in keys if key in item] for keys in _KEYS]
        if any(len(keys) != 1 for keys in found):
            there = first(map(str, item), 6)
            raise DataError(
                f"{name}: item {i} is a dict of {there}; needed: one of image and img, and one of label and labels, so "
                "rename a column"
            )
        return (item[found[0][0]], item[found[1][0]]), found[1][0]
    try:
        image, label = item
    except (TypeError, ValueError) as error:
        raise DataError(f"{name}: item {i} is not (image, label) with a whole-number label: {error}") from error
    return (image, label), None


def _whole(label: Any, name: str) -> int:
    """Return a label of any kind that holds one whole number: Python's, numpy's, a tensor of one element, a bool."""
    try:
        array = label.detach().cpu().numpy() if isinstance(label, Tensor) else np.asarray(label)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{name} is not (image, label) with a whole-number label: {error}") from error
    if array.size == 1 and array.dtype.kind in "iub":
        return int(array.reshape(()))
    form = f"{type(label).__name__} {str(label)[:40]!r}" if array.size == 1 else f"{array.dtype} {array.shape}"
    step = "a place among the classes"
    if array.size > 1 and array.dtype.kind in "iubf" and sorted(set(array.ravel().tolist())) == [0, 1]:
        step = "of a one-hot vector its argmax()"
    raise DataError(f"{name} is not (image, label) with a whole-number label, but with {form}; needed: {step}")


def _check_folders(source: Any, name: str) -> None:
    """Refuse a data set of folders, as torchvision's `ImageFolder`, whose folders are no classes."""
    samples, root = getattr(source, "samples", None), getattr(source, "root", None)
    if not isinstance(samples, list) or not isinstance(root, str | PurePath) or not samples:
        return
    held: dict[str, list[PurePath]] = {}
    hidden = []
    for sample in samples:
        if not isinstance(sample, tuple | list) or not isinstance(sample[0], str | PurePath):
            return
        path = PurePath(sample[0])
        if not path.is_relative_to(root):
            return
        inner = path.relative_to(root)
        if len(inner.parts) < 2:
            return
        hidden += [str(inner)] if any(map(is_hidden, inner.parts)) else []
        held.setdefault(inner.parts[0], []).append(PurePath(*inner.parts[1:]))
    step = f"or load it by load_data('folder:{root}')"
    if hidden:
        raise DataError(f"{name}: {len(hidden)} images are hidden files ({first(hidden)}); remove them, {step}")
    if why := why_no_classes(held):
        raise DataError(f"{name}: {root}: {why}; {step}")


def _check_loader(source: Any, index: int, image: Any, name: str) -> None:
    """Refuse files of which torchvision's own way to open them, ``convert("RGB")``, loses something."""
    loader = getattr(source, "loader", None)
    if getattr(loader, "__module__", "") != "torchvision.datasets.folder" or not hasattr(source, "samples"):
        return
    path = source.samples[index][0]
    lost = lost_as_rgb(path)
    if lost and not (lost.endswith("orientation") and hasattr(image, "getbands")):  # a PIL image still has it
        raise DataError(
            f"{name}: torchvision's loader drops {lost} of {path}; give ImageFolder(loader=PIL.Image.open), or "
            "load_data('folder:...')"
        )
