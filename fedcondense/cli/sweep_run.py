"""What every sweep does once its lines are known: compute, write the table and the figure, print."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.sweep_options import Sweeping, site_of, workers_of
from fedcondense.cli.terminal import emit, finish, invocation, note, typed
from fedcondense.errors import SettingError
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedcondense.sweeps import Row, SweepProgress, TableRow

__all__ = ["finish_sweep", "with_steps"]


def finish_sweep(
    lines: Sequence[TableRow],
    common: Sweeping,
    draw: Callable[[Sequence[Row]], Figure],
    *,
    head: Callable[[Sequence[Row]], str] | None = None,
    said: Callable[[Sequence[Row]], list[str]] | None = None,
) -> None:
    """Compute what the folder lacks, write the table and the figure, and print the table."""
    from fedcondense.files import write_file
    from fedcondense.sweeps import finished, read, references, run, to_csv, to_markdown

    references(lines, common.against)  # refused before any work

    site, workers = site_of(common), workers_of(common)
    with reporting("sweep") as update:

        def follow(now: SweepProgress) -> None:
            last = "" if now.last is None else f", {now.last.making.data} {now.last.making.method}"
            ready = now.done - now.found
            update(ready / max(1, now.cells - now.found), f"{now.done} of {now.cells} cells{last}")

        if common.budget is not None:
            update(0.0, "timing some steps")
        try:
            chosen = with_steps(lines, common)
            if common.so_far:
                chosen, outcomes = finished(chosen, common.output)
            else:
                outcomes = run(chosen, common.output, site=site, workers=workers, progress=follow)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{common.output} keeps the cells that are done; go on with: {invocation()}"
            ) from None
    if not chosen:
        raise SettingError(f"{common.output} holds no cell of this sweep; leave --so-far out to compute them")
    rows = read(chosen, outcomes, common.against)
    texts = [] if said is None else said(rows)
    markdown = ("" if head is None else f"{head(rows)}\n\n") + to_markdown(rows, texts)
    figure = common.output / "figure.png"
    for path, text in ((common.output / "table.md", markdown), (common.output / "table.csv", to_csv(rows))):
        write_file(path, text.encode(), overwrite=True)
    write_file(figure, _png(draw(rows)), overwrite=True)
    failed = sum(
        "error" in outcome or any("error" in m for m in outcome["measured"].values()) for outcome in outcomes.values()
    )
    result = {
        "rows": [row.to_dict() for row in rows],
        "conclusions": texts,
        "cells": len(outcomes),
        "failed": failed,
        "output": common.output,
    }
    emit(result, markdown.rstrip(), common.form)
    finish([common.output / "table.md", common.output / "table.csv", figure], _next(chosen, rows, common))
    if failed:
        again = "the same command tries again those without any result"
        note(f"{failed} of {len(outcomes)} cells failed; their rows say why and for which network, and {again}")
        raise typer.Exit(1)


def with_steps(lines: Sequence[TableRow], common: Sweeping) -> list[TableRow]:
    """Return the lines with the steps that their budget buys, if they name one."""
    from fedcondense.sweeps import with_budget, with_kept_budget

    if common.so_far:
        return with_kept_budget(lines, common.output)
    return with_budget(lines, common.output, site=site_of(common), workers=workers_of(common))


def _next(lines: Sequence[TableRow], rows: Sequence[Row], common: Sweeping) -> list[str | Path] | None:
    """Return the command that shows a set of the best row; None where no set was made."""
    from fedcondense.sweeps.cells import set_path

    best = max(zip(rows, lines, strict=True), key=lambda pair: (pair[0].is_distilled, pair[0].accuracy or 0.0))
    folder = common.output
    made = next((path for cell in best[1].cells if (path := set_path(folder, cell.making)).exists()), None)
    if made is None:
        return None
    return ["show", made, "--output", free(folder / "best.png"), *typed(plugin=common.plugin)]


def _png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
