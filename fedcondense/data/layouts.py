"""Images in any usual layout and type become uint8 with the channels last, or one error says what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcondense.errors import DataError

__all__ = ["Uint8Images", "batch_channels_last", "check_sizes", "first", "stack", "to_uint8"]

Uint8Images = npt.NDArray[np.uint8]

_SIDES = (8, 64)  # pixels


def batch_channels_last(images: npt.NDArray[Any], name: str) -> npt.NDArray[Any]:
    """Return (N, H, W, C) of images in any usual layout."""
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{name}: images are {images.shape}; needed: (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if not len(images):
        raise DataError(f"{name}: no images; needed: at least one")
    check_sizes([images.shape[1:3]], name, lambda i: "all")
    return images


def stack(images: Sequence[Uint8Images], name: str, say: Callable[[int], str]) -> Uint8Images:
    """Return (N, H, W, C) of images (H, W, C) of one size; grey ones among coloured ones become coloured."""
    check_sizes([image.shape[:2] for image in images], name, say)
    channels = max(image.shape[2] for image in images)
    return np.stack([np.broadcast_to(image, (*image.shape[:2], channels)) for image in images])


def check_sizes(sizes: Sequence[tuple[int, ...]], name: str, say: Callable[[int], str]) -> None:
    """Refuse images of different sizes, and sizes that the networks are not made for."""
    usual = Counter(sizes).most_common(1)[0][0]
    if odd := [i for i, size in enumerate(sizes) if size != usual]:
        few = first([f"{say(i)}: {sizes[i][0]}x{sizes[i][1]}" for i in odd])
        most = f"most are {usual[0]}x{usual[1]}, but {len(odd)} of {len(sizes)} are not"
        raise DataError(f"{name}: {most} ({few}); needed: one size, so resize or remove them")
    if not all(_SIDES[0] <= side <= _SIDES[1] for side in usual):
        raise DataError(f"{name}: images are {usual[0]}x{usual[1]}; needed: {_SIDES[0]} to {_SIDES[1]} pixels a side")


def to_uint8(images: npt.NDArray[Any], name: str) -> Uint8Images:
    """Return bytes of bytes, of whole numbers from 0 to 255, or of floating point in [0, 1]."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        if len(bad):
            few = first([f"image {i}" for i in bad])
            raise DataError(
                f"{name}: {len(bad)} of {len(images)} images hold NaN or infinity ({few}); mend or remove them"
            )
    most = 1 if images.dtype.kind == "f" else 255
    if images.dtype.kind not in "iuf" or images.min() < 0 or images.max() > most:
        span = f"{images.min()} to {images.max()}" if images.dtype.kind in "iuf" else "no numbers"
        raise DataError(
            f"{name}: pixels are {images.dtype}, {span}; needed: uint8, or floating point in [0, 1] (not normalised)"
        )
    return np.rint(images * 255.0).astype(np.uint8) if images.dtype.kind == "f" else images.astype(np.uint8)


def first(things: Iterable[str], count: int = 3) -> str:
    """Join the first few."""
    known = list(things)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")
