"""Dataset distillation by unrolled training: Wang et al., 2018, https://arxiv.org/abs/1811.10959

With the truncated window of RaT-BPTT: Feng et al., ICLR 2024, https://arxiv.org/abs/2311.07025
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from fedcondense.contract import Draw, Objective, Recipe, Synthetic
from fedcondense.data.images import Batch
from fedcondense.networks.attention import plain_attention
from fedcondense.networks.passes import repeatable
from fedcondense.networks.trainable import trainable
from fedcondense.randomness import batches, stream
from fedcondense.sources import Fresh, TrainedOnSynthetic
from fedcondense.training.fit import autocast_of_caller

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["UnrolledTraining", "cross_entropy", "descended"]


@dataclass(frozen=True)
class UnrolledTraining(Objective):
    r"""Choose synthetic images that lower the loss on real ones when a network takes a few training steps on them.

    .. math:: \ell(\theta_T;\, \mathrm{real}), \qquad
        \theta_{t+1} = \theta_t - e^{a_t}\, \nabla_\theta\, \ell(\theta_t;\, \mathrm{synthetic}_t)

    with the cross-entropy and step sizes that are learned with the images. The window of T steps starts where the
    network is that the source hands out: untrained (`Fresh`), as published first, or trained on the synthetic
    set for some steps (`TrainedOnSynthetic`), so that windows lie anywhere in a training run, as RaT-BPTT draws them.
    Batches are drawn by chance: images that are used in one fixed order, as published first, are of little use in
    another.

    A step costs a forward and backward pass over the real images, and T times a forward, a backward and a double
    backward pass over a batch; all T graphs are kept, and none can be split.

    Args:
        per_class: Real images of a class that a step sees.
        window: Steps that are unrolled, T.
        batch: Synthetic images per step of them, drawn without replacement until all were seen.
        rate: Where the step sizes start.
        siamese: Augment each class in one way throughout a window, synthetic and real images alike.
        learn_labels: Learn the targets, too.
    """

    per_class: int = 32
    window: int = 8
    batch: int = 50
    rate: float = 0.02
    siamese: bool = True
    learn_labels: bool = False

    separable: ClassVar[bool] = False
    second_order: ClassVar[bool] = True
    recipe: ClassVar[Recipe] = Recipe(
        steps=200, lr=0.02, source=partial(TrainedOnSynthetic, outer=20, epochs=5), clip_growth=2.0
    )
    published: ClassVar[Recipe] = Recipe(
        steps=400, lr=0.01, source=Fresh, betas=(0.5, 0.999), decay=1.0, start="noise", normalised=True
    )

    def extras(self) -> dict[str, Tensor]:
        """Return the logarithms of the step sizes, (T,)."""
        return {"log_rates": torch.full((self.window,), math.log(self.rate), dtype=torch.float32)}

    def observe(self, draw: Draw, data: Data) -> Batch:
        """Return `per_class` augmented real images of each class, and their targets."""
        batch = data.batch(data.per_class(self.per_class, stream(draw.seed, "real")))
        return Batch(draw.augment(batch.images, batch.targets.argmax(1)), batch.targets)

    def loss(self, draw: Draw, observed: Batch, synthetic: Synthetic) -> Tensor:
        """Return the loss on the real images after the window."""
        images = draw.augment(synthetic.images, synthetic.targets.argmax(1))
        rates = synthetic.extras["log_rates"].exp()
        weights = {name: p.detach().requires_grad_() for name, p in trainable(draw.network).items()}
        order = batches(len(images), self.batch, self.window, stream(draw.seed, "batches"))
        for step, (rate, index) in enumerate(zip(rates, order, strict=True)):
            index = index.to(images.device)
            with repeatable(draw.network, draw.seed, step):
                loss = cross_entropy(draw.network, weights, images[index], synthetic.targets[index])
            weights = descended(weights, loss, rate, create_graph=True)
        with repeatable(draw.network, draw.seed, "real"):
            return cross_entropy(draw.network, weights, observed.images, observed.targets)


def descended(weights: Mapping[str, Tensor], loss: Tensor, rate: Tensor, *, create_graph: bool) -> dict[str, Tensor]:
    """Return the weights after a step down the loss; those that it does not depend on stay as they are."""
    gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=create_graph, allow_unused=True)
    pairs = zip(weights.items(), gradients, strict=True)
    return {name: p if g is None else p - rate * g for (name, p), g in pairs}


def cross_entropy(network: nn.Module, weights: Mapping[str, Tensor], images: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy of a network with other weights, differentiable in them; it is left as it is."""
    buffers = {name: b.clone() for name, b in network.named_buffers()}  # a batch norm's statistics would change
    with autocast_of_caller(images.device), plain_attention():  # the fused kernels have no second derivative
        logits = functional_call(network, {**weights, **buffers}, (images,))
    return F.cross_entropy(logits.to(targets.dtype), targets)
