"""Tensors out of the files that `torch.save` writes, without unpickling: whatever the file says, nothing of it is run.

A ``.pt`` file is a zip archive of raw numbers, with a pickle that says which of them make up which tensor. `torch.load`
with ``weights_only=True`` was built for such files, but let a hostile one corrupt memory until torch 2.10
(CVE-2026-24747). Here the pickle is read as a list of instructions, and those that build lists, dicts, numbers, texts
and descriptions of tensors are followed; a name that stands for anything else is an error, and none is looked up.
"""

from __future__ import annotations

import io
import math
import os
import pickletools
import zipfile
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor

from fedcondense.errors import UntrustedSetError

__all__ = ["Stored", "read_torch"]

_STORAGES = {
    "torch DoubleStorage": torch.float64,
    "torch FloatStorage": torch.float32,
    "torch HalfStorage": torch.float16,
    "torch BFloat16Storage": torch.bfloat16,
    "torch LongStorage": torch.int64,
    "torch IntStorage": torch.int32,
    "torch ShortStorage": torch.int16,
    "torch CharStorage": torch.int8,
    "torch ByteStorage": torch.uint8,
    "torch BoolStorage": torch.bool,
}
_TENSORS = {"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"}
_PARAMETER = "torch._utils _rebuild_parameter"
_DICT = "collections OrderedDict"
_PASSED_OVER = {  # numpy's numbers, such as accuracies beside the images; their values are not read
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy dtype",
    "_codecs encode",
}
_KNOWN = {*_STORAGES, *_TENSORS, _PARAMETER, _DICT, *_PASSED_OVER}

_CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_SINGLES = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PROGRAM_BYTES = 16 << 20  # of the pickle: it holds no numbers of tensors
_MARK = object()


@dataclass(frozen=True)
class _Name:
    """A name in the file, "module name"; what it stands for is never looked up."""

    text: str


class _PassedOver:
    """A number of numpy's."""


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    key: str
    count: int


@dataclass(frozen=True)
class Stored:
    """A tensor as the file describes it; its numbers are read by `load`.

    Args:
        dtype: Of its numbers.
        shape: Its sizes; it has at most as many numbers as are stored.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    _stride: tuple[int, ...]
    _offset: int
    _storage: _Storage
    _archive: _Archive

    def load(self) -> Tensor:
        """Return the tensor, on the CPU.

        Raises:
            UntrustedSetError: The archive does not hold the numbers that it should.
        """
        raw = self._archive.read(f"data/{self._storage.key}")
        size = self._storage.count * self.dtype.itemsize
        if len(raw) != size or not size:
            self._archive.refuse(f"a tensor of {size} bytes is stored in {len(raw)}")
        numbers = torch.frombuffer(bytearray(raw), dtype=self.dtype)
        return numbers.as_strided(self.shape, self._stride, self._offset).clone()


def read_torch(path: str | os.PathLike[str], max_bytes: int = 1 << 30) -> Any:
    """Return what `torch.save` wrote to a file: dicts, lists, tuples, numbers, texts, and tensors as `Stored`.

    Args:
        path: A file in torch's zip format (from torch 1.6 on), of unknown origin.
        max_bytes: What it may take; checked before it is read.

    Raises:
        UntrustedSetError: The file is missing, too large, damaged, or holds something else; nothing of it was run.
    """
    return _Archive(path, max_bytes).content()


class _Archive:
    def __init__(self, path: str | os.PathLike[str], max_bytes: int) -> None:
        self.path = os.fspath(path)
        try:
            with open(path, "rb") as file:
                blob = file.read(max_bytes + 1)
        except OSError as error:
            self.refuse(f"{error.strerror}; give the path of a .pt file")
        if len(blob) > max_bytes:
            self.refuse(f"more than the {max_bytes} bytes that are allowed (max_bytes)")
        if not blob:
            self.refuse("an empty file; write it anew")
        self.size = len(blob)
        if not blob.startswith(b"PK"):
            self.refuse("not in torch's zip format; if torch before 1.6 wrote it, and you trust it, save it anew")
        try:
            self.archive = zipfile.ZipFile(io.BytesIO(blob))
        except (zipfile.BadZipFile, ValueError, OverflowError, NotImplementedError) as error:
            self.refuse(f"a damaged archive ({error}); copy it anew")
        tops = [name.removesuffix("/data.pkl") for name in self.archive.namelist() if name.endswith("/data.pkl")]
        if len(tops) != 1:
            self.refuse("an archive that torch.save did not write; give a .pt file")
        self.top = tops[0]
        if self.read("byteorder", b"little") != b"little":
            self.refuse("written on a big-endian machine; save it anew on another")

    def refuse(self, reason: str) -> NoReturn:
        raise UntrustedSetError(f"{self.path}: {reason}")

    def read(self, name: str, default: bytes | None = None) -> bytes:
        """Return an entry's bytes; as torch writes it, it is not compressed, so it cannot be larger than the file."""
        try:
            entry = self.archive.getinfo(f"{self.top}/{name}")
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size > self.size:
                self.refuse(f"{name} is compressed, which torch.save does not do")
            return self.archive.read(entry)
        except KeyError:
            if default is not None:
                return default
            self.refuse(f"damaged: {name} is missing; copy it anew")
        except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError, NotImplementedError) as error:
            self.refuse(f"damaged: {name} cannot be read ({error}); copy it anew")

    def content(self) -> Any:
        program = self.read("data.pkl")
        if len(program) > _PROGRAM_BYTES:
            self.refuse(f"{len(program)} bytes beside the numbers; allowed: {_PROGRAM_BYTES}")
        try:
            return self._follow(program)
        except UntrustedSetError:
            raise
        except (ValueError, TypeError, LookupError, AttributeError, OverflowError, MemoryError) as error:
            self.refuse(f"malformed ({type(error).__name__}: {str(error)[:100]})")

    def _follow(self, program: bytes) -> Any:
        """Follow the instructions that build plain values; anything else is refused."""
        stack: list[Any] = []
        memo: dict[int, Any] = {}
        argument: Any
        for instruction, argument, _ in pickletools.genops(program):
            name = instruction.name
            if name in ("PROTO", "FRAME"):
                pass
            elif name == "STOP":
                return stack.pop()
            elif name in _CONSTANTS:
                stack.append(argument)
            elif name in _SINGLES:
                stack.append(_SINGLES[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name in ("EMPTY_LIST", "EMPTY_DICT"):
                stack.append([] if name == "EMPTY_LIST" else {})
            elif name in _TUPLES:
                stack.append(tuple(_pop(stack, _TUPLES[name])))
            elif name == "TUPLE":
                stack.append(tuple(_pop_to_mark(stack)))
            elif name in ("LIST", "DICT"):
                items = _pop_to_mark(stack)
                stack.append(items if name == "LIST" else _fill({}, items))
            elif name in ("APPEND", "APPENDS"):
                items = _pop(stack, 1) if name == "APPEND" else _pop_to_mark(stack)
                _of(list, stack[-1]).extend(items)
            elif name in ("SETITEM", "SETITEMS"):
                items = _pop(stack, 2) if name == "SETITEM" else _pop_to_mark(stack)
                _fill(_of(dict, stack[-1]), items)
            elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
                memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
            elif name in ("GET", "BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name == "GLOBAL":
                stack.append(self._name(argument))
            elif name == "STACK_GLOBAL":
                stack.append(self._name(" ".join(_of(str, word) for word in _pop(stack, 2))))
            elif name == "BINPERSID":
                stack.append(_storage(stack.pop()))
            elif name == "REDUCE":
                called, given = _pop(stack, 2)
                stack.append(self._call(_of(_Name, called).text, _of(tuple, given)))
            elif name == "BUILD" and isinstance(stack[-2], _PassedOver | dict):
                stack.pop()  # a state of what is passed over, or attributes of a dict
            else:
                self.refuse(f"holds the instruction {name}, which tensors do not need; nothing was run")
        raise ValueError("no end")

    def _name(self, text: str) -> _Name:
        if text not in _KNOWN:
            shown = "".join(c if c.isprintable() else "?" for c in text.replace(" ", "."))[:100]
            self.refuse(f"holds {shown}, but only tensors, numbers and texts are read; nothing was run")
        return _Name(text)

    def _call(self, name: str, given: tuple[Any, ...]) -> Any:
        if name in _TENSORS:
            return self._tensor(*given[:4])
        if name == _PARAMETER:
            return _of(Stored, given[0])
        if name == _DICT:
            return {}
        if name in _PASSED_OVER:
            return _PassedOver()
        raise ValueError(f"{name} is called")

    def _tensor(self, storage: Any, offset: Any, shape: Any, stride: Any) -> Stored:
        storage, shape, stride = _of(_Storage, storage), _of(tuple, shape), _of(tuple, stride)
        if not all(type(n) is int and 0 <= n < 2**40 for n in (offset, *shape, *stride)):
            raise ValueError("a tensor whose sizes are no whole numbers")
        if len(shape) != len(stride) or len(shape) > 8:
            raise ValueError(f"a tensor of {len(shape)} dimensions and {len(stride)} strides")
        last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
        if math.prod(shape) > storage.count or (math.prod(shape) and last >= storage.count):
            raise ValueError(f"a tensor of {shape} in {storage.count} numbers")
        return Stored(storage.dtype, shape, stride, offset, storage, self)


def _storage(given: Any) -> _Storage:
    kind, of, key, _, count = _of(tuple, given)
    if kind != "storage" or type(count) is not int or not 0 <= count < 2**40:
        raise ValueError("a storage of an unknown kind")
    return _Storage(_STORAGES[_of(_Name, of).text], _of(str, key), count)


def _of(kind: Any, value: Any) -> Any:
    if not isinstance(value, kind):
        raise TypeError(f"a {type(value).__name__} where a {kind.__name__} is needed")
    return value


def _pop(stack: list[Any], count: int) -> list[Any]:
    if len(stack) < count:
        raise IndexError("too few values")
    items = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return items


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while (item := stack.pop()) is not _MARK:
        items.append(item)
    return items[::-1]


def _fill(into: dict[Any, Any], items: list[Any]) -> dict[Any, Any]:
    keys: list[Any] = items[::2]
    if not all(isinstance(key, str | int | float | bytes | None) for key in keys):
        raise TypeError("a key that is no number and no text")
    into.update(zip(keys, items[1::2], strict=True))
    return into
