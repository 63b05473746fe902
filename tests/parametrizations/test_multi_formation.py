from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.parametrizations import MultiFormation


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("factor", "side"), [(2, 8), (2, 28), (3, 9), (4, 32)])
def test_decoding_is_cutting_and_enlarging_tile_by_tile(factor: int, side: int) -> None:
    """Naive: each stored image's tiles row by row, each enlarged alone."""
    code, targets = images(3, 2, side, side), torch.eye(3)
    small, expected, labels = side // factor, [], []
    for image, target in zip(code, targets, strict=True):
        for row in range(factor):
            for column in range(factor):
                tile = image[:, row * small : (row + 1) * small, column * small : (column + 1) * small]
                big = F.interpolate(tile[None], size=(side, side), mode="bilinear", align_corners=False)
                expected.append(big[0])
                labels.append(target)
    decoded = MultiFormation(factor).decode({"images": code}, targets)
    torch.testing.assert_close(decoded.images, torch.stack(expected))
    assert torch.equal(decoded.targets, torch.stack(labels))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.integers(2, 4), st.integers(2, 4))
def test_encoding_puts_each_shrunk_image_into_its_own_tile(
    factor: int, stored: int, channels: int, high: int, wide: int
) -> None:
    """A start image of factor-sized constant squares comes back exactly: shrink by area, cut the tile out again."""
    small = images(stored * factor**2, channels, high, wide)
    start = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    targets = torch.eye(stored).repeat_interleave(factor**2, 0)
    codes, kept = MultiFormation(factor).encode(start, targets)
    assert torch.equal(kept, torch.eye(stored))
    assert codes["images"].shape == (stored, channels, high * factor, wide * factor)
    for k in range(len(small)):
        i, tile = divmod(k, factor**2)
        row, column = divmod(tile, factor)
        cut = codes["images"][i, :, row * high : (row + 1) * high, column * wide : (column + 1) * wide]
        torch.testing.assert_close(cut, small[k])


def test_decoded_and_shrunk_again_a_tile_is_itself_but_for_a_blur() -> None:
    """Bilinear by two, then averaged by two: 1/8, 3/4, 1/8 along each axis, by hand."""
    code = images(1, 1, 16, 16)
    decoded = MultiFormation(2).decode({"images": code}, torch.ones(1, 1))
    line = torch.tensor([1 / 8, 3 / 4, 1 / 8])
    for k, shrunk in enumerate(F.avg_pool2d(decoded.images, 2)):
        row, column = divmod(k, 2)
        tile = code[:, :, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        padded = F.pad(tile, (1, 1, 1, 1), mode="replicate")
        torch.testing.assert_close(shrunk[None], F.conv2d(padded, torch.outer(line, line).view(1, 1, 3, 3)))


def test_a_flat_start_survives_encoding_and_decoding() -> None:
    start = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 8, 8) / 4
    codes, targets = MultiFormation(2).encode(start, torch.ones(4, 1))
    torch.testing.assert_close(MultiFormation(2).decode(codes, targets).images, start.contiguous())


def test_four_images_cost_one() -> None:
    assert MultiFormation(2).start_count(3) == 12
    assert MultiFormation(3).decoded({"images": (5, 1, 9, 9)}, (1, 9, 9)) == 45


@pytest.mark.parametrize("factor", [1, 0, -2, 9, 2.0, True, "2"])
def test_a_factor_that_is_none_is_refused(factor: Any) -> None:
    with pytest.raises(SettingError, match=r"multi-formation factor .*; needed: a whole number from 2 to 8"):
        MultiFormation(factor)


@pytest.mark.parametrize(
    ("shape", "advice"),
    [((1, 28, 28), r"factors that do: \[2, 4, 7\]"), ((1, 29, 29), "no factor from 2 to 8 does; use 'pixels'")],
)
def test_a_factor_that_does_not_divide_the_image_is_refused_with_those_that_do(
    shape: tuple[int, int, int], advice: str
) -> None:
    with pytest.raises(SettingError, match=rf"factor 3 does not divide images of {shape[1]}x{shape[2]}; {advice}"):
        MultiFormation(3).decoded({"images": (1, *shape)}, shape)
    with pytest.raises(SettingError, match="factor 3 does not divide"):
        MultiFormation(3).encode(torch.zeros(9, *shape), torch.ones(9, 1))


def test_images_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"images of \(5, 1, 8, 10\); needed: \(N, 1, 8, 8\)"):
        MultiFormation(2).decoded({"images": (5, 1, 8, 10)}, (1, 8, 8))
