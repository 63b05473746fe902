from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as T

from fedcondense.data.sizes import checked_size, resized
from fedcondense.errors import SettingError

DRAWN = np.random.default_rng(0).integers(0, 256, (3, 40, 61, 3), dtype=np.uint8)


def test_the_middle_stays_as_torchvision_cuts_it() -> None:
    """Of floating point: torchvision rounds bytes in a pass of its own."""
    as_tensor = torch.from_numpy(DRAWN).permute(0, 3, 1, 2).float()
    theirs = T.center_crop(T.resize(as_tensor, [16], antialias=True), [16, 16])
    ours = torch.from_numpy(resized(DRAWN, 16)).permute(0, 3, 1, 2).float()
    assert ours.shape == (3, 3, 16, 16)
    assert (ours - theirs).abs().max() <= 0.5 + 1e-4


def test_one_image_is_as_many() -> None:
    assert np.array_equal(resized(DRAWN[1], 16), resized(DRAWN, 16)[1])


def test_sixteen_bits_stay_sixteen() -> None:
    wide = DRAWN.astype(np.uint16) * np.uint16(257)
    found = resized(wide, 24)
    assert found.dtype == np.uint16
    assert abs(found.astype(int) - 257 * resized(DRAWN, 24).astype(int)).max() <= 129


@pytest.mark.parametrize("shape", [(8, 8), (8, 300), (300, 8), (33, 64)])
def test_small_and_long_images_become_squares(shape: tuple[int, int]) -> None:
    flat = np.full((*shape, 1), 7, np.uint8)
    assert resized(flat, 32).shape == (32, 32, 1)
    assert np.unique(resized(flat, 32)).tolist() == [7]


def test_what_has_the_size_is_left_alone() -> None:
    assert resized(DRAWN, 0) is DRAWN
    square = DRAWN[:, :32, :32]
    assert resized(square, 32) is square


@pytest.mark.parametrize("size", [7, 129, -1, 32.0, "32", True])
def test_other_sizes_are_refused(size: Any) -> None:
    with pytest.raises(SettingError, match="needed: 8 to 128 pixels a side"):
        checked_size(size)


def test_none_and_nothing_leave_images_as_they_are() -> None:
    assert checked_size(None) == checked_size(0) == 0
