"""`fedcondense condense`: make a set, or select one; a run that was interrupted goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import check_folder, check_resumable, free
from fedcondense.cli.sets import (
    Amount,
    Codec,
    DataName,
    IpcOrNot,
    Network,
    Objective,
    Parametrization,
    Seed,
    Seeds,
    Steps,
    describe,
    result_of,
    save_measured,
)
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Log,
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
    invocation,
    note,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Listed, Number
from fedcondense.errors import DataError, DivergenceError, OutputError, SettingError, look_up
from fedcondense.files import hold
from fedcondense.loggers import logged
from fedcondense.machine import usual_device
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from fedcondense.checkpoints import Checkpoint
    from fedcondense.condensing import Progress


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(
        cls=Command, epilog="Example: fedcondense condense fashion-mnist --ipc 10 --output fashion.safetensors"
    )(condense)


@command
def condense(
    name: DataName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the set is written, as safetensors.")],
    ipc: IpcOrNot = None,
    budget: Amount = None,
    codec: Codec = None,
    objective: Objective = None,
    parametrization: Parametrization = None,
    method: Annotated[
        str | None, typer.Option(help="Select instead: random, herding, k-center, k-means or half-resolution.")
    ] = None,
    network: Network = None,
    start: Annotated[str | None, typer.Option(help="gaussian, grey, noise or real (shows records).")] = None,
    augment: Annotated[
        str | None,
        typer.Option(parser=Listed(), help="Operations by commas, a plugin's too, or none; default: the data's."),
    ] = None,
    steps: Steps = None,
    prefixes: Annotated[
        bool, typer.Option("--prefixes", help="Let the first images of each class serve alone.")
    ] = False,
    learn_labels: Annotated[
        bool, typer.Option("--learn-labels", help="Learn soft labels with the images; their bytes are counted.")
    ] = False,
    experts: Annotated[
        Path | None, typer.Option(help="Folder that keeps the experts of mtt and tesla, for later runs as well.")
    ] = None,
    seed: Seed = 0,
    seeds: Seeds = 3,
    no_evaluate: Annotated[bool, typer.Option("--no-evaluate", help="Leave the evaluation out.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint beside the output.")] = False,
    checkpoint_every: Annotated[
        float, typer.Option(parser=Number(most=1e7), help="Seconds between two checkpoints, at least.")
    ] = 5.0,
    overwrite: Overwrite = False,
    size: Size = None,
    skip_broken: SkipBroken = False,
    log: Log = None,
    data_root: DataRoot = None,
    plugin: Plugin = None,
    device: Device = None,
    threads: Threads = None,
    precision: Precisely = Precision.float32,
    form: Output = Format.text,
) -> None:
    """Condense DATA into a few synthetic images per class, and measure them.

    DATA is a name that `fedcondense data` lists, folder:DIR (one sub-folder for each class) or npz:FILE (x_train,
    y_train, x_test, y_test). The training split is condensed, the test split measures.

    With --budget the file takes at most so many bytes, with its evaluation; images and bits are chosen for it.

    JSON keys: `data`, `method`, `ipc`, `images` (decoded), `nbytes`, `codec`, `seconds`, `network`, `accuracy`
    (percent) and `accuracy_std` (both null with --no-evaluate), `output`.
    """
    from fedcondense.arguments import device_of
    from fedcondense.checkpoints import Checkpoint
    from fedcondense.condensing import condense as condense_data
    from fedcondense.data.images import Data
    from fedcondense.data.loading import load_data
    from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, with_learned_labels
    from fedcondense.sets.fitting import Within
    from fedcondense.sets.selection import select
    from fedcondense.sources.trajectories import kept_in

    set_up(threads, plugin, precision)
    checkpoint = Checkpoint(check_resumable(output, resume, overwrite), checkpoint_every, resume)
    if experts is not None:
        check_folder(experts)
    options = given(objective=objective, parametrization=parametrization, network=network, start=start, steps=steps)
    if prefixes:
        options["prefixes"] = True
    named = look_up("objective", objective or DEFAULT_OBJECTIVE, OBJECTIVES)
    if learn_labels:
        options["objective"] = with_learned_labels(named)
    if experts is not None:
        options["recipe"] = kept_in(experts, named.recipe)
    if method is not None and options:
        raise SettingError(f"--method {method} selects, and takes no --{', --'.join(options)}; leave one side out")
    amount: dict[str, Any] = given(ipc=ipc, codec=codec)
    if budget is not None:
        amount["budget"] = Within(budget, network=network or "", seeds=0 if no_evaluate else seeds)
    place = device_of(device or usual_device())
    train, test = (split.to(place) for split in load_data(name, data_root, size, skip_broken))
    if augment is not None:
        operations = () if augment == "none" else tuple(augment.split(","))
        train = Data(train.images, train.labels, replace(train.spec, operations=operations))
    if not (len(test) or no_evaluate):
        raise DataError(f"{name} has no test part to measure on; pass --no-evaluate, and test it on real data later")
    with hold(output), _kept(checkpoint, output), logged(log):
        if method is not None:
            synthetic = select(train, method=method, seed=seed, **amount)
        else:
            with reporting(f"condensing {name}", parts=not no_evaluate) as update:

                def follow(now: Progress) -> None:
                    update(now.step / now.steps, f"loss {now.loss:.4g}")

                synthetic = condense_data(train, seed=seed, checkpoint=checkpoint, progress=follow, **amount, **options)
        same = typed(data=name, size=size, skip_broken=skip_broken, data_root=data_root)
        same += typed(network=network, seeds=seeds, plugin=plugin)
        synthetic = save_measured(synthetic, output, None if no_evaluate else test, seeds, network, same)
    checkpoint.remove()
    emit(result_of(synthetic) | {"output": output}, describe(synthetic), form)
    finish([output], ["show", output, "--output", free(output.with_suffix(".png")), *typed(plugin=plugin)])


@contextlib.contextmanager
def _kept(checkpoint: Checkpoint, output: Path) -> Iterator[None]:
    """Say what is kept and how to go on when a run is interrupted, diverges or finds the disk full."""
    try:
        yield
    except KeyboardInterrupt:
        if not Path(checkpoint.path).exists():
            raise
        raise KeyboardInterrupt(f"{checkpoint.path} is kept; go on with: {invocation('--resume')}") from None
    except DivergenceError as error:
        good = output.with_name(f"{output.stem}-last-good{output.suffix}")
        if error.synthetic is not None:
            note(f"wrote {error.synthetic.save(good, overwrite=True)}")
        raise
    except OutputError as error:
        if Path(checkpoint.path).exists():
            raise OutputError(f"{error}; the checkpoint is kept, go on with: {invocation('--resume')}") from error
        raise
