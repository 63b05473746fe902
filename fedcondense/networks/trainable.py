"""Which weights of a network are trained: those that its maker froze stay frozen."""

from __future__ import annotations

from torch import nn

__all__ = ["freeze", "remember_frozen", "trainable", "unfreeze"]

_FROZEN = "_frozen_by_its_maker"


def remember_frozen(network: nn.Module) -> None:
    """Remember which weights are frozen now: `freeze` and `unfreeze` change the rest."""
    network.__dict__[_FROZEN] = frozenset(name for name, p in network.named_parameters() if not p.requires_grad)


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weights that may be trained, by name, whether they are frozen at the moment or not.

    Of a network that nothing is remembered of these are the weights with ``requires_grad``, or all if none has it.
    """
    named = dict(network.named_parameters())
    frozen = network.__dict__.get(_FROZEN)
    if frozen is None:
        frozen = {name for name, p in named.items() if not p.requires_grad}
        frozen = set() if len(frozen) == len(named) else frozen
    return {name: p for name, p in named.items() if name not in frozen}


def freeze(network: nn.Module) -> nn.Module:
    """Freeze all weights until `unfreeze`, and return the network."""
    if _FROZEN not in network.__dict__:
        network.__dict__[_FROZEN] = frozenset(dict(network.named_parameters())) - frozenset(trainable(network))
    return network.requires_grad_(False)


def unfreeze(network: nn.Module) -> nn.Module:
    """Let the weights be trained that may be, and return the network."""
    for p in trainable(network).values():
        p.requires_grad_(True)
    return network
