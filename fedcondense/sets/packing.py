"""How the tensors of a part lie in a file: as they are, or packed, each by a codec that the header names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fedcondense.contract import Parametrization
from fedcondense.errors import SettingError
from fedcondense.sets.checks import Slot, refuse, shorten
from fedcondense.sets.codecs import Codec, codec_named
from fedcondense.sets.codecs.labels import RUNS, likeliest, pack_labels, pack_soft, soft_kept, unpack_labels
from fedcondense.sets.coded import Coded, read_stored
from fedcondense.sets.parts import Part, Record

__all__ = ["InFile", "Packed", "pack_part", "read_packed", "unpack_part"]

_TARGETS = "targets"
_DESCRIBED = 32  # bytes of a header that say how labels are packed


class InFile(NamedTuple):
    """A part's tensors as a file holds them, and of the packed ones what the header says."""

    tensors: dict[str, Tensor]
    described: dict[str, list[Any]]


class Packed(NamedTuple):
    """What a header says of a packed tensor: what it decodes to, and by what."""

    slot: Slot
    codec: Codec | None  # None: labels
    name: str


def pack_part(part: Part) -> InFile:
    """Return what is written of a part; labels are packed where this is smaller and loses nothing."""
    described: dict[str, list[Any]] = {}
    if isinstance(part.codes, Coded):
        tensors = {name: _bytes(one.to_bytes()) for name, one in part.codes.stored.items()}
        described = {name: [part.codec, list(shape)] for name, shape in part.shapes.items()}
    else:
        tensors = dict(part.codes)
    tensors[_TARGETS] = part.targets
    name, data = _packed_labels(part)
    if name:
        tensors[_TARGETS] = _bytes(data)
        described[_TARGETS] = [name, list(part.targets.shape)]
    return InFile(tensors, described)


def _packed_labels(part: Part) -> tuple[str, bytes]:
    targets = part.targets
    if targets.ndim == 1:  # a part that nothing packs is written as readers before codecs take it
        data = pack_labels(targets) if isinstance(part.codes, Coded) else b""
        return (RUNS, data) if data and len(data) + _DESCRIBED < targets.nbytes else ("", b"")
    kept = int((targets > 0).sum(1).max()) if len(targets) else 0
    if (
        kept
        and 3 * kept * len(targets) + _DESCRIBED < targets.nbytes
        and torch.equal(likeliest(targets, kept), targets)
    ):
        return f"top-{kept}", pack_soft(targets, kept)
    return "", b""


def _bytes(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


def read_packed(
    i: int, given: Any, parametrization: Parametrization, record: Record, slots: Mapping[str, Slot]
) -> dict[str, Packed]:
    """Read what a header says of the packed tensors of a part, or refuse it; no tensor is read."""
    if not isinstance(given, dict) or not given:
        refuse(f"codec {shorten(given)} of part {i}; needed: an object")
    found = {}
    for name, said in given.items():
        if name not in slots or name not in (*parametrization.storage, _TARGETS):
            refuse(f"a codec of part {i} for {shorten(name)}, which is none of its tensors")
        if slots[name].dtype != torch.uint8 or len(slots[name].shape) != 1:
            refuse(f"packed {shorten(name)} of part {i} is {shorten(slots[name])}; needed: bytes")
        if not (isinstance(said, list) and len(said) == 2 and isinstance(said[0], str) and isinstance(said[1], list)):
            refuse(f"{shorten(name)} of part {i} is packed by {shorten(said)}; needed: a codec's name and a shape")
        codec, shape = said
        if not (1 <= len(shape) <= 4 and all(type(n) is int and 0 <= n < 2**40 for n in shape)):
            refuse(f"{shorten(name)} of part {i} unpacks to {shorten(shape)}; needed: a shape")
        found[name] = (_labels if name == _TARGETS else _images)(i, codec, tuple(shape), record)
    return found


def _images(i: int, name: str, shape: tuple[int, ...], record: Record) -> Packed:
    try:
        codec = codec_named(name)
    except SettingError as error:
        refuse(f"part {i} is packed by {shorten(name)}, and {shorten(error)}; or upgrade fedcondense")
    if codec is None or len(shape) != 4 or not all(shape[1:]):
        refuse(f"part {i} is packed by {shorten(name)} to {shape}; needed: a codec of images, (N, C, H, W)")
    try:
        codec.most(shape[1:])
    except SettingError as error:
        refuse(f"part {i} is packed by {shorten(name)}, and {shorten(error)}")
    return Packed(Slot(torch.uint8, shape), codec, name)


def _labels(i: int, name: str, shape: tuple[int, ...], record: Record) -> Packed:
    classes = len(record.classes)
    if name == RUNS and len(shape) == 1:
        return Packed(Slot(torch.uint8 if classes <= 256 else torch.int16, shape), None, name)
    try:
        soft_kept(name)
    except SettingError as error:
        refuse(f"part {i} has {shorten(error)}, or '{RUNS}' for hard ones; or upgrade fedcondense")
    if len(shape) != 2 or shape[1] != classes:
        refuse(f"soft labels of part {i} unpack to {shape}; needed: (M, {classes})")
    return Packed(Slot(torch.float16, shape), None, name)


def unpack_part(
    tensors: Mapping[str, Tensor], packed: Mapping[str, Packed], parametrization: Parametrization, record: Record
) -> Part:
    """Return a part of the tensors in a file; packed ones are unpacked once, to see that they can be.

    Raises:
        ValueError: They cannot.
    """
    targets = tensors[_TARGETS]
    if _TARGETS in packed:
        (dtype, shape), _, name = packed[_TARGETS]
        targets = unpack_labels(name, targets.numpy().tobytes(), shape, dtype)
    images = {name: one for name, one in packed.items() if name != _TARGETS}
    if not images:
        return Part({name: tensors[name] for name in parametrization.storage}, targets, parametrization, record)
    codecs = {one.codec for one in images.values()}
    if len(codecs) > 1 or set(images) != set(parametrization.storage):
        refuse(f"codes {shorten(sorted(images))} packed by {len(codecs)} codecs; needed: all of a part, by one")
    codec = codecs.pop()
    assert codec is not None
    blobs = {name: tensors[name].numpy().tobytes() for name in parametrization.storage}
    codes = Coded(codec, {name: read_stored(blob, images[name].slot.shape) for name, blob in blobs.items()})
    for name in codes:
        codes[name]
    return Part(codes, targets, parametrization, record)
