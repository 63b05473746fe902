from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.errors import SettingError
from fedcondense.parametrizations import Bases
from fedcondense.sets.parts import to_storage


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_image_is_the_enlarged_sum_of_what_it_takes_of_each_basis() -> None:
    """Naive: image by image, basis by basis."""
    coefficients, bases = images(5, 3) / 2, images(3, 2, 4, 6, seed=1)
    decoded = Bases().decode({"coefficients": coefficients, "bases": bases}, torch.eye(5))
    for row, image in zip(coefficients, decoded.images, strict=True):
        small = torch.zeros(2, 4, 6)
        for share, basis in zip(row, bases, strict=True):
            small += share * basis
        big = F.interpolate(small[None], scale_factor=2, mode="bilinear", align_corners=False)
        torch.testing.assert_close(image, big[0].clamp(0, 1))
    assert torch.equal(decoded.targets, torch.eye(5))


def test_the_start_is_the_nearest_that_so_many_bases_allow() -> None:
    """Eckart and Young: the squared error at the bases' resolution is the sum of the squared singular values left."""
    kind, start = Bases(per_image=4), 0.4 + 0.2 * images(40, 1, 8, 8)
    codes, _ = kind.encode(start, torch.ones(40, 1))
    small = F.avg_pool2d(start, 2).flatten(1)
    number = len(codes["bases"])
    assert number == 10 * 64 // (2 * 16 + 2 * 40) == 5
    found = (codes["coefficients"] @ codes["bases"].flatten(1) - small).square().sum()
    torch.testing.assert_close(found, torch.linalg.svdvals(small)[number:].square().sum(), rtol=1e-3, atol=0)


def test_what_few_bases_span_comes_back_as_it_was() -> None:
    few = 0.2 + 0.2 * images(3, 1, 4, 4)
    mixed = images(40, 3, seed=1).softmax(1)
    small = torch.einsum("nb,bchw->nchw", mixed, few)
    codes, targets = Bases(4).encode(small.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.ones(40, 1))
    expected = F.interpolate(small, scale_factor=2, mode="bilinear", align_corners=False)
    torch.testing.assert_close(Bases(4).decode(codes, targets).images, expected, rtol=0, atol=1e-5)


def test_a_basis_and_its_coefficients_start_at_one_scale_and_what_is_not_needed_can_still_be_learned() -> None:
    """The fifth basis of rank-four images has coefficients of zero, and the smallest scale itself."""
    mixed = images(40, 4, seed=1).softmax(1)
    small = torch.einsum("nb,bchw->nchw", mixed, images(4, 1, 4, 4))
    codes, _ = Bases(4).encode(small.repeat_interleave(2, 2).repeat_interleave(2, 3), torch.ones(40, 1))
    coefficients = codes["coefficients"].square().mean(0).sqrt()
    bases = codes["bases"].flatten(1).square().mean(1).sqrt()
    large = bases > 0.051
    torch.testing.assert_close(coefficients[large], bases[large], rtol=1e-3, atol=0)
    torch.testing.assert_close(bases[~large], torch.full_like(bases[~large], 0.05), rtol=1e-3, atol=0)
    assert coefficients[-1] < 1e-4


@pytest.mark.parametrize(
    ("kind", "ipc", "classes", "shape", "number"),
    [
        (Bases(), 10, 10, (1, 28, 28), 39),  # 78400 // (2 * 196 + 2 * 800) bytes
        (Bases(), 1, 10, (1, 28, 28), 14),  # 7840 // (392 + 160)
        (Bases(115), 1, 10, (3, 32, 32), 8),  # 30720 // (1536 + 2300): the published number of images
        (Bases(4, 1), 2, 3, (3, 16, 16), 2),  # 4608 // (1536 + 48)
    ],
)
def test_bytes_that_images_leave_are_spent_on_bases(
    kind: Bases, ipc: int, classes: int, shape: tuple[int, int, int], number: int
) -> None:
    count = classes * kind.start_count(ipc)
    sizes = kind.shapes(count, shape)
    assert sizes["coefficients"] == (count, number)
    codes, targets = kind.encode(images(count, *shape), torch.ones(count, 1))
    stored, _ = to_storage(codes, targets, kind)
    total = sum(code.nbytes for code in stored.values())
    assert total == 2 * number * (count + torch.Size(sizes["bases"][1:]).numel())
    budget = classes * ipc * torch.Size(shape).numel()
    assert total <= budget < total * (number + 1) / number


@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([8, 12, 16]))
def test_no_setting_takes_more_bytes_than_the_images_in_whose_place_it_is(
    ipc: int, per_image: int, downsample: int, side: int
) -> None:
    kind = Bases(per_image, downsample)
    try:
        sizes = kind.shapes(kind.start_count(ipc), (1, side, side))
    except SettingError:
        assert 2 * (side // downsample) ** 2 + 2 * ipc * per_image > ipc * side**2
        return
    assert sum(2 * torch.Size(size).numel() for size in sizes.values()) <= ipc * side**2
    assert kind.decoded(sizes, (1, side, side)) == ipc * per_image


def test_there_are_no_more_bases_than_images_or_their_pixels() -> None:
    assert Bases(1).shapes(4, (1, 28, 28))["bases"] == (4, 1, 14, 14)
    assert Bases(1).shapes(200, (1, 8, 8))["bases"] == (16, 1, 4, 4)


def test_bases_that_exceed_the_bytes_are_refused_with_what_to_change() -> None:
    reason = (
        r"one basis of 1568 bytes and 8 coefficients of 2 exceed the 784 bytes of the images; "
        r"raise ipc or downsample \(it is 1\), or lower per_image \(8\)"
    )
    with pytest.raises(SettingError, match=reason):
        Bases(downsample=1).shapes(8, (1, 28, 28))
    with pytest.raises(SettingError, match="needed: sides that divide by 2"):
        Bases().shapes(80, (1, 29, 29))


@pytest.mark.parametrize("settings", [{"per_image": 0}, {"per_image": 2.0}, {"downsample": 9}, {"downsample": True}])
def test_settings_that_are_none_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=r"bases with .*; needed: a whole number from 1 to"):
        Bases(**settings)


@pytest.mark.parametrize(
    ("coefficients", "bases"),
    [
        ((5, 3), (4, 1, 4, 4)),
        ((5, 0), (0, 1, 4, 4)),
        ((5,), (5, 1, 4, 4)),
        ((5, 3, 1), (3, 1, 4, 4)),
        ((5, 3), (3, 16)),
    ],
)
def test_shapes_that_are_not_of_one_set_are_refused(coefficients: tuple[int, ...], bases: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"needed: \(N, B\) of"):
        Bases().decoded({"coefficients": coefficients, "bases": bases}, (1, 8, 8))
