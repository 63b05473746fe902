from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.contract import Draw, NetworkSource, Synthetic
from fedcondense.data.images import Data
from fedcondense.networks import ConvNet, build
from fedcondense.randomness import draw_seed
from fedcondense.sources import OnlineTrained

OPERATIONS = ("crop", "flip")


def make(seed: int) -> nn.Module:
    return build(partial(ConvNet, width=4, depth=2), (1, 8, 8), 3, seed)


def mixed(seed: int) -> nn.Module:
    return build("convnet1-w16+convnet2-w16-none", (1, 8, 8), 3, seed)


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


def draw_seed_of_first(seed: int) -> int:
    """The seed that the first network of one is built from."""
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (), generator=generator)
    return draw_seed(generator)


class TestOnlineTrained:
    def test_who_served_takes_one_step_of_adam_down_the_squared_error_of_centred_targets(self) -> None:
        # without a norm: under one, a bias has no gradient but that of rounding, which Adam makes as large as any
        def plain(seed: int) -> nn.Module:
            return build(partial(ConvNet, width=4, depth=2, norm="none"), (1, 8, 8), 3, seed)

        source, leaves = OnlineTrained(plain, OPERATIONS, 3, size=1, lr=0.01), synthetic()
        draws = taken(source, 3, leaves=leaves)
        by_hand = plain(draw_seed_of_first(0))
        optimizer = torch.optim.Adam(by_hand.parameters(), lr=0.01)
        for draw, weights in draws:
            torch.testing.assert_close(torch.cat([p.detach().flatten() for p in by_hand.parameters()]), weights)
            assert not any(p.requires_grad for p in draw.network.parameters())
            optimizer.zero_grad()
            error = by_hand(leaves.images.detach()) - (leaves.targets - 1 / 3)
            (0.5 * error.pow(2).sum(1).mean()).backward()
            optimizer.step()
        assert leaves.images.grad is None

    def test_the_set_is_fitted_by_the_networks_that_serve(self) -> None:
        source, leaves = OnlineTrained(make, OPERATIONS, 3, size=1, lr=0.01, age=1000), synthetic()
        draws = taken(source, 200, leaves=leaves)
        predicted = draws[-1][0].network(leaves.images.detach())
        assert torch.equal(predicted.argmax(1), leaves.targets.argmax(1))

    def test_a_network_is_replaced_at_its_age_and_ages_start_staggered(self) -> None:
        assert OnlineTrained(make, OPERATIONS, 3, size=4, age=20).ages == [0, 5, 10, 15]
        source = OnlineTrained(make, OPERATIONS, 3, size=1, age=3)
        generator = torch.Generator().manual_seed(0)
        ages = [source.draw(generator, synthetic(), None) and source.ages[0] for _ in range(7)]
        assert ages == [0, 1, 2, 0, 1, 2, 0]
        networks = [source.draw(generator, synthetic(), None).network for _ in range(4)]
        assert networks[0] is networks[1]
        assert networks[1] is not networks[2]
        assert networks[2] is networks[3]

    def test_all_networks_serve_and_those_that_do_not_stay_as_they_are(self) -> None:
        source = OnlineTrained(make, OPERATIONS, 3, size=4)
        generator, before = torch.Generator().manual_seed(0), dict[int, Tensor]()
        seen = set()
        for _ in range(30):
            last = source.served
            draw = source.draw(generator, synthetic(), None)
            for k, network in source._networks.items():
                weights = torch.cat([p.detach().flatten() for p in network.parameters()])
                assert k not in before or torch.equal(before[k], weights) == (k != last)
                before[k] = weights
            seen.add(id(draw.network))
        assert len(seen) == 4

    def test_a_step_takes_so_many_images_at_most(self) -> None:
        source, generator, sizes = (
            OnlineTrained(make, (), 3, size=1, batch=4),
            torch.Generator().manual_seed(0),
            list[int](),
        )
        network = source.draw(generator, synthetic(), None).network
        network.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
        source.draw(generator, synthetic(), None)
        assert sizes == [4]

    def test_the_state_before_the_first_draw_is_without_networks(self) -> None:
        source = OnlineTrained(make, OPERATIONS, 3, size=2)
        before = source.state_dict()
        expected = taken(source, 5)
        source.load_state_dict(before)
        assert source.seeds == {}
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(expected, taken(source, 5), strict=True))

    @pytest.mark.parametrize("of", [make, mixed])
    @pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
    def test_it_goes_on_from_its_state(self, after: int, of: Callable[[int], nn.Module]) -> None:
        """Weights, moments and ages, of networks that were handed out and of those that were not."""
        unbroken, broken, resumed = (OnlineTrained(of, OPERATIONS, 3, size=3, age=6) for _ in range(3))
        expected = taken(unbroken, 14)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), None)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), None)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)
