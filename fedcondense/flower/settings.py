"""One reader for what comes as keys and plain values: tasks, a node's config, caps, a run's config."""

from __future__ import annotations

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, field, fields
from pathlib import PurePath
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from fedcondense.errors import SettingError, unknown

__all__ = ["check", "keys_of", "later", "number", "place", "read", "read_all", "said"]

_LONGEST = 200  # characters of a text from elsewhere
_LARGEST = 2**62  # Flower's ConfigRecord holds 64 bits

T = TypeVar("T")


def number(default: float, least: float = -math.inf, most: float = math.inf) -> Any:
    """Declare a field with bounds, of the default's type; only a bound that is infinite lets an infinite value pass."""
    return field(default=default, metadata={"least": least, "most": most})


def place(default: str = "") -> Any:
    """Declare a field that names a folder, a file or a data set: a `Path` will do."""
    return field(default=default, metadata={"place": True})


def later(default: Any, least: float = -math.inf, most: float = math.inf) -> Any:
    """Declare a task's field that nodes of before do not know: it travels where it is not the default."""
    return field(default=default, metadata={"least": least, "most": most, "later": True})


def said(value: Any) -> dict[str, Any]:
    """Return a dataclass's fields and values, without later ones that have their defaults."""
    kept = [item for item in fields(value) if "later" not in item.metadata or getattr(value, item.name) != item.default]
    return {item.name: getattr(value, item.name) for item in kept}


def keys_of(kind: type) -> dict[str, Field[Any]]:
    """Return a dataclass's fields by their names in kebab-case, as they stand in configs and messages."""
    return {item.name.replace("_", "-"): item for item in fields(kind)}


def read(kind: type[T], given: Mapping[str, Any], where: str, base: T | None = None) -> T:
    """Make a dataclass of plain fields from keys in kebab-case; what is not given comes from `base` or the defaults.

    A whole number is taken for a field of type float, and nothing else is converted: ``2.7`` is no 2, NaN is no
    number, and a key that nobody knows is an error.

    Args:
        kind: A frozen dataclass of whole numbers, numbers, texts, booleans and tuples of those.
        given: What somebody wrote or sent.
        where: What the message calls it: "the question", "this node's config".
        base: Where other values come from.

    Raises:
        SettingError: One line that says all that is wrong.
    """
    values, wrong = _gather(kind, given, base)
    known = keys_of(kind)
    wrong += [unknown("setting", str(key)[:60], known) for key in given if key not in known]
    if wrong:
        raise SettingError(f"{where}: {'; '.join(wrong)}")
    return kind(**values)


def read_all(bases: Sequence[Any], given: Mapping[str, Any], where: str) -> tuple[Any, ...]:
    """Read keys into several dataclasses at once, of which each takes those that it knows.

    Args:
        bases: Values of what is not given.
        given: What somebody wrote or sent.
        where: What the message calls it.

    Raises:
        SettingError: One line that says all that is wrong, keys that none of them knows included.
    """
    gathered = [_gather(type(base), given, base) for base in bases]
    known = {key for base in bases for key in keys_of(type(base))}
    wrong = list(dict.fromkeys(fault for _, faults in gathered for fault in faults))
    wrong += [unknown("setting", str(key)[:60], known) for key in given if key not in known]
    if wrong:
        raise SettingError(f"{where}: {'; '.join(wrong)}")
    return tuple(type(base)(**values) for base, (values, _) in zip(bases, gathered, strict=True))


def _gather(kind: type, given: Mapping[str, Any], base: Any) -> tuple[dict[str, Any], list[str]]:
    """Return the values for a dataclass, and all that is wrong with those of its keys that are given."""
    known, wrong = keys_of(kind), []
    values = {} if base is None else {item.name: getattr(base, item.name) for item in known.values()}
    hints = get_type_hints(kind)
    for key, value in given.items():
        if key not in known:
            continue
        item = known[key]
        hint = hints[item.name]
        if fault := _fault(hint, _plain(value, item.metadata), item.metadata):
            wrong.append(f"{key} = {value!r:.60}; needed: {fault}")
        values[item.name] = tuple(value) if isinstance(value, list) else _plain(value, item.metadata)
        if hint is float and isinstance(value, int):
            values[item.name] = float(value)
    required = (
        key
        for key, item in known.items()
        if item.name not in values and item.default is MISSING and item.default_factory is MISSING
    )
    return values, wrong + [f"{key} is missing" for key in required]


def _plain(value: Any, bounds: Mapping[str, Any]) -> Any:
    """Return a path as the text that it is, where a path is asked for."""
    return str(value) if "place" in bounds and isinstance(value, PurePath) else value


def check(value: Any, where: str) -> None:
    """Hold a dataclass that code made to the same types and bounds as one that was read."""
    hints, wrong = get_type_hints(type(value)), []
    for key, item in keys_of(type(value)).items():
        given = getattr(value, item.name)
        if fault := _fault(hints[item.name], given, item.metadata):
            wrong.append(f"{key} = {given!r:.60}; needed: {fault}")
    if wrong:
        raise SettingError(f"{where}: {'; '.join(wrong)}")


def _fault(hint: Any, value: Any, bounds: Mapping[str, Any]) -> str:
    """Return what is needed instead of a value, or nothing if it will do."""
    if get_origin(hint) in (Union, types.UnionType):
        faults = [_fault(kind, value, bounds) for kind in get_args(hint)]
        return "" if "" in faults else " or ".join(faults)
    if get_origin(hint) is tuple:
        kind = get_args(hint)[0]
        fits = isinstance(value, list | tuple) and not any(_fault(kind, one, bounds) for one in value)
        return "" if fits else f"a list, each {_needed(kind, bounds)}"
    if hint is type(None):
        return "" if value is None else "nothing"
    if hint is bool:
        return "" if isinstance(value, bool) else "true or false"
    if hint is str:
        fits = isinstance(value, str) and len(value) <= _LONGEST and value.isprintable()
        return "" if fits else f"a printable text of at most {_LONGEST} characters"
    if hint in (int, float):
        numeric = isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
        if not numeric or (isinstance(value, float) and math.isnan(value)) or not _inside(value, bounds):
            return _needed(hint, bounds)
        return ""
    return "" if isinstance(value, hint) else f"a {hint.__name__}"  # what travels in a record of its own


def _inside(value: float, bounds: Mapping[str, Any]) -> bool:
    low, high = bounds.get("least", -math.inf), bounds.get("most", math.inf)
    if isinstance(value, int):
        return low <= value <= high and abs(value) < _LARGEST
    return low <= value <= high and (not math.isinf(value) or high == math.inf)


def _needed(hint: Any, bounds: Mapping[str, Any]) -> str:
    if hint not in (int, float):
        return str(getattr(hint, "__name__", hint))
    name = "a whole number" if hint is int else "a number"
    low, high = bounds.get("least", -math.inf), bounds.get("most", math.inf)
    text = f" from {low:g}" if low > -math.inf else ""
    return name + text + (f" to {high:g}" if high < math.inf else "")
