"""WebP (lossy): one contact sheet a class."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.sets.codecs.pictures import check_channels, check_quality, read_picture, write_picture

__all__ = ["WebP"]

_MOST = 16_383  # pixels a side


@dataclass(frozen=True)
class WebP:
    """One lossy WebP sheet a class, about as wide as high; grey images become RGB and grey again.

    A class can be left out, but not some images of it: blocks depend on those before them. Another version of libwebp
    decodes to the same values, as far as measured.

    Args:
        quality: libwebp's, from 1 to 100.
    """

    quality: int

    exact: ClassVar[bool] = False
    by_class: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_quality("webp", self.quality)

    def most(self, shape: tuple[int, int, int]) -> int:
        """Return how many images fit in a sheet."""
        check_channels("webp", shape, 4096)
        return (_MOST // shape[1]) * (_MOST // shape[2])

    @in_own_state
    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Write the sheet; places that are left over repeat the last image."""
        values = images.cpu().numpy()
        rows, columns = _grid(values.shape)
        values = np.pad(values, ((0, rows * columns - len(values)), (0, 0), (0, 0), (0, 0)), mode="edge")
        _, channels, height, width = values.shape
        tiles = values.reshape(rows, columns, channels, height, width).transpose(2, 0, 3, 1, 4)
        sheet = tiles.reshape(channels, rows * height, columns * width)
        return write_picture(np.repeat(sheet, 3 // channels, 0), "WEBP", quality=self.quality, method=6)

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Read the sheet and cut it up."""
        n, channels, height, width = shape
        rows, columns = _grid(shape)
        if max(rows * height, columns * width) > _MOST:
            raise ValueError(f"a sheet of {rows} x {columns} images of {height} x {width}; WebP has none")
        sheet = read_picture(data, "WEBP", "RGB", (channels, rows * height, columns * width))
        tiles = sheet.reshape(channels, rows, height, columns, width).transpose(1, 3, 0, 2, 4)
        images: NDArray[np.uint8] = np.ascontiguousarray(tiles.reshape(-1, channels, height, width)[:n])
        return torch.from_numpy(images)

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Refuse: it cannot."""
        raise SettingError(
            f"{len(rows)} of {shape[0]} images of a class in one WebP sheet; keep the class or leave it out, choose a "
            "codec whose images can be left out one by one (jpeg, bits, palette), or encode again with recode"
        )


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a sheet that is about as wide as high."""
    n, _, height, width = shape
    columns = min(_MOST // width, max(1, math.ceil(math.sqrt(n * height / width))))
    return -(-n // columns), columns
