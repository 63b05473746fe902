"""Trajectory matching: MTT, in memory that grows with the steps or not; with TESLA's published gradient as an option.

Cazenavette et al., CVPR 2022, https://arxiv.org/abs/2203.11932; Cui et al., ICML 2023, https://arxiv.org/abs/2211.10586
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fedcondense.contract import Draw, Keeps, Objective, Recipe, Synthetic
from fedcondense.data.images import Batch
from fedcondense.errors import SettingError
from fedcondense.networks.passes import repeatable
from fedcondense.networks.trainable import trainable
from fedcondense.objectives.unrolled import cross_entropy, descended
from fedcondense.randomness import batches, stream
from fedcondense.sources.trajectories import Trajectories

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["TrajectoryMatching", "flatten"]

GRADIENTS = ("unroll", "recompute", "direct")


@dataclass(frozen=True)
class TrajectoryMatching(Objective):
    r"""Choose synthetic images on which a few training steps end where many steps on real images end.

    .. math:: \lVert \theta_N - \theta^* \rVert^2 / \lVert \theta_0 - \theta^* \rVert^2, \qquad
        \theta_{i+1} = \theta_i - a\, \nabla_\theta\, \ell(\theta_i;\, B_i)

    from a point of an expert's trajectory to a later one, over all weights as one vector; the step size a is learned
    with the images. Batches and augmentation are drawn by chance, an augmentation an image.

    The real data are seen by the experts alone (`Trajectories`), which cost more than all else. A step costs N times
    a forward, a backward and a double backward pass over a batch. How its gradient is found:

    - ``"unroll"``: all N graphs are kept, as MTT is published.
    - ``"recompute"``: the N weight vectors are kept, and one graph at a time is built again while the gradient is
      carried back through the steps: equal to the unroll, at one more forward and backward pass a batch.
    - ``"direct"``: the same without carrying back: that a batch changes where later gradients are taken is left out,
      which makes this TESLA's published gradient (with the factor 2 that its code lacks). It is exact for N = 1; how
      far it is off for more: `experiments/objectives.md`.

    Args:
        window: Steps on synthetic images, N.
        batch: Synthetic images per step, drawn without replacement until all were seen.
        rate: Where the step size a starts.
        gradient: ``"unroll"``, ``"recompute"`` or ``"direct"``.
        siamese: Augment; the name is that of all objectives, but real images are not seen here.
        learn_labels: Learn targets with the images.
    """

    window: int = 8
    batch: int = 50
    rate: float = 0.02
    gradient: str = "unroll"
    siamese: bool = True
    learn_labels: bool = False

    keeps: ClassVar[Keeps] = "nothing"
    separable: ClassVar[bool] = False
    second_order: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(  # tried by hand on Fashion-MNIST at 10 images per class, width 32
        steps=100, lr=0.03, source=partial(Trajectories, experts=3, latest=4), clip_growth=2.0, lr_extras=0.01
    )
    published: ClassVar[Recipe] = Recipe(
        steps=10_000,
        lr=1000.0,
        source=partial(Trajectories, experts=100, interval=196, batch=256, lr=0.01, latest=20),
        optimizer="sgd",
        betas=(0.5, 0.0),
        decay=1.0,
        start="real",
        normalised=True,
        lr_extras=0.1,  # 1e-5 of a step size of 0.01, as of its logarithm
    )

    def __post_init__(self) -> None:
        if self.gradient not in GRADIENTS:
            raise SettingError(f"gradient {self.gradient!r}; needed: one of {', '.join(GRADIENTS)}")

    def extras(self) -> dict[str, Tensor]:
        """Return the logarithm of the step size, (1,)."""
        return {"log_rate": torch.full((1,), math.log(self.rate), dtype=torch.float32)}

    def observe(self, draw: Draw, data: Data) -> None:
        """Return nothing: the expert saw the data."""

    def loss(self, draw: Draw, observed: None, synthetic: Synthetic) -> Tensor:
        """Return the distance that is left, as a share of the expert's own; differentiable through all steps."""
        weights = leaves(draw.network)
        for number, step in enumerate(self.batches(draw, synthetic)):
            with repeatable(draw.network, draw.seed, number):
                weights = descend(draw.network, weights, step, synthetic.extras["log_rate"], create_graph=True)
        return distance(draw, weights)

    def backward(self, draw: Draw, observed: None, synthetic: Synthetic, at_once: int) -> Tensor:
        """Add the gradients of `loss` to the leaves, in the way of `gradient`; return the loss."""
        if self.gradient == "unroll":
            return super().backward(draw, observed, synthetic, at_once)
        log_rate, reached, passed = synthetic.extras["log_rate"], leaves(draw.network), []
        for number, step in enumerate(self.batches(draw, synthetic)):
            passed.append(reached)
            with repeatable(draw.network, draw.seed, number):
                reached = leaves(descend(draw.network, reached, step, log_rate, create_graph=False))
        loss = distance(draw, reached)
        carried = list(torch.autograd.grad(loss, list(reached.values())))
        for number, drawn in reversed(list(enumerate(self.order(draw, synthetic)))):
            weights, step = passed[number], self.augmented(draw, synthetic, *drawn)
            with repeatable(draw.network, draw.seed, number):
                after = descend(draw.network, weights, step, log_rate, create_graph=True)
            wanted = [t for t in (synthetic.images, synthetic.targets, log_rate) if t.requires_grad]
            if self.gradient == "recompute":
                wanted += weights.values()
            torch.autograd.backward(list(after.values()), carried, inputs=wanted)
            if self.gradient == "recompute":
                carried = [w.grad for w in weights.values() if w.grad is not None]
        return loss.detach()

    def order(self, draw: Draw, synthetic: Synthetic) -> list[tuple[Tensor, Tensor]]:
        """Return the images of each step, and the row of the augmentation that each of them takes."""
        generator = stream(draw.seed, "batches")
        drawn = batches(len(synthetic.images), self.batch, self.window, generator)
        rows = len(draw.augment.choice)
        return [(index, torch.randint(rows, (len(index),), generator=generator)) for index in drawn]

    def batches(self, draw: Draw, synthetic: Synthetic) -> Iterator[Batch]:
        """Yield the augmented images and the targets of each step."""
        return (self.augmented(draw, synthetic, *drawn) for drawn in self.order(draw, synthetic))

    def augmented(self, draw: Draw, synthetic: Synthetic, index: Tensor, rows: Tensor) -> Batch:
        """Return one step's images, each augmented in its own way, and their targets."""
        index, rows = (t.to(synthetic.images.device, non_blocking=True) for t in (index, rows))
        return Batch(draw.augment(synthetic.images[index], rows), synthetic.targets[index])


def leaves(network: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights, by name, as leaves of a new graph; of a network those that its maker did not freeze."""
    named = (trainable(network) if isinstance(network, nn.Module) else network).items()
    return {name: weight.detach().requires_grad_() for name, weight in named}


def descend(
    network: nn.Module, weights: Mapping[str, Tensor], batch: Batch, log_rate: Tensor, *, create_graph: bool
) -> dict[str, Tensor]:
    """Return the weights after a step of gradient descent on a batch."""
    loss = cross_entropy(network, weights, batch.images, batch.targets)
    return descended(weights, loss, log_rate.exp(), create_graph=create_graph)


def distance(draw: Draw, weights: Mapping[str, Tensor]) -> Tensor:
    """Return the squared distance to the expert's end, as a share of that from where the expert was."""
    goal: Tensor = draw.goal
    whole = (flatten(trainable(draw.network)) - goal).square().sum()
    whole = whole.clamp_min(torch.finfo(whole.dtype).tiny)  # the expert of a single class never moves
    return (flatten(weights) - goal).square().sum() / whole


def flatten(weights: Mapping[str, Tensor]) -> Tensor:
    """Return all weights as one vector, (P,), in the order of the network."""
    return torch.cat([weight.flatten() for weight in weights.values()])
