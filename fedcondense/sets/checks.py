"""What a set of unknown origin may say: limits on its size, and the checks of its record and of its evaluation."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NoReturn

from fedcondense.data.augment import OPERATIONS
from fedcondense.errors import UntrustedSetError
from fedcondense.sets.parts import Record

__all__ = ["Limits", "check_evaluation", "read_record", "refuse", "shorten"]

_TEXT = 2000  # characters a text field may have
_LARGEST = 1e6  # of a mean or deviation: what is normalised by them stays finite in single precision


@dataclass(frozen=True)
class Limits:
    """What a set of unknown origin may hold.

    Args:
        nbytes: Bytes of the whole.
        decoded: Images that it decodes to.
        decoded_bytes: Bytes of those images as float32.
        header: Bytes of the header.
        classes: Class names.
        parts: Parts of a joined set.
    """

    nbytes: int = 1 << 30
    decoded: int = 1_000_000
    decoded_bytes: int = 2 << 30
    header: int = 8 << 20
    classes: int = 10_000
    parts: int = 10_000


_RECORD_TEXT = ("data", "method", "network", "start")
_RECORD_LISTS = ("shape", "classes", "mean", "std", "augmentation", "counts")


def read_record(given: Any, limits: Limits) -> Record:
    """Return the record that a header holds, or refuse it."""
    fields = {field.name for field in dataclasses.fields(Record)}
    extra = set(given) - fields
    if extra:
        refuse(f"record fields {shorten(sorted(extra))} are not known")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    record = Record(**values)
    if not all(isinstance(getattr(record, name), tuple) for name in _RECORD_LISTS):
        refuse(f"{', '.join(_RECORD_LISTS)} have to be lists")
    if not all(isinstance(getattr(record, name), str) and len(getattr(record, name)) <= _TEXT for name in _RECORD_TEXT):
        refuse("a record text that is no text, or too long")
    if not (len(record.shape) == 3 and all(type(n) is int and 1 <= n <= 4096 for n in record.shape)):
        refuse(f"images of shape {shorten(record.shape)}; needed: (C, H, W)")
    names = record.classes
    if not (1 <= len(names) <= limits.classes and all(isinstance(n, str) and len(n) <= 200 for n in names)):
        refuse(f"class names {shorten(names)}; needed: 1 to {limits.classes} short texts")
    if len(set(names)) != len(names):
        refuse("class names that repeat")
    for name in ("mean", "std"):
        value = getattr(record, name)
        finite = all(type(v) in (int, float) and abs(v) <= _LARGEST for v in value)
        if len(value) != record.shape[0] or not finite or (name == "std" and min(value) < 1e-6):
            refuse(f"{name} {shorten(value)}; needed: {record.shape[0]} finite numbers, std above zero")
    numbers = (record.ipc, record.seed, record.steps, *record.counts)
    if not all(type(n) is int and 0 <= n < 2**63 for n in numbers) or len(record.counts) not in (0, len(names)):
        refuse("ipc, seed, steps or counts that are no whole numbers from 0, or not a count a class")
    if type(record.seconds) not in (int, float) or not (0 <= record.seconds < 1e12):
        refuse(f"seconds {shorten(record.seconds)}")
    if not set(record.augmentation) <= set(OPERATIONS):
        refuse(f"augmentation {shorten(record.augmentation)}; known: {', '.join(OPERATIONS)}")
    if record.privacy is not None and not (
        isinstance(record.privacy, dict) and all(map(_is_plain, record.privacy.values()))
    ):
        refuse("privacy is no object of plain values")
    return record


_EVALUATION: dict[str, type | tuple[type, ...]] = {
    "accuracy": (int, float),
    "accuracy_std": (int, float),
    "network": str,
    "recipe": dict,
    "seeds": list,
    "weighted": bool,
}


def check_evaluation(evaluation: Any) -> None:
    """Refuse what those who show or repeat an evaluation could not read; plain fields of later versions pass."""
    if not isinstance(evaluation, dict):
        refuse("the evaluation is no object")
    for name, value in evaluation.items():
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if not (isinstance(value, _EVALUATION.get(name, object)) and all(map(_is_plain, parts))):
            refuse(f"an evaluation whose {shorten(name)} is {shorten(value)}")


def _is_plain(value: Any) -> bool:
    """Say whether a value is a text, a number that a float can hold, a truth value or nothing."""
    return value is None or isinstance(value, str) or (isinstance(value, int | float) and not abs(value) > 2**63)


def shorten(value: object) -> str:
    """Return a stranger's value as printable text of at most 200 characters."""
    text = value if isinstance(value, str) else f"{value}" if isinstance(value, Exception) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text)
    return text if len(text) <= 200 else f"{text[:200]}..."


def refuse(reason: str) -> NoReturn:
    """Raise the one error of this format."""
    raise UntrustedSetError(reason)
