from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v3_small

from fedcondense.errors import SettingError
from fedcondense.networks import Headed, build


def images(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


class Plain(nn.Module):
    """A classifier of somebody else's, with two linear layers and dropout between them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.body(x))
        return out


def test_any_module_becomes_a_network_whose_features_feed_its_last_linear_layer() -> None:
    plain = Plain()
    network = build(lambda shape, classes: plain, (1, 8, 8), 4, seed=0)
    x = images(3, 1, 8, 8).requires_grad_()
    assert isinstance(network, Headed)
    torch.testing.assert_close(network.features(x), plain.body(x))
    torch.testing.assert_close(network.features(x, "logits"), plain(x))
    torch.testing.assert_close(network(x), plain(x))
    network.features(x).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0


def test_a_module_without_a_linear_layer_has_logits_alone() -> None:
    network = Headed(nn.Sequential(nn.Conv2d(1, 4, 8), nn.Flatten()))
    assert network(images(3, 1, 8, 8)).shape == (3, 4)
    with pytest.raises(SettingError, match=r"calls no nn\.Linear .* a method features\(images, layer\)"):
        network.features(images(3, 1, 8, 8))


@pytest.mark.parametrize("network", [Headed(Plain()), build("convnet1-w16", (1, 8, 8), 4, 0)])
def test_a_layer_of_another_name_is_refused(network: Headed) -> None:
    with pytest.raises(SettingError, match="no layer is called 'embeding'; did you mean 'embedding'"):
        network.features(images(3, 1, 8, 8), "embeding")


@pytest.mark.parametrize("of", [lambda logits: (logits, logits), lambda logits: logits[:, 0]])
def test_a_module_that_returns_no_logits_is_refused(of: Callable[[Tensor], Any]) -> None:
    class Other(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return of(super().forward(x))  # type: ignore[no-any-return]

    with pytest.raises(SettingError, match=r"Other returns (a tuple|\(3,\)); needed: logits, one tensor \(N, K\)"):
        Headed(Other())(images(3, 1, 8, 8))


def test_a_module_whose_features_are_layers_is_wrapped_too() -> None:
    """torchvision's VGG and MobileNet keep their convolutions under this name."""
    network = build(lambda shape, classes: mobilenet_v3_small(num_classes=classes), (3, 32, 32), 4, seed=0)
    assert isinstance(network, Headed)
    assert network.eval().features(images(1, 3, 32, 32)).shape == (1, 1024)


def test_a_copy_reads_its_own_features() -> None:
    network = Headed(Plain())
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.module.body[1].weight.zero_()  # type: ignore[index, union-attr]
    x = images(3, 1, 8, 8)
    assert not torch.equal(network.features(x), twin.features(x))
    torch.testing.assert_close(twin.features(x), twin.module.body(x))  # type: ignore[operator]
