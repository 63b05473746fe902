"""Sizes as people write them: ``"20 kB"``, ``"64 KiB"``, ``"4 kB per client"``, ``20_000``.

One reader for Python, the command line and run configs. 1 kB is 1,000 bytes, as on every network and disk; 1 KiB is
1,024. What could be read in two ways is refused: ``"KB"`` and ``"kb"`` (1,000 or 1,024, bytes or bits), ``"20,000"``
and ``"20.000"`` (a thousands separator for some, a decimal mark for others).
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any, NamedTuple, NoReturn

from fedcondense.errors import SettingError
from fedcondense.plain import whole_number

__all__ = ["Budget", "budget_bytes", "read_budget"]

_UNITS = {
    **dict.fromkeys(("B", "byte", "bytes"), 1),
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
_TEXT = re.compile(r"([0-9]+(?:_[0-9]+)*)(?:\.([0-9]+))?\s*([A-Za-z]*)(\s+per\s+client)?")
_MOST = 2**40  # bytes; no set is near it
_LONGEST = 60  # characters
_EXAMPLES = "such as '20 kB', '64 KiB', '20000 B' or 20_000"


class Budget(NamedTuple):
    """A number of bytes that must not be passed.

    Args:
        nbytes: Bytes, from 1.
        per_client: Whether each client has them; else they are those of one set, or of all.
        has_unit: Whether a unit was written: a bare number may be meant as one of images.
    """

    nbytes: int
    per_client: bool = False
    has_unit: bool = False


def read_budget(given: Any, what: str = "budget") -> Budget:
    """Read a size as a person or a program writes it.

    Args:
        given: A whole number of bytes, a text, or a `Budget`.
        what: The argument's name, for the message.

    Raises:
        SettingError: It is no size, or one that could be read in two ways.

    >>> read_budget("20 kB").nbytes, read_budget("1.5 MiB").nbytes, read_budget(20_000).nbytes
    (20000, 1572864, 20000)
    >>> read_budget("4 kB per client")
    Budget(nbytes=4000, per_client=True, has_unit=True)
    """
    if isinstance(given, Budget):
        return given
    if not isinstance(given, str):
        return Budget(whole_number(given, what, 1, _MOST))
    text = given.strip()
    found = _TEXT.fullmatch(text) if len(text) <= _LONGEST and text.isascii() else None
    if found is None:
        _refuse(given, what, "a number of bytes with its unit")
    whole, fraction, unit, per_client = found.groups()
    if unit and unit not in _UNITS:
        _refuse(given, what, _unit_for(unit))
    if fraction is not None and not unit:
        _refuse(given, what, "a unit beside a decimal number, or whole bytes")
    if fraction is not None and len(fraction) == 3:
        _refuse(given, what, "a number without three digits after the point, which some read as thousands")
    exact = Decimal(f"{whole.replace('_', '')}.{fraction or 0}") * _UNITS.get(unit, 1)
    if exact != int(exact):
        _refuse(given, what, "whole bytes")
    if not 1 <= exact < _MOST:
        _refuse(given, what, f"from 1 byte, below {_MOST} bytes")
    return Budget(int(exact), per_client is not None, bool(unit))


def budget_bytes(given: Any, what: str = "budget") -> int:
    """Return the bytes of a size that is one set's, as `read_budget` reads it.

    Raises:
        SettingError: As `read_budget`, or it is said per client, where there are none.

    >>> budget_bytes("20 kB")
    20000
    """
    budget = read_budget(given, what)
    if budget.per_client:
        raise SettingError(f"{what} {given!r:.100} is for a federation; needed: the bytes of one set, such as '4 kB'")
    return budget.nbytes


def _unit_for(unit: str) -> str:
    """Say which units come into question for one that is not known."""
    if unit.lower() in ("k", "kb", "kbyte", "kbytes"):
        return "kB (1,000 bytes) or KiB (1,024 bytes)"
    close = [known for known in _UNITS if known.lower() == unit.lower()]
    return f"the unit {close[0]}" if close else f"one of the units {', '.join(u for u in _UNITS if u != 'byte')}"


def _refuse(given: str, what: str, needed: str) -> NoReturn:
    raise SettingError(f"{what} {given[:_LONGEST]!r}; needed: {needed}, {_EXAMPLES}")
