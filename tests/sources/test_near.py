from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.condensing import Checkpoint, condense
from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.errors import ResumeError, SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.objectives import OBJECTIVES
from fedcondense.sources import Near, Pool
from fedcondense.sources.near import Resampled

OPERATIONS = ("crop", "flip")


def make(seed: int, norm: str = "instance") -> nn.Module:
    return build(partial(ConvNet, width=4, depth=2, norm=norm), (1, 8, 8), 3, seed)


def weights_of(norm: str = "instance", seed: int = 77) -> dict[str, Tensor]:
    """Return weights that no seed of a pool gives, with statistics of three batches."""
    network = make(seed, norm)
    for k in range(3):
        network(torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(k)))
    return network.state_dict()


def near(radius: float = 2.0, size: int = 4, seed: int | None = 9, norm: str = "instance") -> Near:
    return Near(partial(make, norm=norm), OPERATIONS, 3, size, seed, weights=weights_of(norm), radius=radius)


def distance(draw: Draw, weights: dict[str, Tensor]) -> float:
    """Return the L2 distance of all parameters as one vector."""
    pieces = [(p - weights[name]).flatten() for name, p in draw.network.named_parameters()]
    return float(torch.cat(pieces).double().norm())


def test_networks_lie_in_the_ball_at_all_distances() -> None:
    """Of 200 uniform distances, a tenth of the radius apart on average by 20; the mean is half the radius."""
    source = near(radius=2.0, size=200)
    found = torch.tensor([distance(source.entry(k), source.weights) for k in range(200)])
    assert bool((found <= 2.0 + 1e-4).all())
    assert float(found.mean()) == pytest.approx(1.0, abs=0.12)
    assert bool((torch.histc(found, 10, 0, 2) >= 8).all())


def test_directions_are_those_of_a_normal_distribution() -> None:
    """Over all entries and weights, the steps at distance one have mean 0 and variance 1 / P."""
    source = near(size=64)
    steps = []
    for k in range(64):
        draw = source.entry(k)
        step = torch.cat([(p - source.weights[n]).flatten() for n, p in draw.network.named_parameters()])
        steps.append(step / step.norm())
    unit = torch.stack(steps) * steps[0].numel() ** 0.5
    assert float(unit.mean()) == pytest.approx(0, abs=0.02)
    assert float(unit.pow(4).mean()) == pytest.approx(3, abs=0.15)
    assert float((torch.stack(steps) @ torch.stack(steps).T).fill_diagonal_(0).abs().max()) < 0.35


def test_at_radius_zero_all_are_the_network_itself() -> None:
    source = near(radius=0.0)
    for k in range(4):
        for name, value in source.entry(k).network.state_dict().items():
            assert torch.equal(value, source.weights[name])


def test_buffers_are_copied_and_parameters_moved() -> None:
    """Running statistics and the number of batches, an integer, stay; all weights of a batch norm move."""
    source = near(norm="batch")
    network = source.entry(0).network
    parameters = dict(network.named_parameters())
    for name, value in network.state_dict().items():
        assert torch.equal(value, source.weights[name]) == (name not in parameters)
    assert any(value.dtype == torch.int64 and int(value) == 3 for value in network.state_dict().values())


def test_networks_are_frozen_and_in_the_mode_of_those_of_a_pool() -> None:
    pool = Pool(make, OPERATIONS, 3, 1, 9).entry(0).network
    network = near().entry(0).network
    assert network.training == pool.training
    assert not any(p.requires_grad for p in network.parameters())


def test_entries_follow_from_seed_and_number_whatever_the_size_and_the_seed_of_the_build() -> None:
    class Odd:
        """Builds other weights each time: only the layout counts."""

        built = 0

        def __call__(self, seed: int) -> nn.Module:
            self.built += 1
            return make(self.built)

    one, other = near(size=4), Near(Odd(), OPERATIONS, 3, 9, 9, weights=weights_of(), radius=2.0)
    for k in range(4):
        a, b = one.entry(k), other.entry(k)
        assert (a.key, a.seed) == (b.key, b.seed) == ((9, k), b.seed)
        assert torch.equal(a.augment.amounts, b.augment.amounts)
        for x, y in zip(a.network.parameters(), b.network.parameters(), strict=True):
            assert torch.equal(x, y)
    assert near(seed=10).entry(0).seed != one.entry(0).seed


def test_draws_are_entries_and_each_pass_takes_all() -> None:
    leaves = Synthetic(torch.zeros(3, 1, 8, 8), F.one_hot(torch.arange(3), 3).float())
    source, generator = near(seed=None), torch.Generator().manual_seed(0)
    draws = [source.draw(generator, leaves, None) for _ in range(8)]
    assert len({draw.key for draw in draws[:4]}) == len({draw.key for draw in draws}) == 4


def test_the_given_weights_are_not_touched_and_not_followed() -> None:
    weights = weights_of()
    before = {name: value.clone() for name, value in weights.items()}
    source = Near(make, (), 3, 2, 9, weights=weights, radius=2.0)
    first = distance(source.entry(0), before)
    assert all(torch.equal(value, before[name]) for name, value in weights.items())
    for value in weights.values():
        value.zero_()
    assert distance(source.entry(0), before) == first


@pytest.mark.parametrize("radius", [-1.0, float("nan"), float("inf")])
def test_a_radius_that_is_none_is_refused(radius: float) -> None:
    with pytest.raises(SettingError, match=r"radius .*; needed: a finite number from 0"):
        near(radius=radius)


def test_weights_of_another_network_are_refused_in_one_line() -> None:
    with pytest.raises(
        SettingError, match=r"the weights are of another network: .*; name the one they are of"
    ) as error:
        Near(make, (), 3, weights=weights_of("batch"))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_are_refused() -> None:
    weights = weights_of()
    weights["classifier.bias"] = torch.full((3,), float("nan"))
    with pytest.raises(SettingError, match=r"weights classifier\.bias are not finite"):
        Near(make, (), 3, weights=weights)


@pytest.mark.parametrize("objective", ["dm", "mmd-ridge", "dsa"])
def test_a_set_is_condensed_around_weights_and_resumes_with_no_others(objective: str, tmp_path: Path) -> None:
    spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
    generator = torch.Generator().manual_seed(0)
    data = Data(
        torch.randint(0, 256, (60, 1, 8, 8), generator=generator, dtype=torch.uint8), torch.arange(60) % 3, spec
    )
    network = partial(ConvNet, width=4, depth=2)

    def around(weights: dict[str, Tensor], **more: Any) -> Any:
        recipe = replace(OBJECTIVES[objective].recipe, steps=5, source=partial(Near, size=3, weights=weights))
        return condense(data, 1, objective, network=network, recipe=recipe, **more)

    kept = Checkpoint(tmp_path / "c")
    one, other = around(weights_of(), checkpoint=kept), around(weights_of(seed=78))
    assert one.record.steps == 5
    assert not torch.equal(one.pixels().images, other.pixels().images)
    with pytest.raises(ResumeError, match="source was"):
        around(weights_of(seed=78), checkpoint=replace(kept, resume=True))


def test_resampled_weights_lie_between_the_given_ones_and_untrained_ones() -> None:
    """At share 1 they are the given ones; below, each entry is the same mixture with another network."""
    weights = weights_of()
    whole, half, none = (Resampled(make, (), 3, size=2, seed=0, weights=weights, radius=r) for r in (1.0, 0.5, 0.0))
    for name, given in weights.items():
        states = [source.entry(1).network.state_dict()[name] for source in (whole, half, none)]
        assert torch.equal(states[0], given)
        torch.testing.assert_close(states[1], (given + states[2]) / 2)
    first, second = (half.entry(k).network.state_dict()["classifier.weight"] for k in (0, 1))
    assert not torch.equal(first, second)
