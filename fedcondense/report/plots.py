"""Accuracy against bytes, drawn with matplotlib's objects (`Figure`, never pyplot): no global state is left behind."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcondense.report.units import human_bytes
from fedcondense.sets.pictures import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Ink", "Point", "accuracy_by_bytes", "svg"]


class Ink(NamedTuple):
    """The colours of a plot: text and axes, and one colour a series (Okabe and Ito's, safe for colour blindness)."""

    text: str
    faint: str
    series: tuple[str, ...]


LIGHT = Ink("#1f2328", "#c9ced6", ("#0072B2", "#D55E00", "#6b7280"))
DARK = Ink("#e6e8eb", "#454b54", ("#56B4E9", "#E69F00", "#a3acb9"))
_MARKERS = "oDs"
_OFFSETS: list[tuple[float, float]] = [
    (9, 0),
    (-9, 0),
    (0, 9),
    (0, -9),
    (8, 8),
    (-8, 8),
    (8, -8),
    (-8, -8),
]  # points from the marker, as tried
_OFFSETS += [(x, y) for far in (20, 34, 50) for x in (far, -far) for y in (far, -far, far / 2, -far / 2)]


class Point(NamedTuple):
    """One measured way to train a network in a federation."""

    label: str
    nbytes: float  # up, a client; must be above 0 to be drawn on the logarithmic axis
    accuracy: float  # percent
    spread: float = 0.0  # standard deviation over seeds, in points
    series: int = 0  # which colour and marker, 0 to 2; points of series 1 are joined by a line


def accuracy_by_bytes(points: Iterable[Point], ink: Ink = LIGHT) -> Figure:
    """Plot accuracy over bytes up a client, on a logarithmic axis, every point named beside it.

    Args:
        points: Those with no bytes or no finite accuracy are left out.
        ink: `LIGHT` or `DARK`; the background stays transparent.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    shown = [p for p in points if p.nbytes > 0 and np.isfinite([p.nbytes, p.accuracy, p.spread]).all()]
    figure = Figure(figsize=(7.6, 4.3), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xscale("log")
    for series, color in enumerate(ink.series):
        of_series = sorted((p for p in shown if p.series == series), key=lambda p: p.nbytes)
        if not of_series:
            continue
        x, y, spread = ([getattr(p, name) for p in of_series] for name in ("nbytes", "accuracy", "spread"))
        style: dict[str, Any] = {"color": color, "marker": _MARKERS[series], "markersize": 9 if series == 0 else 6.5}
        axes.errorbar(x, y, yerr=spread, linestyle="-" if series == 1 else "none", linewidth=1.4, capsize=3, **style)
    if shown:
        sizes, heights = [p.nbytes for p in shown], [p.accuracy for p in shown]
        axes.set_xlim(min(sizes) / 4, max(sizes) * 4)
        room = max(3.0, 0.2 * (max(heights) - min(heights)))
        axes.set_ylim(min(heights) - room, min(max(heights) + room, max(103.0, max(heights))))
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("bytes a client sends, all rounds together", color=ink.text)
    axes.set_ylabel("accuracy of the global network, %", color=ink.text)
    axes.tick_params(which="both", color=ink.faint, labelcolor=ink.text)
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink.faint)
    _name_points(figure, axes, shown, ink)
    return figure


def _name_points(figure: Figure, axes: Any, points: Sequence[Point], ink: Ink) -> None:
    """Write each label where it covers the least of the other labels, of the points and of what is off the axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.transforms import Bbox

    if not points:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout moves the axes: before it, nobody knows where a point is on the screen
    figure.set_layout_engine("none")  # and must not move them again for the labels
    renderer, frame = canvas.get_renderer(), axes.get_window_extent()
    centres = axes.transData.transform([p[1:3] for p in points])
    taken = [Bbox.from_bounds(x - 7, y - 7, 14, 14) for x, y in centres]
    joined = [
        centre
        for _, centre in sorted((p.nbytes, tuple(c)) for p, c in zip(points, centres, strict=True) if p.series == 1)
    ]
    for (ax, ay), (bx, by) in itertools.pairwise(joined):  # the line between two points, as a row of small boxes
        steps = int(max(abs(bx - ax), abs(by - ay)) / 6) + 1
        taken += [
            Bbox.from_bounds(ax + (bx - ax) * i / steps - 2, ay + (by - ay) * i / steps - 2, 4, 4) for i in range(steps)
        ]

    def write(point: Point, x: float, y: float, **more: Any) -> Any:
        return axes.annotate(
            printable(point.label).replace("$", r"\$"),  # a dollar sign would start a formula
            (point.nbytes, point.accuracy),
            (x, y),
            textcoords="offset points",
            ha="center" if not x else "left" if x > 0 else "right",
            va="center" if not y else "bottom" if y > 0 else "top",
            color=ink.series[point.series],
            weight="bold" if point.series == 0 else "normal",
            fontsize=9.5,
            **more,
        )

    def cost(point: Point, x: float, y: float) -> float:
        text = write(point, x, y)
        box = text.get_window_extent(renderer)
        text.remove()
        covered = [cut.width * cut.height for other in taken if (cut := Bbox.intersection(box, other))]
        inside = Bbox.intersection(box, frame)
        outside = box.width * box.height - (inside.width * inside.height if inside else 0)
        return float(sum(covered) + 3 * outside + 2 * (abs(x) + abs(y)))

    for point in sorted(points, key=lambda p: p.series):  # ours chooses first
        x, y = min(_OFFSETS, key=lambda offset: cost(point, *offset))
        line = {"arrowstyle": "-", "color": ink.series[point.series], "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        text = write(point, x, y, arrowprops=line if x * x + y * y > 300 else None)
        taken.append(text.get_window_extent(renderer))


def svg(figure: Figure) -> bytes:
    """Draw a figure as SVG with its letters as outlines: it looks the same everywhere and loads nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
