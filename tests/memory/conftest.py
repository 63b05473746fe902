from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcondense.contract import Draw, Objective, Recipe, Synthetic
from fedcondense.data.images import Data
from fedcondense.data.loading import load_data
from fedcondense.memory import Memory
from fedcondense.networks import ConvNet
from fedcondense.sources import Fresh


@pytest.fixture(scope="session")
def digits() -> Data:
    return load_data("digits").train


@pytest.fixture
def piece(digits: Data) -> Callable[..., Data]:
    """Return so many images of each of some digits, from the `begin`-th on; a class a group, named as its digit."""

    def make(*classes: int, count: int = 30, begin: int = 0) -> Data:
        rows = [digits.per_class(None, torch.Generator())[digits.labels.sort().values == c] for c in classes]
        index = torch.cat([row[begin : begin + count] for row in rows])
        spec = replace(digits.spec, classes=tuple(map(str, classes)))
        number = {c: k for k, c in enumerate(classes)}
        return Data(digits.images[index], torch.tensor([number[c] for c in digits.labels[index].tolist()]), spec)

    return make


def state(memory: Memory) -> dict[str, Any]:
    """Return all that a memory is, to be compared."""
    kept = {k: v for k, v in vars(memory).items() if k not in ("sets", "real", "waiting", "make")}
    return kept | {"names": memory.names, "bytes": memory.to_bytes() if memory.names else b""}


@pytest.fixture
def unchanged() -> Callable[[Memory], AbstractContextManager[None]]:
    """Return a context in which a memory has to stay as it is."""

    @contextmanager
    def same(memory: Memory) -> Iterator[None]:
        before = copy.deepcopy(state(memory))
        yield
        assert state(memory) == before

    return same


@dataclass(frozen=True)
class Means(Objective):
    """A method in a few lines: class means of pixels."""

    recipe = Recipe(steps=3, lr=0.05, source=lambda make, operations, classes: Fresh(make, operations, classes))
    siamese: bool = False

    def observe(self, draw: Draw, data: Data) -> Tensor:
        images, targets = data.batch()
        return targets.T @ images.flatten(1) / targets.sum(0).unsqueeze(1)

    def loss(self, draw: Draw, observed: Tensor, synthetic: Synthetic) -> Tensor:
        means = synthetic.targets.T @ synthetic.images.flatten(1) / synthetic.targets.sum(0).unsqueeze(1)
        return (means - observed).square().sum()


@pytest.fixture(scope="session")
def means() -> Objective:
    return Means()


@pytest.fixture(scope="session")
def tiny() -> Callable[[tuple[int, int, int], int], nn.Module]:
    """Return a network that takes no time to train."""

    def build(shape: tuple[int, int, int], classes: int) -> nn.Module:
        return ConvNet(shape, classes, width=8, depth=2)

    return build
