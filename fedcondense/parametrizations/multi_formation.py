"""Multi-formation (IDC): Kim et al., ICML 2022, https://arxiv.org/abs/2205.14959"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from fedcondense.contract import Batch, Codes
from fedcondense.errors import SettingError

__all__ = ["MultiFormation"]


@dataclass(frozen=True)
class MultiFormation:
    """Store factor x factor small images in the place of one, and enlarge them when they are used.

    At equal bytes a class gets factor**2 times as many images, at 1 / factor of the resolution. This gains accuracy
    where pixels are redundant (photographs) and loses it where an image is a small shape (measured in `experiments/`).

    Args:
        factor: Tiles per side; it must divide height and width.
    """

    factor: int = 2

    storage: ClassVar[Mapping[str, torch.dtype]] = {"images": torch.uint8}
    shared: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not (isinstance(self.factor, int) and 2 <= self.factor <= 8):
            raise SettingError(
                f"multi-formation factor {self.factor!r}; needed: a whole number from 2 to 8 (1 is 'pixels')"
            )

    def start_count(self, ipc: int) -> int:
        """Return `ipc` times factor**2, the number of small images that fit."""
        return ipc * self.factor**2

    def shapes(self, count: int, shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
        """Return (N / factor**2, C, H, W)."""
        self._check(*shape[1:])
        return {"images": (count // self.factor**2, *shape)}

    def encode(self, images: Tensor, targets: Tensor) -> tuple[Codes, Tensor]:
        """Shrink start images, (M * factor**2, C, H, W) in [0, 1], into the tiles of M; each M's share one target."""
        f = self.factor
        n, c, height, width = images.shape
        self._check(height, width)
        small = F.interpolate(images, size=(height // f, width // f), mode="area")
        tiles = small.reshape(n // f**2, f, f, c, height // f, width // f)  # n row column c y x
        return {"images": tiles.permute(0, 3, 1, 4, 2, 5).reshape(-1, c, height, width)}, targets[:: f**2].clone()

    def decode(self, codes: Codes, targets: Tensor) -> Batch:
        """Cut each stored image into its tiles and enlarge them bilinearly to full size, in [0, 1]."""
        n, c, height, width = codes["images"].shape
        f = self.factor
        tiles = codes["images"].reshape(n, c, f, height // f, f, width // f)  # n c row y column x
        tiles = tiles.permute(0, 2, 4, 1, 3, 5).reshape(n * f * f, c, height // f, width // f)
        images = F.interpolate(tiles, size=(height, width), mode="bilinear", align_corners=False)
        return Batch(images, targets.repeat_interleave(f * f, dim=0))

    def project(self, codes: Codes) -> None:
        """Clamp to [0, 1]; enlarging averages, so images stay in it too."""
        codes["images"].clamp_(0, 1)

    def decoded(self, shapes: Mapping[str, tuple[int, ...]], shape: tuple[int, int, int]) -> int:
        """Return N * factor**2 for codes of (N, C, H, W)."""
        if shapes["images"][1:] != shape:
            raise ValueError(f"images of {shapes['images']}; needed: (N, {', '.join(map(str, shape))})")
        self._check(*shape[1:])
        return shapes["images"][0] * self.factor**2

    def _check(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            fits = [f for f in range(2, 9) if height % f == width % f == 0]
            advice = f"factors that do: {fits}" if fits else "no factor from 2 to 8 does; use 'pixels'"
            raise SettingError(f"factor {self.factor} does not divide images of {height}x{width}; {advice}")
