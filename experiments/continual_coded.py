"""Memories of the continual experiment that are coded: what their names say, and their buffers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from continual_protocols import Protocol

from fedcondense.memory import Maker

__all__ = ["Coded", "coded_buffer"]


@dataclass(frozen=True)
class Coded:
    """What a name says, as ``"jpeg-10"``, ``"mmd factor 2 bits-2"`` or ``"mmd factor 2 bits-2 + 0.5 jpeg-10"``."""

    makes: str  # a memory that `maker` knows; empty: real images alone
    codec: str
    real_codec: str
    real_fraction: float

    @classmethod
    def named(cls, memory: str) -> Coded:
        """Read a name."""
        first, _, second = memory.partition(" + ")
        makes, _, codec = first.rpartition(" ")
        if not makes:
            return cls("", "raw", codec, 1.0)
        fraction, _, real_codec = second.partition(" ")
        return cls(makes, codec, real_codec or codec, float(fraction or 0))


def coded_buffer(
    coded: Coded, protocol: Protocol, make: Maker | None, classes: int, like_stream: dict[str, Any]
) -> Any:
    """Return a buffer within the protocol's bytes, each class with its final share from the start.

    Args:
        coded: What is in it.
        protocol: Gives the bytes.
        make: Makes its sets; None: it holds real images alone.
        classes: How many there will be.
        like_stream: Further arguments.
    """
    from fedcondense.avalanche import CodedBuffer, CondensedBuffer

    told: dict[str, Any] = {"adaptive_size": False, "total_num_groups": classes, "max_bytes": protocol.max_bytes}
    if make is None:
        return CodedBuffer(codec=coded.real_codec, **told, **like_stream)
    told |= {"codec": coded.codec, "real_codec": coded.real_codec, "real_fraction": coded.real_fraction}
    return CondensedBuffer(condenser=make, **told, **like_stream)
