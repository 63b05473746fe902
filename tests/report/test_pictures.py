"""Pictures: what is stored is what is seen, and labels of a plot stay apart."""

from __future__ import annotations

import io
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fedcondense.errors import SettingError
from fedcondense.parametrizations.pixels import Pixels
from fedcondense.report.pictures import (
    DARK,
    Point,
    accuracy_by_bytes,
    class_rows,
    grid,
    human_bytes,
    png,
    show_set,
    svg,
)
from fedcondense.sets.parts import Part, Record
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


def test_class_rows_sort_images_by_class_and_leave_out_absent_ones() -> None:
    rows = class_rows(make_set([2, 0, 2]))
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
    hostile = show_set(make_set([0], ("x\n\x1b[31m" * 500, "b", "c")), tmp_path / "hostile.png")
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


POINTS = [
    Point("one-shot", 37_500, 83.1, 0.4, 0),
    Point("FedAvg, 1 round", 96_600, 46.4, 2.1, 1),
    Point("FedAvg, 20 rounds", 1_932_000, 83.8, 0.3, 1),
    Point("random real", 37_500, 82.4, 0.5, 2),
    Point("half resolution real", 37_500, 82.9, 0.5, 2),
    Point("ridge", 40_000, 82.0, 0.2, 2),
]


def test_names_of_points_do_not_cover_each_other() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure = accuracy_by_bytes(POINTS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in figure.axes[0].texts]
    assert len(boxes) == len(POINTS)
    assert not [(a, b) for i, a in enumerate(boxes) for b in boxes[:i] if a.overlaps(b)]


def test_points_without_bytes_or_accuracy_are_left_out() -> None:
    figure = accuracy_by_bytes([*POINTS[:1], Point("free", 0, 50), Point("lost", 10, float("nan"))])
    assert [text.get_text() for text in figure.axes[0].texts] == ["one-shot"]


def test_nothing_to_draw_is_an_empty_plot() -> None:
    assert b"<svg" in svg(accuracy_by_bytes([]))


def test_a_plot_is_a_well_formed_svg_that_loads_nothing() -> None:
    drawn = svg(accuracy_by_bytes([Point("<script>$x</script>", 10, 50)], DARK))
    root = ElementTree.fromstring(drawn)
    links = [value for element in root.iter() for name, value in element.attrib.items() if name.endswith("href")]
    assert all(link.startswith("#") for link in links)
    assert b"<script" not in drawn


@pytest.mark.parametrize(
    ("nbytes", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (999_600, "1 MB"), (2.5e12, "2.5e+03 GB")]
)
def test_bytes_are_written_with_three_digits(nbytes: float, text: str) -> None:
    assert human_bytes(nbytes) == text


def test_pictures_leave_pyplot_alone() -> None:
    code = "import fedcondense.report.pictures as p; p.svg(p.accuracy_by_bytes([]));"
    code += "import sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
