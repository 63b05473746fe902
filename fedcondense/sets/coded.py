"""Codes that keep the bytes they came in: decoded when they are read, never encoded again by themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.sets.codecs import Chunk, Codec, name_of

__all__ = ["Coded", "Stored", "chunk_sizes", "encode", "put_together", "read_stored"]

_MOST_CHUNKS = 1 << 20


@dataclass(frozen=True)
class Stored:
    """A tensor as it is stored.

    Args:
        shape: (N, C, H, W) of what it decodes to.
        chunks: Of some images each, in order.
    """

    shape: tuple[int, ...]
    chunks: tuple[Chunk, ...]

    def to_bytes(self) -> bytes:
        """Return how many chunks there are, of each how many images and bytes, and their data."""
        table = [_number(len(self.chunks))]
        for chunk in self.chunks:
            table += [_number(chunk.size), _number(len(chunk.data))]
        return b"".join([*table, *(chunk.data for chunk in self.chunks)])


class Coded(Mapping[str, Tensor]):
    """The codes of a part, (N, C, H, W) uint8 by name, and the bytes that they are stored in.

    Values are decoded when they are first asked for, and kept.

    Args:
        codec: Of all of them.
        stored: Their bytes, by name.
        decoded: What they decode to, where that is known.
    """

    def __init__(self, codec: Codec, stored: Mapping[str, Stored], decoded: Mapping[str, Tensor] | None = None) -> None:
        self.codec, self.stored = codec, dict(stored)
        self._decoded: dict[str, Tensor] = dict(decoded or {})

    def __getitem__(self, name: str) -> Tensor:
        """Decode a tensor, (N, C, H, W) uint8."""
        if name not in self._decoded:
            self._decoded[name] = self._decode(self.stored[name])
        return self._decoded[name]

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self.stored)

    def __len__(self) -> int:
        """Return how many tensors there are."""
        return len(self.stored)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of all tensors; nothing is decoded."""
        return {name: one.shape for name, one in self.stored.items()}

    def rows(self, rows: Tensor) -> Coded:
        """Return some images without another loss.

        Args:
            rows: (M,) int64, ascending.

        Raises:
            SettingError: The codec's images cannot be left out so.
        """
        return Coded(self.codec, {name: self._cut(one, rows) for name, one in self.stored.items()})

    def __getstate__(self) -> dict[str, object]:
        return {"codec": self.codec, "stored": self.stored, "_decoded": {}}

    def _decode(self, stored: Stored) -> Tensor:
        images, begin = torch.empty(stored.shape, dtype=torch.uint8, device="cpu"), 0
        for count, data in stored.chunks:
            shape = (count, *stored.shape[1:])
            images[begin : begin + count] = self.codec.decode(data, shape)  # type: ignore[arg-type]
            begin += count
        return images

    def _cut(self, stored: Stored, rows: Tensor) -> Stored:
        chunks, begin = [], 0
        for chunk in stored.chunks:
            mine = rows[(rows >= begin) & (rows < begin + chunk.size)] - begin
            begin += chunk.size
            if len(mine) == chunk.size:
                chunks.append(chunk)
            elif len(mine):
                shape = (chunk.size, *stored.shape[1:])
                chunks.append(Chunk(len(mine), self.codec.select(chunk.data, shape, mine)))  # type: ignore[arg-type]
        return Stored((len(rows), *stored.shape[1:]), tuple(chunks))


def encode(codes: Mapping[str, Tensor], labels: Tensor, codec: Codec) -> Coded:
    """Encode codes, which may lose what they were.

    Args:
        codes: (N, C, H, W) uint8 each; where the codec takes classes one by one, images of a class are adjacent.
        labels: (N,) int64.
        codec: Encodes them.

    Raises:
        SettingError: The codec does not take images of this shape.
    """
    stored = {}
    for name, images in codes.items():
        chunks, begin = [], 0
        for size in chunk_sizes(labels, codec, tuple(images.shape[1:])):  # type: ignore[arg-type]
            rows = slice(begin, begin + size)
            chunks.append(Chunk(size, codec.encode(images[rows], labels[rows])))
            begin += size
        stored[name] = Stored(tuple(images.shape), tuple(chunks))
    return Coded(codec, stored)


def chunk_sizes(labels: Tensor, codec: Codec, shape: tuple[int, int, int]) -> list[int]:
    """Return how many images each chunk has.

    Args:
        labels: (N,) int64; where the codec takes classes one by one, equal ones are adjacent.
        codec: Encodes the images.
        shape: (C, H, W) of an image.

    Raises:
        SettingError: The codec does not take images of this shape.
    """
    most = codec.most(shape)
    sizes = torch.unique_consecutive(labels, return_counts=True)[1].tolist() if codec.by_class else [len(labels)]
    return [min(most, whole - k) for whole in sizes for k in range(0, whole, most)]


def put_together(pieces: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Return the codes of several parts as one part's: their bytes, if one codec made all of them."""
    coded = [one for one in pieces if isinstance(one, Coded)]
    if len(coded) == len(pieces) and len({one.codec for one in coded}) == 1:
        stored = {}
        for name, one in coded[0].stored.items():
            same = [piece.stored[name] for piece in coded]
            chunks = tuple(chunk for each in same for chunk in each.chunks)
            stored[name] = Stored((sum(each.shape[0] for each in same), *one.shape[1:]), chunks)
        return Coded(coded[0].codec, stored)
    if coded:
        names = sorted({name_of(one.codec) if isinstance(one, Coded) else "raw" for one in pieces})
        raise SettingError(f"parts by {' and '.join(names)} cannot be one without another loss; recode them alike")
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def read_stored(data: bytes, shape: tuple[int, ...]) -> Stored:
    """Read what `Stored.to_bytes` gave, of unknown origin; nothing is decoded.

    Raises:
        ValueError: Chunks do not hold as many images as there are, or other bytes than there are.
    """
    chunks, at = [], 0

    def number() -> int:
        nonlocal at
        value = 0
        for k in range(5):
            if at >= len(data):
                raise ValueError("a table of chunks that is cut off")
            byte, at = data[at], at + 1
            value |= (byte & 127) << (7 * k)
            if byte < 128:
                if k and not byte:
                    raise ValueError("a table of chunks with a number of more bytes than it needs")
                return value
        raise ValueError("a table of chunks with a number that is too large")

    most = min(_MOST_CHUNKS, shape[0])
    if (chunk_count := number()) > most:
        raise ValueError(f"{chunk_count} chunks of {shape[0]} images; allowed: {most}")
    sizes = [(number(), number()) for _ in range(chunk_count)]
    for count, size in sizes:
        if not count:
            raise ValueError("a chunk of no images")
        chunks.append(Chunk(count, data[at : at + size]))
        at += size
    if at != len(data) or sum(count for count, _ in sizes) != shape[0]:
        raise ValueError(f"chunks of {sum(c for c, _ in sizes)} images in {at} bytes; needed: {shape[0]}, {len(data)}")
    return Stored(shape, tuple(chunks))


def _number(value: int) -> bytes:
    """Return a whole number, seven bits a byte, the lowest first."""
    pieces = []
    while value > 127:
        pieces.append(value & 127 | 128)
        value >>= 7
    return bytes([*pieces, value])
