"""Bases (LinBa, also RTP): Deng and Russakovsky, NeurIPS 2022, https://arxiv.org/abs/2206.02916"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Batch, Codes
from fedcondense.errors import SettingError
from fedcondense.parametrizations.decoding import LARGEST, into_unit_range, smaller

__all__ = ["Bases"]

_SMALLEST = 0.05  # root mean square of a basis: one that the start does not need can still be learned


@dataclass(frozen=True)
class Bases:
    r"""Store small images that all classes share, and per synthetic image its coefficient of each.

    .. math:: x_i = \mathrm{enlarge}\big(\sum_b c_{ib} B_b\big)

    with the bases B and coefficients c in half precision. At equal bytes a class gets `per_image` times as many images
    as with pixels, and bases take the bytes that the coefficients leave. Their number is

    .. math:: n_b = \Big\lfloor \frac{\mathrm{bytes}}{2 C h w + 2 N} \Big\rfloor

    for N images in all and bases of (C, h, w). The published code fixes the number of bases instead, and lets that of
    images follow. Start images are factorised (SVD), each basis and its coefficients with equal root mean squares: so
    one step size suits both, and is about that of pixels. Measured on Fashion-MNIST (`dm-ridge`, width 32, 300 steps,
    one seed): 77.2 percent at 1 image per class and 83.4 at 10; pixels have 71.4 and 82.7, at 10 in 1/6 of the time.

    Args:
        per_image: Images per plain image, in its bytes.
        downsample: Pixels of the image along a side of a basis's pixel; 2 as published.
    """

    per_image: int = 8
    downsample: int = 2

    storage: ClassVar[Mapping[str, torch.dtype]] = {"coefficients": torch.float16, "bases": torch.float16}
    shared: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, most in (("per_image", 1000), ("downsample", 8)):
            value = getattr(self, name)
            if not (type(value) is int and 1 <= value <= most):
                raise SettingError(f"bases with {name} {value!r}; needed: a whole number from 1 to {most}")

    def start_count(self, ipc: int) -> int:
        """Return `ipc` times `per_image`."""
        return ipc * self.per_image

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return (N, n_b) coefficients and (n_b, C, h, w) bases; at most as many as images or pixels are different."""
        small = smaller(shape, self.downsample)
        nbytes = count // self.per_image * math.prod(shape)
        number = nbytes // (2 * math.prod(small) + 2 * count)
        if number < 1:
            raise SettingError(
                f"one basis of {2 * math.prod(small)} bytes and {count} coefficients of 2 exceed the {nbytes} bytes of "
                f"the images; raise ipc or downsample (it is {self.downsample}), or lower per_image ({self.per_image})"
            )
        number = min(number, count, math.prod(small))
        return {"coefficients": (count, number), "bases": (number, *small)}

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Factorise start images (N, C, H, W) into the bases and coefficients that are nearest to them, shrunk."""
        count, *shape = images.shape
        sizes = self.shapes(count, (shape[0], shape[1], shape[2]))
        number, *small = sizes["bases"]
        rows = F.interpolate(images, size=small[1:], mode="area").flatten(1).cpu()
        left, singular, right = torch.linalg.svd(rows, full_matrices=False)
        size = singular[:number] / math.sqrt(rows.numel())  # root mean square of a basis's share in the images
        scale = size.sqrt().clamp_min(_SMALLEST)
        coefficients = left[:, :number] * math.sqrt(len(rows)) * (size / scale)
        bases = right[:number] * math.sqrt(rows.shape[1]) * scale.unsqueeze(1)
        codes = {"coefficients": coefficients, "bases": bases.view(number, *small)}
        return {name: code.to(images.device) for name, code in codes.items()}, targets

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Add up the bases and enlarge the sums bilinearly, into [0, 1]."""
        coefficients, bases = codes["coefficients"], codes["bases"]
        images = torch.einsum("nb,bchw->nchw", coefficients, bases)
        images = F.interpolate(images, scale_factor=self.downsample, mode="bilinear", align_corners=False)
        return Batch(into_unit_range(images), targets)

    def project(self, codes: Codes) -> None:
        """Clamp to the range of half precision; decoding keeps images in theirs."""
        for code in codes.values():
            code.clamp_(-LARGEST, LARGEST)

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return N for coefficients (N, n_b) and bases (n_b, C, h, w)."""
        coefficients, bases = shapes["coefficients"], shapes["bases"]
        small = smaller(shape, self.downsample)
        if len(coefficients) != 2 or bases != (coefficients[1], *small) or not coefficients[1]:
            raise ValueError(f"coefficients {coefficients} of bases {bases}; needed: (N, B) of (B, {small})")
        return coefficients[0]
