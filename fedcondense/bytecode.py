"""What a piece of code reads, imports and changes, by its bytecode: for `identity`."""

from __future__ import annotations

import dis
import types
from collections.abc import (
    Iterable,
    Iterator,
    Mapping,
    MutableMapping,
    MutableSequence,
    MutableSet,
    Sequence,
)
from typing import Any

__all__ = ["changed_by", "code_within", "globals_of", "imports_of"]

_LOADING = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF", "LOAD_ATTR"}
_ADDING = {
    "add",
    "append",
    "appendleft",
    "clear",
    "discard",
    "extend",
    "insert",
    "pop",
    "remove",
    "update",
}


def globals_of(code: types.CodeType) -> Iterator[str]:
    """Yield the names of globals that code reads, in its own order."""
    for step in dis.get_instructions(code):
        if step.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield step.argval
    for inner in code_within(code):
        yield from globals_of(inner)


def imports_of(code: types.CodeType) -> Iterator[str]:
    """Yield the modules that a piece of code imports where it runs."""
    for step in dis.get_instructions(code):
        if step.opname == "IMPORT_NAME" and step.argval:
            yield step.argval
    for inner in code_within(code):
        yield from imports_of(inner)


def changed_by(code: types.CodeType, held: Mapping[str, Any]) -> set[str]:
    """Return the names of what code adds to, puts items into or replaces, beyond its own local names.

    Only containers are added to: a tensor has an `add` as well, which changes nothing.
    """
    steps, changed = list(dis.get_instructions(code)), set[str]()
    for k, step in enumerate(steps):
        if step.opname in ("LOAD_METHOD", "LOAD_ATTR") and step.argval in _ADDING and k:
            if isinstance(held.get(str(steps[k - 1].argval)), MutableSequence | MutableMapping | MutableSet):
                changed.add(str(steps[k - 1].argval))
        elif step.opname == "STORE_SUBSCR" and (into := _put_into(steps[:k])) is not None:
            changed.add(into)
        elif step.opname == "STORE_GLOBAL" or (step.opname == "STORE_DEREF" and step.argval in code.co_freevars):
            changed.add(step.argval)
    return changed.union(*(changed_by(inner, held) for inner in code_within(code)))


def _put_into(steps: Sequence[dis.Instruction]) -> str | None:
    """Return what an item is put into by the step after these: what was loaded before the steps that make its key."""
    left, k = 1, len(steps)
    while left and k:
        k -= 1
        left -= dis.stack_effect(steps[k].opcode, steps[k].arg, jump=False)
    if steps[k : k + 1] and steps[k].opname == "COPY":  # of `held[key] += 1`: both are made before they are copied
        return _put_into(steps[:k])
    made = steps[k - 1] if k else None
    return str(made.argval) if made is not None and made.opname in _LOADING else None


def code_within(code: types.CodeType) -> Iterable[types.CodeType]:
    """Return the code of the functions and classes that a piece of code makes."""
    return (constant for constant in code.co_consts if isinstance(constant, types.CodeType))
