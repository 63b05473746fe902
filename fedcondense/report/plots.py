"""Accuracy against bytes, drawn with matplotlib's objects (`Figure`, never pyplot): no global state is left behind."""

from __future__ import annotations

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedcondense.report.labels import Name, name_points
from fedcondense.report.rounds import without_rounds
from fedcondense.report.units import human_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["DARK", "LIGHT", "Ink", "Point", "accuracy_by_bytes", "empty_plot", "human_axis", "svg"]


class Ink(NamedTuple):
    """The colours of a plot: text and axes, and one colour a series (Okabe and Ito's, safe for colour blindness)."""

    text: str
    faint: str
    series: tuple[str, ...]


LIGHT = Ink("#1f2328", "#c9ced6", ("#0072B2", "#D55E00", "#6b7280"))
DARK = Ink("#e6e8eb", "#454b54", ("#56B4E9", "#E69F00", "#a3acb9"))
_MARKERS = "oDs"


class Point(NamedTuple):
    """One measured way to train a network in a federation."""

    label: str
    nbytes: float  # up, a client; must be above 0 to be drawn on the logarithmic axis
    accuracy: float  # percent
    spread: float = 0.0  # standard deviation over seeds, in points
    series: int = 0  # which colour and marker, 0 to 2; in series 1 a line joins the points of a way

    @property
    def way(self) -> str:
        """The label without how many rounds there were."""
        return without_rounds(self.label)


def accuracy_by_bytes(points: Iterable[Point], ink: Ink = LIGHT) -> Figure:
    """Plot accuracy over bytes up a client, on a logarithmic axis, every point named beside it.

    Args:
        points: Those with no bytes or no finite accuracy are left out.
        ink: `LIGHT` or `DARK`; the background stays transparent.
    """
    shown = [p for p in points if p.nbytes > 0 and np.isfinite([p.nbytes, p.accuracy, p.spread]).all()]
    words = "bytes a client sends, all rounds together", "accuracy of the global network, %"
    figure, axes = empty_plot(ink, *words)
    human_axis(axes)
    if shown:
        sizes, heights = [p.nbytes for p in shown], [p.accuracy for p in shown]
        axes.set_xlim(min(sizes) / 4, max(sizes) * 8)  # names stand to the right of points
        room = max(3.0, 0.2 * (max(heights) - min(heights)))
        axes.set_ylim(min(heights) - room, min(max(heights) + room, max(103.0, max(heights))))
    joined = []
    for series, color in enumerate(ink.series):
        of_series = sorted((p for p in shown if p.series == series), key=lambda p: p.nbytes)
        if not of_series:
            continue
        x, y, spread = ([getattr(p, name) for p in of_series] for name in ("nbytes", "accuracy", "spread"))
        style: dict[str, Any] = {"color": color, "marker": _MARKERS[series], "markersize": 9 if series == 0 else 6.5}
        axes.errorbar(x, y, yerr=spread, linestyle="none", capsize=3, **style)
        for way in dict.fromkeys(p.way for p in of_series if series == 1):
            line = [(p.nbytes, p.accuracy) for p in of_series if p.way == way]
            axes.plot(*zip(*line, strict=True), color=color, linewidth=1.4)
            joined.append(line)
        joined += [
            [(p.nbytes, p.accuracy - p.spread), (p.nbytes, p.accuracy + p.spread)] for p in of_series if p.spread
        ]
    ours_first = sorted(shown, key=lambda p: p.series)
    names = [Name(p.label, p.nbytes, p.accuracy, ink.series[p.series], p.series == 0) for p in ours_first]
    name_points(figure, axes, names, joined)
    return figure


def empty_plot(ink: Ink, across: str, upwards: str, height: float = 4.3) -> tuple[Figure, Any]:
    """Return a figure with one set of axes in the colours of the page, named in words; `height` is in inches."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.6, height), layout="constrained", facecolor="none")
    axes = figure.add_subplot(facecolor="none")
    axes.set_xlabel(across, color=ink.text)
    axes.set_ylabel(upwards, color=ink.text)
    axes.tick_params(which="both", color=ink.faint, labelcolor=ink.text)
    axes.grid(axis="y", color=ink.faint, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(ink.faint)
    return figure, axes


def human_axis(axes: Any) -> None:
    """Let the axis of a plot be of bytes, logarithmic, in kB and MB."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(10, numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: human_bytes(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def svg(figure: Figure) -> bytes:
    """Draw a figure as SVG with its letters as outlines: it looks the same everywhere and loads nothing."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
