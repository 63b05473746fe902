"""A node's log: who asked what, what the node decided, and what left; a line per question in a file that only grows.

It lies beside the ledger and is chained like it (`fedcondense.flower.chain`): edits, cuts and missing lines show. The
ledger counts what work will give away, before it begins. The log says afterwards what came of a question; refusals have
a line, too, also of questions that nobody read. A line is on the disk before the answer leaves. Where it cannot be
written (a full disk, a damaged log), the answer is withheld and the server is told so: nothing leaves without a line.
What was charged for it stays charged; a node with a ``cache`` keeps the answer, and sends it when it is asked again. A
process that dies in its work leaves a charge in the ledger and no line here.

Only the node's own people read it. What a server says of itself (version, round) is written down as it was said.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedcondense.errors import FedcondenseError, ResumeError
from fedcondense.flower.chain import turn
from fedcondense.flower.serialised import content_bytes
from fedcondense.flower.untrusted import safe_text
from fedcondense.flower.wire import About

__all__ = ["LogLine", "NodeLog", "line_of", "note_outcome"]

_OUTCOME: ContextVar[str] = ContextVar("_OUTCOME", default="")
_REMARK: ContextVar[str] = ContextVar("_REMARK", default="")

_FIELDS = 20  # of a question, at most: a line must not be as long as whoever asks likes
_LONG = 60  # characters of a field, at most


@dataclass(frozen=True)
class LogLine:
    """A question and what came of it.

    Args:
        when: In UTC, to the second.
        task: The name that was asked by: a task's, or Flower's ``train`` and ``evaluate``.
        round: As the server says.
        run: Flower's id of the run; 0 where there is none.
        version: Of the server's fedcondense, as it says.
        wire: Of the question.
        asked: Its fields in short, up to twenty; of what it carries, how many bytes.
        question: SHA-256 by which Flower names the question's content; it covers all of its parts.
        decision: ``answered``, ``kept`` (the answer was kept from before, and left again), ``refused`` or ``failed``.
        reason: Why there was no answer, as the server was told; of one that people agreed to, the SHA-256 that they did
            (of its payload, without the numbers around it).
        nbytes: Of the answer's content, as it is sent; 0 for a refusal.
        sha256: By which Flower names the answer's content; empty for a refusal.
    """

    when: str = ""
    task: str = ""
    round: int = 0
    run: int = 0
    version: str = ""
    wire: int = 0
    asked: Mapping[str, Any] = field(default_factory=dict)
    question: str = ""
    decision: str = ""
    reason: str = ""
    nbytes: int = 0
    sha256: str = ""


@dataclass(frozen=True)
class NodeLog:
    """The lines of a file; it holds no state, so that any number of processes agree.

    An append reads the whole file to see that nobody changed it: half a second at 100,000 lines of some 500 bytes.
    """

    path: Path

    def check(self) -> None:
        """Refuse a log that is damaged or cannot be opened, before any work; a file is begun where there is none.

        Raises:
            ResumeError: It is damaged, cut or missing.
            OutputError: It cannot be opened or made.
        """
        with turn(self.path):
            pass

    def append(self, line: LogLine) -> None:
        """Add a line; it is on the disk when this returns.

        Raises:
            ResumeError: The file is damaged; see `check`.
            OutputError: The disk is full, say.
        """
        with turn(self.path) as file:
            file.append(json.dumps(asdict(line)).encode())  # ASCII without a line break, whatever was given

    def lines(self) -> tuple[list[LogLine], int]:
        """Return all lines, and how many pieces of lines are left of processes that died; nothing is begun.

        Raises:
            ResumeError: The file is damaged; see `check`.
        """
        if not self.path.exists() and not self.path.with_name(f".{self.path.name}.head").exists():
            return [], 0
        with turn(self.path) as file:
            return [_read(self.path, text) for text in file.lines], file.torn


def note_outcome(outcome: str, remark: str = "") -> None:
    """Say where it is known what comes of this message: ``kept`` or ``failed``, or nothing yet; `line_of` reads it.

    A remark stands in the place of the reason of what was answered.

    Ray sends handlers to other processes by value, which what this keeps it in cannot be sent: hence a function.
    """
    _OUTCOME.set(outcome)
    _REMARK.set(remark)


def line_of(message: Message, reply: Message | None, reason: str = "") -> LogLine:
    """Return the line of a question and its reply, whatever they hold.

    Args:
        message: As it arrived.
        reply: As it will leave; None: there is none, since nothing here answers such a message.
        reason: Why, where there is none.
    """
    content = message.content if message.has_content() else RecordDict()
    try:
        about = About.of(content)
    except FedcondenseError:
        about = About(1, "unreadable", "", 0)
    said: dict[str, Any] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": safe_text(message.metadata.message_type.removeprefix("query."), _LONG),
        "round": about.round,
        "run": int(message.metadata.run_id or 0),
        "version": about.version,
        "wire": about.wire,
        "asked": dict(_in_short(content)),
        "question": content.object_id,
    }
    if reply is None or reply.has_error():
        why = reason if reply is None else safe_text(reply.error.reason or f"error {reply.error.code}")
        return LogLine(**said, decision=_OUTCOME.get() or "refused", reason=why)
    nbytes, sha256 = content_bytes(reply.content), reply.content.object_id
    said |= {"decision": _OUTCOME.get() or "answered", "reason": _REMARK.get()}
    return LogLine(**said, nbytes=nbytes, sha256=sha256)


def _in_short(content: RecordDict) -> Iterator[tuple[str, Any]]:
    """Name a question's fields and their values, and the sizes of what it carries, without `about`."""
    found = list[tuple[str, Any]]()
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            found.append((name, f"{record.count_bytes()} bytes"))
        elif name != "about":
            found += record.items() if isinstance(record, ConfigRecord) and name == "config" else [(name, "a record")]
    for name, value in found[:_FIELDS]:
        few = value[:_FIELDS] if isinstance(value, list) else value
        short = few if isinstance(few, int) or few == "" else safe_text(f"{few}"[: 2 * _LONG], _LONG)  # NaN is no JSON
        yield safe_text(name[: 2 * _LONG], _LONG), short
    if len(found) > _FIELDS:
        yield "...", f"{len(found) - _FIELDS} more"


def _read(path: Path, text: bytes) -> LogLine:
    try:
        entry = json.loads(text)
        return LogLine(**{item.name: entry[item.name] for item in fields(LogLine)})
    except (ValueError, LookupError, TypeError):
        raise ResumeError(f"{path} holds a line that is no question: {text[:100]!r}; is it another file?") from None
