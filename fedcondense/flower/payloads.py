"""What an answer may hold beside a synthetic set: sums, weights, metrics, from bytes of unknown origin."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, Self

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from fedcondense.errors import UntrustedSetError
from fedcondense.sets.format import Limits

__all__ = ["Metrics", "Payload", "Sums", "Weights"]

_HEADER = 1 << 20  # bytes of names and shapes
_LARGEST = 2**62  # of a whole number
_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
}


class Payload(Protocol):
    """What an answer holds: a `SyntheticSet`, `Sums`, `Weights`, `Metrics`, or a class of one's own."""

    def to_bytes(self) -> bytes:
        """Return what travels."""

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = ...) -> Self:
        """Parse bytes of unknown origin; raise UntrustedSetError before memory beyond the limits is allocated."""


@dataclass(frozen=True)
class _Named:
    """Tensors by name, as one safetensors file."""

    tensors: Mapping[str, Tensor]

    def to_bytes(self) -> bytes:
        """Return the file's bytes."""
        return save({name: value.detach().cpu().contiguous() for name, value in self.tensors.items()})

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = Limits()) -> Self:
        """Parse bytes of unknown origin: their length and the header's first, then the tensors.

        Raises:
            UntrustedSetError: They are no such file, too long, or hold numbers that are not finite.
        """
        kind = cls.__name__.lower()
        if len(blob) > limits.nbytes:
            raise UntrustedSetError(f"{kind} of {len(blob)} bytes; allowed: {limits.nbytes}")
        size = int.from_bytes(bytes(blob[:8]), "little")
        if len(blob) < 8 or size > min(_HEADER, len(blob) - 8):
            raise UntrustedSetError(
                f"{kind} with a header of {size} bytes; allowed: {_HEADER}, and as many must follow"
            )
        try:
            tensors = load(bytes(blob))
        except (SafetensorError, ValueError, KeyError) as broken:
            raise UntrustedSetError(f"damaged {kind} ({broken})") from None
        for name, value in tensors.items():
            if value.dtype not in _DTYPES:
                raise UntrustedSetError(
                    f"{kind}: {name[:60]!r} is of {value.dtype}; allowed: floats of 16 to 64 bits, integers"
                )
            if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                raise UntrustedSetError(f"{kind}: {name[:60]!r} holds numbers that are not finite")
        return cls(tensors)

    def matching(self, like: Mapping[str, Tensor], whose: str) -> Self:
        """Return these tensors if names, shapes and dtypes are those of `like`.

        Raises:
            UntrustedSetError: They are not; the message names the first that differs.
        """
        kind = type(self).__name__.lower()
        if set(self.tensors) != set(like):
            odd = sorted(set(self.tensors) ^ set(like))
            raise UntrustedSetError(
                f"{kind} of other names than those of {whose}: {', '.join(map(repr, odd[:3]))[:120]}"
            )
        for name, value in like.items():
            mine = self.tensors[name]
            if mine.shape != value.shape or mine.dtype != value.dtype:
                given = f"{tuple(mine.shape)} {mine.dtype}"
                raise UntrustedSetError(f"{kind}: {name!r} is {given}; {whose} has {tuple(value.shape)} {value.dtype}")
        return self


class Weights(_Named):
    """A network's state: tensors by name, of any dtype that it has."""

    @classmethod
    def of(cls, network: nn.Module) -> Weights:
        """Return a network's weights and buffers, on the CPU."""
        return cls({name: value.detach().cpu().clone() for name, value in network.state_dict().items()})

    def load_into(self, network: nn.Module) -> nn.Module:
        """Set a network's weights and return it.

        Raises:
            UntrustedSetError: They are of another network.
        """
        self.matching(network.state_dict(), "this network")
        network.load_state_dict(dict(self.tensors))
        return network


class Sums(_Named):
    """Tensors that add up over sites: counts, feature sums, products; of one shape at every site."""

    def __add__(self, other: Sums) -> Sums:
        """Add name by name, in float64 where they are floating."""
        other.matching(self.tensors, "the other sums")
        return Sums({name: value + other.tensors[name] for name, value in self.tensors.items()})

    def wide(self) -> Sums:
        """Return the same sums in float64 where they are floating, so that adding many of them loses nothing."""
        return Sums({n: v.double() if v.is_floating_point() else v for n, v in self.tensors.items()})


@dataclass(frozen=True)
class Metrics:
    """Numbers by name."""

    numbers: Mapping[str, float]

    def to_bytes(self) -> bytes:
        """Return them as JSON."""
        return json.dumps(dict(self.numbers)).encode()

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = Limits()) -> Metrics:
        """Parse bytes of unknown origin: at most 64 kB, an object of at most 1,000 finite numbers.

        Raises:
            UntrustedSetError: They are something else.
        """
        if len(blob) > min(limits.nbytes, 1 << 16):
            raise UntrustedSetError(f"metrics of {len(blob)} bytes; allowed: {min(limits.nbytes, 1 << 16)}")
        try:
            given: Any = json.loads(bytes(blob))
        except (ValueError, RecursionError) as broken:
            raise UntrustedSetError(f"damaged metrics ({type(broken).__name__})") from None
        numbers: list[Any] = list(given.values()) if isinstance(given, dict) else [None]
        if len(numbers) > 1000 or not all(map(_is_finite, numbers)):
            raise UntrustedSetError("metrics that are no object of at most 1,000 finite numbers")
        return cls(given)


def _is_finite(number: Any) -> bool:
    if type(number) is int:  # Python's have no bound, and no float
        return abs(number) < _LARGEST
    return type(number) is float and math.isfinite(number)
