"""Which data sets are at hand, in a data root; nothing is loaded."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.layouts import batch_channels_last
from fedcondense.data.loading import BROKEN, data_root

__all__ = ["Available", "available"]


class Available(NamedTuple):
    """A row of what is at hand."""

    name: str
    where: str | None  # None: not at hand; `load_data` tries to download it
    shape: tuple[int, int, int] | None  # (C, H, W); None: the file cannot be read
    train: int | None  # images
    test: int | None
    classes: int | None
    files: tuple[str, ...]  # what a root would hold, relative to it; any one `NAME.npz` will do as well


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
    except BROKEN:
        return Available(name, str(path), None, None, None, None, files)
