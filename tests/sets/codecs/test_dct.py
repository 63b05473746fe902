"""Cosine coefficients: the transform against its definition, and what it gains."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.errors import SettingError
from fedcondense.sets.codecs import Dct, counts, dct
from fedcondense.sets.codecs.symbols import squeeze


def smooth(count: int, side: int = 32, channels: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images = torch.zeros(count, channels, side, side)
    for cells in (2, 4, 8, 16, 32):
        noise = torch.randn(count, channels, cells, cells, generator=generator) / cells**0.7
        images += torch.nn.functional.interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
    return (128 + 60 * images).clamp(0, 255).round().to(torch.uint8)


def test_a_small_step_keeps_an_image_within_a_grey_level_or_two() -> None:
    images = smooth(3, channels=1)
    found = Dct(1).decode(Dct(1).encode(images, torch.zeros(3)), (3, 1, 32, 32))
    assert (found.int() - images.int()).abs().max() <= 2


def test_one_coefficient_is_one_cosine() -> None:
    """An image of 128 and k steps of one basis function comes back as that function, rounded."""
    step, k, side = 40, 3, 16
    rows = torch.cos(math.pi * (2 * torch.arange(side) + 1) * 2 / (2 * side)) * math.sqrt(2 / side)
    columns = torch.cos(math.pi * (2 * torch.arange(side) + 1) * 1 / (2 * side)) * math.sqrt(2 / side)
    image = (128 + k * step * rows.view(-1, 1) * columns).round().to(torch.uint8).view(1, 1, side, side)
    data = Dct(step).encode(image, torch.zeros(1))
    assert (Dct(step).decode(data, (1, 1, side, side)).int() - image.int()).abs().max() <= 1


def test_fewer_bytes_than_jpeg_at_an_error_no_larger() -> None:
    images = smooth(300)
    file = io.BytesIO()
    strip = images.permute(0, 2, 3, 1).reshape(-1, 32, 3).numpy()
    Image.fromarray(strip).save(file, "JPEG", quality=10, optimize=True)
    theirs = torch.from_numpy(np.array(Image.open(file))).view(300, 32, 32, 3).permute(0, 3, 1, 2)
    data = Dct(90).encode(images, torch.zeros(300))
    ours = Dct(90).decode(data, (300, 3, 32, 32))
    error = [(found.float() - images.float()).square().mean() for found in (ours, theirs)]
    assert error[0] <= error[1]
    assert len(data) < 0.8 * len(file.getvalue())


@pytest.mark.parametrize("side", [33, 40, 64])
def test_larger_images_are_cut_into_tiles(side: int) -> None:
    images = smooth(2, side)[:, :, : side - 1]
    found = Dct(10).decode(Dct(10).encode(images, torch.zeros(2)), tuple(images.shape))  # type: ignore[arg-type]
    assert found.shape == images.shape
    assert (found.float() - images.float()).square().mean().sqrt() < 5


@pytest.mark.parametrize("step", [0, 1001, "fine"])
def test_steps_out_of_range_are_refused(step: object) -> None:
    with pytest.raises(SettingError, match="needed: a whole number from 1 to 1000"):
        Dct(step)  # type: ignore[arg-type]


def test_columns_of_zeros_which_would_take_time_for_no_bytes_are_refused() -> None:
    columns = dct._columns((1, 8, 8), np.ones(64, bool))
    symbols = np.zeros((64, 4), np.uint8)
    coded = counts.encode(symbols, columns.forerunners, lambda known, column: np.zeros(4, np.int64), 5, 1)
    where = squeeze(bytes([255] * 8))
    data = len(where).to_bytes(4, "little") + len(coded).to_bytes(4, "little") + where + coded
    with pytest.raises(ValueError, match="a column of coefficients that are all zero"):
        Dct(9).decode(data, (4, 1, 8, 8))
