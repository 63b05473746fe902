"""A synthetic set as a Flower message, and the checks of what arrives as one: nothing in a reply is trusted."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from numpy.lib import format as npy

from fedcondense.data.images import Spec
from fedcondense.errors import UntrustedSetError
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "CONDENSE",
    "Expected",
    "Refusal",
    "Reply",
    "pack",
    "read_replies",
    "safe_text",
    "unpack",
    "untrusted_array",
    "usable_partition",
]

CONDENSE = "query.condense"
"""The message type that asks a client for a synthetic set."""

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
_HTML = str.maketrans({"<": "(", ">": ")", "&": "+"})
_LEAST = {"mean": 0.0, "std": 0.02}
_NPY_OVERHEAD = 256  # the npy header of one uint8 vector takes 128 bytes


@dataclass(frozen=True)
class Expected:
    """What a reply may hold; whatever breaks it is refused by name and the round goes on.

    Args:
        limits: Caps of the set's file, checked before memory is allocated.
        shape: (C, H, W) that images must have; None: that of most replies.
        classes: The class names that may occur; None: any, and the joined set has their union.
        mean: What images are normalised by, a value a channel, whatever the sender normalised its own by; None: as it
            says, within what pixels in [0, 1] can have, since other scales could blow up the training of everybody.
        std: Likewise.
        records: How many real records a client may claim for a class: what its images weigh if asked for.
    """

    limits: Limits = field(
        default_factory=lambda: Limits(16 << 20, decoded=50_000, decoded_bytes=512 << 20, header=1 << 20)
    )
    shape: tuple[int, int, int] | None = None
    classes: tuple[str, ...] | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    records: int = 10_000_000

    @classmethod
    def of(cls, spec: Spec) -> Expected:
        """Expect sets for a data set that the server knows."""
        return cls(shape=spec.shape, classes=spec.classes, mean=spec.mean, std=spec.std)


class Reply(NamedTuple):
    """A usable answer to `CONDENSE`."""

    partition: int
    synthetic: SyntheticSet
    num_examples: int  # real ones, as the client says
    seconds: float  # of condensing, as the client says
    nbytes: int  # of the set's file, counted here


class Refusal(NamedTuple):
    """A node whose answer is left out, and why, in text that is safe to print and to put into HTML."""

    node: int
    reason: str
    partition: int | None = None  # where the reply said so


def pack(synthetic: SyntheticSet, *, partition: int, num_examples: int, seconds: float) -> RecordDict:
    """Return a reply's content: the set's file in one uint8 Array, so that there is one format and one parser.

    Args:
        synthetic: What is sent.
        partition: Who sends it; Flower's node ids change from run to run.
        num_examples: Real images the client has.
        seconds: What condensing took.
    """
    blob = np.frombuffer(synthetic.to_bytes(), np.uint8)
    metrics: dict[str, Any] = {
        "num-examples": num_examples,
        "partition-id": partition,
        "seconds": seconds,
        "bytes": len(blob),
    }
    return RecordDict({"synthetic": ArrayRecord({"file": Array(blob)}), "metrics": MetricRecord(metrics)})


def unpack(content: RecordDict, expected: Expected) -> Reply:
    """Check a reply's content and return what it holds.

    Raises:
        UntrustedSetError: Anything is not as `pack` makes it or `expected` allows; the message is safe to show.
    """
    try:
        return _unpack(content, expected)
    except UntrustedSetError as refused:
        raise UntrustedSetError(safe_text(str(refused))) from None
    except Exception as surprise:  # records of wrong kinds, numbers of wrong types: the sender's doing, not a bug here
        raise UntrustedSetError(safe_text(f"malformed reply ({type(surprise).__name__}: {surprise})")) from None


def _unpack(content: RecordDict, expected: Expected) -> Reply:
    if set(content) != {"synthetic", "metrics"}:
        raise UntrustedSetError(f"holds records {_names(content)}; needed: synthetic, metrics")
    arrays, metrics = content["synthetic"], content["metrics"]
    if not isinstance(arrays, ArrayRecord) or set(arrays) != {"file"}:
        raise UntrustedSetError("'synthetic' is no ArrayRecord with one Array 'file'")
    if not isinstance(metrics, MetricRecord):
        raise UntrustedSetError("'metrics' is no MetricRecord")
    partition, num_examples = (_whole(metrics, key) for key in ("partition-id", "num-examples"))
    seconds = metrics.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e12:
        raise UntrustedSetError("'seconds' is no number from 0, below 1e12")
    file = untrusted_array(arrays["file"], ("uint8",), expected.limits.nbytes)
    if file.ndim != 1:
        raise UntrustedSetError(f"the file has {file.ndim} dimensions; needed: 1")
    synthetic = SyntheticSet.from_bytes(file.data, expected.limits)
    _check(synthetic, expected)
    normalised = {"mean": expected.mean, "std": expected.std}
    synthetic = synthetic.with_record(**{name: value for name, value in normalised.items() if value is not None})
    return Reply(partition, synthetic, num_examples, float(seconds), file.nbytes)


def usable_partition(reply: Message, expected: Expected) -> int | None:
    """Return whose set a reply holds, if it is one that `expected` allows."""
    try:
        return unpack(reply.content, expected).partition
    except (UntrustedSetError, ValueError):  # a reply with an error has no content
        return None


def _check(synthetic: SyntheticSet, expected: Expected) -> None:
    """Check what a well-formed set says against what was asked for."""
    if expected.shape is not None and synthetic.shape != expected.shape:
        raise UntrustedSetError(f"images of shape {synthetic.shape}; needed: {expected.shape}")
    if expected.classes is not None and not set(synthetic.classes) <= set(expected.classes):
        extra = [name for name in synthetic.classes if name not in expected.classes]
        raise UntrustedSetError(f"classes {_names(extra)} are not among the {len(expected.classes)} of this run")
    if not len(synthetic):
        raise UntrustedSetError("holds no images")
    largest = max((max(part.record.counts, default=0) for part in synthetic.parts), default=0)
    if largest > expected.records:
        raise UntrustedSetError(f"claims to stand for {largest} records of a class; allowed: {expected.records}")
    for part in synthetic.parts:
        for name, given in (("mean", part.record.mean), ("std", part.record.std)):
            least = _LEAST[name]
            if not all(least <= value <= 1 for value in given):
                raise UntrustedSetError(f"pixels of {name} {given}; possible of pixels in [0, 1]: {least} to 1")
        # Floats that are finite may still overflow when they are decoded; bytes cannot.
        if any(code.is_floating_point() for code in part.codes.values()):
            images = part.decode().images
            if not bool(torch.isfinite(images).all()) or float(images.min()) < -0.5 or float(images.max()) > 1.5:
                raise UntrustedSetError("decodes to pixels far outside of [0, 1]")


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
    if min(shape, default=0) < 0 or size > max_bytes or size != len(array.data) - file.tell():
        raise UntrustedSetError(f"an Array whose header says {size} bytes; {len(array.data) - file.tell()} follow")
    return np.frombuffer(array.data, dtype, offset=file.tell()).reshape(shape)


def read_replies(
    sent: Iterable[Message], replies: Iterable[Message], expected: Expected
) -> tuple[list[Reply], list[Refusal]]:
    """Sort what came back into usable sets, by partition, and refusals: errors, silence and broken sets.

    A reply belongs to the node that its question was sent to: an error that the SuperLink makes up for a dead node
    carries another node id. Of several replies with one partition id the first counts, and of several image shapes the
    one that most have, of as many the one that came first. All together may name as many classes as one set.

    Args:
        sent: The messages as they were pushed.
        replies: What came back, in any order.
        expected: What a reply may hold.
    """
    node_of = {message.metadata.message_id: message.metadata.dst_node_id for message in sent}
    accepted: dict[int, tuple[int, Reply]] = {}
    refused: list[Refusal] = []
    answered: set[str] = set()
    classes: set[str] = set()
    for message in replies:
        asked = message.metadata.reply_to_message_id
        if asked not in node_of or asked in answered:
            continue  # of another round, or a second answer
        answered.add(asked)
        node = node_of[asked]
        if message.has_error():
            reason = message.error.reason or f"error {message.error.code} without a reason"
            refused.append(Refusal(node, safe_text(reason)))
            continue
        try:
            read = unpack(message.content, expected)
        except UntrustedSetError as broken:
            refused.append(Refusal(node, str(broken), _claimed_partition(message.content)))
            continue
        if read.partition in accepted:
            refused.append(Refusal(node, f"partition {read.partition} has answered already", read.partition))
            continue
        if len(classes.union(read.synthetic.classes)) > expected.limits.classes:
            reason = f"with it the sets name more than {expected.limits.classes} classes"
            refused.append(Refusal(node, reason, read.partition))
            continue
        classes.update(read.synthetic.classes)
        accepted[read.partition] = (node, read)
    shapes = Counter(reply.synthetic.shape for _, reply in accepted.values())
    for partition, (node, reply) in list(accepted.items()):
        shape = reply.synthetic.shape
        if shape != shapes.most_common(1)[0][0]:
            reason = f"images of shape {shape}; those of most others: {shapes.most_common(1)[0][0]}"
            refused.append(Refusal(node, reason, partition))
            del accepted[partition]
    silent = [node for message, node in node_of.items() if message not in answered]
    refused.extend(Refusal(node, "no reply within the deadline") for node in silent)
    return [accepted[partition][1] for partition in sorted(accepted)], refused


def _claimed_partition(content: RecordDict) -> int | None:
    try:
        return _whole(content.metric_records["metrics"], "partition-id")
    except Exception:  # it is for the log only
        return None


def safe_text(text: str, length: int = 300) -> str:
    r"""Return the last line of a text from elsewhere without control characters, colour codes or HTML, shortened.

    >>> safe_text("Traceback ...\n\x1b[36mValueError: <b>bad</b>\x1b[0m\n")
    'ValueError: (b)bad(/b)'
    """
    lines = [line.strip() for line in _ANSI.sub("", text[-100_000:]).splitlines() if line.strip()]
    line = "".join(c if c.isprintable() else "?" for c in (lines[-1] if lines else "no reason given"))
    return (line if len(line) <= length else line[: length - 3] + "...").translate(_HTML)


def _names(names: Iterable[str] | Mapping[str, object]) -> str:
    some = sorted(str(name)[:40] for name in names)
    return ", ".join(map(repr, some[:5])) + (f" and {len(some) - 5} more" if len(some) > 5 else "")
