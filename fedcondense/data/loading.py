"""Real data by name, from a folder, from an .npz file or from torch data sets, in a training and a test part."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedcondense.ambient import in_own_state
from fedcondense.data.catalogue import CATALOGUE, Arrays, Entry
from fedcondense.data.decoding import read_images, readable
from fedcondense.data.folders import list_images, lone_test
from fedcondense.data.imagenette import IMAGENETTE, imagenette_folder, in_words
from fedcondense.data.images import Data, DataSet
from fedcondense.data.items import from_dataset
from fedcondense.data.layouts import first
from fedcondense.data.sizes import checked_size, resized
from fedcondense.data.splits import hold_out, is_for_testing, to_data, to_dataset, to_tensor
from fedcondense.data.vocabulary import by_name, tell_of_lacking, texts
from fedcondense.errors import DataError, SettingError, unknown

__all__ = ["BROKEN", "count_listed", "data_root", "load_data", "load_parts", "load_test", "load_train"]

_LOG = logging.getLogger(__name__)

_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)
"""What numpy raises for damaged files; the last two for a lone .npy array, which has no keys."""


@in_own_state
def load_data(
    name: str | Any, root: str | Path | None = None, size: int | None = None, skip_broken: bool = False
) -> DataSet:
    """Load a train and a test split.

    Args:
        name: A name in `CATALOGUE`, or ``imagenette`` with a size; ``folder:<dir>``, one folder per class, under train/
            and test/ (or val/) or split here by a fixed seed, a fifth for testing; ``npz:<file>`` with x_train,
            y_train, x_test, y_test and, if there are any, the names `classes`; the NAME of a ``NAME.npz`` in the root;
            or a map-style torch Dataset, or a pair (train, test), whose labels are matched by class name. A folder that
            a set was exported to is all for training, and its test part is empty unless it was exported, too.
        root: Where data lie, in torchvision's layout or as ``NAME.npz``, which is looked for first; else the variable
            FEDCONDENSE_DATA, else ``~/.cache/fedcondense``. What is missing is downloaded where torchvision can.
        size: Pixels a side that images are brought to: the shorter side is scaled, and the middle stays. None: they
            are all of one size, and stay as they are.
        skip_broken: Leave files of a folder out that cannot be read, and name them in a warning and in `Data.broken` of
            the training part; else they are refused.

    Returns:
        Both splits on the CPU, uint8, of 1 or 3 channels and 8 to 128 pixels a side.

    Example:
        >>> train, test = load_data("digits")
        >>> train
        Data(digits, 1433 images of (1, 8, 8), 10 classes)
    """
    side = checked_size(size)
    if not isinstance(name, str):
        return _from_datasets(name, side)
    top = data_root(root)
    kind = name.partition(":")[0]
    if (path := _path_in(name, top)) is not None:
        title = f"{kind}:{path.name}"  # not the whole path: the name travels with a set
        return (
            DataSet(*_load_folder(path, title, side, skip_broken)) if kind == "folder" else _load_npz(path, title, side)
        )
    file = top / f"{name}.npz"
    if file.name == f"{name}.npz" and file.is_file():
        return _load_npz(file, name, side, CATALOGUE.get(name))
    if name == IMAGENETTE:
        return DataSet(*_load_folder(imagenette_folder(top), name, side, skip_broken))
    if name not in CATALOGUE:
        if (here := Path(name).expanduser()).exists():
            kind = "folder" if here.is_dir() else "npz"
            raise DataError(
                f"no data set is called {name!r}, but a {'folder' if here.is_dir() else 'file'} is: {kind}:{name}"
            )
        others = "; or folder:<dir>, npz:<file>, or the NAME of a NAME.npz in the data root"
        raise DataError(unknown("data set", name, CATALOGUE) + others)
    return _load_named(name, CATALOGUE[name], top, side)


@in_own_state
def load_train(
    name: str | Any, root: str | Path | None = None, size: int | None = None, skip_broken: bool = False
) -> Data:
    """Load what is there to learn from: all of a folder or a torch Dataset that has no test part of its own.

    Args:
        name: As for `load_data`, which divides such a source; where it has two parts, the training part is the same.
        root: As for `load_data`.
        size: As for `load_data`.
        skip_broken: As for `load_data`.
    """
    return load_parts(name, root, size, skip_broken)[0]


@in_own_state
def load_test(
    name: str | Any, root: str | Path | None = None, size: int | None = None, skip_broken: bool = False
) -> Data:
    """Load what is tested on: the test part, as `load_data` divides; all of a folder that has no other part.

    Args:
        name: As for `load_data`; of a folder, ``test/`` alone is enough.
        root: As for `load_data`.
        size: As for `load_data`.
        skip_broken: As for `load_data`.
    """
    path = _path_in(name, data_root(root)) if isinstance(name, str) and name.startswith("folder:") else None
    if path is not None and (part := lone_test(path)) is not None:
        return _load_folder(part, f"folder:{path.name}", checked_size(size), skip_broken, is_test_needed=False)[0]
    return load_data(name, root, size, skip_broken).test


@in_own_state
def load_parts(
    name: str | Any, root: str | Path | None = None, size: int | None = None, skip_broken: bool = False
) -> list[Data]:
    """Load what is there: a training part, and a test part where the source has one of its own.

    Args:
        name: As for `load_data`.
        root: As for `load_data`.
        size: As for `load_data`.
        skip_broken: As for `load_data`.
    """
    side = checked_size(size)
    if isinstance(name, str):
        path = _path_in(name, data_root(root))
        if path is not None and name.startswith("folder:"):
            return _load_folder(path, f"folder:{path.name}", side, skip_broken, is_test_needed=False)
    elif hasattr(name, "__getitem__") and not isinstance(name, tuple | list):
        return [from_dataset(name, _name_of(name), size=side)]
    return list(load_data(name, root, side, skip_broken))


class Counts(NamedTuple):
    """How many images each class has in each part."""

    classes: tuple[str, ...]
    train: list[int]
    test: list[int]


def count_listed(name: str, root: str | Path | None = None) -> Counts | None:
    """Count the images of a folder as `load_data` divides them; no file is opened. None: of another kind of source.

    Args:
        name: As for `load_data`.
        root: As for `load_data`.

    Raises:
        DataError: The folder is not one of images in class folders, or there is none.
    """
    path = _path_in(name, data_root(root))
    if name == IMAGENETTE:
        path = imagenette_folder(data_root(root))
    if path is None or name.startswith("npz:"):
        return None
    found = list_images(path, name, readable(), is_quiet=True)
    train, test = (np.array([label for _, label in part or ()], dtype=np.int64) for part in (found.train, found.test))
    if found.test is None and not found.is_export:
        held = is_for_testing(train)
        train, test = train[~held], train[held]
    counts = (np.bincount(labels, minlength=len(found.classes)).tolist() for labels in (train, test))
    return Counts(in_words(found.classes), *counts)


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder where data are looked for: the argument, FEDCONDENSE_DATA, or ``~/.cache/fedcondense``."""
    return Path(root or os.environ.get("FEDCONDENSE_DATA") or Path("~/.cache/fedcondense")).expanduser()


def _path_in(name: str, top: Path) -> Path | None:
    """Return the path of ``folder:<dir>`` or ``npz:<file>``, and None of other names."""
    kind, colon, rest = name.partition(":")
    if not colon or kind not in ("folder", "npz"):
        return None
    if not rest:
        raise SettingError(f"{name!r} has no path; needed: {kind}:<{'dir' if kind == 'folder' else 'file'}>")
    path = Path(rest).expanduser()
    if not (path.exists() or path.is_absolute() or (top / path).exists()):
        raise DataError(f"{name}: no {rest} here, nor in the data root {top}; give its path")
    return path if path.exists() or path.is_absolute() else top / path


def _load_named(name: str, entry: Entry, root: Path, size: int) -> DataSet:
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
    return to_dataset(name, arrays, classes, entry, size)


def _fetch(entry: Entry, root: Path) -> list[Arrays]:
    if not entry.where:  # torchvision can
        root.mkdir(parents=True, exist_ok=True)
    return [entry.read(root, train, True) for train in (True, False)]


def _load_npz(path: Path, name: str, size: int, entry: Entry | None = None) -> DataSet:
    """Load a file's four arrays; a named set keeps its constants, whatever its images were resized to."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; needed: an .npz with {', '.join(_ARRAYS)}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            if lacking := [key for key in _ARRAYS if key not in held]:
                there = ", ".join(held) or "nothing"
                raise DataError(f"{path}: {', '.join(lacking)} missing; it holds {there}; needed: {', '.join(_ARRAYS)}")
            arrays = [Arrays(held[f"x_{split}"], held[f"y_{split}"]) for split in ("train", "test")]
            named = np.atleast_1d(held["classes"]) if "classes" in held else np.array([], dtype=str)
    except DataError:
        raise
    except BROKEN as error:
        raise DataError(
            f"{path}: not a whole .npz of plain arrays ({error}); write it anew with numpy.savez"
        ) from error
    if named.ndim != 1:
        raise DataError(f"{path}: classes are an array {named.shape}; needed: (K,), one name per label")
    classes = texts(named.tolist())
    if not classes and entry and isinstance(entry.classes, tuple):
        classes = entry.classes
    return to_dataset(name, arrays, classes, entry, size)


def _load_folder(path: Path, name: str, size: int, skips: bool, is_test_needed: bool = True) -> list[Data]:
    """Load the parts of a folder; images of classes alone are divided if a test part is needed."""
    found = list_images(path, name, readable())
    held = [*found.train, *(found.test or ())]
    broken: dict[int, str] = {}
    images = read_images([file for file, _ in held], path, size, broken if skips else None)
    labels = np.array([label for place, (_, label) in enumerate(held) if place not in broken])
    if broken:
        _LOG.warning("%s: %d of %d images are left out: %s", name, len(broken), len(held), first(broken.values()))
    count = sum(place not in broken for place in range(len(found.train)))
    parts = [(images[:count], labels[:count]), (images[count:], labels[count:])]
    if found.test is None and (found.is_export or not is_test_needed):
        parts = parts if is_test_needed else parts[:1]
    elif found.test is None:
        parts = hold_out(images, labels, name)
    loaded = to_data(name, parts, in_words(found.classes))
    loaded[0].broken = tuple(str(held[place][0].relative_to(path)) for place in sorted(broken))
    return loaded


def _from_datasets(given: Any, size: int) -> DataSet:
    """Load a torch Dataset, split here, or a pair of them."""
    if isinstance(given, tuple | list) and len(given) == 2:
        if isinstance(given[0], Data) and isinstance(given[1], Data):
            train, test = given if not size else (_sized(data, size) for data in given)
            if train.spec.classes != test.spec.classes:
                return DataSet(train, by_name(test, train.spec.classes))
            return given if isinstance(given, DataSet) and not size else DataSet(train, test)
        if all(hasattr(d, "__getitem__") for d in given):
            train = from_dataset(given[0], _name_of(given[0]), size=size)
            test = from_dataset(given[1], train.spec, size=size)
            tell_of_lacking(train, test)
            return DataSet(train, test)
    whole = from_dataset(given, type(given).__name__, size=size)
    images = whole.images.permute(0, 2, 3, 1).numpy()
    parts = hold_out(images, whole.labels.numpy(), whole.spec.name)
    return DataSet(*to_data(whole.spec.name, parts, whole.spec.classes))


def _sized(data: Data, size: int) -> Data:
    """Return data whose images are brought to a size, on the same device."""
    if not size or data.spec.shape[1:] == (size, size):
        return data
    images = to_tensor(resized(data.images.permute(0, 2, 3, 1).cpu().numpy(), size)).to(data.device)
    return Data(images, data.labels, replace(data.spec, shape=(data.spec.shape[0], size, size)))


def _name_of(dataset: Any) -> str:
    return str(getattr(dataset, "name", type(dataset).__name__))
