"""For whom a server waits is said soon, and then more and more seldom."""

from __future__ import annotations

import time

import pytest

from fedcondense.flower.contract import Site
from fedcondense.flower.waiting import Waiting, named


def test_lines_are_due_after_ten_seconds_and_then_more_and_more_seldom(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    waiting, due = Waiting(), []
    for second in range(301):
        now[0] = float(second)
        if waiting.is_due():
            due.append(waiting.seconds)
    assert due == [10.0, 20.0, 40.0, 80.0, 140.0, 200.0, 260.0]


def test_ten_sites_are_named_and_the_others_counted() -> None:
    assert named([Site("north"), Site("", "7", 7)]) == "north, node 7"
    assert named(Site(f"s{k}") for k in range(12)).endswith("s8, s9 and 2 more")
