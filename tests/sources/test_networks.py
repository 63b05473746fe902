from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.contract import Draw, NetworkSource, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.randomness import child_seed, draw_seed, stream
from fedcondense.sources.networks import AgedPool, Fresh, NoNetwork, Online, Pool, RealTrained, Trained, published_loops
from fedcondense.training.fit import Fit, fit

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


class TestAgedPool:
    def test_an_entry_is_trained_on_the_data_for_a_number_of_steps_of_its_own(self) -> None:
        """By hand: the pool's entry, then SGD on as many batches of 64 as were drawn for it."""
        data, size, age = real(), 8, 3
        draws = {draw.key: (draw, w) for draw, w in taken(AgedPool(make, OPERATIONS, 3, size, 9, age), size, data=data)}
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
        aged = taken(AgedPool(make, OPERATIONS, 3, 4, 9, age=0), 4, data=real())
        assert all(
            torch.equal(x, y) for (_, x), (_, y) in zip(aged, taken(Pool(make, OPERATIONS, 3, 4, 9), 4), strict=True)
        )

    def test_a_holder_that_keeps_its_data_is_told(self) -> None:
        with pytest.raises(SettingError, match="networks are to be trained on the real data, which their holder keeps"):
            taken(AgedPool(make, (), 3), 1)


class TestTrained:
    def test_a_network_serves_outer_steps(self) -> None:
        draws = taken(Trained(make, OPERATIONS, 3, outer=3, epochs=0), 9)
        assert [torch.equal(draws[k][1], draws[k - 1][1]) for k in range(1, 9)] == [True, True, False] * 2 + [True] * 2
        assert len({draw.seed for draw, _ in draws}) == 9
        assert all(draw.key is None for draw, _ in draws)

    def test_it_is_trained_on_the_synthetic_set_between_two_steps(self) -> None:
        """By the published inner loop, done here by hand: plain SGD, step size 0.01, `epochs` passes."""
        source, leaves = Trained(make, OPERATIONS, 3, outer=2, epochs=3), synthetic()
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
        draws = taken(Trained(make, (), 3, epochs=0), 11, leaves=synthetic(10))
        changes = [k for k in range(1, 11) if not torch.equal(draws[k][1], draws[k - 1][1])]
        assert changes == [10]

    @pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
    def test_it_goes_on_from_its_state(self, after: int) -> None:
        unbroken, broken, resumed = (Trained(make, OPERATIONS, 3, outer=3, epochs=2) for _ in range(3))
        expected = taken(unbroken, 7)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), None)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), None)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)


def real(number: int = 200) -> Data:
    generator = torch.Generator().manual_seed(5)
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    images = torch.randint(0, 256, (number, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(number) % 3, spec)


class TestRealTrained:
    def test_it_is_trained_on_images_of_the_data_between_two_steps(self) -> None:
        """By hand: two batches of 64, SGD with momentum 0.9 and weight decay, on the data and not on the set."""
        data, source = real(), RealTrained(make, OPERATIONS, 3, outer=3, batches=2)
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
        one, other = (taken(RealTrained(make, (), 3), 3, data=data, leaves=synthetic(k)) for k in (1, 2))
        assert all(torch.equal(x, y) for (_, x), (_, y) in zip(one, other, strict=True))

    def test_a_network_serves_outer_steps(self) -> None:
        source = RealTrained(make, (), 3, outer=2, batches=1)
        draws = taken(source, 4, data=real())
        assert len({draw.network for draw, _ in draws}) == 2

    def test_a_holder_that_keeps_its_data_is_told(self) -> None:
        with pytest.raises(SettingError, match="networks are to be trained on the real data, which their holder keeps"):
            taken(RealTrained(make, (), 3), 1)

    @pytest.mark.parametrize("after", [0, 1, 2, 3, 4])
    def test_it_goes_on_from_its_state(self, after: int) -> None:
        data = real()
        unbroken, broken, resumed = (RealTrained(make, OPERATIONS, 3, outer=3, batches=2) for _ in range(3))
        expected = taken(unbroken, 7, data=data)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), data)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), data)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)


class TestOnline:
    def test_who_served_takes_one_step_of_adam_down_the_squared_error_of_centred_targets(self) -> None:
        # without a norm: under one, a bias has no gradient but that of rounding, which Adam makes as large as any
        def plain(seed: int) -> nn.Module:
            return build(partial(ConvNet, width=4, depth=2, norm="none"), (1, 8, 8), 3, seed)

        source, leaves = Online(plain, OPERATIONS, 3, size=1, lr=0.01), synthetic()
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
        source, leaves = Online(make, OPERATIONS, 3, size=1, lr=0.01, age=1000), synthetic()
        draws = taken(source, 200, leaves=leaves)
        predicted = draws[-1][0].network(leaves.images.detach())
        assert torch.equal(predicted.argmax(1), leaves.targets.argmax(1))

    def test_a_network_is_replaced_at_its_age_and_ages_start_staggered(self) -> None:
        assert Online(make, OPERATIONS, 3, size=4, age=20).ages == [0, 5, 10, 15]
        source = Online(make, OPERATIONS, 3, size=1, age=3)
        generator = torch.Generator().manual_seed(0)
        ages = [source.draw(generator, synthetic(), None) and source.ages[0] for _ in range(7)]
        assert ages == [0, 1, 2, 0, 1, 2, 0]
        networks = [source.draw(generator, synthetic(), None).network for _ in range(4)]
        assert networks[0] is networks[1]
        assert networks[1] is not networks[2]
        assert networks[2] is networks[3]

    def test_all_networks_serve_and_those_that_do_not_stay_as_they_are(self) -> None:
        source = Online(make, OPERATIONS, 3, size=4)
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
        source, generator, sizes = Online(make, (), 3, size=1, batch=4), torch.Generator().manual_seed(0), list[int]()
        network = source.draw(generator, synthetic(), None).network
        network.register_forward_hook(lambda m, i, o: sizes.append(len(o)))
        source.draw(generator, synthetic(), None)
        assert sizes == [4]

    @pytest.mark.parametrize("of", [make, mixed])
    @pytest.mark.parametrize("after", [0, 1, 2, 5, 9])
    def test_it_goes_on_from_its_state(self, after: int, of: Callable[[int], nn.Module]) -> None:
        """Weights, moments and ages, of networks that were handed out and of those that were not."""
        unbroken, broken, resumed = (Online(of, OPERATIONS, 3, size=3, age=6) for _ in range(3))
        expected = taken(unbroken, 14)[after:]
        generator = torch.Generator().manual_seed(0)
        for _ in range(after):
            broken.draw(generator, synthetic(), None)
        resumed.load_state_dict(broken.state_dict())
        for draw, weights in expected:
            again = resumed.draw(generator, synthetic(), None)
            assert again.seed == draw.seed
            assert torch.equal(flat(again), weights)


def draw_seed_of_first(seed: int) -> int:
    """The seed that the first network of one is built from."""
    generator = torch.Generator().manual_seed(seed)
    torch.randint(1, (), generator=generator)
    return draw_seed(generator)


@pytest.mark.parametrize(
    ("ipc", "loops"), [(1, (1, 1)), (10, (10, 50)), (20, (20, 25)), (30, (30, 20)), (40, (40, 15)), (50, (50, 10))]
)
def test_published_loops(ipc: int, loops: tuple[int, int]) -> None:
    assert published_loops(ipc) == loops


def test_between_one_and_ten_the_loops_grow() -> None:
    epochs = [published_loops(ipc)[1] for ipc in range(1, 11)]
    assert epochs == sorted(epochs)
    assert published_loops(0) == (1, 1)
