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
from fedcondense.sets.codecs.symbols import pack, unpack

__all__ = ["Palette"]


@dataclass(frozen=True)
class Palette:
    """Store a few colours, and for each pixel which of them is nearest: Pillow's median cut, refined by k-means.

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

    @in_own_state
    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Return the colours and a symbol a pixel."""
        from PIL import Image

        pixels = np.ascontiguousarray(images.cpu().numpy().transpose(0, 2, 3, 1))
        n, height, width, _ = pixels.shape
        picture = Image.fromarray(pixels.reshape(n * height, width, 3))
        found = picture.quantize(self.colours, Image.Quantize.MEDIANCUT, kmeans=3, dither=Image.Dither.NONE)
        table = np.array(found.getpalette("RGB"), np.uint8).reshape(-1, 3)[: self.colours]
        table = np.pad(table, ((0, self.colours - len(table)), (0, 0)), mode="edge")
        return table.tobytes() + pack(np.array(found).reshape(n, height, width), self._bits)

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Look each symbol up in the colours."""
        table, symbols = self._split(data, shape)
        return torch.from_numpy(np.ascontiguousarray(table[symbols].transpose(0, 3, 1, 2)))

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Keep the symbols of some images, and all colours."""
        table, symbols = self._split(data, shape)
        return table.tobytes() + pack(symbols[rows.numpy()], self._bits)

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
