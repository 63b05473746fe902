from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.contract import Draw, NetworkSource, Synthetic
from fedcondense.data.images import Data
from fedcondense.networks import ConvNet, build
from fedcondense.sources import Fresh, NoNetwork

OPERATIONS = ("crop", "flip")


def make(seed: int) -> nn.Module:
    return build(partial(ConvNet, width=4, depth=2), (1, 8, 8), 3, seed)


def synthetic(per_class: int = 2) -> Synthetic:
    images = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.arange(3).repeat_interleave(per_class), 3).float()
    return Synthetic(images.requires_grad_(), targets)


def flat(draw: Draw) -> Tensor:
    return torch.cat([p.detach().flatten() for p in draw.network.parameters()])


def taken(
    source: NetworkSource, count: int, seed: int = 0, leaves: Synthetic | None = None, data: Data | None = None
) -> list[tuple[Draw, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    leaves = leaves or synthetic()
    return [(draw, flat(draw)) for draw in (source.draw(generator, leaves, data) for _ in range(count))]


class TestFresh:
    def test_every_draw_is_new_and_never_comes_again(self) -> None:
        draws = taken(Fresh(make, OPERATIONS, 3), 5)
        assert len({tuple(weights.tolist()) for _, weights in draws}) == 5
        assert len({draw.seed for draw, _ in draws}) == 5
        assert all(draw.key is None for draw, _ in draws)
        assert all(draw.augment.choice.shape == (3,) for draw, _ in draws)

    def test_networks_are_frozen(self) -> None:
        draw, _ = taken(Fresh(make, OPERATIONS, 3), 1)[0]
        assert not any(p.requires_grad for p in draw.network.parameters())

    def test_draws_follow_from_the_generator(self) -> None:
        first, second = (taken(Fresh(make, OPERATIONS, 3), 3) for _ in range(2))
        for (a, x), (b, y) in zip(first, second, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(a.augment.amounts, b.augment.amounts)
            assert a.seed == b.seed


class TestNoNetwork:
    def test_it_draws_an_augmentation_and_a_seed_and_builds_nothing(self) -> None:
        source, generator = NoNetwork(make, OPERATIONS, 3), torch.Generator().manual_seed(0)
        first, second = (source.draw(generator, synthetic(), None) for _ in range(2))
        assert first.network is second.network is None
        assert first.seed != second.seed
        assert first.augment.choice.shape == (3,)
        assert first.key is None
