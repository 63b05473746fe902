"""How far long work is: lines through logging, a bar on a terminal, hardly a cost."""

from __future__ import annotations

import io
import itertools
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedcondense as fc
from fedcondense import progress
from fedcondense.progress import counted, reporting, still_working


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Iterator[Any]:
    with caplog.at_level(logging.INFO, "fedcondense"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "fedcondense.progress"]


def test_a_line_says_what_is_done_and_how_long_it_will_take(clock: Clock, lines: Any) -> None:
    with reporting("condensing") as report:
        report(0.0)
        clock.now += 5
        report(0.1)
        assert lines() == []
        clock.now += 15
        report(0.25, "loss 3")
    assert lines() == ["condensing: 25 %, loss 3, 0:20 so far, about 1:00 left"]


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.lists(st.floats(0.01, 30), min_size=1, max_size=60))
def test_lines_are_never_closer_than_ten_seconds_nor_missing_for_longer_than_two_minutes(pauses: list[float]) -> None:
    clock, said = Clock(), []
    handler = logging.Handler(logging.INFO)
    handler.emit = lambda record: said.append(clock.now)  # type: ignore[method-assign]
    logger = logging.getLogger("fedcondense.progress")
    logger.addHandler(handler)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(progress, "time", clock)
            patch.setattr(logger, "level", logging.INFO)
            with reporting("work") as report:
                for pause in pauses:
                    clock.now += pause
                    report(0.5)
    finally:
        logger.removeHandler(handler)
    moments = [100.0, *said]
    gaps = [b - a for a, b in itertools.pairwise(moments)]
    assert all(10 <= gap <= 60 + max(pauses) for gap in gaps)
    assert clock.now - moments[-1] < 60


def test_what_is_inside_is_heard_while_the_outer_one_is_silent(clock: Clock, lines: Any) -> None:
    with reporting("federation") as outer, reporting("client-1"), reporting("condensing") as inner:
        outer(0.0)
        clock.now += 11
        outer(0.5, "round 1")
        inner(0.9)
        assert lines() == ["federation: 50 %, round 1, 0:11 so far, about 0:11 left"]
        clock.now += 11
        inner(0.9, "loss 2")
        assert lines()[1].startswith("federation: 50 %, round 1, client-1, condensing 90 %, loss 2, 0:22 so far")
        clock.now += 11
        still_working()
    assert lines()[2].startswith("federation: 50 %, round 1, client-1, condensing, 0:33 so far")
    with reporting("next") as outer:
        clock.now += 11
        outer(1.0)
    assert lines()[3] == "next: 100 %, 0:11 so far"


def test_the_pace_is_that_since_the_part_began(clock: Clock, lines: Any) -> None:
    """A resumed part begins in its middle; a second round of the same part, and a part of another name, at nothing."""
    with reporting("federation", parts=True) as report:
        for label, begins in (("clients", 0.6), ("clients", 0.0), ("training", 0.0)):
            report(begins, label=label)
            clock.now += 20
            report(begins + 0.2, label=label)
            report(1.0, label=label)
    assert [line.partition("so far")[2] for line in lines()] == [
        ", about 0:20 left of this part",
        ", about 1:20 left of this part",
        ", about 1:20 left of this part",
    ]


def test_what_takes_longer_than_the_pace_says_nothing(clock: Clock, lines: Any) -> None:
    """Half is done after ten seconds. Where nothing more is for eight, two are left; after twelve none is known."""
    with reporting("sites") as report:
        report(0.0)
        clock.now += 10
        report(0.5)
        clock.now += 8
        assert report.text(clock.now, "") == "sites: 50 %, 0:18 so far, about 0:02 left"  # type: ignore[attr-defined]
        clock.now += 4
        assert report.text(clock.now, "") == "sites: 50 %, 0:22 so far"  # type: ignore[attr-defined]


def test_an_error_inside_leaves_nothing_open(clock: Clock, lines: Any) -> None:
    with pytest.raises(ZeroDivisionError), reporting("outer"), reporting("inner"):
        raise ZeroDivisionError
    with reporting("after") as report:
        clock.now += 11
        report(0.0)
    assert lines() == ["after: 0:11 so far"]


def test_a_counted_function_calls_what_it_was_given_and_is_heard(clock: Clock, lines: Any) -> None:
    @counted("counting")
    def count(steps: int, progress: Any = None) -> int:
        for step in range(steps):
            clock.now += 6
            progress(step + 1, steps)
        return steps

    seen: list[tuple[int, int]] = []
    assert count(3, progress=lambda *at: seen.append(at)) == count(3) == 3
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [line[: len("counting: 67 %")] for line in lines()] == ["counting: 67 %"] * 2


def test_where_nobody_listens_to_us_another_logger_is_taken(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    other = logging.getLogger("other-of-test")
    ours = logging.getLogger("fedcondense.progress")
    before = ours.level
    ours.setLevel(logging.WARNING)
    try:
        with caplog.at_level(logging.INFO, "other-of-test"), reporting("node", log=other) as report:
            clock.now += 11
            report(0.5)
    finally:
        ours.setLevel(before)
    assert [record.name for record in caplog.records] == ["other-of-test"]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_terminal_gets_a_bar_after_two_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with reporting("condensing [b]") as report:
        clock.now += seconds
        report(0.5, "loss 3")
    assert ("condensing [b]" in terminal.getvalue()) == (seconds > 2)


def test_no_bar_for_a_pipe_another_thread_or_whoever_looks_for_himself(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, terminal = io.StringIO(), Terminal()

    def work(bar: bool = True) -> None:
        with reporting("work", bar=bar) as report:
            clock.now += 3
            report(0.5)

    monkeypatch.setattr(sys, "stderr", pipe)
    work()
    monkeypatch.setattr(sys, "stderr", terminal)
    work(bar=False)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert pipe.getvalue() == terminal.getvalue() == ""


def test_a_notebook_gets_a_line_that_is_written_over(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stream(io.StringIO):
        pass

    Stream.__module__ = "ipykernel.iostream"
    monkeypatch.setattr(sys, "stderr", stream := Stream())
    with reporting("work") as report:
        clock.now += 3
        report(0.5, "loss 3")
    assert stream.getvalue().startswith("\rwork: 50 %, loss 3")


def test_condensing_evaluating_and_selecting_are_heard(lines: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "_SILENT_S", -1.0)
    train, test = fc.load_data("digits")
    made = fc.condense(train, 1, "dm", network="convnet1-w16", steps=1)
    fc.evaluate(made, test, network="convnet1-w16", recipe=fc.Fit(steps=1), seeds=[0])
    fc.select(train, 1)
    said = " ".join(lines())
    for label in ("condensing digits: 100 %, step 1 of 1", "evaluating: 100 %", "selecting from digits"):
        assert label in said


def test_importing_installs_no_handler() -> None:
    code = "import logging, fedcondense.progress, fedcondense.condensing; l = logging.getLogger('fedcondense')"
    code += "; assert not l.handlers and not logging.root.handlers and l.level == 0"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
