"""Shared by decoders with weights: images in [0, 1] with gradients that survive, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fedcondense.errors import SettingError

__all__ = ["LARGEST", "check_widest", "in_pieces", "into_unit_range", "smaller"]

LARGEST = 100.0  # of a code in half precision: far above what is learned, far below what half precision overflows at
_AT_ONCE = 1 << 24  # numbers in the widest maps: 64 MB


def into_unit_range(images: Tensor) -> Tensor:
    """Clamp to [0, 1], and pass the gradient of a pixel outside if descending it leads back.

    A plain clamp has no gradient there, so a pixel that has left the range would stay outside; a sigmoid has one, but
    reaches black and white, which most images have, only at infinity, and distorts a sum of bases.
    """
    clamped: Tensor = _UnitRange.apply(images)
    return clamped


class _UnitRange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        ctx.save_for_backward(images)
        return images.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (images,) = ctx.saved_tensors
        (gradient,) = gradients
        leads_away = ((images < 0) & (gradient > 0)) | ((images > 1) & (gradient < 0))
        return gradient.masked_fill(leads_away, 0)


def in_pieces(decode: Callable[[Tensor], Tensor], codes: Tensor, widest: int) -> Tensor:
    """Decode codes (M, ...) to images (N, C, H, W), so many at a time that maps take about 64 MB.

    If that makes several pieces, each is computed again for its gradient, so that the maps of one are kept at a time.

    Args:
        decode: Decodes some of the codes; its results are concatenated.
        codes: The codes, which are cut along their first dimension.
        widest: Numbers in the largest maps of one code.
    """
    pieces = codes.split(max(1, _AT_ONCE // widest))
    if len(pieces) == 1:
        return decode(codes)
    if not torch.is_grad_enabled():
        first, filled = decode(pieces[0]), 0
        images = first.new_empty(len(first) // len(pieces[0]) * len(codes), *first.shape[1:])
        for some in chain([first], map(decode, pieces[1:])):
            images[filled : filled + len(some)] = some
            filled += len(some)
        return images
    return torch.cat([checkpoint(decode, piece, use_reentrant=False) for piece in pieces])


def check_widest(widest: int, shape: tuple[int, int, int], advice: str) -> None:
    """Refuse codes of which a single one, which nothing cuts, decodes by way of maps that fill the memory.

    Raises:
        SettingError: They take more than 64 MB.
    """
    if widest > _AT_ONCE:
        sides = f"{shape[1]}x{shape[2]}"
        raise SettingError(f"maps of {widest} numbers for images of {sides}; allowed: {_AT_ONCE}, {advice}")


def smaller(shape: tuple[int, int, int], by: int) -> tuple[int, int, int]:
    """Return (C, H / by, W / by).

    Raises:
        SettingError: There is a remainder: the image's size could not be told from that of its codes.
    """
    channels, height, width = shape
    if height % by or width % by:
        fits = [n for n in (1, 2, 4, 8) if height % n == width % n == 0]
        raise SettingError(f"images of {height}x{width}; needed: sides that divide by {by}; numbers that do: {fits}")
    return channels, height // by, width // by
