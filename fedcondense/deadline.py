"""A moment at which work stops: who has a clock sets it, and who works for long looks at it between two pieces.

It holds for all that is called inside `stop_at`, as a `torch.autocast` does, and costs a look at the clock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["OutOfTime", "check_time", "is_timed", "stop_at", "time_left"]

_MOMENT: ContextVar[float] = ContextVar("moment", default=math.inf)


class OutOfTime(Exception):  # noqa: N818 (not an error: who set the moment catches it)
    """The moment has come, and nothing was begun that could not be begun again."""


@contextmanager
def stop_at(moment: float | None) -> Iterator[None]:
    """Let `check_time` raise from a moment on.

    Args:
        moment: On the clock of `time.monotonic`, seconds; None: never. An earlier one around it stays.
    """
    token = _MOMENT.set(min(_MOMENT.get(), math.inf if moment is None else moment))
    try:
        yield
    finally:
        _MOMENT.reset(token)


def is_timed() -> bool:
    """Say whether there is a moment at all."""
    return _MOMENT.get() < math.inf


def time_left() -> float:
    """Return the seconds until the moment, infinite where there is none."""
    return _MOMENT.get() - time.monotonic()


def check_time() -> None:
    """Raise `OutOfTime` if the moment has come.

    Call it only where what was begun can be begun again: the caller takes the state from before.
    """
    if time.monotonic() >= _MOMENT.get():
        raise OutOfTime
