from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fedcondense.contract import Synthetic
from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet, build
from fedcondense.sources import Passing, Pool

SHAPE = (1, 8, 8)
OPERATIONS = ("crop", "flip")
make = partial(build, partial(ConvNet, width=4, depth=2), SHAPE, 3)


def images(classes: int = 3) -> tuple[Tensor, Tensor]:
    """Return images of which each class is bright in rows of its own, and their targets."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(4)
    found = 0.2 * torch.randn(len(labels), *SHAPE, generator=generator)
    for k, c in enumerate(labels.tolist()):
        found[k, :, c] += 3
    return found, torch.eye(classes)[labels]


def passing(classes: int = 3, seed: int | None = 5, size: int = 6, networks: int = 2, stride: int = 20) -> Passing:
    seen, targets = images(classes)
    return Passing(make, OPERATIONS, 3, size, seed, images=seen, targets=targets, networks=networks, stride=stride)


def weights(network: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def separated(network: nn.Module) -> float:
    """Return how much of the spread of the embedding is between classes."""
    seen, targets = images()
    rows = network.features(seen).detach()  # type: ignore[operator]
    means = targets.T @ rows / targets.sum(0).unsqueeze(1)
    return float((targets @ (means - rows.mean(0))).square().sum() / (rows - rows.mean(0)).square().sum())


class TestPassing:
    def test_entries_are_networks_by_turns_and_each_goes_on_from_moment_to_moment(self) -> None:
        source = passing()
        entries = [source.entry(k).network for k in range(6)]
        for first in (0, 1):
            start, middle, end = (weights(entries[first + 2 * age]) for age in range(3))
            assert 0 < float((middle - start).norm()) < float((end - start).norm())
        assert not torch.equal(weights(entries[0]), weights(entries[1]))

    def test_the_first_ones_are_untrained_and_later_ones_tell_the_classes_apart(self) -> None:
        source = passing(stride=60)
        assert 1 - separated(source.entry(4).network) < 0.7 * (1 - separated(source.entry(0).network))
        embedding = [name for name, _ in source.entry(0).network.named_parameters() if "classifier" in name]
        assert embedding
        first, last = source.entry(0).network.state_dict(), source.entry(4).network.state_dict()
        assert all(torch.equal(first[name], last[name]) for name in embedding)  # it has a classifier of its own

    def test_an_entry_follows_from_seed_and_number_whatever_was_asked_before(self) -> None:
        one, other = passing(), passing()
        late = [other.entry(k) for k in (5, 0, 3)]
        for entry, k in zip(late, (5, 0, 3), strict=True):
            assert torch.equal(weights(entry.network), weights(one.entry(k).network))
            assert (entry.seed, entry.key) == (one.entry(k).seed, (5, k))
        assert not torch.equal(weights(passing(seed=6).entry(3).network), weights(one.entry(3).network))

    def test_an_estimate_on_fewer_entries_leaves_the_pool_as_it_was(self) -> None:
        """It works on a pool of two entries, and the run after it on all of them."""
        pool = passing()
        whole, pool.size = pool.size, 2
        pool.entry(1)
        pool.size = whole
        last = pool.entry(whole - 1)
        torch.testing.assert_close(weights(last.network), weights(passing().entry(whole - 1).network))

    def test_images_may_be_of_more_classes_than_the_network_has_outputs(self) -> None:
        assert passing(classes=5).entry(5).network(torch.zeros(2, *SHAPE)).shape == (2, 3)

    def test_networks_are_frozen_and_drawn_as_a_pools(self) -> None:
        source, synthetic = passing(), Synthetic(torch.zeros(1, *SHAPE), torch.eye(3)[:1])
        plain = Pool(make, OPERATIONS, 3, 6, 5)
        drawn, like = (pool.draw(torch.Generator(), synthetic, None) for pool in (source, plain))
        assert drawn.key == like.key
        assert not any(p.requires_grad for p in drawn.network.parameters())

    @pytest.mark.parametrize("wrong", [{"networks": 0}, {"stride": 0}])
    def test_no_networks_or_no_steps_are_refused(self, wrong: dict[str, int]) -> None:
        with pytest.raises(SettingError, match="needed: 1 or more of each"):
            passing(**wrong)
