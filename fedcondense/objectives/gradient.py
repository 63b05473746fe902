"""Gradient matching: DC and, with siamese augmentation, DSA; with networks trained on real data, IDC.

Zhao et al., ICLR 2021, https://arxiv.org/abs/2006.05929; Zhao and Bilen, ICML 2021, https://arxiv.org/abs/2102.08259;
Kim et al., ICML 2022, https://arxiv.org/abs/2205.14959
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedcondense.contract import Draw, Keeps, Objective, Recipe, Synthetic
from fedcondense.data.images import Batch
from fedcondense.networks.attention import plain_attention
from fedcondense.networks.passes import repeatable
from fedcondense.networks.trainable import trainable
from fedcondense.randomness import stream
from fedcondense.sources import TrainedOnReal, TrainedOnSynthetic

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = [
    "AbsoluteGradientMatching",
    "GradientMatching",
    "absolute_distance",
    "capturable_on_samples",
    "row_cosine_distance",
]

ClassGradients = dict[int, Sequence[Tensor | None]]
"""By class, one a weight; None for a weight that the network did not use."""


@dataclass(frozen=True)
class GradientMatching(Objective):
    r"""Make synthetic images of a class move a network's weights in the direction that real ones do.

    .. math:: \sum_c \sum_l \sum_r 1 - \cos(g_{l,r}(\mathrm{real}_c), g_{l,r}(\mathrm{synthetic}_c))

    over the output rows r of each weight l with two or more dimensions; biases and norms are left out, as in the
    authors' code. A step costs a forward and a backward pass over `per_class` real images of each class, and a forward,
    a backward and a double backward pass over the synthetic ones; training between steps costs more than either.
    Classes are taken one after another: batching them was slower where it was measured, and one graph at a time bounds
    memory. On a GPU the step is replayed, which holds two copies of its real images, up to 1 GiB each.

    Args:
        siamese: Augment both branches alike (DSA) or not at all (DC).
        per_class: Real images of a class that a step sees; 256 as published.
    """

    siamese: bool = True
    per_class: int = 256

    keeps: ClassVar[Keeps] = "gradients"
    second_order: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(
        steps=300, lr=0.01, source=partial(TrainedOnSynthetic, outer=10, epochs=5), start="gaussian", decay=0.1
    )
    published: ClassVar[Recipe] = Recipe(
        steps=10_000,
        lr=0.1,
        source=TrainedOnSynthetic,
        optimizer="sgd",
        betas=(0.5, 0.0),
        decay=1.0,
        start="real",
        normalised=True,
    )

    def sample(self, draw: Draw, data: Data) -> Iterator[tuple[int, Batch]]:
        """Draw real images of each class that the data have."""
        index = data.per_class(self.per_class, stream(draw.seed, "real"))
        for c, piece in enumerate(index.split(data.counts.clamp_max(self.per_class).tolist())):
            if len(piece):
                yield c, data.batch(piece)

    def answer(self, draw: Draw, sample: Iterable[tuple[int, Batch]]) -> ClassGradients:
        """Return the gradients of each class of a sample: one tensor a weight."""
        weights = self.weights(draw.network)
        with torch.enable_grad():
            return {c: class_gradients(draw, weights, batch, c, create_graph=False) for c, batch in sample}

    def observe(self, draw: Draw, data: Data) -> ClassGradients:
        """Return the gradients of each class that the data have: one tensor a weight."""
        return self.answer(draw, self.sample(draw, data))

    def loss(self, draw: Draw, observed: Mapping[int, Sequence[Tensor | None]], synthetic: Synthetic) -> Tensor:
        """Return the sum over the classes that both sides have."""
        weights = self.weights(draw.network)
        total = synthetic.images.new_zeros(())
        for c, index in synthetic.by_class().items():
            if c in observed:
                batch = Batch(*(leaf.index_select(0, index) for leaf in synthetic[:2]))
                gradients = class_gradients(draw, weights, batch, c, create_graph=True)
                total = total + self.distance(*paired(observed[c], gradients))
        return total

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the weights whose gradients are compared, as leaves of their own."""
        return matched_weights(network)

    def distance(self, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """Return how far the gradients of one class are apart, one tensor a weight each."""
        return gradient_distance(real, synthetic)

    def backward(self, draw: Draw, observed: ClassGradients, synthetic: Synthetic, at_once: int) -> Tensor:
        """As in `Objective`, always class by class: the graph of a double backward is large."""
        return super().backward(draw, observed, synthetic, at_once=1)


@dataclass(frozen=True)
class AbsoluteGradientMatching(GradientMatching):
    r"""Make gradients of synthetic images equal to those of real ones, in size as well as in direction (IDC).

    .. math:: \sum_c \sum_l \lVert g_l(\mathrm{real}_c) - g_l(\mathrm{synthetic}_c) \rVert_p^p

    over the weights l of convolutions, on networks that are trained on the real data between steps (`TrainedOnReal`):
    there, gradients stay of use for longer than on networks that have fitted the synthetic set. It costs what
    `GradientMatching` costs. Of the published method, the enlarged codes are `MultiFormation`, and one step moves all
    classes.

    Args:
        siamese: Augment both branches alike.
        per_class: Real images of a class that a step sees; 64 as published.
        power: 2, squares, as published for CIFAR and SVHN; 1, absolute values, as for MNIST, Fashion and ImageNet.
    """

    per_class: int = 64
    power: int = 2

    recipe: ClassVar[Recipe] = Recipe(steps=300, lr=0.01, source=partial(TrainedOnReal, outer=50, batches=4))
    published: ClassVar[Recipe] = Recipe(
        steps=200_000,
        lr=5e-4,
        source=partial(TrainedOnReal, cutmix=0.5),
        optimizer="sgd",
        betas=(0.5, 0.0),
        decay=1.0,
        start="real",
        lr_per_image=True,
    )

    def weights(self, network: nn.Module) -> dict[str, Tensor]:
        """Return the weights of convolutions; of a network that has none, as for `GradientMatching`."""
        weights = matched_weights(network)
        return {name: w for name, w in weights.items() if w.ndim > 3} or weights

    def distance(self, real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
        """Return the sum of powers of differences."""
        return torch.stack([absolute_distance(a, b, self.power) for a, b in zip(real, synthetic, strict=True)]).sum()


def capturable_on_samples(objective: Objective) -> TypeGuard[GradientMatching]:
    """Say whether a step reads nothing of its draw but the network and the augmentation, once real images are drawn."""
    names = ("sample", "answer", "observe", "loss", "backward")
    return isinstance(objective, GradientMatching) and all(
        getattr(type(objective), name) is getattr(GradientMatching, name) for name in names
    )


def matched_weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weights whose gradients are compared: those with two or more dimensions, as leaves of their own.

    What the network's maker froze is not among them.
    """
    return {name: p.detach().requires_grad_() for name, p in trainable(network).items() if p.ndim > 1}


def class_gradients(
    draw: Draw, weights: dict[str, Tensor], batch: Batch, row: int, *, create_graph: bool
) -> Sequence[Tensor | None]:
    """Return the gradients of the cross-entropy of a batch of one class, in each weight; None where it is not used."""
    rows = torch.full((len(batch.images),), row, device=batch.images.device)
    images = draw.augment(batch.images, rows)
    with plain_attention(), repeatable(draw.network, draw.seed, row):  # the fused kernels have no second derivative
        logits = functional_call(draw.network, weights, (images,))
    loss = F.cross_entropy(logits, batch.targets)
    return torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)


def paired(real: Sequence[Tensor | None], synthetic: Sequence[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    """Leave out weights that neither side used; where one alone did, the other's gradient is zero."""
    used = [(a, b) for a, b in zip(real, synthetic, strict=True) if a is not None or b is not None]
    return (
        [torch.zeros_like(cast(Tensor, b)) if a is None else a for a, b in used],
        [torch.zeros_like(cast(Tensor, a)) if b is None else b for a, b in used],
    )


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """Return the sum of `row_cosine_distance` over weights."""
    return torch.stack([row_cosine_distance(a, b) for a, b in zip(real, synthetic, strict=True)]).sum()


def row_cosine_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Return the sum over rows of one minus their cosine, for two gradients of one weight, (out, ...)."""
    a, b = real.flatten(1), synthetic.flatten(1)
    cosine: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
    return (1 - cosine).sum()


def absolute_distance(real: Tensor, synthetic: Tensor, power: int) -> Tensor:
    """Return the sum of absolute differences of two gradients, to a power."""
    return (real - synthetic).abs().pow(power).sum()
