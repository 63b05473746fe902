"""`fedcondense show`: a set as a picture, a run as tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedcondense.cli.outputs import PICTURE, check_output
from fedcondense.cli.sets import (
    SetFile,
    describe,
    next_of,
)
from fedcondense.cli.terminal import (
    Format,
    Output,
    Overwrite,
    Plugin,
    columns,
    command,
    emit,
    finish,
    printable,
    set_up,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole
from fedcondense.errors import SettingError


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense show fashion.safetensors --output fashion.png")(show)


@command
def show(
    file: SetFile,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where the PNG of a set is written.")] = None,
    columns: Annotated[
        int | None, typer.Option(parser=Whole(1, 1000), help="Images per row; default: all of a class, at most 20.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(parser=Whole(1, 256), help="Screen pixels a pixel; default: images 64 high.")
    ] = None,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Draw the set in FILE as a PNG: a row for each class, every pixel a square. A run's folder is printed as tables.

    JSON keys: `output`, `images`, `nbytes`, `codec`; of a run those of its result.json.
    """
    if file.is_dir():
        _show_run(file, output, form)
        return
    if output is None:
        raise SettingError(f"{file}: a set is drawn to a file; name it, as in --output {file.with_suffix('.png').name}")
    from fedcondense.sets.pictures import show_set
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(plugins=plugin)
    check_output(output, overwrite, PICTURE, reads=file)
    synthetic = SyntheticSet.load(file)
    show_set(synthetic, output, columns, scale)
    result = {"output": output, "images": len(synthetic), "nbytes": synthetic.nbytes, "codec": synthetic.codec}
    emit(result, describe(synthetic), form)
    finish([output], next_of(file, synthetic, plugin=plugin))


def _show_run(folder: Path, output: Path | None, form: Format) -> None:
    """Print what a run measured, and each round of rows that have several."""
    from fedcondense.report.results import read_result, read_rows, table
    from fedcondense.report.rounds import HEADING, lines_of

    if output is not None:
        raise SettingError(f"{folder} is a run, which is printed; leave --output out, or name a set in it")
    result = read_result(folder)
    rows = read_rows(result)
    tables = [columns(table(rows))]
    tables += [
        f"{printable(row.label)}\n{columns([HEADING, *lines_of(row.past)])}" for row in rows if len(row.past) > 1
    ]
    failed = [f"This run is not done: {printable(str(result['error']))}"] if result.get("error") else []
    emit(result, "\n\n".join([*tables, *failed]), form)
    finish([], ["report", folder])
