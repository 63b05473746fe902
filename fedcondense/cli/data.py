"""`fedcondense data`: the data sets that can be named, and where each one lies."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.terminal import (
    DataRoot,
    Format,
    Output,
    columns,
    command,
    emit,
    finish,
    note,
)
from fedcondense.cli.usage import Command

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense data --data-root ~/data")(data)


@command
def data(data_root: DataRoot = None, form: Output = Format.text) -> None:
    """List the data sets that can be named, and where each one lies or is looked for.

    JSON keys: `root`, and `data`: an object a name with `where` (null: not here, `condense` tries to download it),
    `shape`, `train` and `test` (images), `classes` (their number) and `files` (what the root would hold).
    """
    from fedcondense.data.catalogue import CATALOGUE
    from fedcondense.data.listing import available
    from fedcondense.data.loading import data_root as find_root

    found = available(data_root)
    lines: list[tuple[object, ...]] = [("name", "images", "of", "classes", "where")]
    for row in found:
        size = "x".join(map(str, row.shape)) if row.shape else "?"
        images = f"{row.train}+{row.test}" if row.train is not None else "?"
        advice = CATALOGUE[row.name].where if row.name in CATALOGUE else ""
        where = row.where or f"not here; {advice or 'downloaded when it is asked for'}"
        lines.append((row.name, images, size, row.classes or "?", where))
    result = {row.name: {k: v for k, v in row._asdict().items() if k != "name"} for row in found}
    emit({"root": find_root(data_root), "data": result}, columns(lines), form)
    note(f"looked in {find_root(data_root)}; folder:DIR and npz:FILE name data of your own")
    finish([], ["condense", "digits", "--ipc", "1", "--output", free(Path("digits.safetensors"))])
