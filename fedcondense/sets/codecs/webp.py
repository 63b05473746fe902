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
from fedcondense.sets.codecs.pictures import (
    MOST_PIXELS,
    check_channels,
    check_library,
    check_quality,
    decoder,
    read_picture,
    write_picture,
)

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
        check_library("webp", "webp")
        check_channels("webp", shape, 4096)
        return max(1, MOST_PIXELS // (shape[1] * shape[2]))

    def decoder(self) -> str:
        """Return what decodes here, with versions."""
        return decoder("libwebp", "webp")

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
        if n > self.most((channels, height, width)):
            raise ValueError(
                f"a sheet of {n} images of {height} x {width}; a sheet has no more than {MOST_PIXELS} pixels"
            )
        _check_header(data, columns * width, rows * height)
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


def _check_header(data: bytes, width: int, height: int) -> None:
    """Refuse all but the simple lossy format (RFC 9649, 2.5): one chunk with a key frame of this size, and no more."""
    size, chunk = int.from_bytes(data[4:8], "little"), int.from_bytes(data[16:20], "little")
    if data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 ":
        raise ValueError("no WebP of one lossy frame alone; needed: neither alpha nor animation nor metadata")
    if len(data) != size + 8 or len(data) != 20 + chunk + chunk % 2:
        raise ValueError(f"a WebP of {size + 8} bytes with a frame of {chunk} in {len(data)} bytes")
    if data[23:26] != b"\x9d\x01\x2a":
        raise ValueError("a WebP without a key frame")
    found = (int.from_bytes(data[26:28], "little"), int.from_bytes(data[28:30], "little"))  # with two bits of scale
    if found != (width, height):
        raise ValueError(f"a sheet of {found}; needed: {(width, height)}")


def _grid(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return rows and columns of a sheet that is about as wide as high."""
    n, _, height, width = shape
    columns = min(_MOST // width, max(1, math.ceil(math.sqrt(n * height / width))))
    return -(-n // columns), columns
