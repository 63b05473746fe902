"""Pictures of sweeps: accuracy with its standard deviation, real images in grey, distilled ones in colour.

Drawn with matplotlib's objects (`Figure`, never pyplot), so that nothing here has or leaves global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from fedcondense.report.plots import LIGHT
from fedcondense.sweeps.grids import ALL_REAL
from fedcondense.sweeps.rows import RANDOM, Row, percent
from fedcondense.sweeps.tables import crossings, made_with

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["by_factor", "by_ipc", "by_method", "by_network"]

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195")  # Okabe and Ito's, one more
_GREYS = ("#4b5563", "#8b95a3", "#6b7280", "#a3acb9", "#374151")
_MARKERS = "osD^vP*"
_LIMIT = 4  # panels side by side


def by_method(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each data set, size and test network, with a method a line, real images below."""
    shown = _measured(rows)
    panels = dict.fromkeys(_panel(row) for row in shown if row.ipc is not None)
    measured_by = {panel[2:] for panel in panels}
    most = max((sum(_panel(row) == panel for row in shown) for panel in panels), default=1)
    figure, axes = _panels(len(panels), width=4.6, height=0.9 + 0.3 * most)
    for ax, panel in zip(axes, panels, strict=True):
        of_panel = [row for row in shown if _panel(row) == panel]
        order = sorted(of_panel, key=lambda row: (row.is_distilled, row.accuracy or 0.0))
        parametrizations = {row.parametrization for row in order if row.is_distilled}
        for y, row in enumerate(order):
            color = _COLORS[0] if row.is_distilled else _GREYS[2]
            marker = _MARKERS[0] if row.is_distilled else _MARKERS[1]
            ax.errorbar(row.accuracy, y, xerr=row.accuracy_std or 0, color=color, marker=marker, capsize=3, ms=6)
        ax.set_yticks(range(len(order)), [_method(row, len(parametrizations) > 1) for row in order])
        ax.set_ylim(-0.6, len(order) - 0.4)
        real = sum(not row.is_distilled for row in order)
        if 0 < real < len(order):
            ax.axhline(real - 0.5, color=LIGHT.faint, linewidth=0.8, linestyle=":")
        data, ipc, *rest = panel
        ax.set_title(f"{data}, {ipc} per class" + (f"\n{', '.join(rest)}" if len(measured_by) > 1 else ""), fontsize=10)
        ax.set_xlabel("test accuracy, %", color=LIGHT.text)
        ax.grid(axis="x", color=LIGHT.faint, linewidth=0.6)
        _reference(ax, rows, panel, vertical=True)
    return figure


def by_network(rows: Sequence[Row]) -> Figure:
    """Draw the matrix of what was made with one network and tested with another."""
    from matplotlib.figure import Figure

    made = list(dict.fromkeys(made_with(row) for row in rows))
    tested = list(dict.fromkeys(row.test_network for row in rows))
    found = {(made_with(row), row.test_network): row for row in rows}
    values = [[_or_nan(found.get((m, t))) for t in tested] for m in made]
    figure = Figure(figsize=(3.4 + 1.35 * len(tested), 1.9 + 0.5 * len(made)), layout="constrained", facecolor="white")
    ax = figure.add_subplot()
    known = [value for line in values for value in line if math.isfinite(value)]
    image = ax.imshow(values, cmap="viridis", aspect="auto")
    middle = (min(known) + max(known)) / 2 if known else 0.0
    for y, m in enumerate(made):
        for x, t in enumerate(tested):
            row = found.get((m, t))
            text = "" if row is None else percent(row).replace(" ± ", "\n± ")
            color = "white" if values[y][x] < middle else "black"
            ax.text(x, y, text, ha="center", va="center", fontsize=8.5, color=color)
    ax.set_xticks(range(len(tested)), tested, rotation=25, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(made)), made)
    ax.set_xlabel("tested with", color=LIGHT.text)
    ax.set_ylabel("made with", color=LIGHT.text)
    real = sum(not row.is_distilled for row in {made_with(row): row for row in rows}.values())
    ax.axhline(real - 0.5, color="white", linewidth=3)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0, labelcolor=LIGHT.text)
    figure.colorbar(image, ax=ax, label="test accuracy, %", shrink=0.9).outline.set_visible(False)
    return figure


def by_factor(rows: Sequence[Row]) -> Figure:
    """Draw a panel for each factor of a sensitivity sweep, random real images of as many bytes as a band."""
    shown = [row for row in _measured(rows) if row.varied]
    factors = list(dict.fromkeys(row.varied for row in shown))
    figure, axes = _panels(len(factors), width=3.6, height=3.2, share_y=True)
    for ax, factor in zip(axes, factors, strict=True):
        for k, network in enumerate(dict.fromkeys(row.test_network for row in shown)):
            of_factor = [row for row in shown if row.varied == factor and row.test_network == network]
            joined = "none" if factor == "seed" else "-"
            _curve(
                ax,
                of_factor,
                lambda row: row.value or 0.0,
                _COLORS[k % len(_COLORS)],
                k,
                of_factor[0].objective,
                joined,
            )
        random = next((row for row in rows if row.objective == RANDOM and row.accuracy is not None), None)
        if random is not None and random.accuracy is not None:
            spread = random.accuracy_std or 0.0
            ax.axhspan(random.accuracy - spread, random.accuracy + spread, color=_GREYS[3], alpha=0.25, linewidth=0)
            ax.axhline(random.accuracy, color=_GREYS[2], linewidth=1.2, label="random real images")
        values = sorted({row.value for row in shown if row.varied == factor and row.value is not None})
        if factor == "seed":
            ax.set_xlim(min(values) - 0.5, max(values) + 0.5)
        else:
            ax.set_xscale("log")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.minorticks_off()
        ax.set_xlabel({"lr": "step size (lr)", "seed": "seed of the set"}.get(factor, factor), color=LIGHT.text)
        ax.grid(axis="y", color=LIGHT.faint, linewidth=0.6)
    if axes:
        axes[0].set_ylabel("test accuracy, %", color=LIGHT.text)
        axes[0].legend(frameon=False, fontsize=9)
    return figure


def by_ipc(rows: Sequence[Row]) -> Figure:
    """Draw accuracy over images per class, for what is distilled and for the real images of as many bytes."""
    shown = [row for row in _measured(rows) if row.ipc is not None]
    panels = list(dict.fromkeys((row.data, row.test_network) for row in shown))
    figure, axes = _panels(len(panels), width=6.4, height=4.2)
    for ax, (data, network) in zip(axes, panels, strict=True):
        of_panel = [row for row in shown if (row.data, row.test_network) == (data, network)]
        names = dict.fromkeys((row.is_distilled, row.objective, row.parametrization) for row in of_panel)
        for k, name in enumerate(sorted(names, reverse=True)):  # distilled first: it keeps the first colours
            of_name = [r for r in of_panel if (r.is_distilled, r.objective, r.parametrization) == name]
            color = _COLORS[k % len(_COLORS)] if name[0] else _GREYS[k % len(_GREYS)]
            label = f"{name[1]} ({name[2]})" if name[0] else name[1]
            _curve(ax, of_name, lambda row: float(row.ipc or 0), color, k, label, "-" if name[0] else "--")
        sizes = sorted({row.ipc for row in of_panel if row.ipc is not None})
        ax.set_xscale("log")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.minorticks_off()
        ax.set_xlabel("images per class whose bytes the set takes", color=LIGHT.text)
        ax.set_ylabel("test accuracy, %", color=LIGHT.text)
        ax.set_title(f"{data}, {network}", fontsize=10)
        ax.grid(axis="y", color=LIGHT.faint, linewidth=0.6)
        _reference(ax, rows, (data, None, network), vertical=False)
        behind = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        for crossing in crossings(of_panel):
            if crossing.ties is not None:
                ax.axvline(crossing.ties, color=LIGHT.text, linewidth=0.9, linestyle=(0, (1, 3)))
                text = f"{crossing.objective}: no longer pays"
                ax.annotate(
                    text, (crossing.ties, 1), (-4, 0), xycoords=ax.get_xaxis_transform(), textcoords="offset points",
                    rotation=90, ha="right", va="top", fontsize=8, color=LIGHT.text, bbox=behind,
                )  # fmt: skip
        ax.legend(facecolor="white", edgecolor="none", fontsize=9, loc="lower right")
    return figure


def _panels(number: int, *, width: float, height: float, share_y: bool = False) -> tuple[Figure, list[Any]]:
    from matplotlib.figure import Figure

    columns = min(_LIMIT, max(1, number))
    lines = -(-max(1, number) // columns)
    figure = Figure(figsize=(width * columns, height * lines + 0.3), layout="constrained", facecolor="white")
    grid = figure.subplots(lines, columns, squeeze=False, sharey=share_y)
    axes = list(grid.flat)
    for ax in axes[number:]:
        ax.set_visible(False)
    for ax in axes[:number]:
        ax.set_axisbelow(True)
        ax.tick_params(color=LIGHT.faint, labelcolor=LIGHT.text)
        for side, spine in ax.spines.items():
            spine.set_visible(side in ("left", "bottom"))
            spine.set_color(LIGHT.faint)
    return figure, axes[:number]


def _curve(
    ax: Any, rows: Sequence[Row], place: Callable[[Row], float], color: str, number: int, label: str, joined: str
) -> None:
    points = sorted(rows, key=place)
    ax.errorbar(
        [place(row) for row in points],
        [row.accuracy for row in points],
        yerr=[row.accuracy_std or 0.0 for row in points],
        color=color,
        marker=_MARKERS[number % len(_MARKERS)],
        markersize=6,
        linewidth=1.4,
        linestyle=joined,
        capsize=3,
        label=label,
    )


def _reference(ax: Any, rows: Sequence[Row], panel: tuple[Any, ...], *, vertical: bool) -> None:
    """Mark what all real data reach, where that was measured."""
    whole = [r for r in rows if r.objective == ALL_REAL and _panel(r)[2:] == panel[2:] and r.data == panel[0]]
    for row in whole:
        if row.accuracy is not None:
            draw = ax.axvline if vertical else ax.axhline
            draw(row.accuracy, color=LIGHT.text, linewidth=1, linestyle=":", label="all real data")
            if vertical:
                place: dict[str, Any] = {"xycoords": ax.get_xaxis_transform(), "textcoords": "offset points"}
                ax.annotate("all real data", (row.accuracy, 0), (-3, 3), ha="right", fontsize=8, **place)


def _measured(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.accuracy is not None and row.objective != ALL_REAL]


def _panel(row: Row) -> tuple[str, int | None, str, str]:
    return row.data, row.ipc, row.test_network, row.protocol


def _method(row: Row, several: bool) -> str:
    return f"{row.objective}, {row.parametrization}" if several and row.is_distilled else row.objective


def _or_nan(row: Row | None) -> float:
    return math.nan if row is None or row.accuracy is None else row.accuracy
