"""One toy step, for every objective: a draw, real images of ragged classes, and synthetic leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fedcondense.contract import Draw, Synthetic
from fedcondense.data.augment import Augmentation
from fedcondense.data.images import Data, Spec
from fedcondense.networks import ConvNet, build

Step = tuple[Draw, Data, Synthetic]

SPEC = Spec("toy", (3, 8, 8), ("a", "b", "c", "d", "e"), (0.5, 0.4, 0.3), (0.25, 0.2, 0.3))


def make_step(
    seed: int = 0,
    *,
    real: tuple[int, ...] = (7, 3, 0, 12, 1),
    synthetic: tuple[int, ...] = (2, 1, 3, 0, 1),
    soft: bool = False,
    operations: tuple[str, ...] = SPEC.operations,
    norm: str = "instance",
) -> Step:
    """Return a step; by default the real data lack class c and the synthetic set lacks class d."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (sum(real), *SPEC.shape), generator=generator, dtype=torch.uint8)
    data = Data(images, torch.arange(5).repeat_interleave(torch.tensor(real)), SPEC)
    leaves = torch.randn(sum(synthetic), *SPEC.shape, generator=generator)
    targets = F.one_hot(torch.arange(5).repeat_interleave(torch.tensor(synthetic)), 5).float()
    if soft:
        targets = 0.6 * targets + 0.4 * torch.rand(targets.shape, generator=generator).softmax(1)
    network = build(partial(ConvNet, width=8, depth=2, norm=norm), SPEC.shape, 5, seed).requires_grad_(False)
    expert = build(partial(ConvNet, width=8, depth=2, norm=norm), SPEC.shape, 5, seed + 100)
    goal = nn.utils.parameters_to_vector(expert.parameters()).detach()
    draw = Draw(network, Augmentation.draw(operations, 5, generator), seed + 1, goal=goal)
    return draw, data, Synthetic(leaves.requires_grad_(), targets)


@pytest.fixture
def step() -> Callable[..., Step]:
    """Make a toy step."""
    return make_step
