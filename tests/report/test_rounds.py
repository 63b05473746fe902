"""Rounds of a row, as a file of any origin tells them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fedcondense.report.results import NONE
from fedcondense.report.rounds import HEADING, lines_of, past_of


def entry(number: int, **changes: Any) -> dict[str, Any]:
    """Return a round of ten sites that were asked ten times as much down as up."""
    known = {"round": number, "accuracy": 80.0 + number, "asked": 10, "answered": 9, "refused": 1, "sites": 10}
    known |= {"bytes_up": 100.0, "bytes_down": 1000.0, "total_up": 1000, "total_down": 10_000, "seconds": 2.5}
    known |= {"server_seconds": 0.5, "client_seconds": 1.0, "client_seconds_max": 2.0, "memory": 3_000_000}
    return {**known, **changes}


def test_bytes_add_up_per_site_that_was_ever_asked() -> None:
    """Half of ten sites in the first round, all of them in the second: a site had 1.5 rounds' bytes in the mean."""
    half = entry(1, sites=5, asked=5, total_up=500, total_down=5000)
    assert [one.so_far for one in past_of([half, entry(2)])] == [550.0, 1650.0]


def test_lines_say_what_was_measured_and_a_dash_where_nothing_was() -> None:
    whole, bare = lines_of(past_of([entry(1), {"round": 2, "accuracy": None}]))
    assert whole == ("1", "81.0 %", "9 of 10", "100 B", "1 kB", "1.1 kB", "2.5", "0.5", "1.0", "3 MB")
    assert bare == ("2", NONE, f"{NONE} of {NONE}", *[NONE] * 7)
    assert len(HEADING) == len(whole) == len(bare)


@pytest.mark.parametrize(
    "odd", [None, 3, "rounds", {}, [None, 3, {}], [{"round": "one"}], [{"round": 0}, {"round": math.inf}]]
)
def test_what_is_no_history_has_no_rounds(odd: Any) -> None:
    assert past_of(odd) == ()


def test_a_number_that_is_none_is_not_known() -> None:
    (one,) = past_of([entry(1, accuracy="high", total_up=None, sites=0, seconds=True)])
    assert all(math.isnan(value) for value in (one.accuracy, one.so_far, one.seconds))
    assert one.answered == 9
