"""Small whole numbers in few bytes: several to a byte, neighbours of a picture together, then a general entropy coder.

LZMA (liblzma, in Python's standard library) codes a byte bit by bit, and models each bit by those before it and by the
byte before. So a byte holds a block of neighbours, bytes go down a picture's columns, and the last of a block, which
is next to the following one, is in the highest bits: 5 to 15 percent less than deflate on condensed images. Where a
byte holds few numbers LZMA is slow to read, and is taken only where it saves a tenth. A mark says which of them it was.
"""

from __future__ import annotations

import lzma
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["inflate", "most_packed", "pack", "squeeze", "unpack"]

_BLOCK = {1: (4, 2), 2: (2, 2), 3: (2, 1), 4: (2, 1), 5: (1, 1), 6: (1, 1)}  # rows and columns that share a byte
_LZMA: dict[str, Any] = {"id": lzma.FILTER_LZMA1, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 20}
_FILTERS = [_LZMA | {"lc": lc, "lp": 0, "pb": 0} for lc in (0, 2, 3, 4)]
_WORTH = 0.9  # of deflate's bytes, for LZMA where it is slow
_DEFLATE, _STORED = len(_FILTERS), len(_FILTERS) + 1  # marks; a smaller one is a place in _FILTERS


def pack(symbols: NDArray[np.uint8], bits: int) -> bytes:
    """Return (N, H, W) whole numbers below 2**bits in as few bytes as an entropy coder needs.

    Args:
        symbols: The numbers; neighbours in the last two dimensions are assumed to be alike.
        bits: From 1 to 6.
    """
    rows, columns = _BLOCK[bits]
    n, height, width = symbols.shape
    padded = np.pad(symbols, ((0, 0), (0, -height % rows), (0, -width % columns)), mode="edge")
    blocks = padded.reshape(n, padded.shape[1] // rows, rows, padded.shape[2] // columns, columns)
    packed = np.zeros((n, blocks.shape[1], blocks.shape[3]), np.uint8)
    for k in range(rows * columns):
        packed |= blocks[:, :, k // columns, :, k % columns] << (bits * k)
    return squeeze(packed.transpose(0, 2, 1).tobytes(), 1.0 if rows * columns > 2 else _WORTH)


def most_packed(shape: tuple[int, int, int], bits: int) -> int:
    """Return how many bytes `pack` takes at most for numbers of (N, H, W): what no coder makes smaller is stored."""
    rows, columns = _BLOCK[bits]
    return 1 + shape[0] * -(-shape[1] // rows) * -(-shape[2] // columns)


def unpack(data: bytes, shape: tuple[int, int, int], bits: int) -> NDArray[np.uint8]:
    """Return the numbers that `pack` was given.

    Raises:
        ValueError: The data hold more or fewer, or are damaged.
    """
    rows, columns = _BLOCK[bits]
    n, height, width = shape
    down, across = -(-height // rows), -(-width // columns)
    packed = np.frombuffer(inflate(data, n * down * across), np.uint8).reshape(n, across, down).transpose(0, 2, 1)
    blocks = np.empty((n, down, rows, across, columns), np.uint8)
    for k in range(rows * columns):
        blocks[:, :, k // columns, :, k % columns] = (packed >> (bits * k)) & (2**bits - 1)
    return np.ascontiguousarray(blocks.reshape(n, down * rows, across * columns)[:, :height, :width])


def squeeze(data: bytes, worth: float = 1.0) -> bytes:
    """Return bytes in fewer, with a mark in front; LZMA's, if they are at most `worth` of deflate's."""
    ways = [bytes([_STORED]) + data]
    for strategy in (zlib.Z_DEFAULT_STRATEGY, zlib.Z_FILTERED, zlib.Z_HUFFMAN_ONLY):
        coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        ways.append(bytes([_DEFLATE]) + coder.compress(data) + coder.flush())
    quick = min(ways, key=len)
    coded = [lzma.compress(data, lzma.FORMAT_RAW, filters=[one]) for one in _FILTERS]
    mark = min(range(len(coded)), key=lambda k: len(coded[k]))
    return bytes([mark]) + coded[mark] if 1 + len(coded[mark]) < worth * len(quick) else quick


def inflate(data: bytes, size: int) -> bytes:
    """Return what `squeeze` was given; reading stops at `size` bytes.

    Raises:
        ValueError: There are more or fewer than that, or they are damaged.
    """
    mark, packed = data[:1], data[1:]
    found = b""
    try:
        if mark == bytes([_STORED]):
            found, ended = packed, True
        elif mark == bytes([_DEFLATE]):
            inflater = zlib.decompressobj(-15)
            found = inflater.decompress(packed, size + 1)
            ended = inflater.eof and not inflater.unused_data
        elif mark and mark[0] < len(_FILTERS):
            reader = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=[_FILTERS[mark[0]]])
            found = reader.decompress(packed, size + 1)
            while len(found) <= size and not reader.eof and not reader.needs_input:
                more = reader.decompress(b"", size + 1 - len(found))
                if not more and not reader.eof:
                    break
                found += more
            ended = reader.eof and not reader.unused_data
        else:
            raise ValueError("packed in an unknown way")
    except (zlib.error, lzma.LZMAError) as error:
        raise ValueError(f"damaged ({error})") from None
    if len(found) != size or not ended:
        raise ValueError(f"{len(found)} bytes or more inside; needed: exactly {size}")
    return found
