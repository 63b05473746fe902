"""The file and wire format of a synthetic set: one safetensors file, checked before memory is allocated.

Layout: 8 bytes, the header's length (little endian); the header, JSON, with a `__metadata__` entry whose
`fedcondense` string is JSON again: version, parts, evaluation, and a memory's settings; then the tensors, back to back.
Tensor `i.name` is code `name` of part `i`, `i.targets` its labels or probabilities. Any safetensors reader opens it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.contract import Codes, Parametrization
from fedcondense.errors import SettingError, UntrustedSetError, unknown
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.checks import Limits, check_evaluation, read_record, refuse, shorten
from fedcondense.sets.parts import Part, Record, check_joinable

__all__ = ["VERSION", "Limits", "dump", "parse", "read_beside"]

VERSION = 1

_DTYPES = {"U8": torch.uint8, "I16": torch.int16, "F16": torch.float16, "F32": torch.float32}
_AGAIN = "cut off, or changed since it was written: get it again"
_SUM = 0.02  # how far the sum of half-precision probabilities may be from 1


@in_own_state
def dump(parts: Sequence[Part], evaluation: Mapping[str, Any] | None = None, **beside: Any) -> bytes:
    """Return the bytes of a set; `beside` are plain values that go into the header under their names."""
    names = {kind: name for name, kind in PARAMETRIZATIONS.items() if isinstance(kind, type)}
    tensors: dict[str, Tensor] = {}
    descriptions: list[dict[str, Any]] = []
    for i, part in enumerate(parts):
        kind = type(part.parametrization)
        if kind not in names:
            raise SettingError(f"{kind.__name__} is not in PARAMETRIZATIONS; add it by name, so that readers find it")
        settings = asdict(part.parametrization)  # type: ignore[call-overload]
        descriptions.append({"parametrization": names[kind], **settings, "record": _compact(part.record)})
        tensors |= {f"{i}.{name}": code.contiguous().clone() for name, code in part.codes.items()}
        tensors[f"{i}.targets"] = part.targets.contiguous().clone()  # parts may share storage, which the format refuses
    content: dict[str, Any] = {"version": VERSION, "parts": descriptions, **beside}
    if evaluation is not None:
        content["evaluation"] = evaluation
    text = json.dumps(content, separators=(",", ":"))
    return safetensors.torch.save(tensors, metadata={"fedcondense": text})


def read_beside(blob: bytes, name: str) -> Any:
    """Return a value that `dump` put beside a set, or None. The bytes must be ones that `parse` accepted."""
    length = int.from_bytes(blob[:8], "little")
    return json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["fedcondense"]).get(name)


def _compact(record: Record) -> dict[str, Any]:
    """Leave out what is empty: the record travels with every set."""
    return {k: v for k, v in asdict(record).items() if v not in ((), "", None)}


@in_own_state
def parse(blob: bytes | memoryview, limits: Limits) -> tuple[list[Part], Mapping[str, Any] | None]:
    """Read bytes of unknown origin.

    Returns:
        parts: At least one, of images of one shape.
        evaluation: What was measured on the set, if anything.

    Raises:
        UntrustedSetError: The bytes are no synthetic set, or break a limit; the message says which.
    """
    try:
        if len(blob) > limits.nbytes:
            refuse(f"{len(blob)} bytes; allowed: {limits.nbytes}")
        return _parse(bytes(blob), limits)
    except UntrustedSetError:
        raise
    except RecursionError:
        raise UntrustedSetError(f"the header is nested too deeply; {_AGAIN}") from None
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError) as error:
        raise UntrustedSetError(f"malformed: {shorten(error)}; {_AGAIN}") from None


def _parse(blob: bytes, limits: Limits) -> tuple[list[Part], Mapping[str, Any] | None]:
    shapes, data, metadata = _header(blob, limits)
    content = json.loads(metadata)
    version = content.get("version")
    if type(version) is not int or version < 1:
        refuse(f"format version {shorten(version)}; needed: a whole number from 1")
    if version > VERSION:
        refuse(f"format version {version} is newer than this library's {VERSION}; upgrade fedcondense")
    descriptions = content["parts"]
    if not (isinstance(descriptions, list) and 1 <= len(descriptions) <= limits.parts):
        refuse(f"the header lists no parts, or more than {limits.parts}")
    plans, images = [], 0
    for i, description in enumerate(descriptions):
        plan = _plan(i, description, shapes, limits)
        images += plan.decoded
        size = 4 * math.prod(plan.record.shape) * images
        if images > limits.decoded or size > limits.decoded_bytes:
            refuse(f"decodes to {images} images of {size} bytes; allowed: {limits.decoded} and {limits.decoded_bytes}")
        plans.append(plan)
    classes = len({name for plan in plans for name in plan.record.classes})
    if classes > limits.classes:
        refuse(f"names {classes} classes; allowed: {limits.classes}")
    if 8 * images * classes > limits.decoded_bytes:
        refuse(f"labels of {images} images over {classes} classes; allowed: {limits.decoded_bytes} bytes of them")
    named = {f"{i}.{name}" for i, plan in enumerate(plans) for name in (*plan.parametrization.storage, "targets")}
    if named != set(shapes):
        refuse(f"tensors {shorten(sorted(set(shapes) ^ named))} are missing or not described")
    tensors = _tensors(shapes, data)
    parts = [_part(i, plan, tensors) for i, plan in enumerate(plans)]
    evaluation = content.get("evaluation")
    if evaluation is not None:
        check_evaluation(evaluation)
    check_joinable(parts)
    return parts, evaluation


@dataclass(frozen=True)
class _Slice:
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


def _header(blob: bytes, limits: Limits) -> tuple[dict[str, _Slice], memoryview, str]:
    """Read the safetensors header: every slice inside the data, as large as shape and dtype say, none overlapping."""
    if len(blob) < 8:
        refuse(f"{len(blob)} bytes; needed: a safetensors file that `save` wrote")
    length = int.from_bytes(blob[:8], "little")
    if length > limits.header:
        refuse(f"a header of {length} bytes; allowed: {limits.header}")
    if length > len(blob) - 8:
        refuse(f"truncated: the header says {length} bytes, {len(blob) - 8} follow; {_AGAIN}")
    header = json.loads(blob[8 : 8 + length])
    if not isinstance(header, dict):
        refuse(f"the header is no object; {_AGAIN}")
    data = memoryview(blob)[8 + length :]
    metadata = header.pop("__metadata__", None)
    if not (isinstance(metadata, dict) and isinstance(metadata.get("fedcondense"), str)):
        refuse("a safetensors file without a fedcondense record; give a set that `save` wrote")
    slices, filled = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if entry["dtype"] not in _DTYPES:
            refuse(f"{shorten(name)} is of dtype {shorten(entry['dtype'])}; allowed: {', '.join(_DTYPES)}")
        shape, (begin, end) = entry["shape"], entry["data_offsets"]
        if len(shape) > 8 or not all(type(n) is int and 0 <= n < 2**40 for n in (*shape, begin, end)):
            refuse(f"{shorten(name)} is of shape {shorten(shape)} at {shorten((begin, end))}")
        size = math.prod(shape) * _DTYPES[entry["dtype"]].itemsize
        if begin != filled or end - begin != size or end > len(data):
            where = f"{shorten(name)} says {size} bytes at {begin} to {end} of {len(data)}"
            refuse(f"truncated or inconsistent: {where}; {_AGAIN}")
        slices[name] = _Slice(_DTYPES[entry["dtype"]], tuple(shape), begin, end)
        filled = end
    if filled != len(data):
        refuse(f"{len(data) - filled} bytes after the last tensor; {_AGAIN}")
    return slices, data, metadata["fedcondense"]


@dataclass(frozen=True)
class _Plan:
    parametrization: Parametrization
    record: Record
    decoded: int


def _plan(i: int, description: Any, shapes: Mapping[str, _Slice], limits: Limits) -> _Plan:
    """Check a part's description against the shapes in the header; nothing is allocated yet."""
    settings = dict(description)
    record = read_record(settings.pop("record"), limits)
    name = settings.pop("parametrization")
    if name not in PARAMETRIZATIONS:
        refuse(shorten(unknown("parametrization", str(name)[:100], PARAMETRIZATIONS)))
    if not all(type(v) in (int, float, bool) for v in settings.values()):
        refuse(f"settings of {name} that are no numbers")
    parametrization = PARAMETRIZATIONS[name](**settings)
    for code, dtype in parametrization.storage.items():
        found = shapes.get(f"{i}.{code}")
        if found is None or found.dtype != dtype:
            refuse(f"part {i} has {'no' if found is None else shorten(found.dtype)} {code}; needed: {dtype}")
    decoded = parametrization.decoded(
        {code: shapes[f"{i}.{code}"].shape for code in parametrization.storage}, record.shape
    )
    targets = shapes.get(f"{i}.targets")
    classes = len(record.classes)
    labels = torch.uint8 if classes <= 256 else torch.int16
    if targets is None or not (
        (len(targets.shape) == 1 and targets.dtype == labels)
        or (len(targets.shape) == 2 and targets.shape[1] == classes and targets.dtype == torch.float16)
    ):
        given = "none" if targets is None else f"{targets.dtype} {targets.shape}"
        refuse(f"targets of part {i}: {given}; needed: {labels} (M,) or torch.float16 (M, {classes})")
    rows = shapes[f"{i}.{next(iter(parametrization.storage))}"].shape[0]
    if targets.shape[0] not in ((rows,) if len(targets.shape) == 1 else (rows, decoded)):
        refuse(f"part {i} has {rows} codes for {decoded} images but {targets.shape[0]} targets")
    return _Plan(parametrization, record, decoded)


def _tensors(shapes: Mapping[str, _Slice], data: memoryview) -> dict[str, Tensor]:
    tensors = {}
    for name, s in shapes.items():
        raw = torch.frombuffer(bytearray(data[s.begin : s.end]), dtype=s.dtype) if s.end > s.begin else torch.empty(0)
        tensors[name] = raw.to(s.dtype).reshape(s.shape)
    return tensors


def _part(i: int, plan: _Plan, tensors: Mapping[str, Tensor]) -> Part:
    codes: Codes = {name: tensors[f"{i}.{name}"] for name in plan.parametrization.storage}
    targets = tensors[f"{i}.targets"]
    for name, code in codes.items():
        if code.is_floating_point() and not bool(code.isfinite().all()):
            refuse(f"{name} of part {i} has values that are not finite")
    if targets.ndim == 1:
        if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < len(plan.record.classes):
            refuse(f"labels of part {i} up to {int(targets.max())}; needed: below {len(plan.record.classes)}")
    else:
        total = targets.float().sum(1)
        if not bool(targets.isfinite().all() and (targets >= 0).all() and ((total - 1).abs() <= _SUM).all()):
            refuse(f"targets of part {i} are no probabilities")
    return Part(codes, targets, plan.parametrization, plan.record)
