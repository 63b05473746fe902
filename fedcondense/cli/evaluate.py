"""`fedcondense evaluate`: train networks on a set and test them on real data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.sets import (
    Network,
    SetFile,
    describe,
    measure,
    named_data,
)
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Plugin,
    Precisely,
    Precision,
    Size,
    SkipBroken,
    Threads,
    command,
    emit,
    finish,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Whole
from fedcondense.machine import usual_device

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense evaluate fashion.safetensors --seeds 3 --format json")(
        evaluate
    )


@command
def evaluate(
    file: SetFile,
    data: Annotated[str | None, typer.Option(help="Whose test split; default: the one in the set's record.")] = None,
    network: Network = None,
    seeds: Annotated[
        int | None,
        typer.Option(parser=Whole(1, 1000), help="How many networks are trained, from seed 0 on; else 3."),
    ] = None,
    size: Size = None,
    skip_broken: SkipBroken = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Train networks from scratch on the set in FILE and test them on real data.

    Without --network and --seeds it repeats the evaluation that the set's record holds, if there is one.

    JSON keys: `accuracy` (percent, mean), `accuracy_std`, `accuracies`, `per_class` (percent per class, by name; null
    where the test data have none), `network`, `seeds`, `recipe`, `weighted`, `test`, `seconds`, `nbytes`, `data`,
    `file`.
    """
    from fedcondense.data.loading import load_data
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(threads, plugin, precision)
    synthetic = SyntheticSet.load(file)
    name = named_data(synthetic, data)
    test = load_data(name, data_root, size, skip_broken).test
    as_recorded = network is None and seeds is None and synthetic.evaluation is not None
    measured = measure(
        synthetic, test.to(device or usual_device()), 3 if seeds is None else seeds, network, as_recorded
    )
    per_class = {name: round(v, 3) for name, v in zip(test.spec.classes, measured.per_class, strict=True)}
    result = measured.to_dict() | {"per_class": per_class, "nbytes": synthetic.nbytes, "data": name, "file": file}
    emit(result, describe(synthetic.with_evaluation(measured.to_dict())), form)
    finish([], ["show", file, "--output", free(file.with_suffix(".png")), *typed(plugin=plugin)])
