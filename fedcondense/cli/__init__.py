"""The command line: `fedcondense data | plan | condense | evaluate | show | federate | report | sweep | zoo | ...`.

Results go to stdout, progress and everything else to stderr. A `FedcondenseError` is one line there and exit code 2,
Ctrl-C is exit code 130; any other exception is a bug of ours and keeps its traceback. torch, flwr and the rest of the
library are imported inside the commands: `--help` waits for none of them.
"""

from __future__ import annotations

from typing import Annotated

import typer

from fedcondense.cli import (
    by_files,
    condense,
    data,
    doctor,
    evaluate,
    exchange,
    federation,
    network,
    new_app,
    node,
    plan,
    recode,
    relabel,
    review,
    show,
    sweep,
)
from fedcondense.cli.terminal import own_version
from fedcondense.cli.usage import Commands
from fedcondense.machine import keep_memory

__all__ = ["app", "main"]

app = typer.Typer(
    name="fedcondense",
    cls=Commands,
    help="Condense data into a few synthetic images, and let those travel or stay instead of the data or the weights.",
    epilog="Start with: fedcondense condense digits --ipc 1 --output digits.safetensors",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _commands in (
    data,
    plan,
    condense,
    evaluate,
    relabel,
    recode,
    show,
    federation,
    by_files,
    network,
    new_app,
    node,
    review,
    sweep,
    exchange,
    doctor,
):  # as they are used
    _commands.add_to(app)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fedcondense {own_version()}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Hold the options that come before a command."""


def main() -> None:
    """Run the command line: the `fedcondense` script."""
    keep_memory()
    app()
