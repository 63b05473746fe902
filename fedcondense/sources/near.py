"""Networks near given weights.

FedDM: Xiong et al., CVPR 2023, https://arxiv.org/abs/2207.09653; FedAF: Wang et al., CVPR 2024,
https://arxiv.org/abs/2404.18962
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcondense.contract import Draw, NetworkFactory
from fedcondense.data.augment import Augmentation
from fedcondense.errors import SettingError
from fedcondense.networks.trainable import freeze, trainable
from fedcondense.randomness import draw_seed
from fedcondense.sources.pools import Pool

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Near", "Resampled"]


class Near(Pool):
    r"""A pool of frozen networks in a ball around given weights.

    .. math:: \theta_i = \theta + r_i\, g_i / \lVert g_i \rVert_2, \qquad
        g_i \sim \mathcal N(0, I), \quad r_i \sim \mathcal U(0, \rho)

    over all parameters as one vector. Nearly all of the volume of a ball of so many dimensions is at its surface; with
    a uniform distance, networks at all distances serve. Buffers are copied as they are: the running statistics of a
    batch norm and the integer count of its batches are no weights.

    Entry i follows from the weights, the pool's seed and i alone, so the real data are observed once for each entry.
    Published are a new network at each step and no augmentation: give as many entries as steps, and no operations.

    Args:
        build: Builds a network of the weights' layout; the seed that it is given does not matter.
        operations: What the siamese augmentation may do.
        classes: Rows of its record.
        size: Entries; each pass takes them in a new order.
        seed: The pool's own seed; None: the first draw decides.
        weights: The network's state dict, copied.
        radius: The largest L2 distance, rho; 5 in a public re-implementation of FedDM.

    Raises:
        SettingError: The weights are of another layout or not finite, or the radius is no finite number from 0.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 96,
        seed: int | None = None,
        *,
        weights: Mapping[str, Tensor],
        radius: float = 5.0,
    ) -> None:
        super().__init__(build, operations, classes, size, seed)
        if not 0 <= radius < math.inf:
            raise SettingError(f"radius {radius!r}; needed: a finite number from 0, the distance from the weights")
        broken = [name for name, value in weights.items() if not bool(value.isfinite().all())]
        if broken:
            raise SettingError(f"weights {', '.join(broken[:3])} are not finite; take those of an earlier round")
        self.radius, self.weights = radius, {name: value.detach().cpu().clone() for name, value in weights.items()}
        try:
            build(0).load_state_dict(self.weights)
        except RuntimeError as error:
            detail = " ".join(str(error).split())
            raise SettingError(f"the weights are of another network: {detail}; name the one they are of") from None
        self.fingerprint = _digest(self.weights)  # a checkpoint is of these weights

    def _entry(self, generator: torch.Generator, device: torch.device, data: Data | None) -> Draw:
        network = self.fresh.build(draw_seed(generator))
        network.load_state_dict(self.weights)
        self.move(network, generator)
        augment = Augmentation.draw(self.fresh.operations, self.fresh.classes, generator)
        return Draw(freeze(network.to(device)), augment, draw_seed(generator))

    def move(self, network: nn.Module, generator: torch.Generator) -> None:
        """Move a network from the given weights, in place."""
        distance = self.radius * float(torch.rand((), generator=generator, dtype=torch.float64))
        parameters = list(trainable(network).values())
        direction = [torch.randn(p.shape, generator=generator) for p in parameters]
        norm = math.sqrt(sum(float(d.double().square().sum()) for d in direction))
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p.add_(d.to(p.dtype), alpha=distance / norm)


class Resampled(Near):
    """Given weights mixed with those of an untrained network, drawn anew: ``radius * given + (1 - radius) * fresh``.

    So FedAF re-samples the networks that it matches on. Arguments are those of `Near`, with `radius` from 0 to 1.
    """

    def move(self, network: nn.Module, generator: torch.Generator) -> None:
        """Mix a network with an untrained one, in place."""
        fresh = self.fresh.build(draw_seed(generator))
        with torch.no_grad():
            for mine, other in zip(trainable(network).values(), trainable(fresh).values(), strict=True):
                mine.mul_(self.radius).add_(other, alpha=1 - self.radius)


def _digest(weights: Mapping[str, Tensor]) -> str:
    """Return sixteen hex digits: equal weights, equal text."""
    digest = hashlib.sha256()
    for name, value in weights.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
