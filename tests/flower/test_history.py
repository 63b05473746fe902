from __future__ import annotations

import sys
import time
from typing import Any

import pytest

from fedcondense.flower.history import Tally, accuracy_in, line_of, tell


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still: its one entry is what it says."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def two_stages(clock: list[float]) -> dict[str, Any]:
    """Four sites are asked, three of them again; one says no the second time, one says nothing at all."""
    tally = Tally()
    for nodes, nbytes in (((1, 2, 3, 4), 100), ((1, 2, 3), 40)):
        clock[0] += 1.0
        tally.waits(clock.__setitem__, 0, clock[0] + 3.0)
        for node in nodes:
            tally.sends(node, nbytes)
    for node, nbytes, seconds in ((1, 10, 1.0), (2, 10, 2.0), (3, 10, 3.0), (1, 5, 2.0), (2, 5, 2.0)):
        tally.takes(node, nbytes, seconds)
    tally.refused.add(3)
    return tally.entry(7, sites=5)


def test_an_entry_counts_sites_once_and_bytes_of_all_stages(clock: list[float]) -> None:
    entry = two_stages(clock)
    assert entry.pop("memory", 2**20) >= 2**20
    assert entry == {
        "round": 7,
        "asked": 4,
        "answered": 2,
        "refused": 1,
        "sites": 5,
        "bytes_up": 10.0,
        "bytes_down": 130.0,
        "total_up": 40,
        "total_down": 520,
        "seconds": 8.0,
        "server_seconds": 2.0,
        "client_seconds": 2.0,
        "client_seconds_max": 3.0,
    }


def test_what_nobody_says_is_left_out(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows does not say how much memory a process took, FedAvg's nodes not how long they worked."""
    monkeypatch.setitem(sys.modules, "resource", None)
    entry = Tally().entry(1, 0)
    assert not {"memory", "client_seconds", "client_seconds_max"} & set(entry)
    assert entry["bytes_up"] == 0.0


def test_a_line_says_what_was_measured(clock: list[float]) -> None:
    entry = two_stages(clock)
    assert line_of(entry) == "round 7: 2 of 4 answered, 10 B up and 130 B down per site, 8 s"
    assert line_of(entry | accuracy_in({"accuracy": 86.14999})).startswith("round 7: 86.2 %, 2 of 4")
    assert accuracy_in({"loss": 1.0}) == accuracy_in(None) == {}


def test_a_round_that_undid_much_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    entry = {"asked": 3, "answered": 1, "bytes_up": 1.0, "bytes_down": 1.0, "seconds": 1.0}
    rounds = [{**entry, "round": k, "accuracy": found} for k, found in ((1, 46.7), (2, 50.0), (3, 45.5))]
    with caplog.at_level("WARNING", "flwr"):
        tell(rounds)
        tell([*rounds, {**entry, "round": 4}])
        assert not caplog.records
        tell([*rounds, {**entry, "round": 4, "accuracy": 36.7}])
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith("round 4: 36.7 %, where round 2 had 50.0 %; the folder's network is the last round's")
