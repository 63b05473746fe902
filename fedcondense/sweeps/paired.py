"""Rows compared set by set: sets of one seed share networks, test images and what is drawn by chance."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fedcondense.errors import SettingError
from fedcondense.sweeps.compute import Outcome
from fedcondense.sweeps.grids import Cell, TableRow

__all__ = ["Difference", "difference", "place_of", "references"]


class Difference(NamedTuple):
    """How much more accurate a row is than another, in points.

    Args:
        mean: Over the seeds that both have, of accuracies that are means over networks.
        error: The standard error of that mean; None for a single seed.
    """

    mean: float
    error: float | None

    @property
    def is_tie(self) -> bool:
        """Whether the difference is not above its standard error."""
        return self.error is not None and abs(self.mean) <= self.error

    def __str__(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{self.mean:+.1f}{error}{' (tie)' if self.is_tie else ''}"


def references(lines: Sequence[TableRow], against: str | None) -> dict[tuple[Any, ...], TableRow]:
    """Return, for each data, size, test network and protocol, the row from which the differences are taken.

    Args:
        lines: The table's.
        against: The objective, selection, parametrization or network of that row; None: the first one.

    Raises:
        SettingError: No row has this name.
    """
    found: dict[tuple[Any, ...], TableRow] = {}
    for line in lines:
        making = line.cells[0].making
        if against is None or against in (making.method, making.parametrization, making.network):
            found.setdefault(place_of(line), line)
    if not found:
        names = ", ".join(dict.fromkeys(line.cells[0].making.method for line in lines))
        raise SettingError(f"no row is called {against!r}; needed for --against: one of {names}")
    return found


def place_of(line: TableRow) -> tuple[Any, ...]:
    """Return what two rows must have in common to be compared."""
    making, measuring = line.cells[0].making, line.cells[0].measuring
    return making.data, making.ipc, line.test_network, measuring.fit


def difference(line: TableRow, other: TableRow | None, outcomes: Mapping[Cell, Outcome]) -> Difference | None:
    """Compare two rows by the seeds that both have; None if they are one, or have none in common."""
    if other is None or other is line:
        return None
    mine, theirs = _by_seed(line, outcomes), _by_seed(other, outcomes)
    apart = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
    if not apart:
        return None
    error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else None
    return Difference(round(statistics.fmean(apart), 3), None if error is None else round(error, 3))


def _by_seed(line: TableRow, outcomes: Mapping[Cell, Outcome]) -> dict[int, float]:
    """Return the mean accuracy over networks of each set that was measured, by its seed."""
    found = {}
    for cell in line.cells:
        accuracies = outcomes[cell].get("measured", {}).get(line.test_network, {}).get("accuracies")
        if accuracies:
            found[cell.making.seed] = statistics.fmean(accuracies)
    return found
