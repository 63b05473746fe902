"""Arguments as callers give them, made into what the toolkit takes: devices, whole numbers, seeds, functions' names."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fedcondense.errors import SettingError

__all__ = ["called", "device_of", "instance_of", "seeds_of", "whole"]


def device_of(device: object) -> torch.device:
    """Return a device of this machine.

    Args:
        device: A `torch.device`, its name, or the number of a GPU.

    Raises:
        SettingError: There is none of this name here, or it holds no values, as ``"meta"`` does not.
    """
    try:
        if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
            raise TypeError(f"it is a {type(device).__name__}")
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        if found.type != "cpu":
            torch.empty(0, device=found)
        elif found.index:
            raise RuntimeError("there is one cpu")
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = ", ".join(["cpu", *(f"cuda:{k}" for k in range(number))])
        raise SettingError(f"device {device!r} cannot be used ({reason}); on this machine: {here}") from None
    return found


def whole(name: str, value: object, least: int = 0) -> int:
    """Return a whole number as an `int`: of numpy or torch, too, but no truth value and no text.

    Raises:
        SettingError: It is something else, or less than `least`.
    """
    number: int | None = None
    if isinstance(value, Tensor):
        value = value.item() if value.ndim == 0 else value
    if type(value).__name__ not in ("bool", "bool_"):
        with suppress(TypeError):
            number = operator.index(value)  # type: ignore[arg-type]
    if number is None or number < least:
        raise SettingError(f"{name} {value!r:.100}; needed: a whole number, {least} or more")
    return number


def seeds_of(seeds: Iterable[object]) -> tuple[int, ...]:
    """Return seeds as a tuple: of a list, range, array, tensor or generator of whole numbers.

    Raises:
        SettingError: There are none, or they are something else.
    """
    if isinstance(seeds, (str, bytes, Mapping, set, frozenset)) or not hasattr(seeds, "__iter__"):
        raise SettingError(f"seeds {seeds!r:.100}; needed: whole numbers in their order, such as [0, 1, 2]")
    if getattr(seeds, "ndim", 1) != 1:
        raise SettingError(f"seeds {seeds!r:.100}; needed: one row of whole numbers, such as [0, 1, 2]")
    found = tuple(whole("seed", seed) for seed in seeds)
    if not found:
        raise SettingError("no seeds; give one per network, such as [0, 1, 2]")
    return found


def instance_of(what: str, value: object, kind: type | str, example: str) -> None:
    """Refuse an argument of another type, a class in the place of one of its instances above all.

    Args:
        what: Which argument.
        value: What was given.
        kind: Its type, or the name of a method that it has where no type is asked for.
        example: What is needed.

    Raises:
        SettingError: `value` is no instance of `kind`.
    """
    if isinstance(value, kind) if isinstance(kind, type) else hasattr(value, kind) and not isinstance(value, type):
        return
    given = f"the class {value.__name__} itself" if isinstance(value, type) else f"a {type(value).__name__}"
    raise SettingError(f"{what}: {given}; needed: {example}")


def called(function: Callable[..., Any]) -> str:
    """Return what a function is called in records: equal text in every process, so without addresses.

    >>> called(partial(max, 3, key=len)), called(print)
    ('max(3, key=len)', 'print')
    """
    if isinstance(function, partial):
        given = [_told(value) for value in function.args]
        given += [f"{name}={_told(value)}" for name, value in function.keywords.items()]
        return f"{called(function.func)}({', '.join(given)})" if given else called(function.func)
    name = getattr(function, "__name__", None)
    if isinstance(name, str):
        return name
    kind = type(function)
    plain = "__repr__" not in vars(kind) or isinstance(function, torch.nn.Module)  # else it holds an address
    return kind.__name__ if plain else repr(function)


def _told(value: object) -> str:
    return called(value) if callable(value) else repr(value)
