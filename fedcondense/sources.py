"""Where a step's network comes from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from fedcondense.augment import Augmentation
from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.randomness import child_seed, draw_seed, stream
from fedcondense.training import Fit, fit

if TYPE_CHECKING:
    from fedcondense.data import Data

__all__ = ["Fresh", "Pool", "Trained"]


class Fresh(NetworkSource):
    """A new untrained network and a new augmentation each step, as distribution matching is published.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do; empty: nothing.
        classes: Rows of its record.
    """

    def __init__(self, build: NetworkFactory, operations: tuple[str, ...], classes: int) -> None:
        self.build, self.operations, self.classes = build, operations, classes

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Draw a network, an augmentation for each class and a seed."""
        network = self.build(draw_seed(generator)).to(synthetic.images.device).requires_grad_(False)
        augment = Augmentation.draw(self.operations, self.classes, generator)
        return Draw(network, augment, draw_seed(generator))


class Pool(NetworkSource):
    """A number of frozen draws that come again and again, so that what the real data say to each is asked once.

    Entry i follows from the pool's seed and i alone: whoever knows the seed has the same pool, and nothing but the
    number of steps is needed to resume.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do.
        classes: Rows of its record.
        size: Entries; each pass takes them in a new order.
        seed: The pool's own seed; None: the first draw decides.
    """

    def __init__(
        self,
        build: NetworkFactory,
        operations: tuple[str, ...],
        classes: int,
        size: int = 96,
        seed: int | None = None,
    ) -> None:
        self.fresh, self.size, self.seed = Fresh(build, operations, classes), size, seed
        self.taken = 0
        self._entries: dict[int, Draw] = {}

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Return the next entry; its key is (seed, number)."""
        if self.seed is None:
            self.seed = draw_seed(generator)
        turn, place = divmod(self.taken, self.size)
        order = torch.randperm(self.size, generator=stream(self.seed, "order", turn))
        self.taken += 1
        number = int(order[place])
        if number not in self._entries:
            entry = self.fresh.draw(stream(self.seed, "entry", number), synthetic, None)
            self._entries[number] = entry._replace(key=(self.seed, number))
        return self._entries[number]

    def state_dict(self) -> dict[str, Any]:
        """Return the seed and how many draws were taken."""
        return {"seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after as many draws of the same pool."""
        self.seed, self.taken = state["seed"], state["taken"]


class Trained(NetworkSource):
    """A network that is trained on the synthetic set between two steps, as gradient matching is published.

    Args:
        build: Builds a network from a seed.
        operations: What the siamese augmentation may do, and the one that training draws from.
        classes: Rows of its record.
        outer: Steps before a new network is drawn; None: as published for the images per class of the set.
        epochs: Passes over the set between two of them; None: as published.
    """

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
        outer, epochs = published_loops(len(synthetic.images) // max(1, _present(synthetic)))
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
        self.network.requires_grad_(False)
        return Draw(self.network, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))

    def state_dict(self) -> dict[str, Any]:
        """Return the network's seed, uses and weights."""
        weights = {} if self.network is None else dict(self.network.state_dict())
        return {"seed": self.seed, "age": self.age, "weights": weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Rebuild the network from its seed and take its weights."""
        self.seed, self.age = state["seed"], state["age"]
        if state["weights"]:
            self.network = self.build(self.seed)
            self.network.load_state_dict(state["weights"])
            self.network.to(next(iter(state["weights"].values())).device)


def published_loops(ipc: int) -> tuple[int, int]:
    """Return (steps a network, epochs between them) of the DC and DSA papers; between their values, interpolated.

    >>> published_loops(1), published_loops(10), published_loops(30)
    ((1, 1), (10, 50), (30, 20))
    """
    return max(1, ipc), round(float(np.interp(ipc, (1, 10, 20, 30, 40, 50), (1, 50, 25, 20, 15, 10))))


def _present(synthetic: Synthetic) -> int:
    return int((synthetic.targets.sum(0) > 0).sum())
