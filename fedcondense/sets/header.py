"""The outside of a set's file: a safetensors header that is read with bounds on its memory and time, and a checksum.

Every safetensors file begins with 8 bytes, its header's length (little endian), and the header, JSON: an object with an
entry per tensor, and `__metadata__`, texts by name. Ours is one text, `fedcondense`, which is JSON again. Since version
2 that text begins with the checksum, so that its place in the file is known before anything is parsed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.sets.checks import Limits, Slot, refuse, shorten

__all__ = ["Header", "read_header", "read_tensors", "write_file_bytes"]

_DTYPES = {"U8": torch.uint8, "I16": torch.int16, "F16": torch.float16, "F32": torch.float32}
_AGAIN = "cut off, or changed since it was written: get it again"
_BEGIN = b'{"__metadata__":{"fedcondense":"{\\"crc32\\":\\"'
_AT = 8 + len(_BEGIN)  # where the eight digits of the checksum are
_ZEROS = "0" * 8  # in their place while the checksum is taken: it is of all bytes before and after them
_DEPTH = 24  # of JSON; ours has six
_PER_PART = 32  # lists and objects of JSON; ours has fewer than 24


class Header(NamedTuple):
    """What a file says before its tensors.

    Args:
        content: What the text `fedcondense` holds.
        slots: Of each tensor, in the order of their bytes.
        data: The bytes of all tensors.
        checked: Whether the file begins as one with a checksum does; then the checksum was right.
    """

    content: dict[str, Any]
    slots: dict[str, Slot]
    data: memoryview
    checked: bool


def write_file_bytes(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> bytes:
    """Return a file's bytes with their checksum.

    Raises:
        SettingError: The content holds what JSON cannot.
    """
    try:
        text = json.dumps({"crc32": _ZEROS, **content}, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        whole = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        blob = safetensors.torch.save(whole, metadata={"fedcondense": text})  # a copy: parts may share storage
    except (TypeError, ValueError, RecursionError) as error:
        raise SettingError(f"a set whose header cannot be written: {shorten(error)}") from None
    assert blob[8:_AT] == _BEGIN, "safetensors writes another header than it did"
    view = memoryview(blob)
    return b"".join((view[:_AT], _checksum(view), view[_AT + 8 :]))


def read_header(blob: memoryview, limits: Limits) -> Header:
    """Check the lengths, the checksum if there is one, and that tensors lie as their shapes say, without a gap."""
    if len(blob) < 8:
        refuse(f"{len(blob)} bytes; needed: a safetensors file that `save` wrote")
    length = int.from_bytes(blob[:8], "little")
    if length > limits.header:
        refuse(f"a header of {length} bytes; allowed: {limits.header}")
    if length > len(blob) - 8:
        refuse(f"truncated: the header says {length} bytes, {len(blob) - 8} follow; {_AGAIN}")
    checked = blob[8:_AT] == _BEGIN
    if checked and blob[_AT : _AT + 8] != _checksum(blob):
        refuse(f"damaged: the checksum is another; {_AGAIN}")
    header = _read_json(bytes(blob[8 : 8 + length]), limits)
    if not isinstance(header, dict):
        refuse(f"the header is no object; {_AGAIN}")
    metadata = header.pop("__metadata__", None)
    if not (isinstance(metadata, dict) and isinstance(metadata.get("fedcondense"), str)):
        refuse(
            "a safetensors file without a fedcondense record, of other code or damaged; give a set that `save` wrote"
        )
    content = _read_json(metadata["fedcondense"].encode(), limits)
    if not isinstance(content, dict):
        refuse(f"the fedcondense record is no object; {_AGAIN}")
    data = blob[8 + length :]
    return Header(content, _read_slots(header, len(data)), data, checked and len(metadata) == 1)


def read_tensors(header: Header) -> dict[str, Tensor]:
    """Return copies of all tensors, by name."""
    tensors, begin = {}, 0
    for name, (dtype, shape) in header.slots.items():
        end = begin + math.prod(shape) * dtype.itemsize
        if end > begin:
            tensors[name] = torch.frombuffer(bytearray(header.data[begin:end]), dtype=dtype).reshape(shape)
        else:
            tensors[name] = torch.empty(shape, dtype=dtype, device="cpu")
        begin = end
    return tensors


def _checksum(blob: memoryview) -> bytes:
    """Return the CRC-32 of all bytes but the checksum's own, as eight hexadecimal digits: against damage only."""
    return b"%08x" % zlib.crc32(blob[_AT + 8 :], zlib.crc32(blob[:_AT]))


def _read_slots(header: Mapping[str, Any], size: int) -> dict[str, Slot]:
    """Check that every tensor is as large as its dtype and shape say, and begins where the one before it ends."""
    slots, filled = {}, 0
    for name, entry in header.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            refuse(f"{shorten(name)} is {shorten(entry)}; needed: dtype, shape and data_offsets")
        kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(kind, str) or kind not in _DTYPES:
            refuse(f"{shorten(name)} is of dtype {shorten(kind)}; allowed: {', '.join(_DTYPES)}")
        numbers = (*shape, *offsets) if isinstance(shape, list) and isinstance(offsets, list) else ("",)
        if len(numbers) > 10 or not all(type(n) is int and 0 <= n < 2**40 for n in numbers) or len(offsets) != 2:
            refuse(f"{shorten(name)} is of shape {shorten(shape)} at {shorten(offsets)}")
        begin, end = offsets
        nbytes = math.prod(shape) * _DTYPES[kind].itemsize
        if begin != filled or end - begin != nbytes or end > size:
            where = f"{shorten(name)} says {nbytes} bytes at {begin} to {end} of {size}"
            refuse(f"truncated or inconsistent: {where}; {_AGAIN}")
        slots[name] = Slot(_DTYPES[kind], tuple(shape))
        filled = end
    if filled != size:
        refuse(f"{size - filled} bytes after the last tensor; {_AGAIN}")
    return slots


def _read_json(text: bytes, limits: Limits) -> Any:
    """Read JSON in UTF-8 of bounded depth and number of objects, in which no name occurs twice and numbers are finite.

    Raises:
        UntrustedSetError: It has another meaning for another reader, or would take much more memory than its bytes.
        ValueError: It is no JSON.
    """
    depth, opened = _nesting(text)
    most = 1000 + _PER_PART * limits.parts
    if depth > _DEPTH or opened > most:
        refuse(f"a header of {opened} lists and objects, {depth} deep; allowed: {most}, {_DEPTH} deep")
    return json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_number)


def _nesting(text: bytes) -> tuple[int, int]:
    """Return how deep lists and objects of JSON are nested, and how many there are, texts left out."""
    bare = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # what is left of quotes begins or ends a text
    characters = np.frombuffer(bare, np.uint8)
    outside = ~np.logical_xor.accumulate(characters == ord('"'))
    opens = outside & ((characters == ord("[")) | (characters == ord("{")))
    closes = outside & ((characters == ord("]")) | (characters == ord("}")))
    steps = opens.view(np.int8) - closes.view(np.int8)
    return int(steps.cumsum(dtype=np.int32).max(initial=0)), int(opens.sum())


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        refuse(f"{shorten(name)} occurs twice in the header")
    return found


def _no_number(constant: str) -> Any:
    refuse(f"{constant} in the header; needed: finite numbers")
