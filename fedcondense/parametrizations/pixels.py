"""Pixels: a stored image is a synthetic image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fedcondense.contract import Batch, Codes

__all__ = ["Pixels"]


@dataclass(frozen=True)
class Pixels:
    """Store each image as it is, one byte per value."""

    storage: ClassVar[Mapping[str, torch.dtype]] = {"images": torch.uint8}
    shared: ClassVar[bool] = False

    def start_count(self, ipc: int) -> int:
        """Return `ipc`: each image takes its own bytes."""
        return ipc

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return (N, C, H, W)."""
        return {"images": (count, *shape)}

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Take the start images, (N, C, H, W) in [0, 1], as the codes."""
        return {"images": images.clone()}, targets

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Return the codes."""
        return Batch(codes["images"], targets)

    def project(self, codes: Codes) -> None:
        """Clamp to [0, 1]."""
        codes["images"].clamp_(0, 1)

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return N for codes of (N, C, H, W)."""
        if shapes["images"][1:] != shape:
            raise ValueError(f"images of {shapes['images']}; needed: (N, {', '.join(map(str, shape))})")
        return shapes["images"][0]
