"""Real data by name, from a folder, from an .npz file or from any map-style torch `Dataset`, as uint8 tensors."""

from __future__ import annotations

import operator
import os
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedcondense.ambient import in_own_state
from fedcondense.data.catalogue import CATALOGUE, Arrays, Entry
from fedcondense.data.decoding import channels_last, read_images
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.layouts import first, stack
from fedcondense.data.splits import check_labels, hold_out, to_data, to_dataset, to_tensor
from fedcondense.errors import DataError, SettingError, unknown

__all__ = ["BROKEN", "data_root", "from_dataset", "load_data"]

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)
"""What numpy raises for damaged files; the last two for a lone .npy array, which has no keys."""


@in_own_state
def load_data(name: str | Any, root: str | Path | None = None) -> DataSet:
    """Load a train and a test split.

    Args:
        name: A name in `CATALOGUE`; ``folder:<dir>``, one folder per class, under train/ and test/ or split here by
            a fixed seed; ``npz:<file>`` with x_train, y_train, x_test, y_test and, if there are any, the names
            `classes`; the NAME of a ``NAME.npz`` in the root; or a map-style torch Dataset, or a pair (train, test).
        root: Where data lie, in torchvision's layout or as ``NAME.npz``, which is looked for first; else the variable
            FEDCONDENSE_DATA, else ``~/.cache/fedcondense``. What is missing is downloaded where torchvision can.

    Returns:
        Both splits on the CPU, uint8, of 1 or 3 channels and 8 to 64 pixels a side.

    Example:
        >>> train, test = load_data("digits")
        >>> train
        Data(digits, 1433 images of (1, 8, 8), 10 classes)
    """
    if not isinstance(name, str):
        return _from_datasets(name)
    top = data_root(root)
    kind, colon, rest = name.partition(":")
    if colon and kind in ("folder", "npz"):
        if not rest:
            raise SettingError(f"{name!r} has no path; needed: {kind}:<{'dir' if kind == 'folder' else 'file'}>")
        path = Path(rest).expanduser()
        path = path if path.exists() or path.is_absolute() else top / path
        title = f"{kind}:{path.name}"  # not the whole path: the name travels with a set
        return _load_folder(path, title) if kind == "folder" else _load_npz(path, title)
    file = top / f"{name}.npz"
    if file.name == f"{name}.npz" and file.is_file():
        return _load_npz(file, name, CATALOGUE.get(name))
    if name not in CATALOGUE:
        others = "; or folder:<dir>, npz:<file>, or the NAME of a NAME.npz in the data root"
        raise DataError(unknown("data set", name, CATALOGUE) + others)
    return _load_named(name, CATALOGUE[name], top)


@in_own_state
def from_dataset(dataset: Any, spec: Spec | str = "dataset", classes: Sequence[str] | None = None) -> Data:
    """Turn a map-style torch Dataset into `Data`: each item an image and a whole-number label.

    Args:
        dataset: Its images are PIL images, arrays (H, W), (H, W, C) or (C, H, W), or tensors, of uint8 or of floating
            point in [0, 1]: leave `Normalize` out of its transform. Grey ones among coloured ones become coloured.
        spec: What the images are, as ``train.spec`` for a test split; or a name, and mean and std are computed.
        classes: The class names, by label; by default the spec's, the data set's own `classes`, or numbers.
    """
    name = spec if isinstance(spec, str) else spec.name
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        given = type(dataset).__name__
        raise DataError(f"{name}: {given} is not a map-style Dataset; needed: len() and [i] that gives (image, label)")
    if not len(dataset):
        raise DataError(f"{name}: the data set is empty; needed: at least one image")
    images, labels = [], []
    for i in range(len(dataset)):
        try:
            image, label = dataset[i]
            labels.append(operator.index(label))
        except (TypeError, ValueError) as error:
            raise DataError(f"{name}: item {i} is not (image, label) with a whole-number label: {error}") from error
        images.append(channels_last(image, f"{name}: item {i}"))
    stacked = stack(images, name, lambda i: f"item {i}")
    if classes is None:
        classes = getattr(dataset, "classes", ()) if isinstance(spec, str) else spec.classes
    known = check_labels(np.array(labels), len(stacked), name)
    if isinstance(spec, str):
        return to_data(name, [(stacked, known)], tuple(classes))[0]
    return Data(to_tensor(stacked), torch.from_numpy(known), replace(spec, classes=tuple(classes)))


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder where data are looked for: the argument, FEDCONDENSE_DATA, or ``~/.cache/fedcondense``."""
    return Path(root or os.environ.get("FEDCONDENSE_DATA") or Path("~/.cache/fedcondense")).expanduser()


def _load_named(name: str, entry: Entry, root: Path) -> DataSet:
    missing = entry.missing(root)
    try:
        arrays = [entry.read(root, train, False) for train in (True, False)] if not missing else _fetch(entry, root)
        classes = entry.classes if isinstance(entry.classes, tuple) else entry.classes(root)
    except DataError:
        raise
    except Exception as error:  # torchvision, urllib, PIL and scipy raise at least eight kinds, and all mean the same
        lacking = f"{len(missing)} of its files are missing" if missing else "its files cannot be read"
        few = first(missing or entry.files)
        advice = entry.where or "the download failed, so put them there"
        advice = advice if missing else "delete them to have them downloaded anew"
        why = " ".join(f"{type(error).__name__}: {error}".split())  # torchvision's has lines
        raise DataError(
            f"{name}: {lacking} in {root} ({few}); {advice}, or {name}.npz, or name another data root ({why})"
        ) from error
    return to_dataset(name, arrays, classes, entry)


def _fetch(entry: Entry, root: Path) -> list[Arrays]:
    if not entry.where:  # torchvision can
        root.mkdir(parents=True, exist_ok=True)
    return [entry.read(root, train, True) for train in (True, False)]


def _load_npz(path: Path, name: str, entry: Entry | None = None) -> DataSet:
    """Load a file's four arrays; a named set keeps its constants, whatever its images were resized to."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; needed: an .npz with {', '.join(_ARRAYS)}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            if lacking := [key for key in _ARRAYS if key not in held]:
                there = ", ".join(held) or "nothing"
                raise DataError(f"{path}: {', '.join(lacking)} missing; it holds {there}; needed: {', '.join(_ARRAYS)}")
            arrays = [Arrays(held[f"x_{split}"], held[f"y_{split}"]) for split in ("train", "test")]
            classes = tuple(str(c) for c in held["classes"]) if "classes" in held else ()
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(
            f"{path}: not a whole .npz of plain arrays ({error}); write it anew with numpy.savez"
        ) from error
    if not classes and entry and isinstance(entry.classes, tuple):
        classes = entry.classes
    return to_dataset(name, arrays, classes, entry)


def _load_folder(path: Path, name: str) -> DataSet:
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; needed: one sub-folder for each class, as in {path}/cat/1.png")
    halves = [path / "train", path / "test"]
    tops = halves if all(half.is_dir() for half in halves) else [path]
    classes = sorted({d.name for top in tops for d in top.iterdir() if d.is_dir() and not d.name.startswith(".")})
    files: list[Path] = []
    labels: list[int] = []
    ends = []
    for top in tops:
        for label, word in enumerate(classes):
            mine = sorted(
                p for p in (top / word).rglob("*") if p.suffix.lower() in _IMAGES and not p.name.startswith(".")
            )
            files += mine
            labels += [label] * len(mine)
        ends.append(len(files))
        if not files or ends[-1] == (ends[-2] if len(ends) > 1 else 0):
            raise DataError(f"{top}: no images found; needed: one sub-folder for each class, as in {top}/cat/1.png")
    images = read_images(files, path)
    known = np.array(labels)
    if len(tops) == 2:
        splits = [(images[: ends[0]], known[: ends[0]]), (images[ends[0] :], known[ends[0] :])]
    else:
        splits = hold_out(images, known, name)
    return DataSet(*to_data(name, splits, tuple(classes)))


def _from_datasets(given: Any) -> DataSet:
    """Load a torch Dataset, split here, or a pair of them."""
    if isinstance(given, DataSet):
        return given
    if isinstance(given, tuple | list) and len(given) == 2 and all(hasattr(d, "__getitem__") for d in given):
        train = from_dataset(given[0], getattr(given[0], "name", type(given[0]).__name__))
        return DataSet(train, from_dataset(given[1], train.spec))
    whole = from_dataset(given, type(given).__name__)
    images = whole.images.permute(0, 2, 3, 1).numpy()
    return DataSet(
        *to_data(whole.spec.name, hold_out(images, whole.labels.numpy(), whole.spec.name), whole.spec.classes)
    )
