"""Passes through networks that draw by chance: a user's network may have dropout or noise, ours have neither."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import nn

from fedcondense.networks.convnet import ConvNet
from fedcondense.randomness import Drawn, child_seed

__all__ = ["draws_nothing", "mark_as_ours", "repeatable"]

_MARK = "_fedcondense_draws_nothing"


def mark_as_ours(module: nn.Module) -> nn.Module:
    """Note on a network that it draws nothing in a pass, so that passes through it cost nothing more."""
    setattr(module, _MARK, True)
    return module


def draws_nothing(network: Any) -> bool:
    """Say whether a network is known to draw nothing in a pass; of a user's own it is not known."""
    return type(network) is ConvNet or getattr(network, _MARK, False)


def repeatable(network: Any, seed: int, *purpose: str | int) -> AbstractContextManager[Any]:
    """Return the context of a pass: what the network draws in it follows from a seed and a purpose, in this thread.

    Equal seeds and purposes draw equally, so that a pass can be repeated: for the second half of a two-pass gradient,
    or to build a graph again. For a user's network this costs some microseconds per operation. Dropout inside of
    `torch.utils.checkpoint` cannot be repeated, and is refused before a run (`networks.probing`).

    Args:
        network: Any.
        seed: Of the draw, or of whatever else decides.
        purpose: Tells passes of one seed apart.
    """
    return nullcontext() if draws_nothing(network) else Drawn(child_seed(seed, "pass", *purpose))
