"""Names beside the points of a plot, each where it covers the least of whatever else is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcondense.sets.pictures import printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Name", "name_points"]

_AROUND = [(9, 0), (-9, 0), (0, 9), (0, -9), (8, 8), (-8, 8), (8, -8), (-8, -8)]
_OFFSETS: list[tuple[float, float]] = [(float(x), float(y)) for x, y in _AROUND]  # points from the marker, as tried
_HALVES = [(i / 2, j / 2) for i in range(-2, 3) for j in range(-2, 3) if 2 in (abs(i), abs(j))]
_OFFSETS += [(far * x, far * y) for far in (20, 34, 50, 72, 100) for x, y in _HALVES]
_MARKER, _LINE = 7.0, 2.0  # pixels: half of what a marker and a piece of a line take
_APART = 8.0  # pixels between two names
_STEP = 6.0  # pixels between pieces of a line
_LONGEST = 40  # characters
_LED = 300.0  # squared points, from where on a thin line leads to the name


class Name(NamedTuple):
    """A text beside a point."""

    text: str
    x: float  # in the units of the data
    y: float
    color: str
    is_bold: bool = False


def name_points(
    figure: Figure, axes: Any, names: Sequence[Name], lines: Sequence[Sequence[tuple[float, float]]] = ()
) -> None:
    """Write names where they cover the least of other names, of the points, of lines and of what is off the axes.

    Args:
        figure: Its layout is final afterwards.
        axes: What is named on it is drawn already.
        names: Those that come first choose first.
        lines: Through which points lines go, in the units of the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    if not names:
        return
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # the layout moves the axes: before it, nobody knows where a point is on the screen
    figure.set_layout_engine("none")  # and must not move them again for the labels
    renderer, frame = canvas.get_renderer(), np.array(axes.get_window_extent().extents)
    taken = [_box(axes.transData.transform((name.x, name.y)), _MARKER) for name in names]
    written: list[Any] = []  # boxes of names, which no line that leads to another may cross
    for line in lines:
        taken += _pieces(axes.transData.transform(list(line)))

    def write(name: Name, x: float, y: float, **more: Any) -> Any:
        return axes.annotate(
            printable(name.text, _LONGEST).replace("$", r"\$"),  # a dollar sign would start a formula
            (name.x, name.y),
            (x, y),
            textcoords="offset points",
            ha="center" if not x else "left" if x > 0 else "right",
            va="center" if not y else "bottom" if y > 0 else "top",
            color=name.color,
            weight="bold" if name.is_bold else "normal",
            fontsize=9.5,
            **more,
        )

    for name in names:
        tried = write(name, *_OFFSETS[0])
        extent = tried.get_window_extent(renderer)
        tried.remove()
        size, at = (extent.width, extent.height), axes.transData.transform((name.x, name.y))
        ends = [at + np.array(offset) * figure.dpi / 72 for offset in _OFFSETS]
        boxes = np.array([_beside(at, size, end - at) for end in ends])
        outside = size[0] * size[1] - _shared(boxes, frame[None])
        costs = 12 * _shared(boxes, np.array(taken)) + 15 * outside + [2 * (abs(x) + abs(y)) for x, y in _OFFSETS]
        costs += [_crossed(at, end, taken) if _is_led(off) else 0 for end, off in zip(ends, _OFFSETS, strict=True)]
        if written:
            costs += 20 * _shared(boxes, np.array(written))
        best = int(costs.argmin())
        led = {"arrowstyle": "-", "color": name.color, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 4}
        write(name, *_OFFSETS[best], arrowprops=led if _is_led(_OFFSETS[best]) else None)
        written.append(boxes[best] + [-_APART, -_APART, _APART, _APART])
        taken += [written[-1], *(_pieces([at, ends[best]]) if _is_led(_OFFSETS[best]) else ())]


def _is_led(offset: tuple[float, float]) -> bool:
    """Say whether a name is so far from its point that a thin line leads to it."""
    return offset[0] ** 2 + offset[1] ** 2 > _LED


def _crossed(start: Any, end: Any, taken: Sequence[Any]) -> float:
    """Return what it costs to lead a line from a point to a name."""
    return float(2 * _shared(np.array(_pieces([start, end])), np.array(taken)).sum())


def _box(centre: Any, half: float) -> Any:
    return np.concatenate([np.asarray(centre) - half, np.asarray(centre) + half])


def _pieces(corners: Any) -> list[Any]:
    """Return a line as a row of small boxes."""
    found = []
    for start, end in itertools.pairwise(corners):
        steps = int(np.abs(end - start).max() / _STEP) + 1
        found += [_box(start + (end - start) * i / steps, _LINE) for i in range(steps + 1)]
    return found


def _beside(at: Any, size: tuple[float, float], offset: Any) -> Any:
    """Return the box of a text of a size in pixels, at an offset from a point; it grows away from the point."""
    low = [
        place + away - (side / 2 if not away else side if away < 0 else 0)
        for place, away, side in zip(at, offset, size, strict=True)
    ]
    return np.array([*low, low[0] + size[0], low[1] + size[1]])


def _shared(boxes: Any, others: Any) -> Any:
    """Return which area each box shares with all others together; those that overlap count twice."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1).sum(1)
