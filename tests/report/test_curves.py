"""Curves over rounds and over bytes: what is drawn, and that names stand clear of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fedcondense.report.curves import Curve, over_bytes, over_rounds
from fedcondense.report.plots import DARK, svg

DRAWS = [over_rounds, over_bytes]


def curve(label: str, rounds: int, top: float, per_round: float, series: int) -> Curve:
    """Return a row that has come half of its way from 30 percent after every fourth round."""
    numbers = tuple(range(1, rounds + 1))
    heights = tuple(top - (top - 30) * 0.5 ** (number / 4) for number in numbers)
    return Curve(label, numbers, heights, tuple(per_round * number for number in numbers), series)


CURVES = [
    curve("anchored", 5, 87, 5e4, 0),
    curve("one-shot", 1, 84, 8e3, 0),
    *(curve(name, 20, top, 2e5, 1) for name, top in (("FedAvg", 86), ("FedAdam", 85), ("FedProx", 86.2))),
    curve("FedAvg, 8 bits", 20, 86, 5e4, 1),
    curve("random real", 1, 82, 8e3, 2),
    curve("ridge", 1, 80, 4e4, 2),
]


def boxes(figure: Any) -> dict[str, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.text import Text

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()  # without the lines that lead to names
    return {text.get_text(): Text.get_window_extent(text, renderer) for text in figure.axes[0].texts}


@pytest.mark.parametrize("draw", DRAWS)
class TestCurves:
    def test_every_row_is_named_and_no_name_covers_another(self, draw: Callable[..., Any]) -> None:
        named = boxes(draw(CURVES))
        assert sorted(named) == sorted(one.label for one in CURVES)
        assert not [(a, b) for a in named for b in named if a < b and named[a].overlaps(named[b])]

    def test_a_line_goes_through_what_was_measured(self, draw: Callable[..., Any]) -> None:
        (line,) = draw(CURVES[:1]).axes[0].lines
        x = CURVES[0].rounds if draw is over_rounds else CURVES[0].nbytes
        np.testing.assert_array_equal(line.get_xydata(), np.array([x, CURVES[0].accuracies]).T)

    def test_rounds_that_were_not_measured_are_left_out(self, draw: Callable[..., Any]) -> None:
        holes = Curve("FedAvg", (1, 5, 9), (40.0, math.nan, 80.0), (1e3, 5e3, 9e3), 1)
        (line,) = draw([holes, Curve("lost", (1,), (math.nan,), (1e3,))]).axes[0].lines
        assert line.get_ydata().tolist() == [40.0, 80.0]

    def test_nothing_to_draw_is_an_empty_plot(self, draw: Callable[..., Any]) -> None:
        assert b"<svg" in svg(draw([], DARK))


def test_rows_without_bytes_are_over_rounds_alone() -> None:
    bare = Curve("iterative", (1, 2), (40.0, 50.0))
    assert not over_bytes([bare]).axes[0].lines
    assert len(over_rounds([bare]).axes[0].lines) == 1


def test_rounds_are_whole_and_end_with_the_last() -> None:
    axis = over_rounds(CURVES).axes[0].xaxis
    said = [axis.get_major_formatter()(value) for value in (0, 5, 20, 25)]
    assert said == ["", "5", "20", ""]
