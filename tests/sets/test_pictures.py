"""Pictures: what is stored is what is seen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.errors import SettingError
from fedcondense.parametrizations.pixels import Pixels
from fedcondense.sets.by_class import images_by_class
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.pictures import grid, png, show_set
from fedcondense.sets.synthetic import SyntheticSet


def make_set(labels: list[int], classes: tuple[str, ...] = ("cat", "dog", "eel")) -> SyntheticSet:
    """Return grey 4x4 images whose pixels all hold their index, for the labels given."""
    images = torch.arange(len(labels), dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous()
    record = Record("made-up", (1, 4, 4), classes, (0.5,), (0.5,), method="by hand", ipc=2)
    return SyntheticSet([Part({"images": images}, torch.tensor(labels, dtype=torch.uint8), Pixels(), record)])


def test_a_grid_holds_each_pixel_scaled_without_blending() -> None:
    images = torch.rand(3, 3, 2, 5, generator=torch.Generator().manual_seed(0))
    picture = np.asarray(grid(images, columns=2, scale=3, gap=1))
    assert picture.shape == (2 * 6 + 1, 2 * 15 + 1, 3)
    cell = picture[7:13, 0:15]  # the third image: second row, first column
    expected = (images[2] * 255).round().byte().permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
    np.testing.assert_array_equal(cell, expected)
    assert (picture[6] == 255).all(), "the gap is white"
    assert (picture[7:, 16:] == 255).all(), "a cell that is left over is white"


def test_grey_becomes_rgb_and_values_out_of_range_are_clipped() -> None:
    images = torch.tensor([-1.0, 0.5, 2.0, float("nan")]).view(4, 1, 1, 1)
    assert np.asarray(grid(images, columns=4, gap=0))[0].tolist() == [[0] * 3, [128] * 3, [255] * 3, [0] * 3]


def test_a_grid_of_nothing_is_a_white_pixel() -> None:
    assert grid(torch.zeros(0, 1, 8, 8), columns=3).size[1] == 1


@pytest.mark.parametrize(("shape", "columns", "scale"), [((2, 2, 4, 4), 1, 1), ((4, 4), 1, 1), ((1, 1, 4, 4), 0, 1)])
def test_what_no_grid_can_show_is_refused_with_the_numbers(shape: tuple[int, ...], columns: int, scale: int) -> None:
    with pytest.raises(SettingError, match=r"needs \(N, C, H, W\)|must be at least 1"):
        grid(torch.zeros(shape), columns, scale)


def test_png_is_lossless() -> None:
    picture = grid(torch.rand(2, 3, 4, 4), columns=2)
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(png(picture)))), np.asarray(picture))


def test_images_by_class_are_sorted_by_class_and_leave_out_absent_ones() -> None:
    rows = images_by_class(make_set([2, 0, 2])).items()
    assert [(name, (images[:, 0, 0, 0] * 255).round().int().tolist()) for name, images in rows] == [
        ("cat", [1]),
        ("eel", [0, 2]),
    ]


def test_show_set_writes_one_row_a_class(tmp_path: Path) -> None:
    path = show_set(make_set([0, 0, 1]), tmp_path / "set.png", scale=4)
    with Image.open(path) as picture:
        assert picture.height == 6 + 2 * (16 + 6)


def test_hostile_class_names_neither_break_nor_blow_up_a_picture(tmp_path: Path) -> None:
    plain = show_set(make_set([0], ("x" * 24, "b", "c")), tmp_path / "plain.png")
    hostile = show_set(make_set([0], ("<$x^{" * 40, "b", "c")), tmp_path / "hostile.png")
    with Image.open(plain) as a, Image.open(hostile) as b:
        assert b.height == a.height
        assert b.width <= 2 * a.width


def of_shape(count: int, shape: tuple[int, int, int]) -> SyntheticSet:
    record = Record("toy", shape, ("a",), (0.5,), (0.25,))
    images = torch.zeros(count, *shape, dtype=torch.uint8)
    return SyntheticSet([Part({"images": images}, torch.zeros(count, dtype=torch.uint8), Pixels(), record)])


def test_images_of_any_shape_are_shown_at_a_size_that_fits(tmp_path: Path) -> None:
    with Image.open(show_set(of_shape(3, (1, 1, 512)), tmp_path / "wide.png")) as wide:
        assert wide.width < 4 * 512
    with pytest.raises(SettingError, match=r"a picture of .* screen pixels; allowed: 200,000,000"):
        show_set(of_shape(1, (1, 1, 512)), tmp_path / "huge.png", scale=1000)
