"""A training between two steps: what it goes on from, bit-equal on one CPU with as many threads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Midway", "go_on", "state_of"]


@dataclass(frozen=True)
class Midway:
    """Who keeps a training, and what it goes on from.

    Args:
        keep: Called after each step with a function that returns the state then; it refers to the tensors in use.
        state: What such a function returned; None: the training begins.
    """

    keep: Callable[[Callable[[], dict[str, Any]]], None]
    state: Mapping[str, Any] | None = None


def state_of(
    done: int, order: Tensor, network: nn.Module, optimizer: torch.optim.Optimizer, draws: torch.Generator
) -> dict[str, Any]:
    """Return the state after `done` steps: of the network, the optimizer, the images to come, and what draws."""
    return {
        "done": done,
        "order": order,
        "network": dict(network.state_dict()),
        "optimizer": optimizer.state_dict()["state"],
        "draws": draws.get_state(),
    }


def go_on(
    state: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer, draws: torch.Generator
) -> tuple[int, Tensor]:
    """Put a state back where it was, and return how many steps are done, and the order of the images to come."""
    network.load_state_dict(state["network"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
    draws.set_state(state["draws"])
    return int(state["done"]), state["order"]
