"""`fedcondense show`: a set as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcondense.cli.outputs import PICTURE, check_output
from fedcondense.cli.sets import (
    SetFile,
    describe,
    evaluating,
)
from fedcondense.cli.terminal import Format, Output, Overwrite, Plugin, command, emit, finish, set_up
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense show fashion.safetensors --output fashion.png")(show)


@command
def show(
    file: SetFile,
    output: Annotated[Path, typer.Option(help="Where the PNG is written.")],
    columns: Annotated[
        int | None, typer.Option(click_type=Whole(1, 1000), help="Images per row; default: all of a class, at most 20.")
    ] = None,
    scale: Annotated[
        int | None, typer.Option(click_type=Whole(1, 256), help="Screen pixels a pixel; default: images 64 high.")
    ] = None,
    overwrite: Overwrite = False,
    plugin: Plugin = None,
    form: Output = Format.text,
) -> None:
    """Draw the set in FILE as a PNG: a row for each class, every pixel a square.

    JSON keys: `output`, `images`, `nbytes`, `codec`.
    """
    from fedcondense.sets.pictures import show_set
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(plugins=plugin)
    check_output(output, overwrite, PICTURE, reads=file)
    synthetic = SyntheticSet.load(file)
    show_set(synthetic, output, columns, scale)
    result = {"output": output, "images": len(synthetic), "nbytes": synthetic.nbytes, "codec": synthetic.codec}
    emit(result, describe(synthetic), form)
    finish([output], evaluating(file, synthetic, plugin=plugin))
