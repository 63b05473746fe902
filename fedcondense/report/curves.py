"""Accuracy over rounds, and over the bytes that they took: one line per row, named where it ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcondense.report.labels import Name, name_points
from fedcondense.report.plots import LIGHT, Ink, empty_plot, human_axis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Curve", "over_bytes", "over_rounds"]

_STYLES = ("-", "--", ":", "-.")
_MARKERS = "oDs"
_UPWARDS, _HEIGHT = "accuracy of the global network, %", 5.4  # inches: lines need room between them for names
_MARKED = 12  # points of a line up to which each has a marker


class Curve(NamedTuple):
    """How a row went on."""

    label: str
    rounds: tuple[int, ...]
    accuracies: tuple[float, ...]  # percent, after each
    nbytes: tuple[float, ...] = ()  # up and down per site, up to each; empty or nan: unknown
    series: int = 0  # which colour and marker, 0 to 2


def over_rounds(curves: Iterable[Curve], ink: Ink = LIGHT) -> Figure:
    """Plot accuracy over rounds, every row named beside its last round.

    Args:
        curves: Points without a finite accuracy are left out.
        ink: `LIGHT` or `DARK`; the background stays transparent.
    """
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    curves = list(curves)
    figure, axes = empty_plot(ink, "round", _UPWARDS, _HEIGHT)
    last = max((number for curve in curves for number in curve.rounds), default=1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0f}" if 1 <= value <= last else ""))
    lines = [(curve, list(zip(curve.rounds, curve.accuracies, strict=True))) for curve in curves]
    _draw(figure, axes, lines, ink)
    return figure


def over_bytes(curves: Iterable[Curve], ink: Ink = LIGHT) -> Figure:
    """Plot accuracy over the bytes that a site had sent and received by then, on a logarithmic axis.

    Args:
        curves: Points without bytes or a finite accuracy are left out.
        ink: `LIGHT` or `DARK`; the background stays transparent.
    """
    figure, axes = empty_plot(ink, "bytes per site, up and down together, so far", _UPWARDS, _HEIGHT)
    human_axis(axes)
    lines = [(curve, list(zip(curve.nbytes, curve.accuracies, strict=False))) for curve in curves]
    _draw(figure, axes, [(curve, [(x, y) for x, y in points if x > 0]) for curve, points in lines], ink)
    return figure


def _draw(figure: Figure, axes: Any, lines: Sequence[tuple[Curve, list[Any]]], ink: Ink) -> None:
    lines = [(curve, [(x, y) for x, y in points if np.isfinite([x, y]).all()]) for curve, points in lines]
    lines = sorted(((curve, points) for curve, points in lines if points), key=lambda line: line[0].series)
    if not lines:
        return
    across, heights = np.array([point for _, points in lines for point in points]).T
    if axes.get_xscale() == "log":
        axes.set_xlim(
            across.min() / 2, across.max() * (across.max() / across.min()) ** 0.25 * 2
        )  # names stand to the right of lines
    else:
        axes.set_xlim(across.min() - 0.5, across.max() + 0.5 + 0.25 * float(np.ptp(across)))
    room = max(2.0, 0.12 * float(np.ptp(heights)))
    axes.set_ylim(heights.min() - room, min(heights.max() + room, max(102.0, heights.max())))
    seen = [0, 0, 0]
    for curve, points in lines:
        style = _STYLES[seen[curve.series] % len(_STYLES)]
        seen[curve.series] += 1
        axes.plot(
            *zip(*points, strict=True),
            linestyle=style,
            linewidth=2.0 if curve.series == 0 else 1.3,
            color=ink.series[curve.series],
            marker=_MARKERS[curve.series],
            markersize=5,
            markevery=1 if len(points) <= _MARKED else [len(points) - 1],
            markerfacecolor=ink.series[curve.series],
        )
    names = []
    for curve, points in lines:
        x, y = points[-1]
        names.append(Name(curve.label, x, y, ink.series[curve.series], curve.series == 0))
    name_points(figure, axes, names, [points for _, points in lines])
