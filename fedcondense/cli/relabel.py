"""`fedcondense relabel`: soft labels by networks that were trained on the real data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fedcondense.cli.outputs import check_output, free
from fedcondense.cli.sets import (
    Network,
    Seed,
    Seeds,
    SetFile,
    describe,
    named_data,
    result_of,
    save_measured,
)
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Overwrite,
    Plugin,
    Precisely,
    Precision,
    Size,
    SkipBroken,
    Threads,
    command,
    emit,
    finish,
    given,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Number, Whole
from fedcondense.machine import usual_device
from fedcondense.progress import reporting

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense relabel cifar10.safetensors --output taught.safetensors")(
        relabel
    )


@command
def relabel(
    file: SetFile,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the set with soft labels is written.")],
    data: Annotated[str | None, typer.Option(help="Teaches; default: the one in the set's record.")] = None,
    network: Network = None,
    teachers: Annotated[
        int, typer.Option(parser=Whole(1, 1000), help="Networks that are trained on the real data.")
    ] = 1,
    share: Annotated[
        float, typer.Option(parser=Number(most=1.0), help="How much of a label is theirs, up to 1.")
    ] = 0.5,
    temperature: Annotated[
        float,
        typer.Option(parser=Number(above=True, most=1e6), help="What their logits are divided by: more is softer."),
    ] = 2.0,
    seed: Seed = 0,
    seeds: Seeds = 3,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Leave the evaluation out.")] = False,
    overwrite: Overwrite = False,
    size: Size = None,
    skip_broken: SkipBroken = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Mix what networks trained on the real data say of each image into the labels of the set in FILE.

    Soft labels are stored for each decoded image, and their bytes are counted.

    JSON keys: those of `fedcondense condense`.
    """
    from fedcondense.arguments import device_of
    from fedcondense.data.loading import load_data
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.training.labels import relabel as relabel_set

    set_up(threads, plugin, precision)
    check_output(output, overwrite)
    synthetic = SyntheticSet.load(file)
    place = device_of(device or usual_device())
    train, test = (split.to(place) for split in load_data(named_data(synthetic, data), data_root, size, skip_broken))
    with reporting("training teachers", parts=True) as update:

        def follow(step: int, steps: int) -> None:
            update(step / steps)

        chosen = given(network=network)
        synthetic = relabel_set(
            synthetic,
            train,
            teachers=teachers,
            share=share,
            temperature=temperature,
            seed=seed,
            progress=follow,
            **chosen,
        )
    same = typed(data=data, data_root=data_root, network=network, seeds=seeds, plugin=plugin)
    synthetic = save_measured(synthetic, output, None if no_evaluate else test, seeds, network, same)
    emit(result_of(synthetic) | {"output": output}, describe(synthetic), form)
    finish([output], ["show", output, "--output", free(output.with_suffix(".png")), *typed(plugin=plugin)])
