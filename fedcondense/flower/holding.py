"""Answers that wait for their people: with ``send = ask`` in a node's config nothing leaves before somebody agreed.

An answer lies in a private folder beside the node's ledger until `decide` names its SHA-256: that of the payload's
bytes, which an equal question gives again. What was agreed holds for these bytes and no others.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedcondense.errors import ResumeError, SettingError
from fedcondense.flower.held import HELD
from fedcondense.flower.private_files import remove, write_private

__all__ = ["DECISIONS", "HeldAnswer", "Holding", "sha256_of"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
DECISIONS = ("send", "withhold")
_POLL, _REMIND = 0.5, 60.0  # seconds


@dataclass(frozen=True)
class HeldAnswer:
    """What waits, or waited, for a decision.

    Args:
        sha256: Of the payload's bytes.
        site: What the node calls itself.
        task: What was asked.
        round: As the server says.
        version: Of the server's fedcondense, as it says.
        when: It was made, in UTC.
        nbytes: Of the payload.
        records: That it was made from; the number leaves with it.
        counts: Records of each class, which leave with a set.
        seen: Who will have it, in words.
        decision: Empty while it waits; else one of `DECISIONS`.
    """

    sha256: str
    site: str
    task: str
    round: int
    version: str
    when: str
    nbytes: int
    records: int
    counts: Mapping[str, int]
    seen: str
    decision: str = ""


def sha256_of(blob: bytes) -> str:
    """Return the name of a payload's bytes."""
    return hashlib.sha256(blob).hexdigest()


class Holding:
    """The answers of a node that wait; it holds no state, so that any number of processes agree.

    Args:
        folder: Where; it is made, closed to others.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def hold(self, blob: bytes, **about: Any) -> HeldAnswer:
        """Put an answer there, unless it is; return it with what was decided."""
        name = sha256_of(blob)
        path = self._path(name)
        if path.exists():
            return self._read(path)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        when = datetime.now(UTC).isoformat(timespec="seconds")
        made = HeldAnswer(name, when=when, nbytes=len(blob), **about)
        write_private(path.with_suffix(".payload"), blob)
        self._write(made)
        return made

    def wait(self, held: HeldAnswer, seconds: float, command: str = "fedcondense review CONFIG") -> None:
        """Return when somebody agreed that an answer leaves.

        Raises:
            SettingError: Somebody decided against it, or nobody decided in so many seconds; the text travels.
        """
        path, began, told = self._path(held.sha256), time.monotonic(), -_REMIND
        while not held.decision:
            waited = time.monotonic() - began
            if waited - told >= _REMIND:
                told = waited
                _LOG.info(
                    "%s holds an answer of %d bytes, %s: look at it by `%s`",
                    held.site,
                    held.nbytes,
                    held.sha256[:12],
                    command,
                )
            if waited >= seconds:
                raise SettingError(f"{HELD}; ask again later")
            time.sleep(min(_POLL, max(0.0, seconds - waited)))
            held = self._read(path)
        if held.decision != "send":
            raise SettingError("this site's people looked at the answer and keep it")

    def note(self, config: Mapping[str, Any]) -> Path:
        """Keep a node's config beside its answers, and return the file: `fedcondense review` takes it."""
        path = self.folder.absolute() / "node.toml"
        lines = (f"{json.dumps(key)} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in config.items())
        blob = "".join(lines).encode()
        if not path.exists() or path.read_bytes() != blob:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(path, blob)
        return path

    def all(self) -> list[HeldAnswer]:
        """Return all that waited here, the oldest first."""
        found = [self._read(path) for path in self.folder.glob("*.json")] if self.folder.is_dir() else []
        return sorted(found, key=lambda one: (one.when, one.sha256))

    def payload(self, held: HeldAnswer) -> bytes:
        """Return the bytes of an answer.

        Raises:
            ResumeError: They are gone, or not those of its name.
        """
        path = self._path(held.sha256).with_suffix(".payload")
        if held.decision == "send" and not path.exists():
            raise ResumeError(f"{held.sha256[:12]} has left, and its bytes are not kept; the node's log has its line")
        blob = path.read_bytes() if path.exists() else b""
        if sha256_of(blob) != held.sha256:
            raise ResumeError(f"{path} is damaged or gone; delete {path.with_suffix('.json')}, and it is made again")
        return blob

    def find(self, start: str) -> HeldAnswer:
        """Return the one answer whose SHA-256 starts so.

        Raises:
            SettingError: There is none, or more than one.
        """
        everything = self.all()
        found = [one for one in everything if start and one.sha256.startswith(start.lower())]
        if len(found) != 1:
            waiting = ", ".join(one.sha256[:12] for one in everything if not one.decision) or "none"
            which = "several answers start" if found else "no answer here starts"
            raise SettingError(f"{which} with {start!r:.80}; waiting: {waiting}")
        return found[0]

    def decide(self, held: HeldAnswer, decision: str) -> HeldAnswer:
        """Write down what becomes of an answer, whose bytes are checked first.

        Raises:
            SettingError: It was sent before: what left cannot be recalled. What was withheld may still leave.
        """
        if decision not in DECISIONS:
            raise SettingError(f"decision {decision!r}; needed: {' or '.join(DECISIONS)}")
        if held.decision == decision:
            return held
        if held.decision == "send":  # but what was withheld is still here, and may leave
            raise SettingError(f"{held.sha256[:12]} was decided before: send; what left cannot be recalled")
        self.payload(held)
        decided = HeldAnswer(**{**vars(held), "decision": decision})
        self._write(decided)
        return decided

    def forget(self, held: HeldAnswer) -> None:
        """Remove the bytes of an answer that left; the node's log says what it was."""
        remove(self._path(held.sha256).with_suffix(".payload"))

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _write(self, held: HeldAnswer) -> None:
        write_private(self._path(held.sha256), json.dumps(asdict(held), indent=1).encode())

    def _read(self, path: Path) -> HeldAnswer:
        try:
            entry = json.loads(path.read_bytes())
            found = HeldAnswer(**{item.name: entry[item.name] for item in fields(HeldAnswer)})
            if found.sha256 != path.stem or found.decision not in ("", *DECISIONS):
                raise ValueError("of another answer")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ResumeError(f"{path} cannot be read ({error}); delete it, and the answer waits anew") from None
        return found
