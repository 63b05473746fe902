"""What a set may say, whoever wrote it: limits on its size, and the checks of its record, its evaluation and its parts.

A set is held to the same checks when it is made or saved and when it is read: what is written can be read again.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from fedcondense.contract import Parametrization
from fedcondense.data.class_names import MOST_CLASSES
from fedcondense.errors import FedcondenseError, SettingError, UntrustedSetError, unknown
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.plain import listed, plain_text, plain_value, plain_values, whole_number
from fedcondense.sets.parts import Part, Record

__all__ = [
    "Limits",
    "Slot",
    "check_parts",
    "check_values",
    "describe_parametrization",
    "plain_evaluation",
    "read_evaluation",
    "read_parametrization",
    "read_record",
    "refuse",
    "shorten",
]

_FEW = reprlib.Repr()
_FEW.maxlevel, _FEW.maxlist, _FEW.maxtuple, _FEW.maxdict, _FEW.maxstring, _FEW.maxother = 4, 40, 40, 20, 250, 250
_SUM = 0.02  # how far the sum of half-precision probabilities may be from 1


@dataclass(frozen=True)
class Limits:
    """What a set of unknown origin may hold.

    Reading takes at most about three times `nbytes`, and decoding about three times `decoded_bytes`.

    Args:
        nbytes: Bytes of the whole.
        decoded: Images that it decodes to.
        decoded_bytes: Bytes of those images and of their probabilities over all classes, as float32.
        header: Bytes of the header.
        classes: Class names.
        parts: Parts of a joined set.
        names: Class names of all parts, where one that several parts have counts in each.
    """

    nbytes: int = 1 << 30
    decoded: int = 1_000_000
    decoded_bytes: int = 2 << 30
    header: int = 8 << 20
    classes: int = MOST_CLASSES
    parts: int = 10_000
    names: int = 4_000_000


class Slot(NamedTuple):
    """What a header says of a tensor, or what a tensor is."""

    dtype: torch.dtype
    shape: tuple[int, ...]


def read_record(given: Any, limits: Limits) -> Record:
    """Return the record that a header holds, or refuse it: its values have to be as `Record` would write them."""
    known = {field.name for field in fields(Record)}
    if not isinstance(given, dict):
        refuse(f"a record that is {shorten(given)}; needed: an object")
    if extra := set(given) - known:
        refuse(f"record fields {shorten(sorted(extra))} are not known")
    values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
    try:
        record = Record(**values)
    except FedcondenseError as error:
        refuse(shorten(error))
    for name, value in values.items():
        if getattr(record, name) != value:
            refuse(f"{name} {shorten(value)} of a record; it is written as {shorten(getattr(record, name))}")
    if len(record.classes) > limits.classes:
        refuse(f"names {len(record.classes)} classes; allowed: {limits.classes}")
    return record


_EVALUATION: dict[str, tuple[type, ...]] = {
    "accuracy": (int, float),
    "accuracy_std": (int, float),
    "network": (str,),
    "recipe": (dict,),
    "seeds": (list,),
    "weighted": (bool,),
    "decoder": (str,),
}


def plain_evaluation(given: Any) -> dict[str, Any]:
    """Return what was measured as a file holds it: texts, finite numbers, truth values, lists and dicts of those.

    Raises:
        SettingError: Something in it is none of them, or could not be shown or repeated.
    """
    if not isinstance(given, Mapping):
        raise SettingError(f"an evaluation that is {shorten(given)}; needed: a dict, as `Evaluation.to_dict` gives it")
    evaluation: dict[str, Any] = {}
    for given_name, value in given.items():
        name = plain_text(given_name, "an evaluation with the name")
        what = f"an evaluation whose {name[:100]} is"
        if isinstance(value, Mapping):
            evaluation[name] = plain_values(value, what)
        elif isinstance(value, list | tuple) or getattr(value, "shape", ()) != ():
            evaluation[name] = [plain_value(one, what) for one in listed(value, what)]
        else:
            evaluation[name] = plain_value(value, what)
        kinds = _EVALUATION.get(name)
        if kinds is not None and type(evaluation[name]) not in kinds:
            raise SettingError(f"{what} {shorten(value)}; needed: {' or '.join(kind.__name__ for kind in kinds)}")
    if "seeds" in evaluation:
        evaluation["seeds"] = [whole_number(seed, "an evaluation with seeds") for seed in evaluation["seeds"]]
    return evaluation


def read_evaluation(given: Any) -> dict[str, Any]:
    """Return the evaluation that a header holds, or refuse it; plain fields of later versions pass."""
    if not isinstance(given, dict):
        refuse("the evaluation is no object")
    try:
        evaluation = plain_evaluation(given)
    except SettingError as error:
        refuse(shorten(error))
    if evaluation != given:
        refuse("an evaluation with a text of several lines")
    return evaluation


def describe_parametrization(parametrization: Parametrization) -> tuple[str, dict[str, Any]]:
    """Return what a file holds of a parametrization: its class's name in `PARAMETRIZATIONS`, and its settings.

    Raises:
        SettingError: It has no name, or a setting that would not come back from a file.
    """
    kind = type(parametrization)
    name = next((name for name, entry in PARAMETRIZATIONS.items() if entry is kind), None)
    if name is None:
        raise SettingError(f"{kind.__name__} is not in PARAMETRIZATIONS; add it by name, so that readers find it")
    if not is_dataclass(parametrization):
        raise SettingError(f"{kind.__name__} is no dataclass, so its settings are not known; make it a frozen one")
    if "targets" in parametrization.storage:
        raise SettingError(f"{kind.__name__} has codes called 'targets', as labels are; rename them")
    settings = {field.name: getattr(parametrization, field.name) for field in fields(parametrization)}
    for key, value in settings.items():
        settings[key] = plain_value(value, f"{name} with {key}")
        if settings[key] is None:
            raise SettingError(f"{name} with {key} None; needed: a text, a finite number or a truth value")
    try:
        again = {**asdict(kind(**settings))}
    except TypeError as error:
        raise SettingError(f"{name} cannot be made again from its settings: {error}") from None
    if changed := [key for key in settings if again[key] != settings[key]]:
        raise SettingError(f"{name} with {changed[0]} {settings[changed[0]]!r} is made again with another; mend it")
    return name, settings


def read_parametrization(name: Any, settings: Any) -> Parametrization:
    """Return the parametrization that a header names, or refuse it."""
    entry = PARAMETRIZATIONS.get(name) if isinstance(name, str) else None
    if not isinstance(entry, type):  # a partial is a name for settings, never one in a file
        kinds = [known for known, made in PARAMETRIZATIONS.items() if isinstance(made, type)]
        refuse(shorten(unknown("parametrization", str(name)[:100], kinds)))
    try:
        plain = plain_values(settings, f"{name} with settings")
    except SettingError as error:
        refuse(shorten(error))
    if plain != settings or None in plain.values():
        refuse(f"settings of {name} that are no plain values")
    made: Parametrization = entry(**settings)
    return made


def check_parts(given: Sequence[tuple[Parametrization, Record, Mapping[str, Slot]]], limits: Limits) -> None:
    """Refuse parts by what their tensors are and what they decode to, before a value is read.

    Args:
        given: Of each part its parametrization, its record and what its codes and `targets` are.
        limits: What all of them together may hold.
    """
    images, tables = 0, {record.classes for _, record, _ in given}
    for i, (parametrization, record, slots) in enumerate(given):
        images += _check_slots(i, parametrization, record, slots)
        size = 4 * math.prod(record.shape) * images
        if images > limits.decoded or size > limits.decoded_bytes:
            refuse(f"decodes to {images} images of {size} bytes; allowed: {limits.decoded} and {limits.decoded_bytes}")
    if (names := sum(len(record.classes) for _, record, _ in given)) > limits.names:
        refuse(f"parts that name {names} classes, those that several have counted in each; allowed: {limits.names}")
    classes = len(set().union(*tables))
    if classes > limits.classes:
        refuse(f"names {classes} classes; allowed: {limits.classes}")
    if size + 4 * images * classes > limits.decoded_bytes:
        refuse(f"labels of {images} images over {classes} classes; allowed: {limits.decoded_bytes} bytes with images")


def _check_slots(i: int, parametrization: Parametrization, record: Record, slots: Mapping[str, Slot]) -> int:
    """Check the codes and targets of a part, and return how many images they decode to."""
    for code, dtype in parametrization.storage.items():
        found = slots.get(code)
        if found is None or found.dtype != dtype:
            refuse(f"part {i} has {'no' if found is None else shorten(found.dtype)} {code}; needed: {dtype}")
    if extra := set(slots) - {*parametrization.storage, "targets"}:
        refuse(f"part {i} has tensors {shorten(sorted(extra))}, which its parametrization does not have")
    shapes = {code: slots[code].shape for code in parametrization.storage}
    decoded = parametrization.decoded(shapes, record.shape)
    targets, classes = slots.get("targets"), len(record.classes)
    labels = torch.uint8 if classes <= 256 else torch.int16
    if targets is None or not (
        (len(targets.shape) == 1 and targets.dtype == labels)
        or (len(targets.shape) == 2 and targets.shape[1] == classes and targets.dtype == torch.float16)
    ):
        given = "none" if targets is None else f"{targets.dtype} {targets.shape}"
        refuse(f"targets of part {i}: {given}; needed: {labels} (M,) or torch.float16 (M, {classes})")
    rows = slots[next(iter(parametrization.storage))].shape[0]
    if targets.shape[0] not in ((rows,) if len(targets.shape) == 1 else (rows, decoded)):
        refuse(f"part {i} has {rows} codes for {decoded} images but {targets.shape[0]} targets")
    return decoded


def check_values(i: int, part: Part) -> None:
    """Refuse codes that are not finite, labels beyond the classes, and targets that are no probabilities."""
    targets = part.targets
    for name, dtype in part.parametrization.storage.items():  # bytes are finite: coded ones are not decoded for it
        if dtype.is_floating_point and not bool(part.codes[name].isfinite().all()):
            refuse(f"{name} of part {i} has values that are not finite")
    if targets.ndim == 1:
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(part.record.classes):
            refuse(f"labels of part {i} up to {int(targets.max())}; needed: below {len(part.record.classes)}")
    elif not _are_probabilities(targets):
        refuse(f"targets of part {i} are no probabilities")


def _are_probabilities(targets: Tensor) -> bool:
    total = targets.sum(1, dtype=torch.float32)
    return bool(targets.isfinite().all() and (targets >= 0).all() and ((total - 1).abs() <= _SUM).all())


def shorten(value: object) -> str:
    """Return a stranger's value as printable text of at most 200 characters."""
    text = value if isinstance(value, str) else f"{value}" if isinstance(value, Exception) else _FEW.repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[:201])
    return text if len(text) <= 200 else f"{text[:200]}..."


def refuse(reason: str) -> NoReturn:
    """Raise the one error of this format."""
    raise UntrustedSetError(reason)
