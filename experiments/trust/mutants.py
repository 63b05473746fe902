"""Structure-aware mutants of set files: each is refused in one line, or is a sound set by an independent judge.

Half of the mutants of a header get a fresh checksum, as a hostile sender would give them; the others keep the old one
and have to be refused. An accepted set must decode to finite images in [0, 1] and probabilities, within the limits it
was read with, and be equal after it was saved and read again.
"""

from __future__ import annotations

import copy
import json
import random
import struct
import time
import unicodedata
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch

import fedcondense as fc
from fedcondense.errors import UntrustedSetError
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from trust.rows import Row, Tally, limit_memory

__all__ = ["LIMITS", "by_hand", "check", "check_by_hand", "join", "judge", "mutate", "originals", "read", "sealed"]

LIMITS = Limits(nbytes=1 << 24, decoded=5_000, decoded_bytes=64 << 20)
MEMORY = 1 << 30  # bytes beyond what the process holds before the first mutant

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 255, 256, 4096, 4097, 2**31, 2**40, 2**63 - 1, 2**63, 2**64, -(2**63), 10**30),
    *(0.0, -0.0, 0.5, 1e-30, 1e6, 1e300, float("nan"), float("inf"), -float("inf")),
    *(
        "",
        "a",
        "A",
        " a ",
        "\0",
        "a\nb",
        "\u202e",
        "\ud800",
        "e\u0301",
        "\u00e9",
        "x" * 300,
        "x" * 100_000,
        "../../etc",
    ),
    *([], {}, [[]], [1], ["a", "a"], {"a": 1}, [None] * 50, [0] * 5_000, [[[[[[[[1]]]]]]]], {"a": {"b": {"c": 1}}}),
)
"""What takes the place of a value, or is added under a new name."""


_BEGIN = b'{"__metadata__":{"fedcondense":"{\\"crc32\\":\\"'  # of every header; the checksum's digits follow
_AT = 8 + len(_BEGIN)


def sealed(blob: bytes) -> tuple[bytes, bool]:
    """Return a file with a checksum that is right, as a hostile sender makes it, and whether it has one at all."""
    if len(blob) < _AT + 8 or blob[8:_AT] != _BEGIN:
        return blob, False
    digits = b"%08x" % zlib.crc32(blob[_AT + 8 :], zlib.crc32(blob[:_AT]))
    return blob[:_AT] + digits + blob[_AT + 8 :], True


@cache
def originals() -> dict[str, bytes]:
    """Return a small set per parametrization, one with soft labels, and one of joined parts, as files."""
    train = fc.load_data("digits").train
    few = train.subset(torch.cat([(train.labels == c).nonzero().squeeze(1)[:12] for c in range(10)]))
    made = {name: _made(few, name) for name in PARAMETRIZATIONS}
    made["soft labels"] = fc.relabel(made["pixels"], few, network="convnet1-w16", recipe=fc.Fit(steps=2), teachers=1)
    made["joined"] = SyntheticSet.join([made["pixels"], made["multi-formation"], made["soft labels"]])
    return {name: one.to_bytes() for name, one in made.items()}


def _made(data: fc.Data, parametrization: str) -> SyntheticSet:
    return fc.condense(data, 4, "dm", parametrization, network="convnet1-w16", steps=1)


def mutate(blob: bytes, draw: random.Random) -> tuple[bytes, bool]:
    """Return a mutant, and whether its checksum was made anew."""
    length = struct.unpack("<Q", blob[:8])[0]
    header, data = json.loads(blob[8 : 8 + length]), bytearray(blob[8 + length :])
    kind = draw.choice(("content", "content", "content", "slices", "data", "raw"))
    if kind == "raw":
        return _raw(blob, draw), False
    if kind == "data":
        for _ in range(draw.choice((1, 1, 4, 64))):
            at = draw.randrange(len(data))
            data[at : at + 4] = draw.choice((draw.randbytes(4), b"\xff\xff\xff\xff", b"\x00\x7c\x00\x7c", bytes(4)))
        data = data[: len(blob) - 8 - length]
    elif kind == "slices":
        entry = header[draw.choice([name for name in header if name != "__metadata__"])]
        _replace(entry, draw)
    else:
        content = json.loads(header["__metadata__"]["fedcondense"])
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            _replace(content, draw)
        header["__metadata__"]["fedcondense"] = _text(content)
    mutant = join(header, bytes(data))
    if draw.random() < 0.5:
        return mutant, False
    return sealed(mutant)


def _text(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))


def join(
    header: Any, data: bytes, encode: Callable[[str], bytes] = lambda text: text.encode("utf-8", "surrogatepass")
) -> bytes:
    """Return a file of a header and tensors."""
    text = encode(json.dumps(header, separators=(",", ":")))
    return struct.pack("<Q", len(text)) + text + data


def _raw(blob: bytes, draw: random.Random) -> bytes:
    """Cut, lengthen, shift or flip bytes anywhere."""
    at, raw = draw.randrange(len(blob)), bytearray(blob)
    way = draw.randrange(6)
    if way == 0:
        return bytes(raw[:at])
    if way == 1:
        return bytes(raw) + draw.randbytes(draw.randrange(1, 64))
    if way == 2:
        return bytes(raw[:at] + draw.randbytes(draw.randrange(1, 16)) + raw[at:])
    if way == 3:
        del raw[at : at + draw.randrange(1, 64)]
        return bytes(raw)
    if way == 4:
        raw[at] ^= 1 << draw.randrange(8)
        return bytes(raw)
    raw[:8] = struct.pack("<Q", draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(blob), draw.randrange(1 << 20))))
    return bytes(raw)


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container of a tree with a key of it."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield value, key
            yield from _places(item)
    elif isinstance(value, list):
        for key, item in enumerate(value):
            yield value, key
            yield from _places(item)


def _replace(tree: Any, draw: random.Random) -> None:
    """Change one place of a JSON tree: another value, none, a copy under another name, or a neighbour's value."""
    places = list(_places(tree))
    if not places:
        return
    held, key = draw.choice(places)
    way = draw.random()
    if way < 0.6:
        held[key] = copy.deepcopy(draw.choice(HOSTILE))
    elif way < 0.7:
        del held[key]
    elif way < 0.8 and isinstance(held, dict):
        held[draw.choice(("more", "", "\0", "version", "codec", "parts", f"{key} "))] = copy.deepcopy(held[key])
    elif way < 0.9 and isinstance(held, list):
        held.append(copy.deepcopy(held[key]))
    else:
        other, name = draw.choice(places)
        held[key] = copy.deepcopy(other[name])


def judge(one: SyntheticSet) -> str:
    """Return what is not sound about a set that was accepted, or nothing."""
    if len(one) > LIMITS.decoded or 4 * len(one) * one.shape[0] * one.shape[1] * one.shape[2] > LIMITS.decoded_bytes:
        return f"decodes to {len(one)} images of {one.shape}"
    images, targets = one.pixels()
    if not bool(images.isfinite().all() and (images >= 0).all() and (images <= 1).all()):
        return "pixels outside [0, 1]"
    if len(targets) and not bool(((targets.sum(1) - 1).abs() < 0.03).all() and (targets >= 0).all()):
        return "targets that are no probabilities"
    if len(one) and not bool(one.decode().images.isfinite().all()):
        return "normalised images that are not finite"
    names = one.classes
    if len(set(names)) != len(names) or not all(n.isprintable() and unicodedata.is_normalized("NFC", n) for n in names):
        return f"class names {names!r}"
    again = SyntheticSet.from_bytes(one.to_bytes(), LIMITS)
    if not (torch.equal(again.pixels().images, images) and again.classes == names and again.record == one.record):
        return "another set after it was saved and read"
    return "" if repr(one) and one.counts().sum() >= 0 else "no counts"


def read(
    tally: Tally, mutant: bytes, said: str, *, must_refuse: bool, by: Callable[[SyntheticSet], str] = judge
) -> bool:
    """Read one mutant, count what comes of it, and return whether it is a sound set."""
    tally.tried += 1
    began = time.monotonic()
    try:
        one = SyntheticSet.from_bytes(mutant, LIMITS)
    except UntrustedSetError as refused:
        tally.slowest = max(tally.slowest, time.monotonic() - began)
        if "\n" in str(refused) or not str(refused).isprintable():
            tally.note("crashed", f"{said}: a refusal that is not one printable line: {str(refused)!r}")
        return False
    except Exception as surprise:
        tally.note("crashed", f"{said}: {type(surprise).__name__}: {surprise}")
        return False
    if must_refuse:
        tally.note("wrong", f"{said}: accepted, and had to be refused")
        return False
    try:
        reason = by(one)
    except Exception as surprise:
        tally.note("crashed", f"{said}: accepted, then {type(surprise).__name__}: {surprise}")
        return False
    if reason:
        tally.note("wrong", f"{said}: {reason}")
    return not reason


def check(count: int, seed: int) -> Row:
    """Draw `count` mutants in all, shared out over the parametrizations and kinds of sets by name."""
    torch.set_num_threads(1)
    blobs = originals()
    limit_memory(MEMORY)
    tally, accepted = Tally(), 0
    for k, (name, blob) in enumerate(sorted(blobs.items())):
        draw = random.Random(f"{seed}/{name}")
        share = count // len(blobs) + (k < count % len(blobs))
        for i in range(share):
            mutant, is_sealed = mutate(blob, draw)
            accepted += read(tally, mutant, f"{name} {i}", must_refuse=not is_sealed and mutant != blob)
    kinds = f"over {len(blobs)} kinds: {', '.join(sorted(blobs))}"
    return tally.row(notes=(kinds, f"{accepted} were sound sets of another content, by an independent judge"))


def by_hand() -> Iterator[tuple[str, bytes]]:
    """Yield what an attacker writes on purpose: a value of each field, and files with two meanings or none."""
    blob = originals()["pixels"]
    length = struct.unpack("<Q", blob[:8])[0]
    header, data = json.loads(blob[8 : 8 + length]), blob[8 + length :]
    content = json.loads(header["__metadata__"]["fedcondense"])

    def with_content(text: str) -> bytes:
        changed = copy.deepcopy(header)
        changed["__metadata__"]["fedcondense"] = text
        return sealed(join(changed, data))[0]

    for held, key in _places(content):
        if isinstance(key, int) and key > 0:
            continue  # the first of a list stands for all
        kept = held[key]
        for value in HOSTILE[::2] if isinstance(kept, str | list) else HOSTILE[1::2]:
            held[key] = value
            yield f"{key} = {value!r:.40}", with_content(_text(content))
        held[key] = kept
    text = _text(content)
    yield "a key twice", with_content(text[:-1] + ',"version":2}')
    yield "nested a million deep", with_content("[" * 1_000_000)
    yield "nested objects", with_content('{"a":' * 100_000 + "1" + "}" * 100_000)
    yield "a header of UTF-16", join(header, data, lambda told: told.encode("utf-16"))
    yield "content of NaN", with_content(text.replace("0.", "NaN", 1))
    yield "no content", with_content("")
    yield "two files", blob + blob
    yield "nothing", b""
    yield "a million parts", with_content(_text({**content, "parts": content["parts"] * 100_000}))
    yield "a million names", with_content(_text({**content, "classes": [f"c{i}" for i in range(200_000)]}))


def check_by_hand(count: int, seed: int) -> Row:
    """Try all that is written by hand; `count` is the least number there must be."""
    torch.set_num_threads(1)
    cases = list(by_hand())
    limit_memory(MEMORY)
    tally = Tally()
    for said, mutant in cases:
        read(tally, mutant, said, must_refuse=False)
    if tally.tried < count:
        tally.note("wrong", f"{tally.tried} cases; needed: {count}")
    return tally.row()
