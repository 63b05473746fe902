"""Arguments as callers give them, made into what the toolkit takes: devices, instances, functions' names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from fedcondense.errors import SettingError

__all__ = ["called", "device_of", "instance_of"]


def device_of(device: object) -> torch.device:
    """Return a device of this machine.

    Args:
        device: A `torch.device`, its name, or the number of a GPU.

    Raises:
        SettingError: There is none of this name here, it holds no values, as ``"meta"`` does not, or cannot compute.
    """
    try:
        if isinstance(device, bool) or not isinstance(device, (str, int, torch.device)):
            raise TypeError(f"it is a {type(device).__name__}")
        found = torch.device(device)
        if found.type == "meta":
            raise RuntimeError("it holds no values")
        if found.type != "cpu":
            torch.zeros(1, dtype=torch.float32, device=found).add_(1)
        elif found.index:
            raise RuntimeError("there is one cpu")
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        number = torch.cuda.device_count() if torch.cuda.is_available() else 0
        here = ", ".join(["cpu", *(f"cuda:{k}" for k in range(number))])
        raise SettingError(f"device {device!r} cannot be used ({reason}); on this machine: {here}") from None
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
