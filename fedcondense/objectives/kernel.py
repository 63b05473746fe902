"""Kernel ridge regression from the synthetic images to the labels of the real ones: KIP and FRePo.

Nguyen et al., ICLR 2021, https://arxiv.org/abs/2011.00050; Zhou et al., NeurIPS 2022, https://arxiv.org/abs/2206.00719
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from fedcondense.contract import Draw, Objective, Recipe, Synthetic
from fedcondense.objectives.features import FeatureObjective
from fedcondense.randomness import stream
from fedcondense.sources import NoNetwork, OnlineTrained

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["FeatureRegression", "KernelRegression", "connected_kernel", "regression_error"]


class RealRows(NamedTuple):
    """What labels are predicted from, and the labels."""

    rows: Tensor  # (M, D), float32
    targets: Tensor  # (M, K)


@dataclass(frozen=True)
class KernelRegression(Objective):
    r"""Choose synthetic images on which regression with a fixed kernel predicts the labels of real ones (KIP).

    .. math:: \tfrac12 \lVert K_{rs} (K_{ss} + \lambda \bar d\, I)^{-1} Y_s - Y_r \rVert^2 / M

    with the neural tangent kernel K of an infinitely wide fully connected network on pixels, the mean diagonal d of
    :math:`K_{ss}` and centred targets Y. No network is built or trained. The published kernels of convolutional
    networks cost thousands of times more and are not here; sets made with this one help networks less than they help
    the regression, as the paper says of both.

    A step takes `depth` maps of M x N kernel values in double precision and an N x N solve, for M real images, drawn
    anew each step, and N synthetic ones: milliseconds at 1000 and 100.

    Args:
        per_class: Real images of a class that a step sees; 500 of 10 classes as published.
        depth: Hidden layers of the network.
        bias: Standard deviation of the biases; 0.1 as published.
        penalty: The ridge, as a share of the mean diagonal; 1e-6 as published.
        siamese: Augment each class, real and synthetic images alike; not as published for these kernels.
        learn_labels: Learn the targets, too; that raises the regression's accuracy rather than a network's.
    """

    per_class: int = 100
    depth: int = 1
    bias: float = 0.1
    penalty: float = 1e-6
    siamese: bool = False
    learn_labels: bool = False

    separable: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.02, source=NoNetwork)

    def observe(self, draw: Draw, data: Data) -> RealRows:
        """Return `per_class` augmented real images of each class, flattened, (M, D), and their targets."""
        batch = data.batch(data.per_class(self.per_class, stream(draw.seed, "real")))
        return RealRows(draw.augment(batch.images, batch.targets.argmax(1)).flatten(1), batch.targets)

    def loss(self, draw: Draw, observed: RealRows, synthetic: Synthetic) -> Tensor:
        """Return half the mean squared error of the prediction on the real images."""
        real = observed.rows.double()
        fake = draw.augment(synthetic.images, synthetic.targets.argmax(1)).flatten(1).double()
        inner = connected_kernel(fake, fake, self.depth, self.bias)
        cross = connected_kernel(real, fake, self.depth, self.bias)
        return regression_error(inner, cross, synthetic.targets, observed.targets, self.penalty)


@dataclass(frozen=True)
class FeatureRegression(FeatureObjective):
    r"""Choose synthetic images on which regression on a network's features predicts the labels of real ones (FRePo).

    The formula is that of `KernelRegression` with the inner product of features as the kernel, of networks that are
    trained on the synthetic set in the meantime (`OnlineTrained`). With learned labels, the mean of
    :math:`-\min(m_i, 1/K)` is added, where :math:`m_i` is how far the largest target of image i is ahead.

    A step costs a forward pass over the real images, a forward and a backward pass over the synthetic ones, an N x N
    solve in double precision, and a training step of one network on the set. The authors' networks have 128 to
    512 channels and batch norm, their images are whitened, and their optimizer is LAMB; none of these is here.

    Args:
        layer: Which features: ``"embedding"``, as published, or ``"logits"``.
        per_class: Real images of a class that a step sees; 1024 of all classes as published.
        penalty: The ridge, as a share of the kernel's mean diagonal; 1e-6 as published. Measured together with
            `siamese` on Fashion-MNIST at 10 images per class, 400 steps, one seed: 81.3 percent, 78.3 as published.
        siamese: Augment each class, real and synthetic images alike; as published at most mirrored.
        learn_labels: Learn the targets, too, as published; 82.1 in the same measurement.
    """

    layer: str = "embedding"
    per_class: int | None = 32
    penalty: float = 0.01
    siamese: bool = True
    learn_labels: bool = False

    separable: ClassVar[bool] = False
    recipe: ClassVar[Recipe] = Recipe(steps=800, lr=0.01, source=partial(OnlineTrained, lr=3e-3))

    def summarise(self, rows: Tensor, targets: Tensor) -> RealRows:
        """Keep the rows."""
        return RealRows(rows.float(), targets)

    def merge(self, pieces: Sequence[RealRows]) -> RealRows:
        """Put the rows together."""
        return RealRows(*(torch.cat(column) for column in zip(*pieces, strict=True)))

    def compare(self, observed: RealRows, rows: Tensor, targets: Tensor) -> Tensor:
        """Return half the mean squared error of the prediction on the real rows, and the margin of learned labels."""
        rows = rows.double()
        inner, cross = rows @ rows.T, observed.rows.double() @ rows.T
        loss = regression_error(inner, cross, targets, observed.targets, self.penalty)
        return loss - margin(targets) if self.learn_labels else loss


def regression_error(inner: Tensor, cross: Tensor, targets: Tensor, real_targets: Tensor, penalty: float) -> Tensor:
    """Return half the mean squared error of a kernel ridge regression, in double precision, as float32.

    Targets are centred over the classes that the real data have: a client knows nothing of the others.

    Args:
        inner: (N, N) kernel of the images that it is fitted to.
        cross: (M, N) kernel of the images that it predicts, with those.
        targets: (N, K) probabilities.
        real_targets: (M, K) probabilities.
        penalty: The ridge, as a share of the mean diagonal; the ridge itself is held, as in the authors' code.
    """
    present = (real_targets.sum(0) > 0).double()
    centre = present / present.sum().clamp_min(1)
    ridge = penalty * inner.detach().diagonal().mean()
    system = inner + ridge * torch.eye(len(inner), dtype=inner.dtype, device=inner.device)
    weights, _ = torch.linalg.solve_ex(system, targets.double() - centre)  # no wait for a device's error code
    error: Tensor = (cross @ weights - (real_targets.double() - centre)).square().sum(1)
    return (error.mean() / 2).float()


def margin(targets: Tensor) -> Tensor:
    """Return by how much the largest target of an image is ahead, at most 1/K, averaged over (N, K)."""
    number = targets.shape[1]
    if number < 2:
        return targets.sum() * 0
    largest = targets.topk(2, dim=1).values
    return (largest[:, 0] - largest[:, 1]).clamp_max(1 / number).mean()


def connected_kernel(a: Tensor, b: Tensor, depth: int, bias: float) -> Tensor:
    r"""Return the neural tangent kernel (N, M) of an infinitely wide fully connected ReLU network, in closed form.

    Weights have variance 2 over the width of what they read, biases the deviation `bias`. With the covariance
    :math:`\Sigma_0 = 2 a b^\top / D + \beta^2`, its cosine and angle :math:`\theta`, each hidden layer takes
    :math:`\Sigma \to \tfrac1\pi (\sin \theta + (\pi - \theta) \cos \theta) \sqrt{\Sigma_{aa} \Sigma_{bb}} + \beta^2`
    and :math:`\Theta \to \Sigma + \Theta (\pi - \theta) / \pi`, from :math:`\Theta_0 = \Sigma_0`
    (Cho and Saul, 2009; Jacot et al., 2018).

    Args:
        a: (N, D), flattened images, double precision.
        b: (M, D).
        depth: Hidden layers.
        bias: The deviation beta.
    """
    covariance = 2 * a @ b.T / a.shape[1] + bias**2
    own_a, own_b = (2 * x.square().mean(1) + bias**2 for x in (a, b))
    tangent = covariance
    for _ in range(depth):
        scale = (own_a.unsqueeze(1) * own_b).clamp_min(torch.finfo(a.dtype).tiny).sqrt()
        # an image's cosine with itself is one whatever its pixels, so no gradient is lost where the angle has none
        cosine = (covariance / scale).clamp(-1 + 1e-12, 1 - 1e-12)
        angle = cosine.acos()
        covariance = scale * ((1 - cosine.square()).sqrt() + (math.pi - angle) * cosine) / math.pi + bias**2
        tangent = covariance + tangent * (math.pi - angle) / math.pi
        own_a, own_b = own_a + bias**2, own_b + bias**2  # a weight's variance of 2 makes up for the half that is cut
    return tangent
