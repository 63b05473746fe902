"""A memory's file: a synthetic set's file whose header holds the memory's settings and counts too."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fedcondense.data.images import Spec
from fedcondense.errors import ResumeError, UntrustedSetError
from fedcondense.memory.stored import bytes_by_class
from fedcondense.sets.format import Limits, dump, read_beside
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["REAL", "WAITING", "MemoryState", "dump_memory", "parse_memory", "read_memory"]

REAL, WAITING = "real", "waiting"  # methods in the records of parts that hold real images
# of our own file
_LIMITS = Limits(nbytes=1 << 32, decoded=1 << 24, decoded_bytes=1 << 36, header=1 << 28, parts=1 << 20, names=1 << 26)
_TOLD = 100  # characters of a long setting that a message tells
_CALLED = {"make": "what makes its sets"}


class MemoryState(NamedTuple):
    """What a memory's file holds beside its settings; the names are those of `Memory`'s attributes."""

    spec: Spec
    added: int
    seen: dict[str, int]
    note: dict[str, Any]
    sets: list[SyntheticSet]
    real: SyntheticSet | None
    waiting: dict[str, Tensor]


def dump_memory(
    stored: SyntheticSet, settings: Mapping[str, Any], added: int, seen: Mapping[str, int], note: Mapping[str, Any]
) -> bytes:
    """Return the bytes of the file: the set's, with what a memory knows beside the set's record."""
    state = {"settings": settings, "added": added, "seen": seen, "note": note}
    return dump(stored.parts, stored.evaluation, memory=state)


def read_memory(path: str | os.PathLike[str], settings: Mapping[str, Any]) -> MemoryState:
    """Read a memory's file; `parse_memory` with the path in its errors."""
    try:
        with open(path, "rb") as file:
            blob = file.read(_LIMITS.nbytes + 1)
        return parse_memory(blob, settings)
    except OSError as error:
        raise UntrustedSetError(f"{path}: {error.strerror}; give the path of a memory that `save` wrote") from None
    except UntrustedSetError as error:
        raise UntrustedSetError(f"{path}: {error}") from None
    except ResumeError as error:
        raise ResumeError(f"{path}: {error}") from None


def parse_memory(blob: bytes, settings: Mapping[str, Any]) -> MemoryState:
    """Read what `dump_memory` gave, for a memory of some settings.

    Raises:
        UntrustedSetError: The bytes are no memory, or damaged.
        ResumeError: They were written with other settings.
    """
    stored = SyntheticSet.from_bytes(blob, _LIMITS)
    try:
        state = read_beside(blob, "memory")
        theirs, added, seen = dict(state["settings"]), state["added"], dict(state["seen"])
        note = dict(state["note"])
    except (KeyError, TypeError, ValueError):
        raise UntrustedSetError("no memory; give a file that a memory's `save` wrote") from None
    if not all(type(n) is int and n >= 0 for n in (added, *seen.values())):
        raise UntrustedSetError("a memory whose counts are no whole numbers from 0")
    made = {name for part in stored.parts if part.record.method != WAITING for name in part.record.classes}
    if not made <= set(seen):
        raise UntrustedSetError("a memory that holds images of groups which its description leaves out")
    differs = [_parted(k, theirs.get(k), mine) for k, mine in settings.items() if theirs.get(k) != mine]
    if differs:
        raise ResumeError(f"a memory of other settings: {'; '.join(differs)}; make it with those, or give another file")
    record = stored.record
    spec = Spec(record.data, record.shape, record.classes, record.mean, record.std, record.augmentation)
    sets: list[SyntheticSet] = []
    real, waiting = None, {}
    for part in stored.parts:
        one = SyntheticSet([part])
        if part.record.method == REAL:
            real = one if real is None else SyntheticSet.join([real, one])
        elif part.record.method == WAITING:
            waiting = bytes_by_class(one)
        else:
            sets.append(one)
    return MemoryState(spec, added, seen, note, sets, real, waiting)


def _parted(name: str, was: object, now: object) -> str:
    """Say what a setting was and is: of long texts the parts that differ."""
    texts = repr(was), repr(now)
    if max(map(len, texts)) > 2 * _TOLD:
        parts = [text.split(", ") for text in texts]
        differ = [k for k, (one, other) in enumerate(zip(*parts, strict=False)) if one != other]
        if len(parts[0]) == len(parts[1]):
            parts = [[those[k] for k in differ] for those in parts]
        else:
            parts = [those[differ[0] if differ else min(map(len, parts)) :] for those in parts]
        texts = (f"{', '.join(parts[0]):.{_TOLD}}", f"{', '.join(parts[1]):.{_TOLD}}")
    return f"{_CALLED.get(name, name)} was {texts[0]}, is {texts[1]}"
