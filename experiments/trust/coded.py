"""Mutants of coded sets: of chunks and their tables, of what the header says of them, of pictures; and bombs.

As with other mutants, what is accepted has to be a sound set by the judge, and some images cut from it those that it
decodes to. A bomb unpacks to more than its header says, or would if it were opened before it is looked at: memory is
bounded to what the limits of the reader allow.
"""

from __future__ import annotations

import io
import json
import random
import struct
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import torch
from PIL import Image

import fedcondense as fc
from fedcondense.sets.codecs import Bits, Chunk, Jpeg, Palette, WebP, name_of
from fedcondense.sets.coded import Coded, Stored, read_stored
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet
from trust.mutants import HOSTILE, LIMITS, join, judge, mutate, originals, read, sealed
from trust.pictures import bombs, pictures
from trust.rows import Row, Tally, forget_peak, limit_memory

__all__ = ["any_mutant", "by_hand", "check", "check_by_hand", "coded_originals", "judge_coded", "mutate_coded"]

MEMORY = 5 * LIMITS.decoded_bytes  # beyond what the process holds: about three times is what decoding takes

NAMES = (
    *("bits-1", "bits-2", "bits-3-class", "bits-2-patch", "bits-6", "palette-2", "palette-16", "jpeg-1", "jpeg-25"),
    *(
        "webp-1",
        "webp-30",
        "raw",
        "bits-0",
        "bits-9",
        "jpeg-0",
        "jpeg-101",
        "palette-65",
        "zip-2",
        "top-3",
        "runs",
        "",
    ),
)
"""What a mutant says instead of its codec."""


@cache
def coded_originals() -> dict[str, bytes]:
    """Return a small set per codec, grey and in colour, one with soft labels, and one of joined parts, as files."""
    train = fc.load_data("digits").train
    few = train.subset(torch.cat([(train.labels == c).nonzero().squeeze(1)[:12] for c in range(10)]))
    three = torch.cat([few.images, few.images.flip(2), few.images.flip(3)], 1)
    spec = fc.Spec("colour digits", (3, 8, 8), few.spec.classes, (0.5,) * 3, (0.25,) * 3)
    grey, colour = (fc.select(data, 6, "random") for data in (few, fc.Data(three, few.labels, spec)))
    made = {
        f"{name} grey": grey.recode(name) for name in ("bits-1", "bits-2-patch", "bits-3-class", "jpeg-25", "webp-30")
    }
    made |= {f"{name} colour": colour.recode(name) for name in ("bits-2", "palette-16", "jpeg-50", "webp-30")}
    soft = fc.relabel(grey, few, network="convnet1-w16", recipe=fc.Fit(steps=2), teachers=1)
    made["soft labels"] = soft.recode("bits-2", labels="top-3")
    made["joined"] = SyntheticSet.join([grey, made["bits-1 grey"], made["jpeg-25 grey"], made["webp-30 grey"]])
    return {name: one.to_bytes() for name, one in made.items()}


def taken_apart(blob: bytes) -> tuple[dict[str, Any], dict[str, Any], dict[str, bytes]]:
    """Return a file's header, its record, and the bytes of its tensors by name."""
    length = struct.unpack("<Q", blob[:8])[0]
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    content = json.loads(header["__metadata__"]["fedcondense"])
    slots = {name: slot["data_offsets"] for name, slot in header.items() if name != "__metadata__"}
    return header, content, {name: data[begin:end] for name, (begin, end) in slots.items()}


def put_together(header: dict[str, Any], content: dict[str, Any], tensors: dict[str, bytes]) -> bytes:
    """Return a file in which everything but the codes is right: places of tensors, lengths and the checksum."""
    at, header = 0, {name: dict(entry) for name, entry in header.items()}
    for name, data in tensors.items():
        header[name]["data_offsets"] = [at, at + len(data)]
        if header[name]["dtype"] == "U8" and len(header[name]["shape"]) == 1:
            header[name]["shape"] = [len(data)]
        at += len(data)
    header["__metadata__"] = {"fedcondense": json.dumps(content, separators=(",", ":"))}
    return sealed(join(header, b"".join(tensors.values())))[0]


def mutate_coded(blob: bytes, draw: random.Random) -> bytes:
    """Return a file with one thing wrong about what is packed, and all else right."""
    header, content, tensors = taken_apart(blob)
    packed = [(i, name) for i, part in enumerate(content["parts"]) for name in part.get("codec", {})]
    i, name = draw.choice(packed)
    said, key = content["parts"][i]["codec"], f"{i}.{name}"
    way = draw.randrange(8)
    if way == 0:
        said[name][0] = draw.choice(NAMES)
    elif way == 1:
        place = draw.randrange(len(said[name][1]))
        kept = said[name][1][place]
        said[name][1][place] = draw.choice(
            (kept + 1, kept - 1, 2 * kept, 0, 1, 4096, 2**31, 2**40, draw.choice(HOSTILE))
        )
    elif way == 2:
        said[name] = draw.choice(
            (HOSTILE[draw.randrange(len(HOSTILE))], said[name][::-1], said[name][:1], [said[name]])
        )
    elif way == 3 and name == "images":
        tensors[key] = _another_table(tensors[key], said[name][1], draw)
    elif way == 4 and name == "images":
        other = draw.choice(sorted(coded_originals().values()))
        tensors[key] = next(data for told, data in taken_apart(other)[2].items() if told.endswith("images"))
    elif way == 5 and name == "images":
        tensors[key] = _other_chunks(tensors[key], said[name][1], draw)
    else:
        tensors[key] = _spoiled(tensors[key], draw)
    return put_together(header, content, tensors)


def _spoiled(data: bytes, draw: random.Random) -> bytes:
    """Cut, lengthen or change bytes."""
    spoiled, way = bytearray(data), draw.randrange(4)
    if way == 0:
        return data[: draw.randrange(len(data))]
    if way == 1:
        return data + draw.randbytes(draw.randrange(1, 9))
    for _ in range(draw.choice((1, 1, 2, 16))):
        spoiled[draw.randrange(len(data))] = draw.choice((0, 255, 0xD0, draw.randrange(256)))
    return bytes(spoiled)


def _chunks(data: bytes, shape: list[int]) -> list[Chunk]:
    """Return what an honest tensor holds."""
    return list(read_stored(data, tuple(shape)).chunks)


def _another_table(data: bytes, shape: list[int], draw: random.Random) -> bytes:
    """Let the table promise other numbers of images or bytes than there are, or none, or very many."""
    chunks = _chunks(data, shape)
    table = [(chunk.size, len(chunk.data)) for chunk in chunks]
    k, way = draw.randrange(len(table)), draw.randrange(6)
    number = len(table)
    size, length = table[k]
    if way == 0:
        table[k] = (draw.choice((0, size + 1, size - 1, 2**34)), length)
    elif way == 1:
        table[k] = (size, draw.choice((0, length + 1, length - 1, 2**34)))
    elif way == 2:
        number = draw.choice((0, number + 1, 2**20, 2**34))
    elif way == 3:
        table = [*table[:k], (size - size // 2, length // 2), (size // 2, length - length // 2), *table[k + 1 :]]
        number = len(table)
    elif way == 4:
        table = table[::-1]
    else:
        table *= 1000
        number = len(table)
    numbers = [number, *(n for pair in table for n in pair)]
    return b"".join(_number(n) for n in numbers) + b"".join(chunk.data for chunk in chunks)


def _number(value: int) -> bytes:
    pieces = []
    while value > 127:
        pieces.append(value & 127 | 128)
        value >>= 7
    return bytes([*pieces, value])


def _other_chunks(data: bytes, shape: list[int], draw: random.Random) -> bytes:
    """Give a chunk other data: another chunk's, spoiled ones, a bomb, or a picture that was not asked for."""
    chunks = _chunks(data, shape)
    k, way = draw.randrange(len(chunks)), draw.randrange(4)
    if way == 0:
        changed = draw.choice(chunks).data + draw.choice((b"", b"\0", b"\xff\xd9"))
    elif way == 1:
        changed = _spoiled(chunks[k].data, draw)
    elif way == 2:
        changed = bombs()[draw.choice(sorted(bombs()))]
    else:
        changed = pictures(8, 8)[draw.choice(sorted(pictures(8, 8)))]
    chunks[k] = Chunk(chunks[k].size, changed)
    return Stored(tuple(shape), tuple(chunks)).to_bytes()


def judge_coded(one: SyntheticSet) -> str:
    """Return what is not sound about a set that was accepted: the judge's reason, or cuts that decode otherwise."""
    if reason := judge(one):
        return reason
    for k, part in enumerate(one.parts):
        if not (isinstance(part.codes, Coded) and part.stored > 1 and not part.codes.codec.by_class):
            continue
        rows = torch.arange(0, part.stored, 2)
        for name, cut in part.codes.rows(rows).items():
            if not torch.equal(cut, part.codes[name][rows]):
                return f"images cut from part {k} ({part.codec}) are others"
    return ""


def any_mutant(draw: random.Random) -> bytes:
    """Return a mutant of any set, coded or not."""
    if draw.random() < 0.5:
        return mutate(draw.choice(sorted(originals().values())), draw)[0]
    return mutate_coded(draw.choice(sorted(coded_originals().values())), draw)


def check(count: int, seed: int) -> Row:
    """Draw `count` mutants in all, shared out over the codecs; a quarter are those that any file has."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    blobs = coded_originals()
    bombs(), pictures(8, 8)
    forget_peak()
    limit_memory(MEMORY)
    tally, accepted = Tally(), 0
    for k, (name, blob) in enumerate(sorted(blobs.items())):
        draw = random.Random(f"{seed}/coded/{name}")
        share = count // len(blobs) + (k < count % len(blobs))
        for i in range(share):
            mutant, is_sealed = mutate(blob, draw) if draw.random() < 0.25 else (mutate_coded(blob, draw), True)
            must_refuse = not is_sealed and mutant != blob
            accepted += read(tally, mutant, f"{name} {i}", must_refuse=must_refuse, by=judge_coded)
    kinds = f"over {len(blobs)} kinds: {', '.join(sorted(blobs))}"
    return tally.row(notes=(kinds, f"{accepted} were sound sets of another content, by an independent judge"))


def by_hand() -> Iterator[tuple[str, bytes]]:
    """Yield files that have to be refused: bombs, and pictures of other kinds, in the place of a first chunk."""
    for name, blob in coded_originals().items():
        header, content, tensors = taken_apart(blob)
        i = len(content["parts"]) - 1
        codec, shape = content["parts"][i]["codec"].get("images", ("", []))
        if not codec:
            continue
        first, *rest = _chunks(tensors[f"{i}.images"], shape)
        others = dict(bombs())
        if codec.startswith("jpeg"):
            block = 16 if shape[1] == 3 else 8
            others |= pictures(block, block * first.size)
        if codec.startswith("webp"):
            others |= pictures(*Image.open(io.BytesIO(first.data)).size)
        for said, data in others.items():
            stored = Stored(tuple(shape), (Chunk(first.size, data), *rest))
            yield f"{name}: {said}", put_together(header, content, tensors | {f"{i}.images": stored.to_bytes()})
        for factor in (0, 2, 50, 10**9):
            content["parts"][i]["codec"]["images"] = [codec, [factor * shape[0], *shape[1:]]]
            yield f"{name}: {factor} times as many images promised", put_together(header, content, tensors)
    yield from _large()


def _large() -> Iterator[tuple[str, bytes]]:
    """Yield files of one part that promise much, within the limits and beyond them, and hold a bomb or nothing."""
    part = fc.select(fc.load_data("digits").train, 1, "random").parts[0]
    for codec in (Bits(1), Bits(1, "patch"), Palette(2), Jpeg(1), WebP(1)):
        for shape in ((1, 3, 2048, 2048), (40, 3, 512, 512), (2**30, 3, 8, 8), (1, 3, 2**20, 2**20)):
            record = Record("bomb", (3, min(shape[2], 4096), min(shape[3], 4096)), ("a",), (0.5,) * 3, (0.5,) * 3)
            labels = torch.zeros(min(shape[0], 50), dtype=torch.uint8)
            codes = Coded(codec, {"images": Stored((len(labels), *record.shape), (Chunk(len(labels), b""),))})
            with mock.patch("fedcondense.sets.format.check_values"):  # which decodes
                blob = SyntheticSet([Part(codes, labels, part.parametrization, record)]).to_bytes()
            header, content, tensors = taken_apart(blob)
            content["parts"][0]["codec"]["images"][1] = list(shape)
            for name, bomb in (("zeros", bytes(100)), *sorted(bombs().items())):
                tensors["0.images"] = Stored(shape, (Chunk(shape[0], bomb),)).to_bytes()
                yield f"{name_of(codec)}: {name} for {shape}", put_together(header, content, tensors)


def check_by_hand(count: int, seed: int) -> Row:
    """Try all that is made by hand, which has to be refused; `count` is the least number there must be."""
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    coded_originals(), bombs()
    forget_peak()
    limit_memory(MEMORY)
    tally = Tally()
    for said, mutant in by_hand():
        read(tally, mutant, said, must_refuse=True, by=judge_coded)
    if tally.tried < count:
        tally.note("wrong", f"{tally.tried} cases; needed: {count}")
    return tally.row()
