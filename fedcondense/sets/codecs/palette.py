"""A palette: each pixel is one of a few colours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.sets.codecs.symbols import most_packed, pack, unpack

__all__ = ["Palette"]

_DIGITS = np.array([65_536, 256, 1], np.int32)  # of a colour as one number
_ROUNDS = 20
_AT_ONCE = 1 << 16  # values whose distances are taken at once


@dataclass(frozen=True)
class Palette:
    """Store a few colours, and for each pixel which of them is nearest.

    The colours are Pillow's median cut, refined by k-means.

    Args:
        colours: How many, from 2 to 64, which take from 1 to 6 bits a pixel.
    """

    colours: int

    exact: ClassVar[bool] = True
    by_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.colours) is not int or not 2 <= self.colours <= 64:
            raise SettingError(f"a palette of {self.colours!r} colours; needed: from 2 to 64")

    def most(self, shape: tuple[int, int, int]) -> int:
        """Return how many images' pixels Pillow takes at once."""
        if shape[0] != 3:
            raise SettingError(f"palette stores colour, these images have {shape[0]} channels; choose bits-1 to bits-6")
        return max(1, (1 << 28) // (shape[1] * shape[2]))

    def bound(self, shape: tuple[int, int, int, int]) -> int:
        """Return what `encode` takes at most for images of (N, C, H, W), whatever they show."""
        return 3 * self.colours + most_packed((shape[0], shape[2], shape[3]), self._bits)

    @in_own_state
    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Return the colours and a symbol a pixel."""
        n, channels, height, width = images.shape
        pixels = np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1)).reshape(-1, channels)
        there, place, counts = np.unique(pixels.astype(np.int32) @ _DIGITS, return_inverse=True, return_counts=True)
        values = (there[:, None] // _DIGITS % 256).astype(np.float32)
        table = _refined(values, counts, self._cut(pixels.reshape(n * height, width, channels)))
        symbols = _nearest(values, table.astype(np.float32)).astype(np.uint8)[place]
        return table.tobytes() + pack(symbols.reshape(n, height, width), self._bits)

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Look each symbol up in the colours."""
        table, symbols = self._split(data, shape)
        return torch.from_numpy(np.ascontiguousarray(table[symbols].transpose(0, 3, 1, 2)))

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Keep the symbols of some images, and all colours."""
        table, symbols = self._split(data, shape)
        return table.tobytes() + pack(symbols[rows.numpy()], self._bits)

    def _cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return Pillow's colours of (H, W, 3); its own k-means has no bound on its rounds."""
        from PIL import Image

        found = Image.fromarray(pixels).quantize(self.colours, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        table = np.array(found.getpalette("RGB"), np.uint8).reshape(-1, 3)[: self.colours]
        return np.pad(table, ((0, self.colours - len(table)), (0, 0)), mode="edge")

    @property
    def _bits(self) -> int:
        return (self.colours - 1).bit_length()

    def _split(self, data: bytes, shape: tuple[int, int, int, int]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        if len(data) < 3 * self.colours:
            raise ValueError(f"{len(data)} bytes; needed: {3 * self.colours} of colours at least")
        n, channels, height, width = shape
        if channels != 3:
            raise ValueError(f"{channels} channels; needed: 3")
        table = np.frombuffer(data, np.uint8, 3 * self.colours).reshape(-1, 3)
        symbols = unpack(data[3 * self.colours :], (n, height, width), self._bits)
        if int(symbols.max(initial=0)) >= self.colours:
            raise ValueError(f"colour {symbols.max()} of {self.colours}")
        return table, symbols


def _refined(values: NDArray[np.float32], counts: NDArray[np.int64], table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return colours after some rounds of k-means over (U, 3) colours that occur `counts` times."""
    colours = table.astype(np.float32)
    for _ in range(_ROUNDS):
        owner = _nearest(values, colours)
        mass = np.bincount(owner, counts, len(table))[:, None]
        sums = np.stack([np.bincount(owner, counts * values[:, k], len(table)) for k in range(3)], 1)
        colours = np.where(mass > 0, sums / np.maximum(mass, 1), colours).astype(np.float32)
    return colours.round().astype(np.uint8)


def _nearest(values: NDArray[np.float32], colours: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which colour is nearest to each value, (U,)."""
    length = np.square(colours).sum(1)
    blocks = [values[k : k + _AT_ONCE] for k in range(0, len(values), _AT_ONCE)]
    return np.concatenate([(length - 2 * (block @ colours.T)).argmin(1) for block in blocks])
