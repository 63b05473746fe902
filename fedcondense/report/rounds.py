"""What a result says of each round of a row, read tolerantly: curves of accuracy, and lines of a table."""

from __future__ import annotations

import math
import re
from itertools import accumulate
from typing import Any, NamedTuple

from fedcondense.report.reading import list_of, mapping_of, number_of
from fedcondense.report.units import human_bytes

__all__ = ["HEADING", "PastRound", "lines_of", "past_of", "without_rounds"]

HEADING = (
    "round",
    "accuracy",
    "answered",
    "up per asked site",
    "down per asked site",
    "per site so far",
    "seconds",
    "of the server",
    "of a site",
    "memory",
)
"""Of `lines_of`; ``per site so far`` are bytes both ways over all sites ever asked, ``memory`` is the server's."""

_COUNTED = ("accuracy", "asked", "answered", "refused", "bytes_up", "bytes_down")
_NUMBERS = (*_COUNTED, "sites_accuracy", "seconds", "server_seconds", "client_seconds", "client_seconds_max", "memory")
_NONE = "\N{EN DASH}"


class PastRound(NamedTuple):
    """One round of a row; what was not measured is nan."""

    number: int
    accuracy: float = math.nan  # percent
    asked: float = math.nan  # sites
    answered: float = math.nan
    refused: float = math.nan
    bytes_up: float = math.nan  # mean over the sites asked in this round
    bytes_down: float = math.nan
    seconds: float = math.nan  # wall clock
    server_seconds: float = math.nan  # of them not spent waiting
    client_seconds: float = math.nan  # mean over sites
    client_seconds_max: float = math.nan
    sites_accuracy: float = math.nan  # percent, mean over the sites that were asked
    memory: float = math.nan  # bytes, of the server's process at its largest
    so_far: float = math.nan  # bytes both ways, all rounds up to this one, per site that was ever asked


def past_of(history: Any) -> tuple[PastRound, ...]:
    """Return the rounds that a row's ``history`` holds (`fedcondense.flower.history`)."""
    entries = [mapping_of(entry) for entry in list_of(history)]
    entries = [entry for entry in entries if 1 <= number_of(entry.get("round")) < math.inf]
    totals = accumulate(number_of(entry.get("total_up")) + number_of(entry.get("total_down")) for entry in entries)
    sites = max((number_of(entry.get("sites")) for entry in entries), default=math.nan)
    rounds = []
    for entry, total in zip(entries, totals, strict=True):
        numbers = {name: number_of(entry.get(name)) for name in _NUMBERS}
        rounds.append(PastRound(int(entry["round"]), **numbers, so_far=total / sites if sites >= 1 else math.nan))
    return tuple(rounds)


def _measured(one: PastRound) -> str:
    """Return what the server measured, or what sites say where it did not."""
    if math.isnan(one.accuracy) and not math.isnan(one.sites_accuracy):
        return f"{one.sites_accuracy:.1f} % at sites"
    return _said(one.accuracy, "{:.1f} %")


def lines_of(past: tuple[PastRound, ...]) -> list[tuple[str, ...]]:
    """Return rounds as lines of text, without a heading; a dash stands for what is not known."""
    return [
        (
            str(one.number),
            _measured(one),
            f"{_said(one.answered, '{:.0f}')} of {_said(one.asked, '{:.0f}')}",
            _bytes(one.bytes_up),
            _bytes(one.bytes_down),
            _bytes(one.so_far),
            _said(one.seconds, "{:.1f}"),
            _said(one.server_seconds, "{:.1f}"),
            _said(one.client_seconds, "{:.1f}"),
            _bytes(one.memory),
        )
        for one in past
    ]


def without_rounds(label: str) -> str:
    """Return what a row is called, whatever its rounds.

    >>> without_rounds("FedAvg, 8 bits, 20 rounds"), without_rounds("FedAvg, 8 bits")
    ('FedAvg, 8 bits', 'FedAvg, 8 bits')
    """
    return re.sub(r", \d+ rounds?$", "", label)


def _said(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else _NONE


def _bytes(value: float) -> str:
    return human_bytes(value) if math.isfinite(value) else _NONE
