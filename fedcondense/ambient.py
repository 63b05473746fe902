"""What a result must not depend on: the grad mode, default dtype and default device that a caller happens to have set.

All of these belong to a thread or to the process. Functions that users call are marked `in_own_state`: they run with
gradients, in single precision and on the CPU unless told otherwise, and leave the caller's settings as they were. Where
these are torch's own defaults already, that costs a microsecond a call.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["SinglePrecision", "in_own_state", "own_state"]

P = ParamSpec("P")
R = TypeVar("R")

_FLOATING = {torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.eye, torch.linspace, torch.logspace}
_FLOATING |= {torch.hann_window, torch.hamming_window, torch.blackman_window, torch.empty_strided}
_INFERRING = {torch.tensor, torch.as_tensor, torch.asarray, torch.full, torch.arange, torch.range, torch.scalar_tensor}
_INFERRING |= {torch.normal}
_CONVERTING = {Tensor.double, Tensor.half, Tensor.bfloat16, Tensor.float, Tensor.type}

_thread = threading.local()


def in_own_state(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function run in `own_state`."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _is_own():
            return function(*args, **kwargs)
        with own_state():
            return function(*args, **kwargs)

    return call


@contextmanager
def own_state() -> Iterator[None]:
    """Take gradients, make tensors in single precision and on the CPU where none is named, and keep no cast weights.

    An autocast of the caller stays: it is documented to be heeded. Its cache would keep the weights of every step.
    """
    with ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        if not torch.is_grad_enabled():
            stack.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if not _is_single():
            stack.enter_context(_single_precision())
        if _keeps_casts():
            torch.set_autocast_cache_enabled(False)
            stack.callback(torch.set_autocast_cache_enabled, True)
        yield


class SinglePrecision(TorchFunctionMode):
    """Makes float32 what float64 or bfloat16 would be by the process's default, in this thread alone.

    These are tensors that are made without a dtype, and whole numbers that an operation takes to floating point. The
    default itself belongs to all threads, so it is left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function, with the dtype named where it would be the default."""
        kwargs = kwargs or {}
        default = torch.get_default_dtype()
        given = [*args, *kwargs.values()]
        if default == torch.float32 or any(value is default for value in given) or func in _CONVERTING:
            return func(*args, **kwargs)
        if func in _FLOATING:
            return func(*args, **{"dtype": torch.float32, **{k: v for k, v in kwargs.items() if v is not None}})
        made = func(*args, **kwargs)
        if not (isinstance(made, Tensor) and made.dtype == default):
            return made
        if func in _INFERRING:
            is_told = any(hasattr(value, "dtype") for value in given)  # an array's own dtype is no default
            return made if is_told or "out" in kwargs else func(*args, **{**kwargs, "dtype": torch.float32})
        tensors = [value for value in given if isinstance(value, Tensor)]
        if not tensors or any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors):
            return made
        if func is torch.where:
            return func(args[0], *(torch.tensor(value, dtype=torch.float32) for value in args[1:]))
        return func(*map(_in_single, args), **{name: _in_single(value) for name, value in kwargs.items()})


@contextmanager
def _single_precision() -> Iterator[None]:
    _thread.single = True
    try:
        with SinglePrecision():
            yield
    finally:
        _thread.single = False


def _in_single(value: Any) -> Any:
    return value.to(torch.float32) if isinstance(value, Tensor) else value


def _is_single() -> bool:
    return torch.get_default_dtype() == torch.float32 or getattr(_thread, "single", False)


def _keeps_casts() -> bool:
    """Say whether an autocast is on, and keeps what it casts."""
    if not torch.is_autocast_cache_enabled():
        return False
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


def _is_own() -> bool:
    return (
        torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and _is_single()
        and torch.get_default_device().type == "cpu"
        and not _keeps_casts()
    )
