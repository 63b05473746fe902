from __future__ import annotations

import pytest
import torch
from torch import nn

from fedcondense.errors import SettingError
from fedcondense.networks import ConvNet, build, network_kinds

MIXED = "convnet2-w16+convnet1-w16-none+lenet"


def kinds(names: str, seeds: range) -> set[str]:
    return {repr(build(names, (1, 16, 16), 3, seed)) for seed in seeds}


def test_names_joined_by_a_plus_are_networks_of_all_kinds_and_a_seed_takes_one() -> None:
    assert kinds(MIXED, range(6)) == {repr(build(name, (1, 16, 16), 3, 0)) for name in MIXED.split("+")}
    assert len(kinds(MIXED, range(6))) == 3
    assert len(kinds(MIXED, range(1))) == 1


def test_equal_seeds_give_equal_networks_of_a_mixture() -> None:
    for seed in (0, 1, 2, 2**40 + 1):
        first, second = (nn.utils.parameters_to_vector(build(MIXED, (1, 16, 16), 3, seed).parameters()) for _ in "ab")
        assert torch.equal(first, second)


def test_names_go_by_a_plus_and_not_by_commas() -> None:
    with pytest.raises(SettingError, match=r"'lenet,mlp'; names are joined by '\+'"):
        network_kinds("lenet,mlp")


def test_a_name_that_comes_twice_counts_once() -> None:
    assert len(network_kinds("lenet+lenet+mlp")) == 2


def test_a_maker_is_one_kind() -> None:
    assert network_kinds(ConvNet) == [ConvNet]
    for seed in range(3):
        assert isinstance(build(ConvNet, (1, 16, 16), 3, seed), ConvNet)


@pytest.mark.parametrize("name", ["lenet+resnet19", "+", "lenet+", ""])
def test_each_of_the_names_is_checked(name: str) -> None:
    with pytest.raises(SettingError, match="no network is called"):
        network_kinds(name)
