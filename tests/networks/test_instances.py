"""A module in the place of a maker: copies with weights of their own, or one line that says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fedcondense as fc
from fedcondense.errors import SettingError
from fedcondense.networks import build, probe

SHAPE = (1, 8, 8)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))


class Scaled(nn.Module):
    """Has a weight of its own that nothing draws."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(1)), nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.scale * images.flatten(1))
        return out


def test_each_seed_draws_the_weights_that_the_layers_would_and_the_module_stays() -> None:
    module = net()
    module.load_state_dict({name: torch.full_like(value, 7) for name, value in module.state_dict().items()})
    one, again, other = (build(module, SHAPE, 10, seed).state_dict() for seed in (0, 0, 1))
    torch.manual_seed(0)
    conv, linear = nn.Conv2d(1, 4, 3), nn.Linear(144, 10)
    torch.testing.assert_close(one["module.0.weight"], conv.weight.detach())
    torch.testing.assert_close(one["module.4.weight"], linear.weight.detach())
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["module.0.weight"], other["module.0.weight"])
    assert float(one["module.1.running_mean"].abs().max()) == 0
    assert float(module.state_dict()["0.weight"].min()) == 7


def test_frozen_weights_stay() -> None:
    module = net()
    module[0].requires_grad_(False)
    made = build(module, SHAPE, 10, 0).state_dict()
    assert torch.equal(made["module.0.weight"], module.state_dict()["0.weight"])


def test_weights_that_nothing_draws_are_refused_in_one_line() -> None:
    with pytest.raises(
        SettingError, match=r"one module of Scaled, whose own weights \(Scaled\) cannot draw its weights"
    ):
        probe(Scaled(), SHAPE, 10)


def test_condense_and_evaluate_take_a_module_and_say_its_class() -> None:
    train, test = fc.load_data("digits")
    synthetic = fc.condense(train, ipc=1, objective="dm", steps=2, network=net())
    assert synthetic.record.network == "Sequential"
    found = fc.evaluate(synthetic, test, network=net(), recipe=fc.Fit(steps=2), seeds=[0])
    assert found.network == "Sequential"
