"""What a value is, as one line of text that is the same in every process: what is kept is compared by it.

What is compared, by kind:

- numbers, texts, bytes, paths, dtypes, devices, enums: their values; numpy's numbers are Python's;
- lists, tuples, dicts, sets: what they hold; the order counts for the first two;
- tensors and arrays: dtype, shape and a hash of their values, wherever they are;
- dataclasses: the class and the fields that take part in comparisons; `functools.partial`: function and arguments;
- functions and lambdas: their code, that is bytecode, constants, defaults, the values of their closure and of the
  globals that they read, and the functions and classes among those likewise. Comments, docstrings, line numbers and
  local names do not count. What is installed (this package, torch, the standard library) goes by its name;
- classes: their methods, attributes and bases; modules of one's own: their source, and that of their imports;
- other objects, networks among them: class and attributes, such as weights. What `functools.cached_property` left,
  whether a network is in training mode, and the inside of the standard library's objects do not count.

Bytecode is that of one version of Python: another one is another identity. A list, dict or number that the code itself
adds to or replaces, such as a cache or a count of calls, does not count; other attributes of objects do.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import io
import logging
import re
import sys
import types
from collections import ChainMap
from collections.abc import (
    Callable,
    Iterator,
    Mapping,
)
from functools import partial
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from fedcondense.bytecode import changed_by, globals_of, imports_of
from fedcondense.installed import is_installed, is_installed_class, is_standard, lies_with_installed, source, source_of

__all__ = ["identity"]

_PLAIN = (type(None), type(...), type(NotImplemented), bool, int, float, complex, str)
_BY_REPR = (torch.dtype, torch.device, torch.layout, torch.memory_format, range, slice, re.Pattern)
_ATTRIBUTES = {"training", "_is_protocol", "_is_runtime_protocol", "_abc_impl"}  # that say nothing of what is computed
_CHANGING = (io.IOBase, logging.Logger, logging.Handler)  # by what others do with them
_DEEPEST = 60  # objects in objects; below it, a class stands for its object


def identity(value: object) -> str:
    """Return one line: equal for values that compute the same, another if their code or numbers are others.

    >>> identity(0.5), identity(functools.partial(max, 1, default=2))
    ('0.5', 'partial(builtins.max, 1, default=2)')
    """
    return _Reader().read(value)


class _Reader:
    """One reading: values that hold themselves are met again, and are named by how far up they are."""

    def __init__(self) -> None:
        self.above: list[object] = []
        self.known: dict[int, tuple[object, str]] = {}  # with the object, whose id is nobody else's meanwhile

    def read(self, value: object) -> str:
        """Return the text of a value."""
        if type(value) in _PLAIN:
            return repr(value)
        if id(value) in self.known:
            return self.known[id(value)][1]
        for up, holder in enumerate(reversed(self.above)):
            if holder is value:
                return f"<{up + 1} up>"
        if len(self.above) >= _DEEPEST:
            return f"<{type(value).__qualname__}>"
        self.above.append(value)
        try:
            text = self._read(value)
        except (RuntimeError, TypeError, ValueError, AttributeError):  # an object that does not show what it holds
            text = f"<{type(value).__qualname__}>"
        finally:
            self.above.pop()
        self.known[id(value)] = (value, text)
        return text

    def _read(self, value: Any) -> str:
        if isinstance(value, enum.Enum):
            return f"{self.read(type(value))}.{value.name}"
        if isinstance(value, np.generic):
            return self.read(value.item())
        if isinstance(value, bytes | bytearray):
            return f"bytes({len(value)}, {_hash(bytes(value))})"
        if isinstance(value, _BY_REPR):
            return repr(value)
        if isinstance(value, PurePath):
            return f"Path({str(value)!r})"
        if isinstance(value, torch.Tensor | np.ndarray | torch.Generator):
            return _values(value)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            told = (
                f"{f.name}={self.read(getattr(value, f.name, None))}" for f in dataclasses.fields(value) if f.compare
            )
            return f"{self.read(type(value))}({', '.join(told)})"
        if isinstance(value, partial):
            arguments = [
                *map(self.read, value.args),
                *(f"{k}={self.read(v)}" for k, v in sorted(value.keywords.items())),
            ]
            return f"partial({', '.join([self.read(value.func), *arguments])})"
        if isinstance(value, list | tuple | set | frozenset | Mapping):
            return self._container(value)
        return self._code(value) if callable(value) or isinstance(value, types.ModuleType) else self._object(value)

    def _container(self, value: Any) -> str:
        if isinstance(value, Mapping):
            return f"{{{', '.join(sorted(f'{self.read(k)}: {self.read(v)}' for k, v in value.items()))}}}"
        items = [self.read(item) for item in value]
        if isinstance(value, set | frozenset):
            return f"{{{', '.join(sorted(items))}}}"
        return f"[{', '.join(items)}]" if isinstance(value, list) else f"({', '.join(items)})"

    def _code(self, value: Any) -> str:
        if isinstance(value, type):
            return value.__qualname__ if is_installed_class(value) else self._class(value)
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, types.MethodType):
            return f"{self.read(value.__self__)}.{self.read(value.__func__)}"
        if isinstance(value, types.ModuleType):
            return value.__name__ if is_installed(value.__name__) else self._module(value)
        if isinstance(wrapped := getattr(value, "__wrapped__", None), types.FunctionType):  # such as lru_cache
            return f"{type(value).__qualname__}({self.read(wrapped)})"
        if isinstance(value, types.BuiltinFunctionType | types.MethodDescriptorType | types.WrapperDescriptorType):
            return f"{getattr(value, '__module__', None) or 'builtins'}.{value.__qualname__}"
        return self._object(value)

    def _function(self, value: types.FunctionType) -> str:
        cells = dict(zip(value.__code__.co_freevars, value.__closure__ or (), strict=True))
        held = ChainMap({name: _content(cell) for name, cell in cells.items()}, value.__globals__)
        changed = changed_by(value.__code__, held)
        closed = [held[name] for name in cells if name not in changed]
        if lies_with_installed(value.__code__.co_filename):
            name = f"{value.__globals__.get('__name__')}.{value.__qualname__}"
            return f"{name}[{_hash(*map(self.read, closed))}]" if closed else name
        names = [name for name in dict.fromkeys(globals_of(value.__code__)) if name not in changed]
        used = {name: value.__globals__[name] for name in names if name in value.__globals__}
        imported = {name: source_of(name) for name in imports_of(value.__code__) if not is_installed(name)}
        parts = [self._bytecode(value.__code__, value.__doc__)]
        parts += [self.read(part) for part in (value.__defaults__, value.__kwdefaults__, closed, used, imported)]
        return f"{value.__qualname__}@{_hash(*parts)}"

    def _bytecode(self, code: types.CodeType, doc: str | None = None) -> str:
        constants = [None if not k and c == doc else c for k, c in enumerate(code.co_consts)]  # the docstring is first
        texts = [self._bytecode(c) if isinstance(c, types.CodeType) else self.read(c) for c in constants]
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        table = getattr(code, "co_exceptiontable", b"")
        counts = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
        return _hash(code.co_code, table, repr((code.co_names, names, counts)), *texts)

    def _class(self, value: type) -> str:
        told = [self.read(base) for base in value.__bases__]
        functions = [one for member in vars(value).values() for one in _functions_of(member)]
        codes = [one.__code__ for one in functions if hasattr(one, "__code__")]
        changed = {name for code in codes for name in changed_by(code, vars(value))}
        for name, member in sorted(vars(value).items()):
            if name in _ATTRIBUTES or name in changed or _is_generated(value, member):
                continue
            code = list(_functions_of(member))
            if code or not name.startswith("__"):
                told.append(f"{name}={', '.join(map(self.read, code)) if code else self.read(member)}")
        if dataclasses.is_dataclass(value):
            told += [f"{f.name}: {self.read((f.default, f.default_factory))}" for f in dataclasses.fields(value)]
        return f"{value.__qualname__}@{_hash(*told)}"

    def _module(self, value: types.ModuleType) -> str:
        homes = {getattr(held, "__module__", None) for held in vars(value).values()}
        homes |= {held.__name__ for held in vars(value).values() if isinstance(held, types.ModuleType)}
        others = sorted(home for home in homes - {value.__name__, None} if isinstance(home, str))
        told = [self.read(sys.modules[home]) for home in others if home in sys.modules and not is_installed(home)]
        return f"{value.__name__}@{_hash(source(getattr(value, '__file__', None)), *told)}"

    def _object(self, value: object) -> str:
        kind = type(value)
        if is_standard(str(kind.__module__)) and is_installed(kind.__module__):
            text = repr(value)
            return kind.__qualname__ if " at 0x" in text or isinstance(value, _CHANGING) else text
        state = dict(getattr(value, "__dict__", {}))
        for name in (slot for base in kind.__mro__ for slot in _slots(base)):
            if hasattr(value, name):
                state[name] = getattr(value, name)
        kept = {
            name: held
            for name, held in state.items()
            if name not in _ATTRIBUTES and not isinstance(getattr(kind, name, None), functools.cached_property)
        }
        return f"{self.read(kind)}<{_hash(self.read(kept))}>"


def _hash(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        blob = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(len(blob).to_bytes(8, "little") + blob)
    return digest.hexdigest()[:12]


def _values(value: torch.Tensor | np.ndarray[Any, Any] | torch.Generator) -> str:
    if isinstance(value, np.ndarray):
        whole = value.tobytes() if value.dtype != object else repr(value.tolist()).encode()
        return f"array({value.dtype}, {value.shape}, {_hash(whole)})"
    tensor = value.get_state() if isinstance(value, torch.Generator) else value.detach()
    if tensor.is_meta:
        return f"tensor({tensor.dtype}, {tuple(tensor.shape)}, meta)"
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    flat = dense.resolve_conj().resolve_neg().cpu().contiguous().flatten().view(torch.uint8)
    return f"tensor({tensor.dtype}, {tuple(tensor.shape)}, {_hash(flat.numpy().tobytes())})"


def _content(cell: types.CellType) -> object:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _functions_of(member: object) -> Iterator[Callable[..., Any]]:
    """Yield the functions that a class's attribute consists of."""
    if isinstance(member, staticmethod | classmethod):
        yield member.__func__
    elif isinstance(member, property):
        yield from (one for one in (member.fget, member.fset, member.fdel) if one is not None)
    elif isinstance(member, functools.cached_property):
        yield member.func
    elif isinstance(member, types.FunctionType):
        yield member


def _is_generated(kind: type, member: object) -> bool:
    """Say whether a member follows from others: a slot, or what `dataclass` writes."""
    if isinstance(member, types.MemberDescriptorType | types.GetSetDescriptorType):
        return True
    code = getattr(member, "__code__", None)
    return dataclasses.is_dataclass(kind) and code is not None and code.co_filename == "<string>"


def _slots(kind: type) -> tuple[str, ...]:
    slots = vars(kind).get("__slots__", ())
    names = (slots,) if isinstance(slots, str) else tuple(slots)
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))
