"""What a Flower strategy keeps on itself between rounds, as tensors: momenta, last averages, numbers that change.

Flower's FedAdam has dicts of arrays, its FedAvgM a list and an `ArrayRecord`, others numbers. A strategy of a new
process goes on from them only if they are put back in kind, order and dtype.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedcondense.errors import ResumeError

__all__ = ["held", "hold"]

_INSIDE = ">"  # between the attribute that holds a strategy and an attribute of that strategy
_NUMERIC = "biuf"  # kinds of numpy's dtypes
_PLACES = 6  # digits of a value's place in its container


def held(strategy: Strategy) -> dict[str, Tensor]:
    """Return what a strategy keeps on itself: arrays, alone or in dicts, lists, tuples and `ArrayRecord`s, and numbers.

    What its constructors take by the same name is a setting, not a state: a resumed run gives it anew. A strategy
    within a strategy (Flower's wrappers for differential privacy) is looked into.

    Returns:
        Tensors on the CPU, not to be written to, by names that `hold` reads.
    """
    found: dict[str, Tensor] = {}
    settings = _settings(strategy)
    for name, value in vars(strategy).items():
        if isinstance(value, Strategy):
            found |= {f"{name}{_INSIDE}{inner}": tensor for inner, tensor in held(value).items()}
        elif name not in settings:
            found |= {f"{name}:{kind}": tensor for kind, tensor in _parts(value)}
    return found


def hold(strategy: Strategy, tensors: Mapping[str, Tensor]) -> None:
    """Put back what `held` returned, into a strategy that was made with the same settings.

    Raises:
        ResumeError: A name is none that `held` gives.
    """
    parts: dict[tuple[str, str], list[tuple[str, str, Tensor]]] = {}
    inside: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        head, is_inside, rest = full.partition(_INSIDE)
        if is_inside and ":" not in head:
            inside.setdefault(head, {})[rest] = tensor
            continue
        try:
            name, container, kind, *where = full.split(":", 4)
            place, key = where if where else ("", "")
        except ValueError:
            raise ResumeError(f"{full[:60]!r} is no state of a Flower strategy; start over in another folder") from None
        parts.setdefault((name, container), []).append((place, key, _value(kind, tensor)))
    for name, values in inside.items():
        within = getattr(strategy, name, None)
        if not isinstance(within, Strategy):
            raise ResumeError(f"{name!r} of {type(strategy).__name__} is no strategy; resume with the one it was")
        hold(within, values)
    for (name, container), items in parts.items():
        setattr(strategy, name, _contained(container, sorted(items, key=lambda item: item[0])))


def _settings(strategy: Strategy) -> set[str]:
    """Return the names of what the constructors of a strategy take."""
    own = [vars(kind)["__init__"] for kind in type(strategy).__mro__[:-1] if "__init__" in vars(kind)]
    return {name for init in own for name in inspect.signature(init).parameters}


def _parts(value: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an attribute consists of, with what they are in it; nothing if it is of another kind."""
    if isinstance(value, ArrayRecord):
        items = [(key, array.numpy()) for key, array in value.items()]
        yield from _items("record", items)
    elif isinstance(value, Mapping):
        if all(isinstance(key, str) for key in value):
            yield from _items("dict", list(value.items()))
    elif isinstance(value, list | tuple):
        yield from _items(type(value).__name__, [("", one) for one in value])
    elif (one := _tensor(value)) is not None:
        yield f"value:{one[0]}", one[1]


def _items(container: str, items: Sequence[tuple[str, Any]]) -> Iterator[tuple[str, Tensor]]:
    found = [(key, _tensor(value)) for key, value in items]
    for place, (key, one) in enumerate(found):
        if one is not None and all(other is not None for _, other in found):
            yield f"{container}:{one[0]}:{place:0{_PLACES}d}:{key}", one[1]


def _tensor(value: Any) -> tuple[str, Tensor] | None:
    """Return of what kind a value is, and the value as a tensor."""
    if isinstance(value, Tensor):
        return "tensor", value.detach().cpu()
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind in _NUMERIC:
        return "array", torch.from_numpy(np.array(value))
    if isinstance(value, bytes):
        return "bytes", torch.frombuffer(bytearray(value), dtype=torch.uint8) if value else torch.zeros(0).byte()
    if isinstance(value, bool | int | float):
        kinds = {bool: torch.bool, int: torch.int64, float: torch.float64}
        kind = next(kind for kind in kinds if isinstance(value, kind))
        return "number", torch.tensor(value, dtype=kinds[kind])
    return None


def _value(kind: str, tensor: Tensor) -> Any:
    if kind == "number":
        return tensor.item()
    if kind == "bytes":
        return tensor.numpy().tobytes()
    return tensor.numpy().copy() if kind == "array" else tensor.clone()


def _contained(container: str, items: Sequence[tuple[str, str, Any]]) -> Any:
    if container == "record":
        return ArrayRecord({key: Array(value) for _, key, value in items})
    if container == "dict":
        return {key: value for _, key, value in items}
    values = [value for _, _, value in items]
    return values[0] if container == "value" else tuple(values) if container == "tuple" else values
