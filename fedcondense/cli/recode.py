"""`fedcondense recode`: a set in another codec, its bytes and what they cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fedcondense.cli.outputs import check_output, free
from fedcondense.cli.sets import Network, Seeds, SetFile, checkpoint_of, measure, named_data, result_of, save_measured
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
    columns,
    command,
    emit,
    finish,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.machine import usual_device


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        cls=Command, epilog="Example: fedcondense recode digits.safetensors --codec bits-2 --output small.safetensors"
    )(recode)


@command
def recode(
    file: SetFile,
    codec: Annotated[str, typer.Option(help="raw, bits-1 to bits-6, jpeg-10, webp-20, palette-16, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the set is written in this codec.")],
    data: Annotated[
        str | None, typer.Option(help="Measures both sets on its test part; without it bytes alone are compared.")
    ] = None,
    network: Network = None,
    seeds: Seeds = 3,
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
    """Store the images of the set in FILE in another codec, and say what it saves and costs.

    What was coded already loses twice: recode the original.

    JSON keys: those of `fedcondense condense`, and `nbytes_before`, `accuracy_before` (null without --data).
    """
    from fedcondense.arguments import device_of
    from fedcondense.data.loading import load_data
    from fedcondense.report.units import human_bytes
    from fedcondense.sets.synthetic import SyntheticSet

    set_up(threads, plugin, precision)
    check_output(output, overwrite)
    before = SyntheticSet.load(file)
    after = before.recode(codec)
    test, was, checkpoint = None, None, checkpoint_of(file, network)
    if data is not None:
        test = load_data(named_data(before, data), data_root, size, skip_broken).test.to(
            device_of(device or usual_device())
        )
        was = measure(before, test, seeds, network, checkpoint=checkpoint)
    plain = SyntheticSet(before.parts)  # as the other one: without an evaluation
    same = typed(
        data=data, size=size, skip_broken=skip_broken, data_root=data_root, network=network, seeds=seeds, plugin=plugin
    )
    sizes = plain.nbytes, after.nbytes
    saved = save_measured(after, output, test, seeds, network, same)
    if checkpoint is not None:
        checkpoint.remove()
    result: dict[str, Any] = result_of(saved) | {
        "nbytes_before": sizes[0],
        "accuracy_before": None if was is None else round(was.accuracy, 3),
        "output": output,
    }
    fields = [("set", f"{len(saved)} images by {saved.parts[0].codec}, which was {before.parts[0].codec}")]
    share = f"{100 * sizes[1] / sizes[0]:.0f} % of before, without evaluations"
    fields.append(("bytes", f"{human_bytes(sizes[0])} before, {human_bytes(sizes[1])} now: {share}"))
    if was is not None and saved.evaluation is not None:
        now = f"{saved.evaluation['accuracy']:.1f} ± {saved.evaluation['accuracy_std']:.1f} % now"
        fields.append(("accuracy", f"{was.accuracy:.1f} ± {was.accuracy_std:.1f} % before, {now}"))
    emit(result, columns(fields), form)
    finish([output], ["show", output, "--output", free(output.with_suffix(".png")), *typed(plugin=plugin)])
