"""Networks on their way: trained on images that are given, and left at some moments of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.contract import Draw, NetworkFactory
from fedcondense.deadline import check_time
from fedcondense.errors import SettingError
from fedcondense.randomness import Drawn, child_seed
from fedcondense.sources.pools import Pool
from fedcondense.training.fit import Fit, fit

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Passing"]

_LR = 0.01  # constant: each moment is to be further than the one before


class Passing(Pool):
    """A pool of a few networks that are trained on given images, each at several moments of its training.

    Entry i is network i modulo `networks`, after i divided by `networks` times `stride` training steps: the first ones
    are untrained. Nothing but the given images is seen. They may have more classes than the data: each network is
    trained under a classifier of its own, on its embedding, which alone is what the training is for.

    All networks take nearly ``size * stride`` training steps together, when they are first asked for.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        size: Entries; each pass takes them in a new order.
        seed: The pool's own seed; None: the first draw decides.
        images: (N, C, H, W), normalised.
        targets: (N, K) probabilities.
        networks: How many are trained.
        stride: Training steps between two moments.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 32,
        seed: int | None = None,
        *,
        images: Tensor,
        targets: Tensor,
        networks: int = 4,
        stride: int = 15,
    ) -> None:
        super().__init__(build, operations, classes, size, seed)
        if not len(images) or networks < 1 or stride < 1:
            told = f"{len(images)} images, {networks} networks, {stride} steps between entries"
            raise SettingError(f"{told}; needed: 1 or more of each")
        self.networks, self.stride = networks, stride
        self._images, self._targets = images, targets  # what a run follows from: the objective's own
        self._passed: dict[int, list[dict[str, Tensor]]] = {}

    @in_own_state
    def entry(self, number: int, device: torch.device | str = "cpu", data: Data | None = None) -> Draw:
        """Return an entry by its number; the first one of a network trains it as far as any goes."""
        entry = super().entry(number, device, data)
        place, age = number % self.networks, number // self.networks
        if len(self._passed.get(place, ())) <= age:  # an estimate works on a pool of fewer entries
            self._passed[place] = self._train(place, torch.device(device))
        entry.network.load_state_dict(self._passed[place][age])
        return entry

    def _train(self, place: int, device: torch.device) -> list[dict[str, Tensor]]:
        seed = child_seed(int(self.seed or 0), "passing", place)
        images, targets = self._images.to(device), self._targets.to(device)
        network = self.fresh.build(seed).to(device)
        with Drawn(seed), torch.no_grad():
            head = nn.Linear(network.features(images[:1]).shape[1], targets.shape[1]).to(device)  # type: ignore[operator]
        under, moments = _Under(network, head), [_state(network)]
        recipe = Fit(self.stride, lr=_LR, nesterov=False, schedule="constant")
        for age in range(1, -(-(self.size - place) // self.networks)):
            fit(
                *(under, images, targets, recipe),
                seed=child_seed(seed, age),
                operations=self.fresh.operations,
                progress=lambda *_: check_time(),
            )
            moments.append(_state(network))
        return moments


class _Under(nn.Module):
    """A network's embedding under a classifier of its own."""

    def __init__(self, network: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.network, self.head = network, head

    def forward(self, images: Tensor) -> Tensor:
        """Return logits, (N, K)."""
        logits: Tensor = self.head(self.network.features(images))  # type: ignore[operator]
        return logits


def _state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
