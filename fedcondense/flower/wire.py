"""Tasks and answers as Flower messages, and the checks of both ways: nothing that arrives is trusted.

A question holds its numbers and texts in the ConfigRecord ``config``, weights and sets as one uint8 Array each, and
says in ``about`` who speaks, up to which wire it reads answers, and its class names by a digest. An answer of wire 3 is
one ConfigRecord ``answer``: its file (`fedcondense.flower.short_files`), two numbers and the site's name; every further
record or Array of Flower takes some 200 bytes. Wire 4 is the same with ``shares``: other sites may have the set. Wire 5
has ``broken``, too: how many image files could not be read; whoever reads it may be told that an answer is held
(`fedcondense.flower.held`). A question that names no wire of answers, and a large file, is answered by wire 2: one
uint8 Array ``payload/file``, the numbers ``metrics`` and ``about``.
Wire 1, before fedcondense had tasks, knew ``query.condense`` alone: its questions have no ``about``, and its answers
call the payload ``synthetic``. Both are read, and a wire-1 server is answered in kind,
though with a set file of version 2, which a server of a release before it refuses by that version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Question
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.payloads import Payload, Weights
from fedcondense.flower.settings import number, read
from fedcondense.flower.short_files import MOST_BYTES, digest_of, pack_file, unpack_file
from fedcondense.flower.untrusted import count_of, safe_text, seconds_of, some_names, untrusted_array
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "ANSWERS",
    "CARRIED",
    "NO_DATA",
    "WIRE",
    "About",
    "Received",
    "carried_by",
    "own_version",
    "pack_answer",
    "pack_question",
    "read_answer",
    "read_question",
]

WIRE = 2
"""The version of questions; it changes when an older receiver would misread one."""

ANSWERS = 5
"""The newest version of answers that this library reads, and writes to whoever says so."""

_SHORT, _SHARES, _BROKEN = 3, 4, 5
"""Versions of answers: the first in one record, and the first that say ``shares`` and ``broken``."""

NO_DATA = "has no data"
"""How the reason of a node ends that is left out and has not failed."""

CARRIED = (Weights, Packed, SyntheticSet)
"""Kinds of fields that travel in records of their own."""

T = TypeVar("T", bound=Question)


def own_version() -> str:
    """Return the version of this package."""
    try:
        return version("fedcondense")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "unknown"


@dataclass(frozen=True)
class About:
    """Who speaks; a message's ``about`` record.

    Args:
        wire: The version of the message.
        version: Of the speaker's fedcondense.
        task: What is asked or answered.
        round: Of the run.
        site: What an answering node calls itself.
        answers: The newest wire of answers that whoever asks reads.
        classes: A digest of the class names that the question expects; empty: it expects none.
        shares: Whether an answering node lets its set go to other sites.
        broken: Image files that an answering node could not read.
        waits: Seconds that a node may wait for its people, once whoever asks was told that the answer is held.
    """

    wire: int = number(1, 1)
    version: str = "0.1.0 or older"
    task: str = "condense"
    round: int = number(1, 0)
    site: str = ""
    answers: int = number(2, 1)
    classes: str = ""
    shares: bool = False
    broken: int = number(0, 0)
    waits: int = number(0, 0)

    @classmethod
    def of(cls, content: RecordDict) -> About:
        """Read who speaks; a message without the record is of wire 1."""
        record = content.get("about")
        if record is None:
            return cls()
        if not isinstance(record, ConfigRecord):
            raise SettingError("'about' is no ConfigRecord; the sender speaks another protocol")
        known = {item.name for item in fields(cls)}
        return read(cls, {key: value for key, value in record.items() if key in known}, "about")

    def record(self) -> ConfigRecord:
        """Return it as a record; what only questions of today say is left out elsewhere."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        usual = {"answers": 2, "classes": "", "shares": False, "broken": 0, "waits": 0}
        return ConfigRecord({k: v for k, v in values.items() if k not in usual or v != usual[k]})


class Received(NamedTuple):
    """An answer as it was read, before a run's limits are held against it."""

    payload: Any
    about: About
    num_examples: int
    seconds: float


def carried_by(kind: type[Question]) -> dict[str, tuple[type[Payload], bool]]:
    """Return the fields of a task that travel in records of their own: what they are, and whether they may be None."""
    found = {}
    for name, hint in get_type_hints(kind).items():
        kinds = [one for one in (get_args(hint) or (hint,)) if one in CARRIED]
        if kinds:
            found[name] = (kinds[0], type(None) in get_args(hint))
    return found


def pack_question(task: Question, server_round: int, classes: Sequence[str] | None = None) -> RecordDict:
    """Return a question's content: the task's fields.

    Args:
        task: What is asked.
        server_round: Of the run.
        classes: Names that answers are expected to have; those who have them need not send them.
    """
    carried = carried_by(type(task))
    about = About(WIRE, own_version(), task.name, server_round, "", ANSWERS, digest_of(classes) if classes else "")
    records: dict[str, Any] = {"about": about.record()}
    config: dict[str, Any] = {}
    for item in fields(task):  # type: ignore[arg-type]
        value, key = getattr(task, item.name), item.name.replace("_", "-")
        if item.name in carried:
            if value is None:
                continue
            records[key] = ArrayRecord({"file": Array(np.frombuffer(value.to_bytes(), np.uint8))})
        elif "later" not in item.metadata or value != item.default:
            config[key] = list(value) if isinstance(value, tuple) else value
    records["config"] = ConfigRecord(config)
    return RecordDict(records)


def read_question(content: RecordDict, kind: type[T], limits: Limits) -> T:
    """Read a question of unknown origin as a task of `kind`.

    Args:
        content: A message's.
        kind: The node's own class for the name that was asked.
        limits: Of what a field may carry.

    Raises:
        SettingError: Fields that are unknown, missing, of another type or out of bounds, all in one line.
        UntrustedSetError: Weights or a set that are not sound.
    """
    config = content.get("config", ConfigRecord())
    if not isinstance(config, ConfigRecord):
        raise SettingError("'config' is no ConfigRecord; the sender speaks another protocol")
    values: dict[str, Any] = {**config}
    for name, (what, may_lack) in carried_by(kind).items():
        key = name.replace("_", "-")
        record = content.get(key)
        if record is None and may_lack:
            continue
        if not isinstance(record, ArrayRecord) or set(record) != {"file"}:
            raise SettingError(f"the question has no {key}, an ArrayRecord with one Array 'file'")
        values[key] = what.from_bytes(untrusted_array(record["file"], ("uint8",), limits.nbytes).data, limits)
    return read(kind, values, "the question")


def pack_answer(
    payload: Payload,
    asked: About,
    site: tuple[str, int],
    num_examples: int,
    seconds: float,
    classes: Sequence[str] = (),
    shares: bool = False,
    broken: int = 0,
) -> RecordDict:
    """Return an answer's content, in the newest wire that the question reads.

    Args:
        payload: What is sent.
        asked: The question's own record.
        site: What this node calls itself, and its number, which wire 1 knows it by.
        num_examples: Real records that were asked.
        seconds: What the work took.
        classes: Names of the node's classes, in order.
        shares: Whether the node lets its set go to other sites; a server that reads no wire 4 may not be told.
        broken: Image files that could not be read; a server that reads no wire 5 is not told.
    """
    (name, place), blob = site, payload.to_bytes()
    if asked.wire > 1 and asked.answers >= _SHORT and len(blob) <= MOST_BYTES:
        packed = pack_file(blob, classes if classes and digest_of(classes) == asked.classes else ())
        said: dict[str, Any] = {"records": num_examples, "seconds": seconds, "site": name, "wire": _SHORT}
        if broken and asked.answers >= _BROKEN:
            said |= {"wire": _BROKEN, "shares": shares, "broken": broken}
        elif shares and asked.answers >= _SHARES:
            said |= {"wire": _SHARES, "shares": True}
        return RecordDict({"answer": ConfigRecord({"file": packed, **said})})
    file = ArrayRecord({"file": Array(np.frombuffer(blob, np.uint8))})
    numbers: dict[str, Any] = {"num-examples": num_examples, "seconds": seconds, "bytes": len(blob)}
    if asked.wire == 1:
        return RecordDict({"synthetic": file, "metrics": MetricRecord({**numbers, "partition-id": place})})
    about = About(WIRE, own_version(), asked.task, asked.round, name, shares=shares, broken=broken).record()
    return RecordDict({"payload": file, "metrics": MetricRecord(numbers), "about": about})


def read_answer(
    content: RecordDict, kind: type[Payload], limits: Limits, classes: Sequence[str] | None = None
) -> Received:
    """Read an answer of unknown origin.

    Args:
        content: A message's.
        kind: What was asked for.
        limits: Of the payload.
        classes: Names that the question gave to `pack_question`.

    Raises:
        UntrustedSetError: It is not as `pack_answer` makes it, or breaks a limit; the text is safe to show.
    """
    try:
        short = content.get("answer")
        if isinstance(short, ConfigRecord):
            return _read_short(content, short, kind, limits, classes or ())
        return _read_answer(content, kind, limits)
    except UntrustedSetError as refused:
        raise UntrustedSetError(safe_text(str(refused))) from None
    except Exception as surprise:  # records of wrong kinds, numbers of wrong types: the sender's doing, not a bug here
        raise UntrustedSetError(safe_text(f"malformed reply ({type(surprise).__name__}: {surprise})")) from None


def _read_short(
    content: RecordDict, said: ConfigRecord, kind: type[Payload], limits: Limits, classes: Sequence[str]
) -> Received:
    wire, file, site = said.get("wire"), said.get("file"), said.get("site")
    if type(wire) is int and wire > ANSWERS:
        raise UntrustedSetError(f"it answers by wire {wire}, this server reads {ANSWERS}; update fedcondense here")
    more: dict[Any, tuple[str, ...]] = {_SHARES: ("shares",), _BROKEN: ("shares", "broken")}
    holds = {"file", "records", "seconds", "site", "wire", *more.get(wire, ())}
    if wire not in (_SHORT, *more) or set(content) != {"answer"} or set(said) != holds:
        raise UntrustedSetError(f"an answer of {some_names(said)}; needed: file, records, seconds, site, wire")
    if not isinstance(file, bytes) or not isinstance(site, str):
        raise UntrustedSetError("an answer whose file is no bytes, or whose site is no text")
    if len(file) > limits.nbytes:
        raise UntrustedSetError(f"a file of {len(file)} bytes; allowed: {limits.nbytes}")
    blob = unpack_file(file, classes, limits.header)
    numbers = count_of(said, "records"), seconds_of(said)
    speaker = read(About, {"site": site, **{name: said[name] for name in more.get(wire, ())}}, "about")
    return Received(kind.from_bytes(memoryview(blob), limits), speaker, *numbers)


def _read_answer(content: RecordDict, kind: type[Payload], limits: Limits) -> Received:
    about = About.of(content)
    if about.wire > WIRE:
        spoken = f"it speaks wire {about.wire} (fedcondense {about.version})"
        raise UntrustedSetError(f"{spoken}, this server wire {WIRE}; update fedcondense here")
    holds = {"synthetic", "metrics"} if about.wire == 1 else {"payload", "metrics", "about"}
    if set(content) != holds:
        raise UntrustedSetError(f"holds records {some_names(content)}; needed: {', '.join(sorted(holds))}")
    arrays, metrics = content["synthetic" if about.wire == 1 else "payload"], content["metrics"]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {"file"}:
        raise UntrustedSetError("the payload is no ArrayRecord with one Array 'file'")
    if not isinstance(metrics, MetricRecord):
        raise UntrustedSetError("'metrics' is no MetricRecord")
    num_examples = count_of(metrics, "num-examples")
    if about.wire == 1:
        about = About(site=f"client-{count_of(metrics, 'partition-id')}")
    seconds = seconds_of(metrics)
    file = untrusted_array(arrays["file"], ("uint8",), limits.nbytes)
    if file.ndim != 1:
        raise UntrustedSetError(f"the file has {file.ndim} dimensions; needed: 1")
    return Received(kind.from_bytes(file.data, limits), about, num_examples, seconds)
