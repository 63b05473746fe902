"""What strategies on statistics share: the features of a random network that all sites build from its seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder, Network
from fedcondense.data import Data, Spec
from fedcondense.deadline import check_time
from fedcondense.errors import SettingError
from fedcondense.flower.contract import Node
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import check_normalisation
from fedcondense.flower.untrusted import for_images
from fedcondense.networks import build, default_network
from fedcondense.networks.passes import repeatable
from fedcondense.randomness import stream

__all__ = [
    "carried",
    "embedded",
    "feature_dims",
    "features_of",
    "labelled_by",
    "normalised",
    "projection",
    "random_features",
]

_AT_ONCE = 500  # images in a forward pass


@in_own_state
def random_features(data: Data, network: str, seed: int, dims: int = 0) -> Tensor:
    """Return what an untrained network's classifier would be fed, (N, D) float32 on the data's device.

    Args:
        data: The images.
        network: A name in `NETWORKS`.
        seed: Of the network and of the projection.
        dims: Project to so many dimensions by a random Gaussian matrix; 0 keeps all.
    """
    features = embedded(data, network, seed)
    if not 0 < dims < features.shape[1]:
        return features
    with torch.autocast(data.device.type, enabled=False):
        return features @ projection(features.shape[1], dims, seed).to(features.device)


def projection(width: int, dims: int, seed: int) -> Tensor:
    """Return the random Gaussian matrix (width, dims) that features are projected by."""
    columns: Tensor = torch.randn(width, dims, generator=stream(seed, "projection")) / dims**0.5
    return columns


def embedded(data: Data, network: str, seed: int) -> Tensor:
    """Return all features of `random_features`."""
    return features_of(data, build(network, data.spec.shape, len(data.spec.classes), seed), seed)


def features_of(data: Data, model: nn.Module, seed: int) -> Tensor:
    """Return what a network's classifier is fed, (N, D) float32 on the data's device; the network stays there.

    Args:
        data: The images.
        model: A network with readable features.
        seed: Of what is random in a network, such as dropout's masks.
    """
    embed = cast(Network, model.to(data.device).eval()).features
    with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
        pieces = []
        for k, index in enumerate(torch.split(torch.arange(len(data)), _AT_ONCE)):
            check_time()
            with repeatable(model, seed, k):
                pieces.append(embed(data.batch(index).images))
        return torch.cat(pieces)


@in_own_state
def feature_dims(network: str, shape: tuple[int, int, int], seed: int, dims: int = 0) -> int:
    """Return how many features `random_features` gives of images of a shape."""
    blank = torch.zeros(1, *shape, dtype=torch.uint8)
    spec = Spec("blank", shape, ("any",), (0.5,) * shape[0], (0.5,) * shape[0])
    return random_features(Data(blank, torch.zeros(1, dtype=torch.int64), spec), network, seed, dims).shape[1]


def carried(task: Any, holder: Holder, node: Node) -> tuple[Data, str, nn.Module, Weights]:
    """Return records as a question labels and normalises them, its network's name, such a network, and its weights.

    Args:
        task: A task with the fields ``weights`` (`Packed`), ``classes``, ``mean``, ``std`` and ``network``.
        holder: Of the records.
        node: Says which networks may be asked for.

    Raises:
        SettingError: As `labelled_by`; or the node does not allow the network, or the normalisation is none.
        UntrustedSetError: The weights are of another network, or not finite.
    """
    data = labelled_by(holder, task.classes, node)
    network = task.network or default_network(data.spec.shape)
    node.caps.check_networks([network])
    data = normalised(data, task.mean, task.std)
    model = build(network, data.spec.shape, len(task.classes), 0)
    with for_images(data.spec.shape):
        return data, network, model, task.weights.weights(model)


def normalised(data: Data, mean: tuple[float, ...], std: tuple[float, ...]) -> Data:
    """Return records as a question normalises them; as they are if it does not say how.

    Raises:
        SettingError: The normalisation is none.
    """
    if not mean:
        return data
    check_normalisation(mean, std)
    return Data(data.images, data.labels, replace(data.spec, mean=mean, std=std))


@in_own_state
def labelled_by(holder: Holder, classes: Sequence[str], node: Node) -> Data:
    """Return a holder's records with labels that index `classes`: sums of several sites must mean the same.

    Raises:
        SettingError: A class of which there are records is not among them, or records may not be seen.
    """
    data = holder.data
    if not classes:
        raise SettingError("the question names no classes; a server without data must name them: classes of the task")
    if data is None:
        raise SettingError("statistics are taken of records, which this node's holder does not hand out")
    if tuple(classes) == data.spec.classes:
        return data
    places = {name: k for k, name in enumerate(classes)}
    odd = [name for name, n in zip(data.spec.classes, data.counts.tolist(), strict=True) if n and name not in places]
    if odd:
        names = ", ".join(map(repr, odd[:5]))
        raise SettingError(
            f"{node.name} has classes that the question does not name: {names}; name them, or leave it out"
        )
    to = torch.tensor([places.get(name, 0) for name in data.spec.classes], device=data.device)
    return Data(data.images, to[data.labels], replace(data.spec, classes=tuple(classes)))
