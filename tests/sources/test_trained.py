from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.contract import Draw, NetworkSource, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.randomness import child_seed, stream
from fedcondense.sources import TrainedOnReal, TrainedOnSynthetic
from fedcondense.sources.trained import published_loops
from fedcondense.training.fit import Fit, fit

OPERATIONS = ("crop", "flip")


def make(seed: int) -> nn.Module:
    return build(partial(ConvNet, width=4, depth=2), (1, 8, 8), 3, seed)


def synthetic(per_class: int = 2) -> Synthetic:
    images = torch.randn(3 * per_class, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.arange(3).repeat_interleave(per_class), 3).float()
    return Synthetic(images.requires_grad_(), targets)


def real(number: int = 200) -> Data:
    generator = torch.Generator().manual_seed(5)
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    images = torch.randint(0, 256, (number, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(number) % 3, spec)


def flat(draw: Draw) -> Tensor:
    return torch.cat([p.detach().flatten() for p in draw.network.parameters()])


def taken(
    source: NetworkSource, count: int, seed: int = 0, leaves: Synthetic | None = None, data: Data | None = None
) -> list[tuple[Draw, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    leaves = leaves or synthetic()
    return [(draw, flat(draw)) for draw in (source.draw(generator, leaves, data) for _ in range(count))]


class TestTrainedOnSynthetic:
    def test_a_network_serves_outer_steps(self) -> None:
        draws = taken(TrainedOnSynthetic(make, OPERATIONS, 3, outer=3, epochs=0), 9)
        assert [torch.equal(draws[k][1], draws[k - 1][1]) for k in range(1, 9)] == [True, True, False] * 2 + [True] * 2
        assert len({draw.seed for draw, _ in draws}) == 9
        assert all(draw.key is None for draw, _ in draws)

    def test_it_is_trained_on_the_synthetic_set_between_two_steps(self) -> None:
        """By the published inner loop, done here by hand: plain SGD, step size 0.01, `epochs` passes."""
        source, leaves = TrainedOnSynthetic(make, OPERATIONS, 3, outer=2, epochs=3), synthetic()
        (_, first), (second, weights) = taken(source, 2, leaves=leaves)
        by_hand = make(source.seed)
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in by_hand.parameters()]), first)
        recipe = Fit(3, 6, 0.01, 0.0, schedule="constant")
        images = leaves.images.detach()
        fit(by_hand, images, leaves.targets, recipe, seed=child_seed(source.seed, 1), operations=OPERATIONS)
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in by_hand.parameters()]), weights)
        assert not torch.equal(first, weights)
        assert leaves.images.grad is None
        assert not any(p.requires_grad for p in second.network.parameters())

    def test_published_loops_are_used_unless_told_otherwise(self) -> None:
        """Ten images a class: a network serves ten steps."""
        draws = taken(TrainedOnSynthetic(make, (), 3, epochs=0), 11, leaves=synthetic(10))
        changes = [k for k in range(1, 11) if not torch.equal(draws[k][1], draws[k - 1][1])]
        assert changes == [10]

    @pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
    def test_it_goes_on_from_its_state(self, after: int) -> None:
        unbroken, broken, resumed = (TrainedOnSynthetic(make, OPERATIONS, 3, outer=3, epochs=2) for _ in range(3))
        expected = taken(unbroken, 7)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), None)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), None)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)


@pytest.mark.parametrize("kind", [TrainedOnSynthetic, TrainedOnReal])
def test_the_state_before_the_first_draw_is_without_a_network(kind: type[TrainedOnSynthetic]) -> None:
    source = kind(make, OPERATIONS, 3)
    before = source.state_dict()
    expected = taken(source, 3, data=real())
    source.load_state_dict(before)
    assert source.network is None
    again = taken(source, 3, data=real())
    assert all(torch.equal(x, y) for (_, x), (_, y) in zip(expected, again, strict=True))


class TestTrainedOnReal:
    def test_it_is_trained_on_images_of_the_data_between_two_steps(self) -> None:
        """By hand: two batches of 64, SGD with momentum 0.9 and weight decay, on the data and not on the set."""
        data, source = real(), TrainedOnReal(make, OPERATIONS, 3, outer=3, batches=2)
        (_, first), (second, weights) = taken(source, 2, data=data)
        by_hand = make(source.seed)
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in by_hand.parameters()]), first)
        seed = child_seed(source.seed, 2)
        batch = data.batch(torch.randperm(200, generator=stream(seed, "images"))[:128])
        recipe = Fit(2, 64, 0.01, 0.9, 5e-4, nesterov=False, schedule="constant")
        fit(by_hand, batch.images, batch.targets, recipe, seed=seed, operations=OPERATIONS)
        torch.testing.assert_close(torch.cat([p.detach().flatten() for p in by_hand.parameters()]), weights)
        assert not torch.equal(first, weights)
        assert not any(p.requires_grad for p in second.network.parameters())

    def test_the_set_has_no_say(self) -> None:
        data = real()
        one, other = (taken(TrainedOnReal(make, (), 3), 3, data=data, leaves=synthetic(k)) for k in (1, 2))
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(one, other, strict=True))

    def test_a_network_serves_outer_steps(self) -> None:
        source = TrainedOnReal(make, (), 3, outer=2, batches=1)
        draws = taken(source, 4, data=real())
        assert len({draw.network for draw, _ in draws}) == 2

    def test_a_holder_that_keeps_its_data_is_told(self) -> None:
        with pytest.raises(SettingError, match="networks are to be trained on the real data, which their holder keeps"):
            taken(TrainedOnReal(make, (), 3), 1)

    @pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
    def test_it_goes_on_from_its_state(self, after: int) -> None:
        data = real()
        unbroken, broken, resumed = (TrainedOnReal(make, OPERATIONS, 3, outer=3, batches=2) for _ in range(3))
        expected = taken(unbroken, 7, data=data)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), data)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), data)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)


@pytest.mark.parametrize(
    ("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))]
)
def test_published_loops(ipc: int, loops: tuple[int, int]) -> None:
    assert published_loops(ipc) == loops


def test_between_one_and_ten_the_loops_grow() -> None:
    epochs = [published_loops(ipc)[1] for ipc in range(1, 11)]
    assert epochs == sorted(epochs)
    assert published_loops(0) == (1, 1)
