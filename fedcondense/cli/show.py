"""`fedcondense show`: a set as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcondense.cli.sets import (
    SetFile,
    describe,
)
from fedcondense.cli.terminal import (
    Format,
    Output,
    Overwrite,
    Plugin,
    check_output,
    command,
    emit,
    finish,
    set_up,
)

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(epilog="Example: fedcondense show fashion.safetensors --output fashion.png")(show)


@command
def show(
    file: SetFile,
    output: Annotated[Path, typer.Option(help="Where the PNG is written.")],
    columns: Annotated[int | None, typer.Option(help="Images per row; default: all of a class, at most 20.")] = None,
    scale: Annotated[int | None, typer.Option(help="Screen pixels a pixel; default: images 64 high.")] = None,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Draw the set in FILE as a PNG: a row for each class, every pixel a square.

    JSON keys: `output`, `images`, `nbytes`.
    """
    from fedcondense.sets.pictures import show_set
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(plugins=plugin)
    check_output(output, overwrite)
    synthetic = SyntheticSet.load(file)
    show_set(synthetic, output, columns, scale)
    result = {"output": output, "images": len(synthetic), "nbytes": synthetic.nbytes}
    emit(result, describe(synthetic), form)
    finish([output], ["evaluate", file])
