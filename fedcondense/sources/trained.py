"""One network after another, trained between two steps: on the synthetic set, or on the real data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.errors import SettingError
from fedcondense.networks.trainable import freeze
from fedcondense.randomness import child_seed, draw_seed
from fedcondense.training.fit import Fit, fit, fit_on

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["TrainedOnReal", "TrainedOnSynthetic", "published_loops", "train_on"]


class TrainedOnSynthetic(NetworkSource):
    """A network that is trained on the synthetic set between two steps, as gradient matching is published.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        outer: Steps before a new network is drawn; None: as published for the images per class of the set.
        epochs: Passes over the set between two of them; None: as published.
    """

    trains_in_place = True

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        outer: int | None = None,
        epochs: int | None = None,
    ) -> None:
        self.build, self.operations, self.classes = build, operations, classes
        self.outer, self.epochs = outer, epochs
        self.seed, self.age = 0, 0
        self.network: torch.nn.Module | None = None

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Train the network at hand on the set, or draw a new one if it was used `outer` times."""
        outer, epochs = published_loops(len(synthetic.images) // max(1, len(synthetic.by_class())))
        outer, epochs = self.outer or outer, self.epochs if self.epochs is not None else epochs
        if self.network is None or self.age >= outer:
            self.seed, self.age = draw_seed(generator), 0
            self.network = self.build(self.seed).to(synthetic.images.device)
        elif epochs:
            batch = min(256, len(synthetic.images))
            steps = epochs * -(-len(synthetic.images) // batch)
            recipe = Fit(steps=steps, batch=batch, lr=0.01, momentum=0.0, schedule="constant")
            images, targets = synthetic.images.detach(), synthetic.targets.detach()
            seed = child_seed(self.seed, self.age)
            fit(self.network, images, targets, recipe, seed=seed, operations=self.operations)
        self.age += 1
        freeze(self.network)
        return Draw(self.network, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the network's seed, uses and weights."""
        weights = {} if self.network is None else dict(self.network.state_dict())
        return {"seed": self.seed, "age": self.age, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the network from its seed and take its weights."""
        self.seed, self.age = state["seed"], state["age"]
        self.network = None
        if state["weights"]:
            self.network = self.build(self.seed)
            self.network.load_state_dict(state["weights"])
            self.network.to(next(iter(state["weights"].values())).device)


class TrainedOnReal(TrainedOnSynthetic):
    """A network that is trained on the real data between two steps, as in IDC.

    It sees the data where they are: not for holders that hand out sums alone, or that promise privacy.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        outer: Steps before a new network is drawn; 100 as published.
        batches: Training steps of 64 real images between two of them; 31 as published for CIFAR, 8 for others.
        cutmix: As in `Fit`; 0.5 as published.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        outer: int = 100,
        batches: int = 8,
        cutmix: float = 0.0,
    ) -> None:
        super().__init__(build, operations, classes, outer, epochs=0)
        self.batches, self.cutmix = batches, cutmix

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Train the network at hand on images drawn from the data, or draw a new one if it was used `outer` times."""
        if data is None:
            raise SettingError(
                "networks are to be trained on the real data, which their holder keeps; take `TrainedOnSynthetic`"
            )
        draw = super().draw(generator, synthetic, data)
        if self.age > 1 and self.network is not None:
            recipe = replace(ON_REAL, steps=self.batches, cutmix=self.cutmix)
            train_on(data, self.network, recipe, child_seed(self.seed, self.age), self.operations)
        return draw


ON_REAL = Fit(batch=64, lr=0.01, nesterov=False, schedule="constant")


def train_on(
    data: Data,
    network: torch.nn.Module,
    recipe: Fit,
    seed: int,
    operations: tuple[str, ...],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Train a frozen network on real images, and leave it frozen."""
    if recipe.steps:
        fit_on(network, data, recipe, seed=seed, operations=operations, progress=progress)
        freeze(network)


def published_loops(ipc: int) -> tuple[int, int]:
    """Return (steps per network, epochs between them) of the DC and DSA papers; between their values, interpolated.

    >>> published_loops(1), published_loops(10), published_loops(30)
    ((1, 1), (10, 50), (30, 20))
    """
    return max(1, ipc), round(float(np.interp(ipc, (1, 10, 20, 30, 40, 50), (1, 50, 25, 20, 15, 10))))
