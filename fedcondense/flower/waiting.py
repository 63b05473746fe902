"""When the log says for whom a server waits: after ten seconds, then more and more seldom; and how it names them."""

from __future__ import annotations

import time
from collections.abc import Iterable

from fedcondense.flower.contract import Site

__all__ = ["Waiting", "named"]

_FIRST_S, _SELDOM_S = 10.0, 60.0  # until the first line, and between two lines at most
_NAMED = 10


class Waiting:
    """Says when the next line on a wait is due, which begins when this is made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._due = self._began + _FIRST_S

    @property
    def seconds(self) -> float:
        """How long the wait is."""
        return time.monotonic() - self._began

    def is_due(self) -> bool:
        """Say whether a line is due; the next one then is after as long again as was waited, a minute at most."""
        now = time.monotonic()
        if now < self._due:
            return False
        self._due = now + min(now - self._began, _SELDOM_S)
        return True


def named(sites: Iterable[Site]) -> str:
    """Return the names of sites, ten at most, and how many more there are."""
    names = [site.name or f"node {site.node}" for site in sites]
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
