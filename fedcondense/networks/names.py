"""Networks by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from fedcondense.ambient import in_own_state
from fedcondense.arguments import called
from fedcondense.errors import SettingError
from fedcondense.networks.architectures import alexnet, lenet, mlp, mobilenet_v3_small, resnet18, vgg11, vit_small
from fedcondense.networks.convnet import NORMS, ConvNet, Shape
from fedcondense.networks.instances import Anew
from fedcondense.networks.of_torchvision import PREFIX, torchvision_network
from fedcondense.networks.passes import mark_as_ours
from fedcondense.networks.readable import made_by
from fedcondense.randomness import Drawn

__all__ = [
    "CONVNETS",
    "NETWORKS",
    "OTHERS",
    "NetworkMaker",
    "WithOutputs",
    "build",
    "default_network",
    "describe",
    "is_shipped",
    "named",
    "network_kinds",
]

NetworkMaker = Callable[[Shape, int], nn.Module]

DEPTHS = (1, 2, 3, 4, 5)
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

_SHIPPED = frozenset(id(make) for make in NETWORKS.values())  # the dicts above keep them, whatever a user puts here


@dataclass(frozen=True)
class WithOutputs:
    """A network of the toolkit with a number of outputs of its own, whatever classes the data have.

    Args:
        network: Its name in `NETWORKS`.
        outputs: How many.
    """

    network: str
    outputs: int

    def __call__(self, shape: Shape, classes: int) -> nn.Module:
        """Build it, always with the same weights."""
        return build(self.network, shape, self.outputs, 0)


def default_network(shape: Shape, width: int = 32) -> str:
    """Return the default network's name: a ConvNet with a depth that follows from the images' size."""
    side = min(shape[1:])
    return f"convnet{2 if side < 16 else 3 if side < 48 else 4}-w{width}"


@in_own_state
def build(network: str | NetworkMaker, shape: Shape, classes: int, seed: int) -> nn.Module:
    """Build a network on the CPU; equal seeds give equal weights, and the global random state is left alone.

    Weights are those after `torch.manual_seed(seed)`, in any number of threads at a time. From names joined by ``+``
    the seed picks one, all equally likely, so a pool holds every kind.

    Raises:
        SettingError: No network has this name, it cannot take images of this size, or a function of one's own builds
            none that does.
    """
    makers = network_kinds(network)
    make = makers[seed % len(makers)]
    if isinstance(make, WithOutputs):
        return make(shape, classes)
    if is_shipped(make):
        with Drawn(seed):
            return mark_as_ours(make(shape, classes))
    return made(partial(made_by, make, shape, classes), seed)


def is_shipped(make: NetworkMaker) -> bool:
    """Say whether a network is one of the toolkit's own, which are known to work."""
    return isinstance(make, WithOutputs) or id(make) in _SHIPPED


def made(make: Callable[[], nn.Module], seed: int) -> nn.Module:
    """Return what a function of the user's makes with random numbers of a seed.

    The global random state stays, also if the function seeds it.
    """
    first, before = torch.initial_seed(), torch.get_rng_state()
    with Drawn(seed):
        module = make()
    if torch.initial_seed() != first:
        torch.set_rng_state(before)
    return module


def network_kinds(network: str | NetworkMaker) -> list[NetworkMaker]:
    """Return the networks that a name such as ``"convnet3-w32+convnet3-w32-none"`` joins, often just one.

    Of a module it is what makes copies of it with weights that are drawn anew.

    Raises:
        SettingError: No network has one of the names, or it is neither a name nor a function.
    """
    if not (isinstance(network, str) or callable(network)):
        raise SettingError(
            f"network {network!r:.100}; needed: a name such as 'convnet3-w32', names joined by '+', a function of "
            "an image shape and a number of classes that builds an nn.Module, or a module"
        )
    if isinstance(network, nn.Module):
        return [Anew(network)]
    return [named(name) for name in dict.fromkeys(network.split("+"))] if isinstance(network, str) else [network]


def named(name: str) -> NetworkMaker:
    """Return the network of a name in `NETWORKS`, or torchvision's, such as ``"torchvision:resnet18"``.

    Raises:
        SettingError: There is none; the message gives the scheme of the ConvNets' names, of which there are many.
    """
    if name in NETWORKS:
        return NETWORKS[name]
    if name.startswith(PREFIX):
        return torchvision_network(name)
    if "," in name:
        raise SettingError(f"network {name!r:.100}; names are joined by '+', as in 'convnet3-w32+mlp'")
    close = difflib.get_close_matches(name, NETWORKS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    norms = ", ".join(f"-{norm}" for norm in NORMS if norm != "instance")
    scheme = (
        f"convnetD-wW of depth D 1 to {max(DEPTHS)} and width W {', '.join(map(str, WIDTHS))}, then perhaps {norms}"
    )
    others = ", ".join(sorted(set(NETWORKS) - set(CONVNETS)))
    raise SettingError(f"no network is called {name!r}; {hint}all of them: {scheme}; {others}; or {PREFIX}NAME")


def describe(network: str | NetworkMaker) -> str:
    """Return a network's name for a record."""
    if isinstance(network, WithOutputs):
        return network.network
    return network if isinstance(network, str) else called(network)
