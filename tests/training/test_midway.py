from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcondense.networks import build
from fedcondense.training.fit import Fit, fit
from fedcondense.training.midway import Midway

SHAPE = (1, 8, 8)


class BrokenError(Exception):
    """What ends a training from outside."""


def trained(recipe: Fit, network: nn.Module, midway: Midway | None = None) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(20, *SHAPE, generator=generator)
    targets = nn.functional.one_hot(torch.arange(20) % 4, 4).float()
    fit(network, images, targets, recipe, seed=5, operations=("crop", "scale"), midway=midway)
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("network", ["convnet1-w16-batch", "mlp"])
@pytest.mark.parametrize("cutmix", [0.0, 0.5])
def test_gone_on_from_any_step_it_ends_bit_equal(network: str, cutmix: float) -> None:
    """Batch norm's statistics, momentum, the rest of a pass, augmentation and schedule are all taken over."""
    recipe = Fit(epochs=4, batch=6, schedule="one-cycle", cutmix=cutmix)
    states: dict[int, dict[str, Any]] = {}

    def keep(state: Callable[[], dict[str, Any]]) -> None:
        now = copy.deepcopy(state())
        states[now["done"]] = now

    whole = trained(recipe, build(network, SHAPE, 4, 0), Midway(keep))
    assert list(states) == list(range(1, 17))
    for last in (1, 7, 15):
        taken = states.pop(last)
        again = trained(recipe, build(network, SHAPE, 4, 9), Midway(keep, taken))
        assert all(torch.equal(again[name], value) for name, value in whole.items())
        assert last not in states  # it was not done again


def test_a_module_of_one_s_own_may_hold_more_than_its_weights_and_is_trained_as_ever() -> None:
    class Own(nn.Linear):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images.flatten(1))

    def keep(state: Callable[[], dict[str, Any]]) -> None:
        raise BrokenError

    trained(Fit(steps=2), Own(64, 4), Midway(keep))
