"""Tasks and answers as Flower messages, and the checks of both ways: nothing that arrives is trusted.

A question holds its numbers and texts in the ConfigRecord ``config``, weights and sets as one uint8 Array each, and
says in ``about`` who speaks. An answer holds one uint8 Array ``payload/file``, the numbers ``metrics`` and ``about``.
Wire 1, before fedcondense had tasks, knew ``query.condense`` alone: its questions have no ``about``, and its answers
call the payload ``synthetic``. Both are read, and a wire-1 server is answered in kind,
though with a set file of version 2, which a server of a release before it refuses by that version.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple, TypeVar, get_type_hints

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib import format as npy

from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Question
from fedcondense.flower.payloads import Payload, Weights
from fedcondense.flower.settings import number, read
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "CARRIED",
    "NO_DATA",
    "WIRE",
    "About",
    "Received",
    "own_version",
    "pack_answer",
    "pack_question",
    "read_answer",
    "read_question",
    "safe_text",
    "untrusted_array",
]

WIRE = 2
"""The version of messages; it changes when an older receiver would misread one."""

NO_DATA = "has no data"
"""How the reason of a node ends that is left out and has not failed."""

CARRIED = (Weights, SyntheticSet)
"""Kinds of fields that travel in records of their own."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_HTML = str.maketrans({"<": "(", ">": ")", "&": "+"})
_NPY_OVERHEAD = 256  # the npy header of one uint8 vector takes 128 bytes

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
    """

    wire: int = number(1, 1)
    version: str = "0.1.0 or older"
    task: str = "condense"
    round: int = number(1, 0)
    site: str = ""

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
        """Return it as a record."""
        return ConfigRecord({item.name: getattr(self, item.name) for item in fields(self)})


class Received(NamedTuple):
    """An answer as it was read, before a run's limits are held against it."""

    payload: Any
    about: About
    num_examples: int
    seconds: float


def pack_question(task: Question, server_round: int) -> RecordDict:
    """Return a question's content: the task's fields."""
    kinds = get_type_hints(type(task))
    records: dict[str, Any] = {"about": About(WIRE, own_version(), task.name, server_round).record()}
    config: dict[str, Any] = {}
    for item in fields(task):  # type: ignore[arg-type]
        value, key = getattr(task, item.name), item.name.replace("_", "-")
        if kinds[item.name] in CARRIED:
            records[key] = ArrayRecord({"file": Array(np.frombuffer(value.to_bytes(), np.uint8))})
        else:
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
    kinds = get_type_hints(kind)
    config = content.get("config", ConfigRecord())
    if not isinstance(config, ConfigRecord):
        raise SettingError("'config' is no ConfigRecord; the sender speaks another protocol")
    carried = {name: what for name, what in kinds.items() if what in CARRIED}
    values: dict[str, Any] = {**config}
    for name, what in carried.items():
        key = name.replace("_", "-")
        record = content.get(key)
        if not isinstance(record, ArrayRecord) or set(record) != {"file"}:
            raise SettingError(f"the question has no {key}, an ArrayRecord with one Array 'file'")
        values[key] = what.from_bytes(untrusted_array(record["file"], ("uint8",), limits.nbytes).data, limits)
    return read(kind, values, "the question")


def pack_answer(payload: Payload, asked: About, site: tuple[str, int], num_examples: int, seconds: float) -> RecordDict:
    """Return an answer's content, in the wire that the question spoke.

    Args:
        payload: What is sent.
        asked: The question's own record.
        site: What this node calls itself, and its number, which wire 1 knows it by.
        num_examples: Real records that were asked.
        seconds: What the work took.
    """
    name, place = site
    blob = np.frombuffer(payload.to_bytes(), np.uint8)
    numbers: dict[str, Any] = {"num-examples": num_examples, "seconds": seconds, "bytes": len(blob)}
    file = ArrayRecord({"file": Array(blob)})
    if asked.wire == 1:
        return RecordDict({"synthetic": file, "metrics": MetricRecord({**numbers, "partition-id": place})})
    about = About(WIRE, own_version(), asked.task, asked.round, name).record()
    return RecordDict({"payload": file, "metrics": MetricRecord(numbers), "about": about})


def read_answer(content: RecordDict, kind: type[Payload], limits: Limits) -> Received:
    """Read an answer of unknown origin.

    Raises:
        UntrustedSetError: It is not as `pack_answer` makes it, or breaks a limit; the text is safe to show.
    """
    try:
        return _read_answer(content, kind, limits)
    except UntrustedSetError as refused:
        raise UntrustedSetError(safe_text(str(refused))) from None
    except Exception as surprise:  # records of wrong kinds, numbers of wrong types: the sender's doing, not a bug here
        raise UntrustedSetError(safe_text(f"malformed reply ({type(surprise).__name__}: {surprise})")) from None


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
    num_examples = _whole(metrics, "num-examples")
    if about.wire == 1:
        about = About(site=f"client-{_whole(metrics, 'partition-id')}")
    seconds = metrics.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise UntrustedSetError("'seconds' is no number from 0, below 1e12")
    file = untrusted_array(arrays["file"], ("uint8",), limits.nbytes)
    if file.ndim != 1:
        raise UntrustedSetError(f"the file has {file.ndim} dimensions; needed: 1")
    return Received(kind.from_bytes(file.data, limits), about, num_examples, float(seconds))


def _whole(metrics: MetricRecord, key: str) -> int:
    value = metrics.get(key)
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise UntrustedSetError(f"{key!r} is no whole number from 0")
    return value


def untrusted_array(array: Array, dtypes: Iterable[str], max_bytes: int) -> np.ndarray:
    """Read an Array whose sender may lie: its npy header is checked before anything of its size is allocated.

    `Array.numpy()` allocates what the header says, whatever follows it; `Array.shape` and `.dtype` are claims that
    nobody compares with the data.

    Args:
        array: As it arrived.
        dtypes: Names of the dtypes that are allowed.
        max_bytes: How large the data may be.

    Returns:
        A read-only view of the message's own bytes.

    Raises:
        UntrustedSetError: The header is of another kind, dtype or size than allowed, or not that of the data.
    """
    if array.stype != "numpy.ndarray":
        raise UntrustedSetError(f"an Array serialised as {array.stype[:40]!r}; needed: numpy.ndarray")
    if len(array.data) > max_bytes + _NPY_OVERHEAD:
        raise UntrustedSetError(f"an Array of {len(array.data)} bytes; allowed: {max_bytes}")
    file = io.BytesIO(array.data)
    try:
        if npy.read_magic(file) != (1, 0):
            raise UntrustedSetError("an npy header that is not version 1.0")
        shape, fortran, dtype = npy.read_array_header_1_0(file)
    except UntrustedSetError:
        raise
    except Exception as damaged:  # numpy raises ValueError, TypeError, SyntaxError and more on hostile headers
        raise UntrustedSetError(f"a damaged npy header ({type(damaged).__name__})") from None
    if fortran or dtype.hasobject or dtype.name not in tuple(dtypes):
        raise UntrustedSetError(f"an Array of dtype {dtype.name}; allowed: {', '.join(dtypes)}, C order")
    size = math.prod(shape) * dtype.itemsize  # Python's integers do not overflow
    if min(shape, default=0) < 0 or size != len(array.data) - file.tell():
        raise UntrustedSetError(f"an Array whose header says {size} bytes; {len(array.data) - file.tell()} follow")
    if size > max_bytes:
        raise UntrustedSetError(f"an Array of {size} bytes; allowed: {max_bytes}")
    return np.frombuffer(array.data, dtype, offset=file.tell()).reshape(shape)


def safe_text(text: str, length: int = 300) -> str:
    r"""Return the last line of a text from elsewhere without control characters, colour codes or HTML, shortened.

    >>> safe_text("Traceback ...\n\x1b[36mValueError: <b>bad</b>\x1b[0m\n")
    'ValueError: (b)bad(/b)'
    """
    lines = [line.strip() for line in _ANSI.sub("", text[-100_000:]).splitlines() if line.strip()]
    line = "".join(c if c.isprintable() else "?" for c in (lines[-1] if lines else "no reason given"))
    return (line if len(line) <= length else line[: length - 3] + "...").translate(_HTML)


def some_names(names: Iterable[str] | Mapping[str, object]) -> str:
    """Return the first five names, quoted and shortened, and how many more there are."""
    some = sorted(str(name)[:40] for name in names)
    return ", ".join(map(repr, some[:5])) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
