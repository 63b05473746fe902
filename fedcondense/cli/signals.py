"""Signals that end a command: what is done is kept, and said, whichever of them it was."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["Ending", "ended_by_signals"]


class Ending:
    """Which signal ended a command; Ctrl-C unless it was another one."""

    number: int = signal.SIGINT

    @property
    def code(self) -> int:
        """The exit code, as shells have it: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + self.number


@contextmanager
def ended_by_signals() -> Iterator[Ending]:
    """Let SIGTERM and SIGHUP, unless they are ignored or handled already, raise KeyboardInterrupt as Ctrl-C does."""
    ending = Ending()

    def stop(number: int, frame: FrameType | None) -> None:
        ending.number = number
        raise KeyboardInterrupt

    names = [name for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
    numbers = [getattr(signal, name) for name in names]
    is_main = threading.current_thread() is threading.main_thread()  # no other thread may set handlers
    mine = [number for number in numbers if is_main and signal.getsignal(number) is signal.SIG_DFL]
    for number in mine:
        signal.signal(number, stop)
    try:
        yield ending
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
