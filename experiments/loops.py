"""The loops whose speed is compared: the published ones, written naively (`naive.py`), and ours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from naive import PlainConvNet, characteristic_loss, distribution_matching_loss, kernel_means_loss

import fedcondense as fc
from fedcondense.condensing import prepare
from fedcondense.condensing.loop import Loop
from fedcondense.data.images import Data
from fedcondense.networks import build
from fedcondense.sets.parts import Part
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Fresh, Pool

NETWORK = "convnet3-w32"
ON_FEATURES = (distribution_matching_loss, kernel_means_loss, characteristic_loss)  # no gradient of weights is needed


class Naive:
    """The published loop on [0, 1] pixels: a fresh network and 256 real images of each class a step, SGD."""

    def __init__(
        self, data: Data, seed: int, loss: Callable[..., torch.Tensor], per_class: int = 256, width: int = 32
    ) -> None:
        self.data, self.loss, self.per_class, self.width = data, loss, per_class, width
        self.generator = torch.Generator().manual_seed(seed)
        chosen = data.per_class(10, self.generator)
        self.images = data.batch(chosen).images.view(10, 10, *data.spec.shape).clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=10.0, momentum=0.5)  # 10: better than the published 1 here
        self.steps = 0

    def step(self) -> None:
        """Take one step."""
        seed = int(torch.randint(2**31, (), generator=self.generator))
        torch.manual_seed(seed)
        channels, height, _ = self.data.spec.shape
        padding = 1 + (32 - height) // 2
        network = PlainConvNet(channels, self.width, 10, padding).to(self.data.device)
        if self.loss in ON_FEATURES:
            network.requires_grad_(False)
        index = self.data.per_class(self.per_class, self.generator)
        real = list(self.data.batch(index).images.split(self.per_class))
        loss = self.loss(network, real, list(self.images), seed)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.steps += 1

    def finished(self) -> SyntheticSet:
        """Return the set as it stands, rounded to bytes as ours are."""
        spec = self.data.spec
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (spec.mean, spec.std))
        pixels = (self.images.detach().flatten(0, 1) * std + mean).clamp(0, 1)
        record = fc.select(self.data, 10).record
        targets = torch.arange(10).repeat_interleave(10).to(torch.uint8)
        part = Part(
            {"images": pixels.mul(255).round().to(torch.uint8)}, targets, fc.PARAMETRIZATIONS["pixels"](), record
        )
        return SyntheticSet([part])


def fresh(objective: Any, data: Data, seed: int = 0) -> Loop:
    """Return our loop with a new network and new real images in every step."""
    return prepare(data, 10, objective, "pixels", network=NETWORK, seed=seed, source=_source(Fresh, data))


def cached(objective: Any, data: Data, seed: int = 0) -> Loop:
    """Return our loop on a pool whose real side was paid before."""
    loop = prepare(
        data, 10, objective, "pixels", network=NETWORK, seed=seed, source=_source(partial(Pool, size=4), data)
    )
    for _ in range(4):
        loop.step()
    return loop


def _source(kind: Callable[..., Any], data: Data) -> Any:
    def make(seed: int) -> torch.nn.Module:
        return build(NETWORK, data.spec.shape, len(data.spec.classes), seed)

    return kind(make, data.spec.operations, len(data.spec.classes))
