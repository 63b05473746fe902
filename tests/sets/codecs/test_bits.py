"""The levels that values are rounded to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcondense.sets.codecs.bits import Bits, levels_of


@pytest.mark.parametrize("number", [2, 4, 8, 64])
def test_few_values_are_kept_as_they_are(number: int) -> None:
    values = np.array([3, 250])
    counts = np.bincount(values, minlength=256)
    assert levels_of(counts, number).tolist() == [3] + [250] * (number - 1)


def test_two_levels_are_the_means_of_two_heaps() -> None:
    counts = np.zeros(256, np.int64)
    counts[[10, 12, 200, 206]] = 5
    assert levels_of(counts, 2).tolist() == [11, 203]


def test_eight_levels_are_the_means_of_equal_bins() -> None:
    """Bins of 0 to 255 are 32 wide: the mean of 0, 1, ..., 31 is 15.5, of which rounding makes an even number."""
    counts = np.ones(256, np.int64)
    assert levels_of(counts, 8).tolist() == [16 + 32 * k for k in range(8)]


def test_many_levels_take_few_bytes_where_few_values_are_far_out() -> None:
    values = torch.randn(40, 1, 16, 16, generator=torch.Generator().manual_seed(0)).mul(20).add(128)
    images = values.round().clamp(0, 255).to(torch.uint8)
    data = Bits(3).encode(images, torch.zeros(40, dtype=torch.int64))
    error = Bits(3).decode(data, (40, 1, 16, 16)).float() - images.float()
    assert len(data) < 40 * 256 * 0.35  # three bits are 0.375 bytes
    assert float(error.square().mean().sqrt()) < 7
