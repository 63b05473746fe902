"""What a check found: a row of the table."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Check", "Row", "Tally", "forget_peak", "held_bytes", "limit_memory"]


@dataclass(frozen=True)
class Row:
    """What a check tried, and what went wrong.

    Args:
        tried: Inputs, messages, kills or files.
        crashed: How many ended in anything but an answer or a refusal in one line.
        wrong: How many were accepted that had to be refused, or were lost.
        slowest: Seconds of the slowest refusal.
        peak: MiB that the process held at most above what it held before.
        equal: Of how many resumed runs the end was equal bit by bit, and how many there were.
        notes: What the first wrong ones were, or what the numbers mean.
        not_run: Why the check could not be made here; it fails the command.
        seconds: What the check took.
    """

    tried: int = 0
    crashed: int = 0
    wrong: int = 0
    slowest: float = 0.0
    peak: float = 0.0
    equal: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    not_run: str = ""
    seconds: float = 0.0

    @property
    def is_sound(self) -> bool:
        """Whether nothing went wrong, and the check was made."""
        resumed = self.equal is None or self.equal[0] == self.equal[1]
        return self.tried > 0 and not (self.crashed or self.wrong or self.not_run) and resumed

    def plain(self) -> dict[str, Any]:
        """Return it for a JSON file."""
        return asdict(self)


class Check(NamedTuple):
    """A check: what makes it, and how many inputs the short and the full run draw."""

    run: Callable[[int, int], Row]  # (count, seed)
    short: int
    full: int


@dataclass
class Tally:
    """Counts what is tried one after another, with time and memory."""

    tried: int = 0
    crashed: int = 0
    wrong: int = 0
    slowest: float = 0.0
    notes: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    before: int = field(default_factory=lambda: held_bytes("VmRSS"))

    def note(self, kind: str, what: str) -> None:
        """Count a failure and keep the first ones' texts."""
        if kind == "crashed":
            self.crashed += 1
        else:
            self.wrong += 1
        if len(self.notes) < 8:
            self.notes.append(f"{kind}: {what}"[:300])

    def row(self, *, equal: tuple[int, int] | None = None, notes: tuple[str, ...] = ()) -> Row:
        """Return the row."""
        peak = max(0, held_bytes("VmHWM") - self.before) / 2**20
        return Row(
            self.tried,
            self.crashed,
            self.wrong,
            round(self.slowest, 3),
            round(peak, 1),
            equal,
            (*self.notes, *notes),
            seconds=round(time.monotonic() - self.began, 1),
        )


def held_bytes(what: str) -> int:
    """Return how much memory this process holds (``VmRSS``), held at most (``VmHWM``) or may write to (``VmData``)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}; this check needs Linux")


def forget_peak() -> None:
    """Let what this process held at most begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes beyond what it holds now: what asks for more fails at once."""
    bound = held_bytes("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
