"""Sizes that can be counted by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from fedcondense.networks.architectures import HardSigmoid, alexnet, lenet, mlp, resnet18, vgg11, vit_small
from fedcondense.networks.convnet import Shape


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("make", "shape", "expected"),
    [
        (mlp, (1, 28, 28), 785 * 128 + 129 * 128 + 129 * 10),
        (lenet, (1, 28, 28), 26 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),  # 61,706, as LeNet-5
        (lenet, (3, 32, 32), 76 * 6 + 151 * 16 + 401 * 120 + 121 * 84 + 85 * 10),
        (alexnet, (3, 32, 32), 76 * 128 + 3201 * 192 + 1729 * 256 + 2305 * 192 + 1729 * 192 + 3073 * 10),
        (
            vgg11,  # 9 weights and a bias a pair of channels, and two numbers a norm
            (3, 32, 32),
            28 * 64 + 577 * 128 + 1153 * 256 + 2305 * 256 + 2305 * 512 + 3 * 4609 * 512 + 2 * 2752 + 513 * 10,
        ),
    ],
)
@pytest.mark.parametrize("padded", [False, True])
def test_parameters(make: Callable[[Shape, int], nn.Module], shape: Shape, expected: int, padded: bool) -> None:
    assert parameters(make(shape, 10)) == expected
    if padded and make is not mlp:  # 28 pixels become 32: the last map is the same
        channels = shape[0]
        assert parameters(make((channels, 28, 28), 10)) == parameters(make((channels, 32, 32), 10))


def test_resnet18_has_the_known_number_of_parameters() -> None:
    """11,689,512 in torchvision; the stem has 3x3 instead of 7x7 weights, and the head 10 instead of 1,000 classes."""
    expected = 11_689_512 - 40 * 3 * 64 - 990 * 513
    assert parameters(resnet18((3, 32, 32), 10)) == parameters(resnet18((3, 32, 32), 10, norm="batch")) == expected


def test_a_transformer_reads_patches_of_four() -> None:
    network = vit_small((3, 32, 32), 10)
    positions = [p for name, p in network.named_parameters() if name.endswith("pos_embedding")]
    assert [p.shape for p in positions] == [(1, 65, 128)]


def test_the_hard_sigmoid_equals_torchs() -> None:
    x = torch.linspace(-5, 5, 101).requires_grad_()
    torch.testing.assert_close(HardSigmoid()(x), nn.Hardsigmoid()(x))
    (mine,) = torch.autograd.grad(HardSigmoid()(x).sum(), x)
    (theirs,) = torch.autograd.grad(nn.Hardsigmoid()(x).sum(), x)
    inside = x.abs() < 2.99
    torch.testing.assert_close(mine[inside], theirs[inside])
