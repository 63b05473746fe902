"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from fedcondense.ambient import in_own_state
from fedcondense.errors import SettingError
from fedcondense.networks.architectures import alexnet, lenet, mlp, mobilenet_v3_small, resnet18, vgg11, vit_small
from fedcondense.networks.convnet import NORMS, ConvNet, Shape
from fedcondense.networks.headed import Headed
from fedcondense.networks.passes import mark_as_ours
from fedcondense.randomness import Drawn

__all__ = [
    "CONVNETS",
    "NETWORKS",
    "OTHERS",
    "NetworkMaker",
    "build",
    "default_network",
    "describe",
    "named",
    "network_kinds",
]

NetworkMaker = Callable[[Shape, int], nn.Module]

DEPTHS = (1, 2, 3, 4)
WIDTHS = (16, 32, 64, 128)

CONVNETS: dict[str, NetworkMaker] = {
    f"convnet{depth}-w{width}" + ("" if norm == "instance" else f"-{norm}"): partial(
        ConvNet, width=width, depth=depth, norm=norm
    )
    for depth in DEPTHS
    for width in WIDTHS
    for norm in NORMS
}

OTHERS: dict[str, NetworkMaker] = {
    "mlp": mlp,
    "lenet": lenet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "vgg11-batch": partial(vgg11, norm="batch"),
    "resnet18": resnet18,
    "resnet18-batch": partial(resnet18, norm="batch"),
    "mobilenet-v3-small": mobilenet_v3_small,
    "vit-small": vit_small,
}

NETWORKS: dict[str, NetworkMaker] = CONVNETS | OTHERS
"""Networks by name: each builds an untrained module for images of a shape and a number of classes.

A ConvNet is called by its depth, its width and, unless it is the published instance norm, its norm: ``convnet3-w32``,
``convnet4-w128-batch``. None has dropout: a network's output is a function of its weights and the image.
"""


_SHIPPED = dict(NETWORKS)


def default_network(shape: Shape) -> str:
    """Return the default network's name: width 32, with a depth that follows from the images' size."""
    side = min(shape[1:])
    return "convnet2-w32" if side < 16 else "convnet3-w32" if side < 48 else "convnet4-w32"


@in_own_state
def build(network: str | NetworkMaker, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a network on the CPU; equal seeds give equal weights, and the global random state is left alone.

    Weights are those after `torch.manual_seed(seed)`, in any number of threads at a time. From names joined by ``+``
    the seed picks one, all equally likely, so a pool holds every kind.

    Raises:
        SettingError: No network has this name, or it cannot take images of this size.
    """
    makers = network_kinds(network)
    make = makers[seed % len(makers)]
    is_ours = any(make is one for one in _SHIPPED.values())
    module = with_features(made(make, shape, classes, seed, is_ours))
    return mark_as_ours(module) if is_ours else module


def with_features(module: nn.Module) -> nn.Module:
    """Return a module that has readable features; torchvision's `features` are layers."""
    features = getattr(module, "features", None)
    return Headed(module) if features is None or isinstance(features, nn.Module) else module


def made(make: NetworkMaker, shape: Shape, classes: int, seed: int, is_ours: bool = False) -> nn.Module:
    """Return what a maker makes with random numbers of a seed; the global random state stays, also if it seeds that."""
    first = torch.initial_seed()
    before = None if is_ours else torch.get_rng_state()
    with Drawn(seed):
        module = make(shape, classes)
    if before is not None and torch.initial_seed() != first:
        torch.set_rng_state(before)
    return module


def network_kinds(network: str | NetworkMaker) -> list[NetworkMaker]:
    """Return the networks that a name such as ``"convnet3-w32+convnet3-w32-none"`` joins, often just one.

    Raises:
        SettingError: No network has one of the names.
    """
    return [named(name) for name in dict.fromkeys(network.split("+"))] if isinstance(network, str) else [network]


def named(name: str) -> NetworkMaker:
    """Return the network of a name.

    Raises:
        SettingError: There is none; the message gives the scheme of the ConvNets' names, of which there are many.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    close = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    norms = ", ".join(f"-{norm}" for norm in NORMS if norm != "instance")
    scheme = (
        f"convnetD-wW of depth D 1 to {max(DEPTHS)} and width W {', '.join(map(str, WIDTHS))}, then perhaps {norms}"
    )
    others = ", ".join(sorted(set(NETWORKS) - set(CONVNETS)))
    raise SettingError(f"no network is called {name!r}; {hint}all of them: {scheme}; {others}")


def describe(network: str | NetworkMaker) -> str:
    """Return a network's name for a record."""
    return network if isinstance(network, str) else getattr(network, "__name__", None) or repr(network)
