"""JPEG, where every image can be taken out again: one strip of images with restart markers between them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.sets.codecs.pictures import (
    MOST_PIXELS,
    check_channels,
    check_library,
    check_quality,
    decoder,
    read_picture,
    write_picture,
)

__all__ = ["Jpeg"]

_MOST = 65_500  # rows of a JPEG that libjpeg writes
_MARKER = re.compile(rb"\xff([^\x00])", re.DOTALL)  # in a scan, a byte 0xff is followed by 0 otherwise
_END = b"\xff\xd9"
_FRAMES = {0xC0, 0xC1}  # sequential ones
_INTERVAL, _SCAN = 0xDD, 0xDA
_OTHERS = {0xE0, 0xDB, 0xC4}  # JFIF, and tables


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
        check_library("jpeg", "jpg")
        check_channels("jpeg", shape, 4096)
        _, tall, wide = self._padded(shape)
        return max(1, min(_MOST, MOST_PIXELS // wide) // tall)

    def decoder(self) -> str:
        """Return what decodes here, with versions."""
        from PIL import features

        turbo = features.check("libjpeg_turbo")
        return decoder("libjpeg-turbo", "libjpeg_turbo") if turbo else decoder("libjpeg", "jpg")

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
        """Decode colour images as JPEGs of their own, with the tables of all, and grey ones at once, which is equal."""
        n, channels, height, width = shape
        _, tall, wide = padded = self._padded((channels, height, width))
        head, frame, scans = self._split(data, shape)
        if channels == 1:
            strip = read_picture(data, "JPEG", "L", (1, n * tall, wide))
            return torch.from_numpy(np.ascontiguousarray(strip.reshape(n, 1, tall, wide)[..., :height, :width]))
        head = _of_height(head, frame, tall)
        images = np.empty((n, channels, height, width), np.uint8)
        for k, scan in enumerate(scans):  # colour is enlarged: an image depends on its neighbours in the strip
            images[k] = read_picture(head + scan + _END, "JPEG", "RGB", padded)[:, :height, :width]
        return torch.from_numpy(images)

    def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
        """Leave out images, count markers again, and write the new height."""
        head, frame, scans = self._split(data, shape)
        head = _of_height(head, frame, len(rows) * self._padded(shape[1:])[1])
        kept = [scans[row] for row in rows.tolist()]
        marked = [scan + bytes([0xFF, 0xD0 + k % 8]) for k, scan in enumerate(kept[:-1])]
        return b"".join([head, *marked, kept[-1], _END])

    def _split(self, data: bytes, shape: tuple[int, int, int, int]) -> tuple[bytes, int, list[bytes]]:
        """Return all up to the scan, where in it the frame's segment begins, and the scan's pieces between markers.

        Raises:
            ValueError: It is not a strip of these images in one sequential frame and one scan, or holds anything else.
        """
        n, channels, height, width = shape
        _, tall, wide = self._padded((channels, height, width))
        if n > self.most((channels, height, width)):
            raise ValueError(f"a strip of {n} images; needed: {self.most((channels, height, width))} or fewer")
        segments, begin = _segments(data)
        found = [kind for kind in segments if kind not in _OTHERS]
        if len(found) != 3 or found[0] not in _FRAMES or sorted(found[1:]) != [_SCAN, _INTERVAL]:
            raise ValueError(
                f"a JPEG with segments {[f'{kind:x}' for kind in segments]}; needed: of one frame and scan"
            )
        frame = segments[found[0]]
        sizes = np.frombuffer(data, ">u2", 2, frame + 5).tolist()
        interval = int.from_bytes(data[segments[_INTERVAL] + 4 : segments[_INTERVAL] + 6], "big")
        block = self._block(channels)
        expected = [[n * tall, wide], (tall // block) * (wide // block)]
        if [sizes, interval] != expected:
            raise ValueError(f"a strip of {sizes} with a mark every {interval} blocks; needed: {expected}")
        sampling = [data[frame + 11 + 3 * k] for k in range(data[frame + 9])]
        usual = channels == 1 or sampling == [0x22, 0x11, 0x11]
        if not (len(sampling) == data[segments[_SCAN] + 4] == channels and usual):
            raise ValueError(f"a JPEG sampled {sampling}; needed: {channels} channels, colour at half resolution")
        pieces = _MARKER.split(data[begin:-2])
        if pieces[1::2] != [bytes([0xD0 + k % 8]) for k in range(n - 1)]:
            raise ValueError(f"a strip of {(len(pieces) + 1) // 2} images, or with other marks; needed: {n}")
        return data[:begin], frame, pieces[::2]

    def _block(self, channels: int) -> int:
        return 8 if channels == 1 else 16

    def _padded(self, shape: tuple[int, int, int]) -> tuple[int, int, int]:
        channels, height, width = shape
        block = self._block(channels)
        return channels, -(-height // block) * block, -(-width // block) * block


def _segments(data: bytes) -> tuple[dict[int, int], int]:
    """Return where each segment up to the scan begins, by kind, tables the last, and where the scan does.

    Raises:
        ValueError: It is no JPEG, or a segment that is no table occurs twice.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != _END:
        raise ValueError("no JPEG from its first mark to its last")
    at = 2
    found: dict[int, int] = {}
    while _SCAN not in found:
        if at + 4 > len(data) or data[at] != 0xFF:
            raise ValueError("a JPEG without a scan")
        kind = data[at + 1]
        if kind in found and kind not in _OTHERS:
            raise ValueError("a JPEG of two frames")
        found[kind], at = at, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    if at > len(data) - 2:
        raise ValueError("a JPEG that ends before its scan")
    return found, at


def _of_height(head: bytes, frame: int, height: int) -> bytes:
    return head[: frame + 5] + height.to_bytes(2, "big") + head[frame + 7 :]
