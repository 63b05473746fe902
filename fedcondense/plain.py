"""What a caller gives becomes plain Python: numpy's numbers and tensors of one number are taken, the rest is refused.

Records, evaluations and settings end up in JSON, and are read by others: their values pass here when they are made.
"""

from __future__ import annotations

import math
import operator
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

from fedcondense.errors import SettingError

__all__ = ["finite_number", "hidden", "listed", "plain_text", "plain_value", "plain_values", "whole_number"]

_TEXT = 2000  # characters of a text
_MOST = 2.0**63  # of a number, either way
_UNSEEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}  # categories
_JOINERS = {"\u200c", "\u200d"}  # of emoji and of Persian
_SPACES = str.maketrans("\t\n\v\f\r", "     ")


def whole_number(given: Any, what: str, least: int = 0, below: int = 2**63) -> int:
    """Return a whole number as an int, of numpy or torch, too; a truth value, text, float or row is none.

    Raises:
        SettingError: It is none, or out of range; the message begins with `what`.
    """
    number = given if type(given) is int else None
    if number is None and not _is_truth(given) and getattr(given, "shape", ()) == ():
        try:
            number = int(operator.index(given))
        except (TypeError, ValueError, RuntimeError):
            number = None
    if number is None or not least <= number < below:
        upper = "2**63" if below == 2**63 else str(below)
        raise SettingError(f"{what} {_short(given)}; needed: a whole number from {least}, below {upper}")
    return number


def finite_number(given: Any, what: str, least: float = -_MOST, most: float = _MOST) -> float:
    """Return a finite number as a float.

    Raises:
        SettingError: It is none, or out of range; the message begins with `what`.
    """
    number = _number(given)
    if number is None or not least <= number <= most:
        raise SettingError(f"{what} {_short(given)}; needed: a finite number from {least:g} to {most:g}")
    return float(number)


def plain_text(given: Any, what: str, most: int = _TEXT) -> str:
    """Return a text on one line; tabs and line ends become spaces.

    Raises:
        SettingError: It is none, too long, or holds characters that are not seen.
    """
    if not isinstance(given, str):
        raise SettingError(f"{what} {_short(given)} is of type {type(given).__name__}; needed: a text")
    text = str(given).translate(_SPACES)
    if len(text) > most:
        raise SettingError(f"{what} {text[:40]!r}... has {len(text)} characters; needed: at most {most}")
    if (unseen := hidden(text)) is not None:
        raise SettingError(f"{what} {_short(text)} has U+{ord(unseen):04X}, which is not seen; remove it")
    return text


def plain_value(given: Any, what: str) -> str | int | float | bool | None:
    """Return a text, a finite number, a truth value or None.

    Raises:
        SettingError: It is none of them.
    """
    if given is None or type(given) is bool:
        return given
    if isinstance(given, str):
        return plain_text(given, what)
    if _is_truth(given):
        return bool(given)
    number = _number(given)
    if number is None or abs(number) > _MOST:
        raise SettingError(f"{what} {_short(given)}; needed: a text, a finite number, a truth value or none")
    return number


def plain_values(given: Any, what: str) -> dict[str, str | int | float | bool | None]:
    """Return a dict of texts and plain values.

    Raises:
        SettingError: It is none, a name in it is no text, or a value in it is not plain.
    """
    if not isinstance(given, Mapping):
        raise SettingError(f"{what} {_short(given)}; needed: a dict of plain values")
    values: dict[str, str | int | float | bool | None] = {}
    for given_name, value in given.items():
        name = plain_text(given_name, f"{what} with the name")
        if name in values:
            raise SettingError(f"{what} with two values for {name!r}; needed: one")
        values[name] = plain_value(value, f"{what}: {name[:100]}")
    return values


def listed(given: Any, what: str) -> tuple[Any, ...]:
    """Return the values of one row: a list, tuple, range, array, tensor or iterator.

    Raises:
        SettingError: It is something else: a single value, a text, a table, or values that have no order.
    """
    unordered = isinstance(given, str | bytes | Mapping | set | frozenset)
    if unordered or not isinstance(given, Iterable) or getattr(given, "ndim", 1) != 1:
        raise SettingError(f"{what} {_short(given)}; needed: a sequence")
    return tuple(given)


def hidden(text: str) -> str | None:
    """Return the first character that nobody sees, or that could change how others look: controls, marks of direction.

    Line and paragraph ends, other formatting characters and surrogates are among them; joiners are not. None if all
    characters are seen.
    """
    if text.isascii() and text.isprintable():
        return None
    return next((c for c in text if unicodedata.category(c) in _UNSEEN and c not in _JOINERS), None)


def _number(given: Any) -> int | float | None:
    """Return the number that an int, a float, numpy's number or a tensor or array of no dimension is."""
    if type(given) in (int, float):
        number = given
    elif isinstance(given, int | float) and not isinstance(given, bool):
        number = int(given) if isinstance(given, int) else float(given)
    elif getattr(given, "shape", None) == () and hasattr(given, "item") and not isinstance(given, Mapping):
        number = given.item()
    else:
        return None
    if type(number) is int:
        return number
    return number if type(number) is float and math.isfinite(number) else None


def _is_truth(given: Any) -> bool:
    """Say whether a value is a truth value: Python's, numpy's or a tensor's."""
    return isinstance(given, bool) or str(getattr(given, "dtype", "")) in ("bool", "torch.bool")


def _short(given: Any) -> str:
    """Return a value as printable text of one line."""
    try:
        text = ascii(given) if isinstance(given, str) and hidden(given) is not None else repr(given)
    except Exception:  # a value of a stranger's class
        text = f"of type {type(given).__name__}"
    text = " ".join(text.split())
    return text if len(text) <= 100 else f"{text[:100]}..."
