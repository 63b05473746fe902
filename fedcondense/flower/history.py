"""What each round of a run took and gave: counted while it runs, an entry of ``result.json``, a line of the log.

An entry has ``round``; ``accuracy`` (percent) if it was measured, and of a stream ``seen``, that on the classes so far;
``sites_accuracy`` if sites were asked; ``asked``, ``answered`` and ``refused`` sites, ``held``, those that hold their
answer for review, if there are any, and ``sites``, who were asked so far; ``bytes_up`` and ``bytes_down``, means over
the sites asked in the round, and ``total_up`` and ``total_down``; ``seconds`` (wall clock, without measuring),
``server_seconds`` (of them not spent waiting), ``client_seconds`` and ``client_seconds_max`` (as sites say, where they
do), and ``memory``, the largest that the server's process has been so far, in bytes.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

from fedcondense.flower.contract import Answer
from fedcondense.flower.inbox import Refusal, is_absent
from fedcondense.flower.replies import Mailbox
from fedcondense.flower.serialised import bytes_of_each
from fedcondense.loggers import log_numbers

__all__ = ["Tally", "accuracy_in", "line_of", "tell"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us

_FELL = 5.0  # points below the best round, from which on it is said

P = ParamSpec("P")
R = TypeVar("R")


class Tally:
    """Counts what one round takes, from when it is made."""

    def __init__(self) -> None:
        self.asked, self.refused, self.answered, self.held = set[int](), set[int](), set[int](), set[int]()  # by node
        self.up = self.down = 0  # bytes of messages
        self.seconds: list[float] = []  # of sites
        self._began, self._waited = time.monotonic(), 0.0

    def sends(self, node: int, nbytes: int) -> None:
        """Count a question."""
        self.asked.add(node)
        self.down += nbytes

    def takes(self, node: int, nbytes: int, seconds: float | None = None) -> None:
        """Count a usable answer, and the site's seconds if it says them."""
        self.answered.add(node)
        self.up += nbytes
        if seconds is not None:
            self.seconds.append(seconds)

    def reads(self, mailbox: Mailbox, answers: Iterable[Answer[Any]], refused: Iterable[Refusal]) -> None:
        """Count a stage: what was sent, the usable answers, and who was left out; who is absent has refused nothing."""
        for sent, nbytes in zip(mailbox.pushed, bytes_of_each(one.message for one in mailbox.pushed), strict=True):
            self.sends(sent.site.node, nbytes)
        for answer in answers:
            self.takes(answer.site.node, answer.nbytes, answer.seconds)
        self.held = (self.held - {answer.site.node for answer in answers}) | mailbox.held
        self.refused |= {one.site.node for one in refused if not is_absent(one.reason)} - mailbox.held

    def evaluates(self, mailbox: Mailbox) -> None:
        """Count the bytes of what sites were asked about the weights, and of what they said."""
        self.up += sum(answer.nbytes for answer in mailbox.answers.values())
        self.down += mailbox.bytes_down()

    def waits(self, function: Callable[P, R], *given: P.args, **more: P.kwargs) -> R:
        """Call a function, and count its time as that in which the server waits for sites."""
        began = time.monotonic()
        try:
            return function(*given, **more)
        finally:
            self._waited += time.monotonic() - began

    @property
    def spent(self) -> dict[str, float]:
        """What it took of all sites: bytes up and down, and their seconds."""
        return {"bytes-up": float(self.up), "bytes-down": float(self.down), "client-seconds": sum(self.seconds, 0.0)}

    def entry(self, server_round: int, sites: int) -> dict[str, Any]:
        """Return the round's entry; `sites` is how many were asked so far, in all rounds."""
        seconds, asked = time.monotonic() - self._began, max(1, len(self.asked))
        entry: dict[str, Any] = {
            "round": server_round,
            "asked": len(self.asked),
            "answered": len(self.answered - self.refused),
            "refused": len(self.refused),
            "sites": sites,
            "bytes_up": round(self.up / asked, 1),
            "bytes_down": round(self.down / asked, 1),
            "total_up": self.up,
            "total_down": self.down,
            "seconds": round(seconds, 3),
            "server_seconds": round(seconds - self._waited, 3),
        }
        if self.held:
            entry["held"] = len(self.held)
        if self.seconds:
            entry["client_seconds"] = round(sum(self.seconds) / len(self.seconds), 3)
            entry["client_seconds_max"] = round(max(self.seconds), 3)
        memory = _peak_memory()
        return entry if memory is None else {**entry, "memory": memory}


def accuracy_in(metrics: Mapping[str, Any] | None) -> dict[str, float]:
    """Return what an entry takes of what was measured after a round."""
    return {name: round(float(metrics[name]), 3) for name in ("accuracy", "seen") if metrics and name in metrics}


def tell(rounds: Sequence[Mapping[str, Any]]) -> None:
    """Write the last round to the log, and its numbers to the logger that is open; warn if it undid much."""
    entry = rounds[-1]
    _LOG.info(line_of(entry))
    known = [(one["accuracy"], one["round"]) for one in rounds if one.get("accuracy") is not None]
    if known and entry.get("accuracy") is not None and (best := max(known))[0] - entry["accuracy"] > _FELL:
        _LOG.warning(
            "round %d: %.1f %%, where round %d had %.1f %%; the folder's network is the last round's, and min-replies "
            "says how many sites a round needs",
            *(entry["round"], entry["accuracy"], best[1], best[0]),
        )
    log_numbers(entry["round"], {name: value for name, value in entry.items() if name != "round"})


def line_of(entry: Mapping[str, Any]) -> str:
    """Return what the log says of a round.

    >>> line_of({"round": 3, "accuracy": 86.1, "asked": 10, "answered": 8, "bytes_up": 26e3, "bytes_down": 27e3,
    ...          "seconds": 12.3})
    'round 3: 86.1 %, 8 of 10 answered, 26 kB up and 27 kB down per site, 12 s'
    """
    from fedcondense.report.units import human_bytes  # here: nodes import this module, and need no reports

    found = entry.get("accuracy", entry.get("sites_accuracy"))
    at_sites = " at sites" if "accuracy" not in entry else ""
    accuracy = "" if found is None else f"{found:.1f} %{at_sites}, "
    travelled = f"{human_bytes(entry['bytes_up'])} up and {human_bytes(entry['bytes_down'])} down per site"
    held = f", {entry['held']} held for review there" if entry.get("held") else ""
    answered = f"{entry['answered']} of {entry['asked']} answered{held}"
    return f"round {entry['round']}: {accuracy}{answered}, {travelled}, {entry['seconds']:.0f} s"


def _peak_memory() -> int | None:
    """Return the most bytes that this process has held at once; None where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
