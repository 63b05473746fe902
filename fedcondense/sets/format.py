"""The file and wire format of a synthetic set: one safetensors file, checked before memory is allocated.

Version 2, which is written: the header's `__metadata__` holds one text, `fedcondense`, an object of JSON with

- `crc32`: eight hexadecimal digits, first, so that they always lie at the same place: the CRC-32 of all other bytes of
  the file. It is compared before anything is parsed. It finds damage, and is no protection against a sender;
- `version`: 2. A reader of version 1 parses this header and refuses it by its version;
- `classes`: all class names, once, in the order in which parts first name them;
- `parts`: per part `parametrization`, a name in `PARAMETRIZATIONS`; `settings`, its fields, if it has any; `record`,
  the seconds and those fields of `Record` that differ from their defaults. Its `classes` are places in the table, and
  are left out if the part has all of them in their order; `codec`, if tensors of the part are packed: of each of those
  the codec's name and the tensor's shape, from which its bytes are known before anything is unpacked. Such a part says
  its record shortly, and its file the evaluation (`compact.py`);
- `evaluation`: what was measured on the set, if anything was;
- `beside`: values of whoever wrote the file, by name, as a memory's settings. Everything else is refused.

Then tensors follow, back to back, in the header's order: `i.name` is code `name` of part `i`, `i.targets` its labels or
probabilities; packed ones are bytes (`packing.py`, `coded.py`). Any safetensors reader opens the file. JSON is UTF-8, a
name in it occurs once, its numbers are finite.

Version 1, which is still read, has no checksum; its parts hold their settings beside `parametrization`, and the names
of all their classes; what stands beside the set does so by its own name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data.class_names import check_class_names
from fedcondense.errors import DataError, SettingError, UntrustedSetError
from fedcondense.sets.checks import (
    Limits,
    Slot,
    check_parts,
    check_values,
    describe_parametrization,
    plain_evaluation,
    read_evaluation,
    read_parametrization,
    read_record,
    refuse,
    shorten,
)
from fedcondense.sets.coded import Coded
from fedcondense.sets.compact import long_evaluation, long_record, short_evaluation, short_record
from fedcondense.sets.header import read_header, read_tensors, write_file_bytes
from fedcondense.sets.packing import Packed, pack_part, read_packed, unpack_part
from fedcondense.sets.parts import Part, Record, check_joinable

__all__ = ["VERSION", "Limits", "dump", "parse", "read_beside"]

VERSION = 2

_KEYS = {"crc32", "version", "classes", "parts", "evaluation", "beside"}
_PART_KEYS = {"parametrization", "settings", "record", "codec"}
_ANY = Limits(*[1 << 62] * 7)


@in_own_state
def dump(parts: Sequence[Part], evaluation: Mapping[str, Any] | None = None, **beside: Any) -> bytes:
    """Return the bytes of a set; `beside` are plain values that go into the header under their names.

    Raises:
        SettingError: It could not be read again.
    """
    tables = dict.fromkeys(part.record.classes for part in parts)
    classes = tuple(dict.fromkeys(name for table in tables for name in table))
    places = {name: k for k, name in enumerate(classes)}
    written = {table: None if table == classes else [places[name] for name in table] for table in tables}
    tensors: dict[str, Tensor] = {}
    descriptions: list[dict[str, Any]] = []
    try:
        check_parts([(part.parametrization, part.record, _slots(part)) for part in parts], _ANY)
        for i, part in enumerate(parts):
            check_values(i, part)
            name, settings = describe_parametrization(part.parametrization)
            record = _compact(part.record) | {"classes": written[part.record.classes]}
            if record["classes"] is None:
                del record["classes"]
            packed = pack_part(part)
            if packed.described:
                record = short_record(record, len(part.record.classes))
            described = {"parametrization": name, "settings": settings, "codec": packed.described, "record": record}
            descriptions.append({k: v for k, v in described.items() if v or k not in ("settings", "codec")})
            tensors |= {f"{i}.{name}": tensor for name, tensor in packed.tensors.items()}
    except SettingError:
        raise
    except ValueError as error:
        raise SettingError(f"a set that could not be read again: {shorten(error)}") from None
    content: dict[str, Any] = {"version": VERSION, "classes": classes, "parts": descriptions}
    if evaluation is not None:
        plain = plain_evaluation(evaluation)
        content["evaluation"] = short_evaluation(plain) if _is_short(descriptions) else plain
    return write_file_bytes(tensors, {**content, "beside": beside} if beside else content)


def _compact(record: Record) -> dict[str, Any]:
    """Leave out what is as if it had not been said: the record travels with every set.

    Seconds are always said, since the size of a file would depend on the clock otherwise.
    """
    values = {field.name: (getattr(record, field.name), field.default) for field in fields(record)}
    return {name: value for name, (value, default) in values.items() if value != default or name == "seconds"}


def _is_short(descriptions: Sequence[Mapping[str, Any]]) -> bool:
    """Say whether a header is written shortly, because a part of the file is packed."""
    return any("codec" in description for description in descriptions)


def _slots(part: Part) -> dict[str, Slot]:
    dtypes = part.parametrization.storage
    codes = part.codes
    kinds = {name: dtypes.get(name, torch.uint8) if isinstance(codes, Coded) else codes[name].dtype for name in codes}
    slots = {name: Slot(kinds[name], shape) for name, shape in part.shapes.items()}
    return slots | {"targets": Slot(part.targets.dtype, tuple(part.targets.shape))}


def read_beside(blob: bytes, name: str) -> Any:
    """Return a value that `dump` put beside a set, or None. The bytes must be ones that `parse` accepted."""
    length = int.from_bytes(blob[:8], "little")
    content = json.loads(json.loads(blob[8 : 8 + length])["__metadata__"]["fedcondense"])
    return (content if content["version"] == 1 else content.get("beside", {})).get(name)


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
        return _parse(memoryview(blob).cast("B"), limits)
    except UntrustedSetError:
        raise
    except (ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError) as error:
        again = "cut off, or changed since it was written: get it again"
        raise UntrustedSetError(f"malformed: {shorten(error)}; {again}") from None


def _parse(blob: memoryview, limits: Limits) -> tuple[list[Part], Mapping[str, Any] | None]:
    header = read_header(blob, limits)
    content = header.content
    version = content.get("version")
    if type(version) is not int or version < 1:
        refuse(f"format version {shorten(version)}; needed: a whole number from 1")
    if version > VERSION:
        refuse(f"format version {version} is newer than this library's {VERSION}; upgrade fedcondense")
    if header.checked != (version > 1):
        refuse(f"format version {version} {'with' if header.checked else 'without'} a checksum; get it again")
    descriptions = content["parts"]
    if not (isinstance(descriptions, list) and 1 <= len(descriptions) <= limits.parts):
        refuse(f"the header lists no parts, or more than {limits.parts}")
    if version > 1:
        descriptions = _with_classes(content, limits)
    described = []
    packed: list[dict[str, Packed]] = []
    slots: list[dict[str, Slot]] = [{} for _ in descriptions]
    for name, slot in header.slots.items():
        number, _, code = name.partition(".")
        if not (number.isascii() and number.isdigit() and number == str(int(number)) and int(number) < len(slots)):
            refuse(f"tensors {shorten([name])} are not described by a part")
        slots[int(number)][code] = slot
    for i, description in enumerate(descriptions):
        settings = dict(description)
        record = read_record(settings.pop("record"), limits)
        name = settings.pop("parametrization")
        codec = settings.pop("codec", {}) if version > 1 else {}
        settings = settings.pop("settings", {}) if version > 1 else settings
        parametrization = read_parametrization(name, settings)
        named = version > 1 and "codec" in description
        packed.append(read_packed(i, codec, parametrization, record, slots[i]) if named else {})
        described.append((parametrization, record, slots[i] | {name: one.slot for name, one in packed[i].items()}))
    check_parts(described, limits)
    evaluation = content.get("evaluation")
    if evaluation is not None:
        evaluation = read_evaluation(evaluation)
        evaluation = long_evaluation(evaluation) if version > 1 and _is_short(descriptions) else evaluation
    tensors = read_tensors(header)
    parts = []
    for i, (parametrization, record, _) in enumerate(described):
        mine = {name: tensors[f"{i}.{name}"] for name in (*parametrization.storage, "targets")}
        parts.append(unpack_part(mine, packed[i], parametrization, record))
        check_values(i, parts[i])
    check_joinable(parts)
    return parts, evaluation


def _with_classes(content: Mapping[str, Any], limits: Limits) -> list[dict[str, Any]]:
    """Return the parts of version 2 with the names of their classes in their records."""
    if extra := set(content) - _KEYS:
        refuse(f"the header holds {shorten(sorted(extra))}, which are not known; upgrade fedcondense")
    if not isinstance(content.get("beside", {}), dict):
        refuse("what stands beside the set is no object")
    given = content["classes"]
    if not (isinstance(given, list) and given):
        refuse(f"class names {shorten(given)}; needed: a list of texts")
    if len(given) > limits.classes:
        refuse(f"names {len(given)} classes; allowed: {limits.classes}")
    try:
        table = check_class_names(given)
    except DataError as error:
        refuse(shorten(error))
    everything, names, used = list(range(len(table))), 0, 0
    filled = []
    for i, description in enumerate(content["parts"]):
        if extra := set(description) - _PART_KEYS:
            refuse(f"part {i} holds {shorten(sorted(extra))}, which are not known")
        record = dict(description["record"])
        places = record.get("classes", everything)
        names += len(places)
        if names > limits.names:
            refuse(f"parts that name more than {limits.names} classes, those that several have counted in each")
        if places is everything:
            mine = table
        elif not all(type(k) is int and 0 <= k < len(table) for k in places) or places == everything:
            refuse(f"classes {shorten(places)} of part {i}; needed: places below {len(table)}, or none for all")
        else:
            mine = tuple(table[k] for k in places)
        for k in places if used < len(table) else ():
            if k > used:
                refuse(f"class {k} of part {i} comes before class {used}; needed: names in the order of parts")
            used += k == used
        record = long_record(record, len(mine)) if "codec" in description else record
        filled.append({**description, "record": {**record, "classes": mine}})
    if used < len(table):
        refuse(f"{len(table) - used} class names that no part has")
    return filled
