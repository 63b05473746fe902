"""What rounds took, in the numbers of a `State`: whatever a strategy keeps there, these are the library's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedcondense.flower.contract import Answer, State
from fedcondense.flower.replies import Sent
from fedcondense.flower.serialised import message_bytes

__all__ = ["ALONE", "add_spent", "library_numbers", "spent_per_site"]

ALONE = "alone/"
"""Before the key of a site, whose accuracy alone it is."""

_SPENT = ("bytes-up", "bytes-down", "client-seconds")
_PREFIX = "spent/"


def library_numbers(state: State) -> dict[str, float | int | str]:
    """Return the library's own numbers of a state; what was spent so far is among them, be it nothing."""
    ours = {name: value for name, value in state.numbers.items() if name.startswith((_PREFIX, ALONE))}
    return {**{_PREFIX + name: 0.0 for name in _SPENT}, **ours}


def add_spent(numbers: dict[str, float | int | str], sent: Iterable[Sent], answers: Iterable[Answer[Any]]) -> None:
    """Add what questions and answers took to the numbers of `library_numbers`."""
    answers = tuple(answers)
    taken = (
        sum(answer.nbytes for answer in answers),
        sum(message_bytes(one.message) for one in sent),
        sum(answer.seconds for answer in answers),
    )
    for name, value in zip(_SPENT, taken, strict=True):
        numbers[_PREFIX + name] = float(numbers[_PREFIX + name]) + value


def spent_per_site(state: State) -> dict[str, float]:
    """Return what the rounds so far took per site that was ever asked: bytes up and down, and the site's seconds."""
    everyone = max(1, len(state.sites))
    return {name: float(state.numbers.get(_PREFIX + name, 0)) / everyone for name in _SPENT}
