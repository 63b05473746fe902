"""Images in any usual layout and type become uint8 with the channels last, or one error says what is wrong.

What an image's numbers mean is decided once for a data set, in two steps: `to_numbers` looks at one image or array, and
`to_bytes` at all of them, so that no two images of a set are scaled in two ways.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fedcondense.errors import DataError

__all__ = [
    "SIDES",
    "Numbers",
    "Uint8Images",
    "batch_channels_last",
    "channels_come_first",
    "check_sizes",
    "first",
    "stack",
    "to_bytes",
    "to_numbers",
]

Uint8Images = npt.NDArray[np.uint8]
Numbers = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

SIDES = (8, 128)
"""Pixels a side of an image, from and to."""
_HALF_STEP = 0.5 / 255  # how far arithmetic may leave [0, 1]: rounding to bytes takes it back
_TWELVE_BITS = 4095
_NEEDED = "needed: uint8, or floating point in [0, 1] (not normalised)"


def batch_channels_last(images: npt.NDArray[Any], name: str, is_sized: bool = False) -> npt.NDArray[Any]:
    """Return (N, H, W, C) of images in any usual layout; sized: they are brought to another size, so any will do."""
    if images.ndim == 3:
        images = images[..., None]
    elif images.ndim == 4 and images.shape[-1] not in (1, 3) and images.shape[1] in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise DataError(f"{name}: images are {images.shape}; needed: (N, H, W), (N, H, W, C) or (N, C, H, W), C 1 or 3")
    if not len(images):
        raise DataError(f"{name}: no images; needed: at least one")
    if not is_sized:
        check_sizes([images.shape[1:3]], name, lambda i: "all")
    return images


def channels_come_first(shape: Sequence[int]) -> str:
    """Say so where the shape of an image is (H, W, C); empty: it is (C, H, W), or something else.

    >>> channels_come_first((64, 48, 3))
    'channels come first: (3, 64, 48), as images.transpose(0, 3, 1, 2) of arrays or permute of tensors gives'
    >>> channels_come_first((3, 64, 3)), channels_come_first((2, 64, 48))
    ('', '')
    """
    if len(shape) != 3 or shape[2] not in (1, 3) or shape[0] in (1, 3):
        return ""
    turned = f"({shape[2]}, {shape[0]}, {shape[1]})"
    return f"channels come first: {turned}, as images.transpose(0, 3, 1, 2) of arrays or permute of tensors gives"


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
        most = f"{len(sizes) - len(odd)} of {len(sizes)} images are {usual[0]}x{usual[1]}, the rest not"
        raise DataError(f"{name}: {most} ({few}); needed: one size, by --size 64 or fc.as_data(..., size=64)")
    if not all(SIDES[0] <= side <= SIDES[1] for side in usual):
        told = f"{name}: images are {usual[0]}x{usual[1]}; needed: {SIDES[0]} to {SIDES[1]} pixels a side"
        raise DataError(f"{told}, by --size 64 or fc.as_data(..., size=64)")


def to_numbers(images: npt.NDArray[Any], name: str) -> Numbers:
    """Return bytes of bytes, of booleans (0 and 255) and of floating point in [0, 1]; wider whole numbers as uint16.

    Args:
        images: One image, or images (N, ...).
        name: What errors call them.

    Raises:
        DataError: Other kinds, values outside by more than half a byte's step, whole numbers above 65535, NaN.
    """
    kind = images.dtype.kind
    if images.dtype == np.uint8:
        return images
    if kind == "b":
        return images.astype(np.uint8) * np.uint8(255)
    if kind not in "iuf":
        raise DataError(f"{name}: pixels are {images.dtype}, no numbers; {_NEEDED}")
    if kind == "f" and not np.isfinite(images).all():
        bad = np.flatnonzero(~np.isfinite(images).reshape(len(images), -1).all(1))
        few = first([f"image {i}" for i in bad])
        raise DataError(f"{name}: {len(bad)} of {len(images)} images hold NaN or infinity ({few}); mend or remove them")
    low, high = images.min(), images.max()
    least, most = (-_HALF_STEP, 1 + _HALF_STEP) if kind == "f" else (0, 65535)
    if low < least or high > most:
        wide = " (32 bits)" if kind != "f" and high > most else ""
        raise DataError(f"{name}: pixels are {images.dtype}, {low} to {high}{wide}; {_NEEDED}")
    if kind == "f":
        return np.rint(images.clip(0, 1) * 255.0).astype(np.uint8)
    return images.astype(np.uint16)


def to_bytes(images: Sequence[Numbers], name: str) -> list[Uint8Images]:
    """Return bytes of all images of a data set, which are scaled alike.

    Wide whole numbers are bytes if none is above 255, and else 16 bits, of which the upper byte stays.

    Args:
        images: What `to_numbers` returned: single images, or arrays of many.
        name: What errors call the data set.

    Raises:
        DataError: All are nearly black: 12 bits or fewer in 16, or nothing but 0 and 1 (a single black image is none).
    """
    wide = [array for array in images if array.dtype != np.uint8]
    low, high = min((int(a.min()) for a in wide), default=0), max((int(a.max()) for a in wide), default=0)
    if 255 < high <= _TWELVE_BITS:
        raise DataError(
            f"{name}: pixels are whole numbers, {low} to {high}; needed: uint8, or 16 bits that are used: 12 bits in "
            f"16 come out nearly black, so multiply all by one number, at most {65535 // high}"
        )
    shift = 8 if high > 255 else 0
    found = [(array if array.dtype == np.uint8 else array >> shift).astype(np.uint8, copy=False) for array in images]
    if found and all(int(array.max(initial=0)) <= 1 for array in found) and any(array.any() for array in found):
        raise DataError(
            f"{name}: pixels are 0 and 1 only, of 255, which is black; give a mask as booleans or multiply it by 255; "
            "floating point is in [0, 1], so divide by 255 once only"
        )
    return found


def first(things: Iterable[str], count: int = 3) -> str:
    """Join the first few."""
    known = list(things)
    return ", ".join(known[:count]) + (", ..." if len(known) > count else "")
