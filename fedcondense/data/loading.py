"""Real data by name, from a folder, from an .npz file or from any map-style torch `Dataset`, as uint8 tensors."""

from __future__ import annotations

import operator
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedcondense.data.catalogue import CATALOGUE, Arrays, Entry
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.layouts import (
    Pixels,
    batch_channels_last,
    channels_last,
    check_sizes,
    first,
    from_pil,
    stack,
    to_uint8,
)
from fedcondense.errors import DataError, SettingError, unknown

__all__ = ["Available", "available", "data_root", "from_dataset", "load_data"]

Labels = npt.NDArray[np.int64]

_MOST_CLASSES = 10_000
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_IMAGES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff"}
_BROKEN = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError, TypeError)
"""What numpy raises for damaged files; the last two for a lone .npy array, which has no keys."""
_TEST_SHARE = 5  # where a source has no test split, every fifth image of a class is for testing


class Available(NamedTuple):
    """A row of what is at hand."""

    name: str
    where: str | None  # None: not at hand; `load_data` tries to download it
    shape: tuple[int, int, int] | None  # (C, H, W); None: the file cannot be read
    train: int | None  # images
    test: int | None
    classes: int | None
    files: tuple[str, ...]  # what a root would hold, relative to it; any one `NAME.npz` will do as well


def load_data(name: str | Any, root: str | Path | None = None) -> DataSet:
    """Load a train and a test split.

    Args:
        name: A name in `CATALOGUE`; ``folder:<dir>``, one folder a class, under train/ and test/ or split here by a
            fixed seed; ``npz:<file>`` with x_train, y_train, x_test, y_test and, if there are any, the names `classes`;
            the NAME of a ``NAME.npz`` in the root; or a map-style torch Dataset, or a pair (train, test) of them.
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
    known = _check_labels(np.array(labels), len(stacked), name)
    if isinstance(spec, str):
        return _splits(name, [(stacked, known)], tuple(classes))[0]
    return Data(_to_tensor(stacked), torch.from_numpy(known), replace(spec, classes=tuple(classes)))


def data_root(root: str | Path | None = None) -> Path:
    """Return the folder where data are looked for: the argument, FEDCONDENSE_DATA, or ``~/.cache/fedcondense``."""
    return Path(root or os.environ.get("FEDCONDENSE_DATA") or Path("~/.cache/fedcondense")).expanduser()


def available(root: str | Path | None = None) -> list[Available]:
    """List the named data sets and the ``.npz`` files of the data root; reads no images and downloads nothing."""
    top = data_root(root)
    rows = []
    for name, entry in CATALOGUE.items():
        file = top / f"{name}.npz"
        if file.is_file():
            rows.append(_npz_row(name, file, entry.files))
            continue
        folder = top / Path(entry.files[0]).parts[0] if entry.files else "scikit-learn"
        where = None if entry.missing(top) else str(folder)
        count = len(entry.classes) if isinstance(entry.classes, tuple) else 200
        rows.append(Available(name, where, entry.shape, *entry.sizes, count, entry.files))
    others = sorted(p for p in top.glob("*.npz") if p.stem not in CATALOGUE)
    return rows + [_npz_row(file.stem, file, ()) for file in others]


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
    return _dataset(name, arrays, classes, entry)


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
    except _BROKEN as error:
        raise DataError(
            f"{path}: not a whole .npz of plain arrays ({error}); write it anew with numpy.savez"
        ) from error
    if not classes and entry and isinstance(entry.classes, tuple):
        classes = entry.classes
    return _dataset(name, arrays, classes, entry)


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
    images = _read_images(files, path)
    known = np.array(labels)
    if len(tops) == 2:
        splits = [(images[: ends[0]], known[: ends[0]]), (images[ends[0] :], known[ends[0] :])]
    else:
        splits = _split(images, known, name)
    return DataSet(*_splits(name, splits, tuple(classes)))


def _read_images(files: Sequence[Path], top: Path) -> Pixels:
    """Read image files of one size; sizes are known from headers, before a pixel is decoded."""
    from PIL import Image

    def read(use: Callable[[Image.Image], Any]) -> list[Any]:
        results, broken = [], []
        for path in files:
            try:
                with Image.open(path) as image:
                    results.append(use(image))
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
                broken.append(f"{path.relative_to(top)}: {error}")
        if broken:
            raise DataError(
                f"{top}: {len(broken)} of {len(files)} images cannot be read ({first(broken)}); remove them"
            )
        return results

    sizes = read(lambda image: (image.height, image.width))
    check_sizes(sizes, str(top), lambda i: str(files[i].relative_to(top)))
    return stack(read(from_pil), str(top), lambda i: str(files[i].relative_to(top)))


def _from_datasets(given: Any) -> DataSet:
    """Load a torch Dataset, split here, or a pair of them."""
    if isinstance(given, DataSet):
        return given
    if isinstance(given, tuple | list) and len(given) == 2 and all(hasattr(d, "__getitem__") for d in given):
        train = from_dataset(given[0], getattr(given[0], "name", type(given[0]).__name__))
        return DataSet(train, from_dataset(given[1], train.spec))
    whole = from_dataset(given, type(given).__name__)
    images = whole.images.permute(0, 2, 3, 1).numpy()
    return DataSet(*_splits(whole.spec.name, _split(images, whole.labels.numpy(), whole.spec.name), whole.spec.classes))


def _split(images: Pixels, labels: Labels, name: str) -> list[tuple[Pixels, Labels]]:
    """Split each class by a fixed seed, every fifth image for testing."""
    order = np.random.default_rng(0).permutation(len(labels))
    order = order[labels[order].argsort(kind="stable")]
    starts = np.concatenate([[0], np.bincount(labels).cumsum()])[labels[order]]
    test = (np.arange(len(labels)) - starts) % _TEST_SHARE == _TEST_SHARE - 1
    if not test.any():
        raise DataError(
            f"{name}: no class has {_TEST_SHARE} images, so none is left for testing; add images or a test/ part"
        )
    return [(images[index], labels[index]) for index in (np.sort(order[~test]), np.sort(order[test]))]


def _dataset(name: str, arrays: Sequence[Arrays], classes: tuple[str, ...], entry: Entry | None) -> DataSet:
    splits = []
    for split, (images, labels) in zip(("train", "test"), arrays, strict=True):
        title = f"{name} {split}"
        pixels = to_uint8(batch_channels_last(images, title), title)
        splits.append((pixels, _check_labels(labels, len(pixels), title)))
    return DataSet(*_splits(name, splits, classes, entry))


def _splits(
    name: str, splits: Sequence[tuple[Pixels, Labels]], classes: tuple[str, ...], entry: Entry | None = None
) -> list[Data]:
    """Give all splits one spec: the entry's constants, or what the first split says."""
    images = splits[0][0]
    if different := {other.shape[1:] for other, _ in splits} - {images.shape[1:]}:
        raise DataError(
            f"{name}: train images are {images.shape[1:]}, test images {different.pop()}; needed: one shape"
        )
    if not classes:
        classes = tuple(map(str, range(1 + max(int(labels.max()) for _, labels in splits))))
    if len(set(classes)) < len(classes):
        raise DataError(f"{name}: {len(classes)} class names, but {len(set(classes))} different ones; name each once")
    channels = images.shape[-1]
    if entry and len(entry.mean) == channels:
        mean, std = entry.mean, entry.std
    else:
        mean, std = _moments(images)
    shape = (channels, images.shape[1], images.shape[2])
    spec = Spec(name, shape, classes, mean, std, *((entry.operations,) if entry else ()))
    return [Data(_to_tensor(images), torch.from_numpy(labels), spec) for images, labels in splits]


def _moments(images: Pixels) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation of each channel in [0, 1], from exact counts; a flat channel keeps a step of grey."""
    levels = np.arange(256) / 255
    shares = [np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(images.shape[-1])]
    mean = [float(share @ levels) for share in shares]
    std = [float(share @ (levels - m) ** 2) ** 0.5 for share, m in zip(shares, mean, strict=True)]
    return tuple(round(m, 4) for m in mean), tuple(round(max(s, 1 / 255), 4) for s in std)


def _to_tensor(images: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _check_labels(labels: npt.NDArray[Any], count: int, name: str) -> Labels:
    """Return (N,) int64, from 0; the upper end is checked where the class names are known."""
    if labels.shape == (count, 1):
        labels = labels[:, 0]
    if labels.shape != (count,) or labels.dtype.kind not in "iu":
        given = f"{labels.dtype} {labels.shape}"
        raise DataError(f"{name}: labels are {given}; needed: ({count},) whole numbers, one for each of the images")
    if labels.min() < 0 or labels.max() >= _MOST_CLASSES:
        span = f"{labels.min()} to {labels.max()}"
        raise DataError(
            f"{name}: labels go from {span}; needed: 0 to the number of classes less one, below {_MOST_CLASSES}"
        )
    return labels.astype(np.int64)


def _npz_row(name: str, path: Path, files: tuple[str, ...]) -> Available:
    """Return what an .npz holds, from its arrays' headers and its training labels."""
    try:
        shapes = {}
        with zipfile.ZipFile(path) as held:
            for key in ("x_train", "x_test"):
                with held.open(f"{key}.npy") as stream:
                    version = np.lib.format.read_magic(stream)
                    header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                    shapes[key] = header[version](stream)[0]
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as held:
            classes = int(held["y_train"].max()) + 1
        empty = np.broadcast_to(np.uint8(0), shapes["x_train"])  # no memory: the layout's rule, applied to a shape
        height, width, channels = batch_channels_last(empty, name).shape[1:]
        sizes = (shapes["x_train"][0], shapes["x_test"][0])
        return Available(name, str(path), (channels, height, width), *sizes, classes, files)
    except _BROKEN:
        return Available(name, str(path), None, None, None, None, files)
