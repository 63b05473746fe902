"""Networks as they are built, or none at all."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fedcondense.contract import Draw, NetworkFactory, NetworkSource, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.networks.trainable import freeze
from fedcondense.randomness import draw_seed

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Fresh", "NoNetwork"]


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
        return self.draw_on(synthetic.images.device, generator)

    def draw_on(self, device: torch.device | str, generator: torch.Generator) -> Draw:
        """Draw the same for a device: nothing else of the synthetic images is read."""
        network = freeze(self.build(draw_seed(generator)).to(device))
        augment = Augmentation.draw(self.operations, self.classes, generator)
        return Draw(network, augment, draw_seed(generator))


class NoNetwork(NetworkSource):
    """Draws without a network, for objectives that know images by a kernel.

    Args:
        build: Not used.
        operations: What the siamese augmentation may do.
        classes: Rows of its record.
    """

    def __init__(self, build: NetworkFactory, operations: tuple[str, ...], classes: int) -> None:
        self.operations, self.classes = operations, classes

    def draw(self, generator: torch.Generator, synthetic: Synthetic, data: Data | None) -> Draw:
        """Draw an augmentation for each class and a seed."""
        return Draw(None, Augmentation.draw(self.operations, self.classes, generator), draw_seed(generator))
