"""JPEG, where every image can be taken out again: one strip of images with restart markers between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.sets.codecs.pictures import check_channels, check_quality, read_picture, write_picture

__all__ = ["Jpeg"]

_MOST = 65_500  # rows of a JPEG that libjpeg writes
_MARKER = re.compile(rb"\xff[\xd0-\xd7]")  # in a scan, a byte 0xff is followed by 0 otherwise
_END = b"\xff\xd9"
_FRAMES = {0xC0, 0xC1}  # sequential ones


@dataclass(frozen=True)
class Jpeg:
    """One JPEG of all images, one below the other, with Huffman tables made for them.

    Each image begins on a block boundary and after a restart marker, so that none depends on another: any of them can
    be left out without loss, and each is decoded by itself. Colour has half the resolution (4:2:0). Another version of
    libjpeg may decode to values that differ by a few grey levels.

    Args:
        quality: libjpeg's, from 1 to 100.
    """

    quality: int

    exact: ClassVar[bool] = False
    by_class: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_quality("jpeg", self.quality)

    def most(self, shape: tuple[int, int, int]) -> int:
        """Return how many images one below the other JPEG has rows for."""
        check_channels("jpeg", shape, 4096)
        return max(1, _MOST // self._padded(shape)[1])

    @in_own_state
    def encode(self, images: Tensor, labels: Tensor) -> bytes:
        """Pad images to whole blocks by their last row and column, and write the strip."""
        n, channels, height, width = images.shape
        _, tall, wide = self._padded((channels, height, width))
        padding = ((0, 0), (0, 0), (0, tall - height), (0, wide - width))
        padded = np.pad(images.cpu().numpy(), padding, mode="edge")
        strip = padded.transpose(1, 0, 2, 3).reshape(channels, n * tall, wide)
        colour = {"subsampling": "4:2:0"} if channels == 3 else {}
        rows = tall // self._block(channels)
        return write_picture(strip, "JPEG", quality=self.quality, optimize=True, restart_marker_rows=rows, **colour)

    def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
        """Decode each image as a JPEG of its own, with the tables of all."""
        n, channels, height, width = shape
        _, tall, wide = padded = self._padded((channels, height, width))
        head, frame, scans = _split(data)
        found = np.frombuffer(head, ">u2", 2, frame + 5)
        if len(scans) != n or found.tolist() != [n * tall, wide]:
            raise ValueError(f"a strip of {len(scans)} images in {found.tolist()}; needed: {n} in {[n * tall, wide]}")
        head = _of_height(head, frame, tall)
        images = np.empty((n, channels, height, width), np.uint8)
        mode = "L" if channels == 1 else "RGB"
        for k, scan in enumerate(scans):  # an image depends on its neighbours otherwise, where colour is enlarged
            images[k] = read_picture(head + scan + _END, "JPEG", mode, padded)[:, :height, :width]
        return torch.from_numpy(images)

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Leave out images, count markers again, and write the new height."""
        head, frame, scans = _split(data)
        if len(scans) != shape[0]:
            raise ValueError(f"a strip of {len(scans)} images; needed: {shape[0]}")
        head = _of_height(head, frame, len(rows) * self._padded(shape[1:])[1])
        kept = [scans[row] for row in rows.tolist()]
        marked = [scan + bytes([0xFF, 0xD0 + k % 8]) for k, scan in enumerate(kept[:-1])]
        return b"".join([head, *marked, kept[-1], _END])

    def _block(self, channels: int) -> int:
        return 8 if channels == 1 else 16

    def _padded(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = shape
        block = self._block(channels)
        return channels, -(-height // block) * block, -(-width // block) * block


def _split(data: bytes) -> tuple[bytes, int, list[bytes]]:
    """Return all up to the scan, where in it the frame's segment begins, and the scan's pieces between markers.

    Raises:
        ValueError: It is no JPEG of one sequential frame and one scan.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != _END:
        raise ValueError("no JPEG from its first mark to its last")
    at, frame = 2, 0
    while True:
        if at + 4 > len(data) or data[at] != 0xFF:
            raise ValueError("a JPEG without a scan")
        kind, begin, at = data[at + 1], at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if kind in _FRAMES and not frame:
            frame = begin
        elif 0xC0 <= kind <= 0xCF and kind != 0xC4:  # 0xC4 are tables
            raise ValueError("a JPEG of another kind of frame, or of two")
        elif kind == 0xDA:
            break
    if not frame or frame + 9 > at or at > len(data):
        raise ValueError("a JPEG whose scan comes before its frame")
    return data[:at], frame, _MARKER.split(data[at:-2])


def _of_height(head: bytes, frame: int, height: int) -> bytes:
    return head[: frame + 5] + height.to_bytes(2, "big") + head[frame + 7 :]
