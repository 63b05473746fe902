"""Answers that a site holds until its people have looked at them, as nodes say it and servers see it.

A node says at once that it holds an answer, to whoever reads answers of wire 5. The server then asks again, and says
how long the node may wait for its people (``waits``): minutes at most, since a SuperNode serves one message at a time,
and whoever asks next would find it silent.
"""

from __future__ import annotations

from flwr.app import ConfigRecord, RecordDict

__all__ = ["HELD", "HELD_THERE", "TOLD", "as_first", "is_held", "once_more"]

TOLD = 5
"""The wire of answers from which on a server asks once more when it is told that an answer is held."""

_AT_ONCE_S = 300  # seconds that a node waits within one question, at most

HELD = "the answer waits for this site's people to look at it"
"""What the refusal of such a node says, of any version."""

HELD_THERE = "its answer is held for review there"
"""Why a site is left out whose people have not decided in time."""


def is_held(reason: str) -> bool:
    """Say whether a site refuses, or is left out, since its people have not decided."""
    return HELD in reason or reason == HELD_THERE


def once_more(content: RecordDict, seconds: float) -> RecordDict:
    """Return a question again, for a node that may wait so long for its people."""
    waits = max(1, int(min(seconds, _AT_ONCE_S)))
    return RecordDict({**content, "about": ConfigRecord({**content["about"], "waits": waits})})  # type: ignore[dict-item]


def as_first(content: RecordDict) -> RecordDict:
    """Return a question as it was asked first: the answer is the same."""
    about = content.get("about")
    if not isinstance(about, ConfigRecord) or "waits" not in about:
        return content
    return RecordDict({**content, "about": ConfigRecord({k: v for k, v in about.items() if k != "waits"})})
