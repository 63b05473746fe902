"""What the text of an option may be: numbers within bounds and lists by commas, refused by one line before any work."""

from __future__ import annotations

import math
from typing import Any

import click

from fedcondense.budgets import read_budget
from fedcondense.errors import SettingError

__all__ = ["Bytes", "Listed", "Number", "Whole"]

_LARGEST = 2**62  # seeds and counts travel as 64 bits


class Whole(click.ParamType):  # type: ignore[type-arg]  # not generic in older ones
    """A whole number.

    Args:
        least: The smallest.
        most: The largest.
    """

    name = "integer"

    def __init__(self, least: int = 0, most: int = _LARGEST) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the number, or fail with what is needed."""
        try:
            number = int(value)
        except ValueError:  # no number, or one of thousands of digits
            number = self.least - 1
        if not self.least <= number <= self.most:
            most = f" to {self.most}" if self.most < _LARGEST else ""
            self.fail(f"{str(value)[:60]}; needed: a whole number from {self.least}{most}", param, ctx)
        return number


class Number(click.ParamType):  # type: ignore[type-arg]  # not generic in older ones
    """A finite number.

    Args:
        least: The smallest.
        most: The largest.
        above: Whether it has to be above `least`.
    """

    name = "number"

    def __init__(self, least: float = 0.0, most: float = math.inf, above: bool = False) -> None:
        self.least, self.most, self.above = least, most, above

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail with what is needed."""
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        inside = self.least < number if self.above else self.least <= number
        if not (inside and number <= self.most and math.isfinite(number)):
            least = f"above {self.least:g}" if self.above else f"from {self.least:g}"
            most = f" to {self.most:g}" if math.isfinite(self.most) else ""
            self.fail(f"{str(value)[:60]}; needed: a finite number {least}{most}", param, ctx)
        return number


class Bytes(click.ParamType):  # type: ignore[type-arg]  # not generic in older ones
    """A size as people write it, of one set: ``20 kB``.

    Args:
        per_client: Whether it may be said per client.
    """

    name = "size"

    def __init__(self, per_client: bool = False) -> None:
        self.per_client = per_client

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the text, or fail with what is needed."""
        try:
            budget = read_budget(str(value), "size")
        except SettingError as error:
            self.fail(str(error).removeprefix("size "), param, ctx)
        if budget.per_client and not self.per_client:
            self.fail(f"{value} is for a federation; needed: the bytes of one set, such as 4 kB", param, ctx)
        return str(value)


class Listed(click.ParamType):  # type: ignore[type-arg]  # not generic in older ones
    """A list by commas, none of whose items is empty; spaces around an item are left out."""

    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Return the list as it was, with one comma between two items, or fail."""
        items = [item.strip() for item in str(value).split(",")]
        if not all(items):
            self.fail(f"{str(value)[:60]}; needed: a list by commas without empty items", param, ctx)
        return ",".join(items)
