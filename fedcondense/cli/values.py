"""What the text of an option may be: numbers within bounds and lists by commas, refused by one line before any work.

Each is a `parser` of an option. Newer versions of typer keep click inside, so that click's types are nobody's to derive
from.
"""

from __future__ import annotations

import math
from typing import Any

import typer

from fedcondense.budgets import read_budget
from fedcondense.errors import SettingError

__all__ = ["Bytes", "Listed", "Number", "Refused", "Whole"]

_LARGEST = 2**62  # seeds and counts travel as 64 bits


class Refused(typer.BadParameter):
    """A value that one of these does not take; the message goes on after the option's name."""


class Whole:
    """A whole number.

    Args:
        least: The smallest.
        most: The largest.
    """

    __name__ = "integer"  # what the help calls it

    def __init__(self, least: int = 0, most: int = _LARGEST) -> None:
        self.least, self.most = least, most

    def __call__(self, value: Any) -> int:
        """Return the number, or fail with what is needed."""
        try:
            number = int(value)
        except ValueError:  # no number, or one of thousands of digits
            number = self.least - 1
        if not self.least <= number <= self.most:
            most = f" to {self.most}" if self.most < _LARGEST else ""
            raise Refused(f"{str(value)[:60]}; needed: a whole number from {self.least}{most}")
        return number


class Number:
    """A finite number.

    Args:
        least: The smallest.
        most: The largest.
        above: Whether it has to be above `least`.
    """

    __name__ = "number"

    def __init__(self, least: float = 0.0, most: float = math.inf, above: bool = False) -> None:
        self.least, self.most, self.above = least, most, above

    def __call__(self, value: Any) -> float:
        """Return the number, or fail with what is needed."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        inside = self.least < number if self.above else self.least <= number
        if not (inside and number <= self.most and math.isfinite(number)):
            least = f"above {self.least:g}" if self.above else f"from {self.least:g}"
            most = f" to {self.most:g}" if math.isfinite(self.most) else ""
            raise Refused(f"{str(value)[:60]}; needed: a finite number {least}{most}")
        return number


class Bytes:
    """A size as people write it, of one set: ``20 kB``.

    Args:
        per_client: Whether it may be said per client.
    """

    __name__ = "size"

    def __init__(self, per_client: bool = False) -> None:
        self.per_client = per_client

    def __call__(self, value: Any) -> str:
        """Return the text, or fail with what is needed."""
        try:
            budget = read_budget(str(value), "size")
        except SettingError as error:
            raise typer.BadParameter(str(error).removeprefix("size ")) from None
        if budget.per_client and not self.per_client:
            raise typer.BadParameter(f"{value} is for a federation; needed: the bytes of one set, such as 4 kB")
        return str(value)


class Listed:
    """A list by commas, none of whose items is empty; spaces around an item are left out."""

    __name__ = "list"

    def __call__(self, value: Any) -> str:
        """Return the list as it was, with one comma between two items, or fail."""
        items = [item.strip() for item in str(value).split(",")]
        if not all(items):
            raise Refused(f"{str(value)[:60]}; needed: a list by commas without empty items")
        return ",".join(items)
