"""The commands around a federation: `federate`, `report`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import RUN, check_output_folder, free
from fedcondense.cli.sets import Ipc, Network, Objective, Parametrization, Seed, Seeds, Steps
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Log,
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
    invocation,
    jsonable,
    set_up,
    typed,
)
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Listed, Number, Whole
from fedcondense.errors import DataError, OutputError, SettingError
from fedcondense.loggers import logged
from fedcondense.machine import usual_device
from fedcondense.progress import reporting

if TYPE_CHECKING:
    from fedcondense.flower.comparison.result import FederationProgress


_CLIENTS, _RULE, _ALPHA = 10, "dirichlet", 0.5
_UNDIVIDED = (_CLIENTS, _RULE, _ALPHA, None, None)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense federate digits --clients 10 --alpha 0.1 --output runs/demo")(
        federate
    )
    app.command(cls=Command, epilog="Example: fedcondense report runs/demo")(report)


@command
def federate(
    names: Annotated[
        list[str], typer.Argument(metavar="DATA...", help="One data set to divide, or several: a client each.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder for the result, all sets and the report.")],
    clients: Annotated[int, typer.Option(parser=Whole(1, 100_000), help="How many clients hold the data.")] = _CLIENTS,
    partition: Annotated[
        str,
        typer.Option(help="dirichlet, client-dirichlet, iid, shards, classes, or file:PATH (JSON lists of indices)."),
    ] = _RULE,
    alpha: Annotated[
        float, typer.Option(parser=Number(above=True, most=1e6), help="Of the two Dirichlets; small is skewed.")
    ] = _ALPHA,
    num_classes_per_partition: Annotated[
        int | None, typer.Option(parser=Whole(1), help="Of the partition `classes`.")
    ] = None,
    num_shards_per_partition: Annotated[
        int | None, typer.Option(parser=Whole(1), help="Of the partition `shards`.")
    ] = None,
    ipc: Ipc = 10,
    budget: Annotated[
        str | None,
        typer.Option(help='Bytes of each reply, "4 kB" say, in the place of --ipc; clients choose images and bits.'),
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="How images are stored: bits-2, webp-20, jpeg-10, ...; default: raw, or by the budget."),
    ] = None,
    rows: Annotated[
        str | None,
        typer.Option(
            parser=Listed(),
            help="What to run, by commas: strategies, NAME-N for N rounds, NAME-CODEC, local-only (a training each).",
        ),
    ] = None,
    objective: Objective = None,
    parametrization: Parametrization = None,
    network: Network = None,
    steps: Steps = None,
    start: Annotated[str | None, typer.Option(help="gaussian, grey, noise or real (publishes records).")] = None,
    seed: Seed = 0,
    seeds: Seeds = 3,
    min_records: Annotated[
        int | None,
        typer.Option(
            parser=Whole(1), help="Classes of fewer records are left out by each client; default: as nodes do."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what the folder holds.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Delete the run that the folder holds.")] = False,
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
    """Let clients send a condensed set once, and compare with FedAvg and cheap controls.

    One DATA is divided among --clients. Of several, folder:site1 folder:site2 say, each is a client of that name, or
    NAME=folder:DIR; its test part, or a fifth of each class, is what the server tests on, and all else is condensed.

    `local-only` trains one network per client on its own records, and takes that many times as long as one training.

    All of it runs in this process, over Flower's real serialisation: bytes are those of its messages. A budget bounds
    each reply of images, real ones of the controls included, and the dimensions of `ridge-8bit-equal-bytes`.

    JSON keys: `rows`, an object per row (`one-shot`, `fedavg-1`, `fedavg-5`, `fedavg-20`, `random-real`,
    `half-resolution-real`, `ridge`, `ridge-equal-bytes`, `feature-statistics`) with `accuracy` (percent),
    `accuracy_std` (null for one run), `bytes_up` and `bytes_down` (per client, all rounds), `seconds`, `per_class`,
    `about` (what the row says of itself), and for FedAvg `lr`, `local_epochs` and `failed` (answers left out because a
    client failed);
    `partition` (`by`, `alpha`, `hash`, `counts`, `settings` with a file's `sha256`), `refused`, `coverage`, `classes`
    (in the order of the network's outputs and of `per_class`), `sites`, `by_site` (what each took and answered, in the
    row of synthetic images), `broken` (files that cannot be read), `tested` (test images), `settings`, `versions`,
    `format`, `command`, `output`.
    """
    from fedcondense.flower import Condense, Measured, Output  # names the pip command if flwr is missing
    from fedcondense.flower import federate as run_federation

    set_up(threads, plugin, precision)
    if seeds < 1:
        raise SettingError(f"{seeds} seeds; needed: 1 or more")
    _check_folder(output, resume, overwrite)
    from fedcondense.arguments import device_of
    from fedcondense.budgets import read_budget
    from fedcondense.data.loading import load_data
    from fedcondense.data.partitions import partition as split
    from fedcondense.data.sites import load_sites
    from fedcondense.flower.rounds import AggregationError

    place = device_of(device or usual_device())
    if len(names) > 1:
        divides = (clients, partition, alpha, num_classes_per_partition, num_shards_per_partition)
        if divides != _UNDIVIDED:
            raise SettingError(
                f"{len(names)} DATA are a client each, which nothing divides; name one DATA, or leave out --clients, "
                "--partition and what these take"
            )
        loaded, held = load_sites(names, data_root, size, skip_broken)
        train, test = (part.to(place) for part in loaded)
    else:
        train, test = (part.to(place) for part in load_data(names[0], data_root, size, skip_broken))
        rule = given(
            num_classes_per_partition=num_classes_per_partition, num_shards_per_partition=num_shards_per_partition
        )
        held = split(train, clients, partition, alpha=alpha, seed=seed, **rule)
    wanted = given(objective=objective, parametrization=parametrization, network=network, steps=steps, start=start)
    wanted |= given(codec=codec, budget=None if budget is None else read_budget(budget).nbytes)
    if budget is not None:  # the rule chooses what nobody names
        wanted |= {"parametrization": parametrization or ""}
    if steps is not None and steps < 1:
        raise SettingError(f"{steps} steps; give 1 or more, or leave them to the objective's recipe")
    chosen = given(
        rows=None if rows is None else [row.strip() for row in rows.split(",") if row.strip()], min_records=min_records
    )
    with logged(log), reporting("federation", parts=True) as update:

        def follow(now: FederationProgress) -> None:
            update(now.done, now.detail, now.label)

        try:
            result = run_federation(
                train,
                test,
                held,
                asked=Condense(ipc=ipc, seed=seed, **wanted),
                measured=Measured(seeds=tuple(range(seeds))),
                output=Output(output, resume, overwrite),
                progress=follow,
                **chosen,
            )
        except AggregationError as error:
            raise DataError(f"no federation: {error}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"{output} keeps what is done; go on with: {invocation('--resume')}") from None
    written = _record(output, result.to_dict())
    emit(written | {"output": output}, _text(written), form)
    wrote = dict.fromkeys(path if path.parent == output else path.parent for path in result.paths)
    joined = output / "joined.safetensors"
    own = names[0] if ":" in names[0] else None
    same = typed(data=own, size=size, skip_broken=skip_broken, data_root=data_root, plugin=plugin)
    then: list[str | Path] = ["evaluate", joined, *same]
    if len(names) > 1:
        then = ["show", output]
    finish([*wrote, _report(output)], then if joined.exists() else None)


@command
def report(
    directory: Annotated[Path, typer.Argument(metavar="FOLDER")],
    refused: Annotated[bool, typer.Option("--refused", help="Show the images that screens left out, too.")] = False,
    form: Output = Format.text,
) -> None:
    """Build the HTML report of the federation in FOLDER anew: one file, no scripts, no requests.

    JSON keys: `output`.
    """
    path = _report(directory, refused)
    emit({"output": path}, _text(_read(directory)), form)
    joined = directory / "joined.safetensors"
    finish([path], ["show", joined, "--output", free(joined.with_suffix(".png"))] if joined.exists() else None)


def _check_folder(folder: Path, resume: bool, overwrite: bool) -> None:
    """Refuse a folder that holds a run, unless it may go on or be deleted, or one that cannot be written."""
    if (folder / "result.json").exists() and not (resume or overwrite):
        raise OutputError(
            f"{folder} holds a run; pass --resume to go on, --overwrite to delete it, or choose another folder"
        )
    if overwrite and (folder / "result.json").exists() and "settings" not in _read(folder):
        raise OutputError(f"{folder / 'result.json'} is no run's; choose another folder")
    check_output_folder(folder, RUN)


def _record(folder: Path, result: Mapping[str, Any]) -> dict[str, Any]:
    """Add the command to the result, in the file too; return what the file holds."""
    from fedcondense.flower.run_folder import RunFolder

    typed = invocation().replace(" --resume", "").replace(" --overwrite", "")
    run = RunFolder(folder)
    run.write_result(jsonable({**result, "command": typed}))
    return run.read_result()


def _report(folder: Path, shows_refused: bool = False) -> Path:
    from fedcondense.report.page import write_report

    return write_report(folder, shows_refused=shows_refused)


def _read(folder: Path) -> dict[str, Any]:
    from fedcondense.report.page import read_result

    return read_result(folder)


def _text(result: Mapping[str, Any]) -> str:
    """Return the rows as a table, and what follows from them in words."""
    from fedcondense.report.page import read_rows, said_of, table

    rows = read_rows(result)
    failed = [f"This run is not done: {result['error']}"] if result.get("error") else []
    return "\n".join([columns(table(rows)), "", *failed, *said_of(result, rows)])
