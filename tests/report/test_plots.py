"""Plots: their labels stay apart, and they load nothing."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from fedcondense.report.plots import DARK, Point, accuracy_by_bytes, svg

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


def test_pictures_leave_pyplot_alone() -> None:
    code = "import fedcondense.report.plots as p; p.svg(p.accuracy_by_bytes([]));"
    code += "import sys; assert 'matplotlib.pyplot' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=600)
