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
from fedcondense.sources import Fresh, Pool, TrainedPool
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


class TestPool:
    def test_each_pass_takes_every_entry_once_in_another_order(self) -> None:
        draws = taken(Pool(make, OPERATIONS, 3, size=7), 28)
        passes = [[draw.key for draw, _ in draws[k : k + 7]] for k in range(0, 28, 7)]
        assert all(set(keys) == set(passes[0]) and len(set(keys)) == 7 for keys in passes)
        assert len({tuple(keys) for keys in passes}) > 1

    def test_a_key_always_names_the_same_draw(self) -> None:
        by_key: dict[object, tuple[Draw, Tensor]] = {}
        for draw, weights in taken(Pool(make, OPERATIONS, 3, size=4), 12):
            before, kept = by_key.setdefault(draw.key, (draw, weights))
            assert torch.equal(kept, weights)
            assert draw.seed == before.seed
            assert torch.equal(draw.augment.amounts, before.augment.amounts)
        assert len({tuple(weights.tolist()) for _, weights in by_key.values()}) == 4

    def test_who_knows_the_seed_has_the_same_pool(self) -> None:
        """Whatever the generator: clients share a pool by its seed."""
        first = taken(Pool(make, OPERATIONS, 3, size=4, seed=9), 4, seed=0)
        second = taken(Pool(make, OPERATIONS, 3, size=4, seed=9), 4, seed=1)
        assert all(a.key == b.key and torch.equal(x, y) for (a, x), (b, y) in zip(first, second, strict=True))

    def test_an_entry_does_not_depend_on_the_size(self) -> None:
        small = {draw.key: weights for draw, weights in taken(Pool(make, OPERATIONS, 3, size=3, seed=9), 3)}
        large = {draw.key: weights for draw, weights in taken(Pool(make, OPERATIONS, 3, size=8, seed=9), 8)}
        assert all(torch.equal(weights, large[key]) for key, weights in small.items())

    def test_another_seed_is_another_pool(self) -> None:
        first, second = (taken(Pool(make, OPERATIONS, 3, size=3, seed=seed), 3) for seed in (1, 2))
        assert not {draw.key for draw, _ in first} & {draw.key for draw, _ in second}

    @pytest.mark.parametrize("after", [0, 3, 5])
    def test_it_goes_on_from_its_state(self, after: int) -> None:
        unbroken, broken, resumed = (Pool(make, OPERATIONS, 3, size=4) for _ in range(3))
        expected = taken(unbroken, 9)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), None)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), None)
            assert again.key == draw.key
            assert torch.equal(flat(again), weights)


class TestTrainedPool:
    def test_an_entry_is_trained_on_the_data_for_a_number_of_steps_of_its_own(self) -> None:
        """By hand: the pool's entry, then SGD on as many batches of 64 as were drawn for it."""
        data, size, age = real(), 8, 3
        draws = {
            draw.key: (draw, w) for draw, w in taken(TrainedPool(make, OPERATIONS, 3, size, 9, age), size, data=data)
        }
        ages = set()
        for number in range(size):
            generator = stream(9, "entry", number)
            entry = Fresh(make, OPERATIONS, 3).draw(generator, synthetic(), None)
            steps = int(torch.randint(age + 1, (), generator=generator))
            seed = child_seed(entry.seed, "age")
            if steps:
                batch = data.batch(torch.randperm(200, generator=stream(seed, "images"))[: 64 * steps])
                recipe = Fit(steps, 64, 0.01, 0.9, 5e-4, nesterov=False, schedule="constant")
                fit(entry.network, batch.images, batch.targets, recipe, seed=seed, operations=OPERATIONS)
            draw, weights = draws[9, number]
            torch.testing.assert_close(flat(entry), weights)
            assert torch.equal(draw.augment.amounts, entry.augment.amounts)
            assert not any(p.requires_grad for p in draw.network.parameters())
            ages.add(steps)
        assert len(ages) > 2

    def test_without_age_it_is_a_pool(self) -> None:
        aged = taken(TrainedPool(make, OPERATIONS, 3, 4, 9, age=0), 4, data=real())
        assert all(
            torch.equal(x, y) for (_, x), (_, y) in zip(aged, taken(Pool(make, OPERATIONS, 3, 4, 9), 4), strict=True)
        )

    def test_a_holder_that_keeps_its_data_is_told(self) -> None:
        with pytest.raises(SettingError, match="networks are to be trained on the real data, which their holder keeps"):
            taken(TrainedPool(make, (), 3), 1)


class TestEntry:
    @pytest.mark.parametrize("number", [0, 3])
    def test_it_is_what_a_draw_hands_out_under_its_key(self, number: int) -> None:
        drawn = {draw.key: (draw, weights) for draw, weights in taken(Pool(make, OPERATIONS, 3, size=4, seed=9), 4)}
        entry = Pool(make, OPERATIONS, 3, size=4, seed=9).entry(number)
        draw, weights = drawn[9, number]
        assert (entry.key, entry.seed) == (draw.key, draw.seed)
        assert torch.equal(flat(entry), weights)
        assert torch.equal(entry.augment.amounts, draw.augment.amounts)

    def test_of_a_trained_pool_it_takes_the_data(self) -> None:
        pool = TrainedPool(make, OPERATIONS, 3, 2, 9, age=3)
        drawn = {draw.key: weights for draw, weights in taken(pool, 2, data=real())}
        assert torch.equal(flat(TrainedPool(make, OPERATIONS, 3, 2, 9, age=3).entry(1, data=real())), drawn[9, 1])
        with pytest.raises(SettingError, match="networks are to be trained on the real data"):
            pool.entry(1)

    def test_without_a_seed_nobody_else_has_the_same_pool(self) -> None:
        with pytest.raises(SettingError, match="entry 0 of a pool of 4 with seed None; needed: a seed, and a number"):
            Pool(make, OPERATIONS, 3, size=4).entry(0)

    @pytest.mark.parametrize("number", [-1, 4])
    def test_a_number_that_it_does_not_have_is_refused(self, number: int) -> None:
        with pytest.raises(SettingError, match="from 0 to 3"):
            Pool(make, OPERATIONS, 3, size=4, seed=1).entry(number)
