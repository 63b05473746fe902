"""Files that notice damage: a SHA-256 of the whole file stands in the file, where zeros stood when it was computed.

So a file stays what it is for other readers: JSON, safetensors. It is against damage, not against whoever writes files.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "PLACE",
    "DamagedError",
    "append_checksum",
    "check",
    "check_file",
    "dump_json",
    "dump_tensors",
    "load_json",
    "load_tensors",
    "seal",
    "without_checksum",
]

PLACE = f"sha256:{'0' * 64}"
"""What stands where a checksum will be: the first thing of this form in a file, among its first bytes."""

_FORM = re.compile(rb"sha256:[0-9a-f]{64}")
_SIZE = len(PLACE)  # bytes of a checksum
_HEAD = 1 << 16  # bytes in which it stands
_AT_ONCE = 1 << 20  # bytes


class DamagedError(ValueError):
    """What was read is not what was written, or was written without a checksum."""


def seal(blob: bytes) -> bytes:
    """Return a file's bytes with their checksum in the place of `PLACE`."""
    at = blob.index(PLACE.encode(), 0, _HEAD)
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}".encode()
    return blob[:at] + digest + blob[at + len(digest) :]


def check(blob: bytes) -> None:
    """Refuse bytes that `seal` did not return.

    Raises:
        DamagedError: They were changed, cut, or never sealed.
    """
    _check(io.BytesIO(blob))


def append_checksum(blob: bytes) -> bytes:
    """Return bytes with their checksum after them: readers of archives pass over what follows these."""
    return blob + f"sha256:{hashlib.sha256(blob).hexdigest()}".encode()


def without_checksum(blob: bytes) -> bytes:
    """Return the bytes that `append_checksum` was given.

    Raises:
        DamagedError: They were changed, cut, or never had one.
    """
    whole = blob[:-_SIZE]
    if append_checksum(whole) != blob:
        raise DamagedError("its checksum is another, or it was written without one")
    return whole


def check_file(path: Path) -> None:
    """Refuse a file whose bytes `seal` did not return; it is read piece by piece.

    Raises:
        DamagedError: They were changed, cut, or never sealed.
    """
    with open(path, "rb") as file:
        _check(file)


def _check(file: BinaryIO) -> None:
    head = file.read(_HEAD)
    found = _FORM.search(head)
    if found is None:
        raise DamagedError("it has no checksum")
    digest = hashlib.sha256(head[: found.start()] + PLACE.encode() + head[found.end() :])
    while piece := file.read(_AT_ONCE):
        digest.update(piece)
    if found[0] != f"sha256:{digest.hexdigest()}".encode():
        raise DamagedError("its checksum is another")


def dump_json(record: Mapping[str, Any]) -> bytes:
    """Return a record as JSON with a checksum, under that name, before its own entries."""
    return seal(json.dumps({"checksum": PLACE, **record}, indent=1).encode())


def load_json(blob: bytes) -> dict[str, Any]:
    """Return the record that `dump_json` was given.

    Raises:
        DamagedError: The bytes are others.
    """
    check(blob)
    record = dict(json.loads(blob))
    record.pop("checksum", None)
    return record


def dump_tensors(tensors: Mapping[str, Tensor], name: str, record: Mapping[str, Any]) -> bytes:
    """Return a safetensors file whose metadata hold a record and a checksum as JSON under a name."""
    import safetensors.torch

    stored = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    return seal(safetensors.torch.save(stored, {name: json.dumps({"checksum": PLACE, **record})}))


def load_tensors(blob: bytes, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the record that `dump_tensors` was given.

    Raises:
        DamagedError: The bytes are others, or hold no record of this name.
    """
    import safetensors.torch

    check(blob)
    header = blob[8 : 8 + int.from_bytes(blob[:8], "little")]
    try:
        record = dict(json.loads(json.loads(header)["__metadata__"][name]))
        return safetensors.torch.load(blob), record
    except (safetensors.SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DamagedError(f"it is something else: {error}") from None
