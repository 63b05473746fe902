"""A few bits a value: each is one of 2**bits levels, which groups of images or of patches choose for themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.sets.codecs.symbols import inflate, most_packed, pack, squeeze, unpack

__all__ = ["SCALES", "Bits", "levels_of"]

SCALES = ("tensor", "class", "patch")
_PATCH = 4  # rows and columns of a patch
_GROUPS = 16  # of patches, at most: each group has levels of its own
_ROUNDS = 30
_FEW = 4  # levels


@dataclass(frozen=True)
class Bits:
    """Store 2**bits levels a group, and which of them each value is.

    Up to four levels are those of the least squared error (Lloyd, 1982), more are means of equal bins. Values that take
    no more than 2**bits levels are stored without loss, so that whoever rounds more cleverly has the last word.

    Args:
        bits: A value's, from 1 to 6.
        scale: Who shares levels: all images of the ``"tensor"``, those of a ``"class"``, or each ``"patch"`` of 4x4
            values with those of similar mean and spread, in 16 groups.
    """

    bits: int
    scale: str = "tensor"

    exact: ClassVar[bool] = True
    by_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not 1 <= self.bits <= 6:
            raise SettingError(f"{self.bits!r} bits a value; needed: from 1 to 6, or the codec 'raw' for 8")
        if self.scale not in SCALES:
            raise SettingError(f"bits by {self.scale!r}; needed: one of {', '.join(SCALES)}")

    def most(self, shape: tuple[int, int, int]) -> int:
        """Return more than anybody has: any shape will do."""
        return 1 << 30

    def bound(self, shape: tuple[int, int, int, int]) -> int:
        """Return what `encode` takes at most for images of (N, C, H, W), whatever they show."""
        n, c, height, width = shape
        symbols: int = 1 + most_packed((n * c, height, width), self.bits)
        levels: int = 2**self.bits
        if self.scale == "tensor":
            return symbols + levels
        patches = c * -(-height // _PATCH) * -(-width // _PATCH) if self.scale == "patch" else 1
        groups: int = min(n, 256) if self.scale == "class" else _GROUPS
        return symbols + groups * levels + 5 + n * patches

    @in_own_state
    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Return groups, levels and symbols."""
        n, c, height, width = images.shape
        values = images.cpu().numpy()
        groups = self._groups(values, labels.cpu().numpy())
        number = int(groups.max()) + 1
        everywhere = self._spread(groups, values.shape)
        levels = np.zeros((number, 2**self.bits), np.uint8)
        symbols = np.zeros(values.shape, np.uint8)
        for g in range(number):  # 16 at most, or one a class
            mine = everywhere == g if number > 1 else np.ones(values.shape, bool)
            counts = np.bincount(values[mine], minlength=256)
            levels[g] = levels_of(counts, 2**self.bits)
            symbols[mine] = _nearest(levels[g])[values[mine]]
        return self._join(groups, levels, pack(symbols.reshape(n * c, height, width), self.bits))

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Look each symbol up in its group's levels."""
        groups, levels, packed = self._split(data, shape)
        n, c, height, width = shape
        symbols = unpack(packed, (n * c, height, width), self.bits)
        if len(levels) == 1:
            return torch.from_numpy(levels[0][symbols].reshape(shape))
        places = self._spread(groups, shape).astype(np.int32) << self.bits
        return torch.from_numpy(levels.reshape(-1)[places + symbols.reshape(shape)])

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Keep the symbols and groups of some images, and all levels."""
        groups, levels, packed = self._split(data, shape)
        n, c, height, width = shape
        symbols = unpack(packed, (n * c, height, width), self.bits).reshape(shape)[rows.numpy()]
        kept = groups[rows.numpy()] if len(levels) > 1 else groups
        return self._join(kept, levels, pack(symbols.reshape(-1, height, width), self.bits))

    def _groups(self, values: NDArray[np.uint8], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return the group of each image, (N,), or of each of its patches, (N, C * patches), from 0 without a gap."""
        if self.scale == "class":
            found = np.unique(labels, return_inverse=True)[1]
            if found.max() > 255:
                raise SettingError(
                    f"levels of {found.max() + 1} classes; bits by class take 256, choose bits by tensor"
                )
            return found.astype(np.uint8)
        if self.scale == "patch":
            return _patch_groups(values)
        return np.zeros(len(values), np.uint8)

    def _spread(self, groups: NDArray[np.uint8], shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """Return the group of each value."""
        if groups.ndim == 1:
            return np.broadcast_to(groups.reshape(-1, 1, 1, 1), shape)
        n, c, height, width = shape
        patches = groups.reshape(n, c, -(-height // _PATCH), -(-width // _PATCH))
        return patches.repeat(_PATCH, 2).repeat(_PATCH, 3)[:, :, :height, :width]

    def _join(self, groups: NDArray[np.uint8], levels: NDArray[np.uint8], packed: bytes) -> bytes:
        """Return one byte, how many groups there are less one; levels; if several, what group is where; symbols."""
        where = b""
        if len(levels) > 1:
            where = squeeze(groups.tobytes())
            where = len(where).to_bytes(4, "little") + where
        return bytes([len(levels) - 1]) + levels.tobytes() + where + packed

    def _split(
        self, data: bytes, shape: tuple[int, int, int, int]
    ) -> tuple[NDArray[np.uint8], NDArray[np.uint8], bytes]:
        n, c, height, width = shape
        number, size = (data[0] + 1 if data else 1), 2**self.bits
        begin = 1 + number * size
        if len(data) < begin + 1:
            raise ValueError(f"{len(data)} bytes of {self.bits} bits a value; needed: more than {begin}")
        levels = np.frombuffer(data, np.uint8, number * size, 1).reshape(number, size)
        by_patch = self.scale == "patch"
        each = c * -(-height // _PATCH) * -(-width // _PATCH) if by_patch else 1
        if number == 1:
            groups = np.zeros(n * each, np.uint8)
        else:
            end = begin + 4 + int.from_bytes(data[begin : begin + 4], "little")
            groups = np.frombuffer(inflate(data[begin + 4 : end], n * each), np.uint8)
            if int(groups.max(initial=0)) >= number:
                raise ValueError(f"group {groups.max()} of {number}")
            begin = end
        return groups.reshape((n, each) if by_patch else (n,)), levels, data[begin:]


def levels_of(counts: NDArray[np.int64], number: int) -> NDArray[np.uint8]:
    """Return the levels, ascending, that values are rounded to.

    Up to four have the least squared error (Lloyd's algorithm). More are the means of bins of equal width: their error
    is as small or little larger, and an entropy coder makes a fifth less of them, since few values are far out.

    Args:
        counts: How often each value from 0 to 255 occurs.
        number: Of levels. Values that take no more than these are returned, the last one repeated.
    """
    there = np.flatnonzero(counts)
    if len(there) <= number:
        return np.pad(there, (0, number - len(there)), mode="edge").astype(np.uint8)
    grid = np.arange(256)
    places, total = (np.arange(number) + 0.5) / number, np.cumsum(counts) / counts.sum()
    is_few = number <= _FEW
    levels = np.interp(places, total, grid) if is_few else there[0] + places * (there[-1] - there[0])
    for _ in range(_ROUNDS if is_few else 1):
        edges = (levels[1:] + levels[:-1]) / 2
        owner = np.searchsorted(edges, grid)
        mass = np.bincount(owner, counts, number)
        means = np.bincount(owner, counts * grid, number) / np.maximum(mass, 1)
        levels = np.sort(np.where(mass > 0, means, levels))
    return levels.round().astype(np.uint8)


def _nearest(levels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return which of ascending levels is nearest to each value from 0 to 255."""
    distance = np.abs(np.arange(256)[:, None] - levels.astype(np.int64)[None])
    nearest: NDArray[np.uint8] = distance.argmin(1).astype(np.uint8)
    return nearest


def _patch_groups(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the group of each patch by mean and spread, (N, C * patches): k-means from quantiles of the mean."""
    n, c, height, width = values.shape
    tall = np.pad(values, ((0, 0), (0, 0), (0, -height % _PATCH), (0, -width % _PATCH)), mode="edge").astype(np.float32)
    down, across = tall.shape[2] // _PATCH, tall.shape[3] // _PATCH
    patches = tall.reshape(n, c, down, _PATCH, across, _PATCH).transpose(0, 1, 2, 4, 3, 5).reshape(-1, _PATCH**2)
    points = np.stack([patches.mean(1), patches.std(1)], 1)
    quantiles = np.argsort(points[:, 0])[np.linspace(0, len(points) - 1, _GROUPS).round().astype(int)]
    centres = points[quantiles]
    for _ in range(_ROUNDS):
        owner = _nearest_centre(points, centres)
        mass = np.bincount(owner, minlength=_GROUPS)[:, None]
        sums = np.stack([np.bincount(owner, points[:, k], _GROUPS) for k in range(2)], 1)
        centres = np.where(mass > 0, sums / np.maximum(mass, 1), centres).astype(np.float32)
    owner = _nearest_centre(points, centres)
    groups: NDArray[np.uint8] = np.unique(owner, return_inverse=True)[1].astype(np.uint8)
    return groups.reshape(n, c * down * across)


def _nearest_centre(points: NDArray[np.float32], centres: NDArray[np.float32]) -> NDArray[np.int64]:
    """Return which of (K, 2) centres is nearest to each of (N, 2) points."""
    across, down = (np.subtract.outer(points[:, k], centres[:, k]) for k in range(2))
    nearest: NDArray[np.int64] = (np.square(across, out=across) + np.square(down, out=down)).argmin(1)
    return nearest
