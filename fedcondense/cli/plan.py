"""`fedcondense plan`: what condensing would take, before anything starts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from fedcondense.cli.outputs import free
from fedcondense.cli.sets import (
    Amount,
    Codec,
    DataName,
    IpcOrNot,
    Network,
    Objective,
    Parametrization,
    Steps,
)
from fedcondense.cli.terminal import (
    DataRoot,
    Format,
    Output,
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
    given,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.progress import clock

if TYPE_CHECKING:
    pass


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense plan cifar10 --ipc 10 --objective dsa")(plan)


@command
def plan(
    name: DataName,
    ipc: IpcOrNot = None,
    budget: Amount = None,
    codec: Codec = None,
    objective: Objective = None,
    parametrization: Parametrization = None,
    network: Network = None,
    steps: Steps = None,
    size: Size = None,
    skip_broken: SkipBroken = False,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Say what condensing DATA would take before anything starts: bytes, seconds, memory, and what wins without it.

    JSON keys: `nbytes` (of coded images an estimate), `most` (bytes that are not passed, or null), `codec`, `ipc`,
    `decoded` (images that are trained on), `steps`, `seconds`, `memory` (bytes), `advice` (texts).
    """
    from fedcondense.condensing import plan as plan_run
    from fedcondense.data.loading import load_data
    from fedcondense.report.units import human_bytes

    set_up(threads, plugin, precision)
    train = load_data(name, data_root, size, skip_broken).train
    options = given(objective=objective, parametrization=parametrization, network=network, steps=steps)
    amount = given(ipc=ipc, budget=budget, codec=codec)
    planned = plan_run(train, **amount, **options)
    stored = "" if planned.codec == "raw" else f", in {planned.codec}"
    coded = "" if planned.most is None or planned.codec == "raw" else f", never above {human_bytes(planned.most)}"
    takes = f"{'' if planned.codec == 'raw' else 'about '}{human_bytes(planned.nbytes)}{coded}"
    fields = [
        ("set", f"{takes}, {planned.decoded} images to train on{stored}"),
        ("time", f"{clock(planned.seconds)} for {planned.steps} steps on this machine"),
        ("memory", f"{human_bytes(planned.memory)} more than the program and the data take"),
        *(("advice", text) for text in planned.advice),
    ]
    emit(planned.to_dict(), columns(fields), form)
    precise = None if precision is Precision.float32 else precision
    same = typed(
        **({"ipc": 10} if not (ipc or budget) else {}),
        **amount,
        **options,
        size=size,
        skip_broken=skip_broken,
        data_root=data_root,
        plugin=plugin,
        threads=threads,
        precision=precise,
    )
    finish([], ["condense", name, *same, "--output", free(Path(f"{_stem(name)}.safetensors"))])


def _stem(name: str) -> str:
    """Return a file name for a data set's."""
    return Path(name.partition(":")[2] or name).stem
