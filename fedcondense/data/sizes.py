"""Images of any size to squares of one: the shorter side is scaled, and the middle stays."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from fedcondense.data.layouts import SIDES, Numbers, Uint8Images
from fedcondense.errors import SettingError

__all__ = ["checked_size", "resized"]

_Pixels = TypeVar("_Pixels", Uint8Images, Numbers)

_AT_ONCE = 256  # images that are in memory as floating point at a time


def checked_size(size: Any) -> int:
    """Return the pixels a side that images are brought to; 0 for None: they stay as they are.

    Raises:
        SettingError: It is no whole number, or one that networks here are not made for.
    """
    if size is None or (type(size) is int and size == 0):
        return 0
    least, most = SIDES
    if type(size) is not int or not least <= size <= most:
        raise SettingError(f"size {size!r}; needed: {least} to {most} pixels a side, or none: images stay")
    return size


def resized(images: _Pixels, size: int) -> _Pixels:
    """Return images (N, H, W, C) as (N, size, size, C), or one (H, W, C) as (size, size, C), of the same dtype.

    Bilinear with antialiasing, as torchvision's `Resize` and `CenterCrop` one after the other. Numbers keep their
    scale: 16 bits stay 16 bits.

    Args:
        images: uint8 or uint16.
        size: Pixels a side; 0: images stay as they are.
    """
    if not size or images.shape[-3:-1] == (size, size):
        return images
    if images.ndim == 3:
        return resized(images[None], size)[0]  # type: ignore[no-any-return]
    height, width, _ = images.shape[1:]
    scale = size / min(height, width)
    shape = max(size, round(height * scale)), max(size, round(width * scale))
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    pieces = []
    for start in range(0, len(images), _AT_ONCE):
        piece = np.ascontiguousarray(images[start : start + _AT_ONCE].astype(np.float32).transpose(0, 3, 1, 2))
        scaled = F.interpolate(torch.from_numpy(piece), size=shape, mode="bilinear", antialias=True)
        cut = scaled[..., top : top + size, left : left + size].round_().clamp_(0, np.iinfo(images.dtype).max)
        pieces.append(cut.permute(0, 2, 3, 1).numpy().astype(images.dtype))
    return np.concatenate(pieces)
