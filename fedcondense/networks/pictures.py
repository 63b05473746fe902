"""Image files as a network takes them: brought to its size, grey or coloured as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fedcondense.data.decoding import read_images, readable
from fedcondense.data.folders import is_hidden
from fedcondense.data.layouts import Uint8Images
from fedcondense.data.sizes import resized
from fedcondense.data.splits import to_tensor
from fedcondense.errors import DataError

__all__ = ["pictures_in", "pictures_of"]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # as Pillow turns colours grey (ITU-R 601)


def pictures_in(paths: Sequence[Path]) -> list[Path]:
    """Return the image files among paths and in folders, at any depth, in the order of their names.

    Folders may be named as data sets are, ``folder:DIR``.

    Raises:
        DataError: A path is not there, or there are no images.
    """
    found: list[Path] = []
    for path in (Path(str(given).removeprefix("folder:")) for given in paths):
        if path.is_dir():
            linked = [one for one in path.iterdir() if one.is_symlink() and one.is_dir()]  # which rglob passes over
            every = sorted(file for top in (path, *linked) for file in top.rglob("*"))
            inner = (file for file in every if file.suffix.lower() in readable())
            found += [file for file in inner if not any(map(is_hidden, file.relative_to(path).parts))]
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such file or folder; needed: images, or folders of them")
    if not found:
        raise DataError(f"{', '.join(map(str, paths))}: no images; needed: files such as .png or .jpg")
    return found


def pictures_of(files: Sequence[Path], shape: tuple[int, int, int], broken: dict[int, str] | None = None) -> Tensor:
    """Return image files as (N, C, H, W), uint8, of a shape; the middle of what is not square stays.

    Args:
        files: One image each.
        shape: (C, H, W), square.
        broken: As for `read_images`.
    """
    if shape[1] != shape[2]:
        raise DataError(f"a network of images of {shape[1]}x{shape[2]}; needed: square ones, to bring pictures to")
    top = Path(os.path.commonpath([file.parent for file in files]))
    return to_tensor(_as(shape[0], resized(read_images(files, top, shape[1], broken, "--skip-broken"), shape[1])))


def _as(channels: int, images: Uint8Images) -> Uint8Images:
    if images.shape[-1] == channels:
        return images
    if channels == 1:
        grey: Uint8Images = np.rint(images.astype(np.float32) @ _LUMA)[..., None].astype(np.uint8)
        return grey
    return np.repeat(images, channels, axis=-1)
