"""How far long work is: a line now and then through `logging`, and a bar where somebody looks.

Whoever works for long opens `reporting` and calls what it yields as often as it likes: a call looks at the clock. Only
the outermost speaks. What is opened inside it is heard while the outer one has nothing to say, so a federation
tells its own story, and that of the networks which it trains meanwhile. Nothing is installed on import: lines go to the
logger ``fedcondense.progress`` at INFO, whose handlers are the program's business.
"""

from __future__ import annotations

import functools
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, ParamSpec, Protocol, TypeVar

__all__ = ["Report", "clock", "counted", "reporting", "still_working", "where"]

P = ParamSpec("P")
T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_BAR_AFTER_S = 2.0  # of work: less is not waited for
_BAR_EVERY_S = 0.2
_LINE_EVERY_S, _LINE_SELDOM_S = 10.0, 60.0  # between two lines at first, and of a run of hours
_EARLY_S = 30.0  # of a part, in which its pace says little
_SILENT_S = 2.0  # from which on what is inside is heard


class Report:
    """One long piece of work, and what was said of it; call it with the share done, a detail and a new label.

    Args:
        label: What is done, such as ``"condensing digits"``.
        bar: Whether a bar may be drawn on a terminal.
        log: Where lines go if nobody listens to ours.
        parts: Whether more than what is told of is to come: the time left is then said to be a part's.
    """

    def __init__(self, label: str, bar: bool, log: logging.Logger | None, parts: bool) -> None:
        self.label, self.log, self.may_draw, self.parts = label, log, bar, parts
        self.done, self.detail = 0.0, ""
        self.inside: list[str] = []  # labels of what was opened in it, and is not closed
        self.began = self.told = time.monotonic()
        self.first: tuple[float, float] | None = None  # when the part was first told of, and how much of it was done
        self.line_due, self.bar_due = self.began + _LINE_EVERY_S, self.began + _BAR_AFTER_S
        self.bar: _Shown | None = None

    def __call__(self, done: float, detail: str = "", label: str = "") -> None:
        """Tell how far the work is; the pace is that since the first call, which a resumed part begins with.

        Args:
            done: The share that is done, in [0, 1]; less than before: the same begins again.
            detail: Such as the loss.
            label: What is done from here on.
        """
        now = self.told = time.monotonic()
        if self.first is None or done < self.done or (label and label != self.label):
            self.label, self.first = label or self.label, (now, done)
        self.done, self.detail = done, detail
        self.say(now, detail)

    def say(self, now: float, detail: str) -> None:
        """Write what is due: a line, or the bar."""
        if now >= self.line_due:
            self.line_due = now + min(_LINE_SELDOM_S, max(_LINE_EVERY_S, (now - self.began) / 10))
            self._listener().info("%s", _printable(self.text(now, detail)))
        if self.may_draw and now >= self.bar_due:
            self.bar_due = now + _BAR_EVERY_S
            self.bar = self.bar or _drawn()
            self.may_draw = self.bar is not None
            if self.bar is not None:
                self.bar.show(self.done, _printable(self.label), _printable(detail), self._of)

    def text(self, now: float, detail: str) -> str:
        """Return the line: what is done, how much of it, for how long, and how long it will take."""
        left = self._left(now)
        about = "" if left is None else f", about {clock(left)} {self._of}"
        done = f"{100 * self.done:.0f} %" if self.done else ""
        return f"{self.label}: {', '.join(filter(None, (done, detail, f'{clock(now - self.began)} so far{about}')))}"

    @property
    def _of(self) -> str:
        return "left of this part" if self.parts else "left"

    def _left(self, now: float) -> float | None:
        """Return the seconds left at the pace so far; None: it cannot be told.

        Of the pace up to the last report: while what is inside takes its time, nothing is known to be done.
        """
        began, first = self.first or (self.began, 0.0)
        least = 0.01 if self.told - began < _EARLY_S else 0.001  # of hours of work one per cent is long
        if self.done - first < least or self.done >= 1:
            return None
        left = (self.told - began) * (1 - self.done) / (self.done - first) - (now - self.told)
        return left if left > 0 else None

    def _listener(self) -> logging.Logger:
        """Return our own logger, or the other one where nobody listens to ours."""
        heard = self.log is None or (_LOG.isEnabledFor(logging.INFO) and _LOG.hasHandlers())
        return _LOG if heard or self.log is None else self.log


_OUTERMOST: ContextVar[Report | None] = ContextVar("outermost", default=None)


@contextmanager
def reporting(
    label: str, *, bar: bool = True, log: logging.Logger | None = None, parts: bool = False
) -> Iterator[Callable[..., None]]:
    """Tell how far work is while inside, by calling what this yields (`Report`).

    Args:
        label: What is done.
        bar: Whether a bar may be drawn, on a terminal and after two seconds; not where the caller looks for itself.
        log: Where lines go if nobody listens to ``fedcondense.progress``, such as Flower's own logger.
        parts: Whether other work follows what is told of, or the work is told of part by part (`label`): the time left
            is then called that of the part.
    """
    outer = _OUTERMOST.get()
    if outer is not None:
        within = list(outer.inside)

        def inside(done: float, detail: str = "", label: str = label) -> None:
            now = time.monotonic()
            if now - outer.told > _SILENT_S:
                outer.say(now, ", ".join(filter(None, (outer.detail, *within, f"{label} {100 * done:.0f} %", detail))))

        outer.inside.append(label)
        try:
            yield inside
        finally:
            outer.inside[:] = within
        return
    report = Report(label, bar, log, parts)
    token = _OUTERMOST.set(report)
    try:
        yield report
    finally:
        _OUTERMOST.reset(token)
        if report.bar is not None:
            report.bar.close()


def counted(label: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Let a function that calls its keyword `progress` with (step, steps) be heard, as by `reporting`.

    Args:
        label: What it does.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(function)
        def heard(*args: P.args, **kwargs: P.kwargs) -> T:
            given: Any = kwargs.get("progress")
            with reporting(label, bar=given is None) as report:

                def told(step: int, steps: int) -> None:
                    if given is not None:
                        given(step, steps)
                    report(step / max(1, steps))

                kwargs["progress"] = told
                return function(*args, **kwargs)

        return heard

    return decorate


def still_working() -> None:
    """Say again what was said last, if a line is due: for whoever waits and hears nothing meanwhile."""
    report = _OUTERMOST.get()
    if report is not None:
        report.say(time.monotonic(), ", ".join(filter(None, (report.detail, *report.inside))))


def where() -> list[str]:
    """Return what is being done, the outermost first; empty: nothing that takes long."""
    report = _OUTERMOST.get()
    return [] if report is None else list(dict.fromkeys([report.label, *report.inside]))


class _Shown(Protocol):
    """What somebody looks at."""

    def show(self, done: float, label: str, detail: str, of: str) -> None:
        """Draw how far the work is; `of` says of what the time is that is left."""

    def close(self) -> None:
        """Take it away."""


def _drawn() -> _Shown | None:
    """Return a bar on the terminal or a line in the notebook that stderr is; None where nobody would see one."""
    if threading.current_thread() is not threading.main_thread():
        return None
    if type(sys.stderr).__module__.startswith("ipykernel"):
        return _Line()
    if sys.stderr is None or not sys.stderr.isatty():
        return None
    from rich.errors import LiveError

    try:
        return _Bar()
    except LiveError:  # the program draws one of its own
        return None


class _Line:
    """A line of a notebook that is written over."""

    def show(self, done: float, label: str, detail: str, of: str) -> None:
        """Write how far the work is."""
        sys.stderr.write(f"\r{label}: {100 * done:.0f} %{', ' if detail else ''}{detail}".ljust(100))
        sys.stderr.flush()

    def close(self) -> None:
        """End the line."""
        sys.stderr.write("\n")


class _Bar:
    """A bar with time left on the terminal."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        label = TextColumn("{task.description}", markup=False)
        detail = TextColumn("{task.fields[detail]}", markup=False)
        times = (TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.fields[of]}", markup=False))
        self.bar = Progress(
            label,
            BarColumn(30),
            *times,
            detail,
            console=Console(stderr=True),
            transient=True,
            refresh_per_second=4,
            redirect_stdout=False,  # what is printed meanwhile belongs to stdout
        )
        self.task, self.label = self.bar.add_task("", total=1.0, detail="", of=""), ""
        self.bar.start()

    def show(self, done: float, label: str, detail: str, of: str) -> None:
        """Draw how far the work is."""
        if label != self.label:
            self.label = label
            self.bar.reset(self.task, description=label, detail=detail, of=of)
        self.bar.update(self.task, completed=done, detail=detail, of=of)

    def close(self) -> None:
        """Take the bar away."""
        self.bar.stop()


def clock(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds.

    >>> clock(7.4), clock(83), clock(7322)
    ('0:07', '1:23', '2:02:02')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _printable(text: str) -> str:
    """Leave out what is no character to be shown: names come from files and from the wire."""
    return "".join(c if c.isprintable() else " " for c in text)
