from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.errors import SettingError
from fedcondense.networks import NORMS, ConvNet, build, convnet, pool2

TINY = partial(ConvNet, width=8, depth=2)


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def images(count: int, *shape: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("width", "expected"), [(128, 320_010), (64, 86_282), (32, 24_714), (16, 7_754)])
def test_a_convnet_has_the_published_number_of_parameters(width: int, expected: int) -> None:
    assert parameters(ConvNet((3, 32, 32), 10, width=width)) == expected


def test_other_published_sizes() -> None:
    assert parameters(ConvNet((3, 32, 32), 100)) == 504_420
    assert parameters(ConvNet((3, 64, 64), 200, depth=4)) == 857_160


@pytest.mark.parametrize(
    ("shape", "depth"), [((1, 28, 28), 3), ((3, 32, 32), 3), ((3, 64, 64), 4), ((1, 8, 8), 1), ((3, 27, 30), 3)]
)
def test_the_last_map_is_four_by_four(shape: tuple[int, int, int], depth: int) -> None:
    network = ConvNet(shape, 7, width=8, depth=depth)
    assert network.features(images(2, *shape)).shape == (2, 8 * 4 * 4)
    assert network(images(2, *shape)).shape == (2, 7)


def test_28_pixels_are_padded_by_three_as_published() -> None:
    """By hand: 28 + 2 * 3 - 2 = 32, then halves."""
    network = ConvNet((1, 28, 28), 10, width=4)
    first = network.blocks[0][0]  # type: ignore[index]
    assert first.padding == (3, 3)
    x = images(2, 1, 28, 28)
    for k, block in enumerate(network.blocks):
        weights = dict(block.named_parameters())
        x = F.conv2d(x, weights["0.weight"], weights["0.bias"], padding=3 if k == 0 else 1)
        x = F.instance_norm(x, weight=weights["1.weight"], bias=weights["1.bias"])
        x = F.avg_pool2d(F.relu(x), 2)
    torch.testing.assert_close(network.features(images(2, 1, 28, 28)), x.flatten(1), rtol=1e-4, atol=1e-5)


def test_32_pixels_are_padded_by_one() -> None:
    assert ConvNet((3, 32, 32), 10, width=4).blocks[0][0].padding == (1, 1)  # type: ignore[index]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(2, 13), st.integers(2, 13))
def test_pooling_equals_the_stock_kernel(n: int, c: int, height: int, width: int) -> None:
    fast, slow = images(n, c, height, width).requires_grad_(), images(n, c, height, width).requires_grad_()
    torch.testing.assert_close(pool2(fast), F.avg_pool2d(slow, 2))
    pool2(fast).square().sum().backward()
    F.avg_pool2d(slow, 2).square().sum().backward()
    torch.testing.assert_close(fast.grad, slow.grad)


@pytest.mark.parametrize("norm", ["instance", "group", "layer", "none"])
def test_chunks_equal_one_pass(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = build(partial(TINY, norm=norm), (3, 8, 8), 5, seed=0)
    whole = network(images(37, 3, 8, 8))
    monkeypatch.setattr(convnet, "_CHUNK_BYTES", 1)  # eight images a chunk
    seen: list[int] = []
    network.blocks[0].register_forward_hook(lambda m, i, o: seen.append(len(o)))  # type: ignore[index, union-attr]
    torch.testing.assert_close(network(images(37, 3, 8, 8)), whole, rtol=1e-5, atol=1e-6)
    assert seen == [8, 8, 8, 8, 5]


def test_batch_norm_sees_the_whole_batch_while_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convnet, "_CHUNK_BYTES", 1)
    network = build(partial(TINY, norm="batch"), (3, 8, 8), 5, seed=0)
    seen: list[int] = []
    network.blocks[0].register_forward_hook(lambda m, i, o: seen.append(len(o)))  # type: ignore[index, union-attr]
    network(images(20, 3, 8, 8))
    network.eval()(images(20, 3, 8, 8))
    assert seen == [20, 8, 8, 4]


def test_logits_are_the_classifier_on_the_embedding() -> None:
    network = TINY((3, 8, 8), 5)
    x = images(4, 3, 8, 8)
    torch.testing.assert_close(network.features(x, "logits"), network.classifier(network.features(x)))
    torch.testing.assert_close(network(x), network.features(x, "logits"))


@pytest.mark.parametrize("norm", NORMS)
def test_every_norm_trains(norm: str) -> None:
    network = ConvNet((3, 8, 8), 5, width=8, depth=2, norm=norm)
    network(images(4, 3, 8, 8)).square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in network.parameters())


def test_a_network_too_deep_for_the_image_is_refused() -> None:
    with pytest.raises(SettingError, match="depth 4 halves 8x8 to nothing; take a smaller depth"):
        ConvNet((1, 8, 8), 10, depth=4)
    assert ConvNet((1, 8, 8), 10, width=4, depth=3)(images(1, 1, 8, 8)).shape == (1, 10)


def test_an_unknown_norm_is_refused_with_the_closest() -> None:
    with pytest.raises(SettingError, match="no norm is called 'instanse'; did you mean 'instance'"):
        ConvNet((1, 8, 8), 10, norm="instanse")
