"""The sweeps: `sweep table | parametrizations | architectures | sensitivity | scaling`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.sets import DataName
from fedcondense.cli.terminal import (
    DataRoot,
    Device,
    Format,
    Output,
    Plugin,
    Precisely,
    Precision,
    check_folder,
    command,
    emit,
    finish,
    invocation,
    note,
    pick_device,
    progress,
    set_up,
    warn_of_slow,
)
from fedcondense.errors import SettingError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fedcondense.sweeps import Cell, Done, Line, Place, Row, Workers

_EACH = """DIR gets `table.md`, `table.csv`, `figure.png`, a file a cell (`cells/`) and each set (`sets/`). A sweep
that was killed goes on when the same command is given again. Exit code 1: some cells failed, and their rows say why.

JSON keys: `rows`, each with `objective`, `parametrization`, `data`, `network`, `test_network`, `ipc` (null: all real
data), `nbytes`, `accuracy` (percent) and `accuracy_std` (over sets and networks; null: nothing, or one, was measured),
`sets`, `networks`, `steps`, `cpu_seconds` (a set), `lrs` and `ars` (0 to 100), `varied` and `value` (sensitivity),
`train_accuracy`, `hard_accuracy`, `plain_accuracy`, `warnings` (texts), `error`; `conclusions` (texts), `cells` and
`failed` (their numbers), `output`."""

app = typer.Typer(
    name="sweep",
    help="Compare objectives, parametrizations, networks and settings, beside real images of as many bytes.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_to(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app)


class RecipeName(StrEnum):
    """Which of an objective's recipes is run."""

    tuned = "tuned"
    published = "published"


@dataclass(frozen=True)
class Sweeping:
    """The options that all sweeps have."""

    output: Annotated[Path, typer.Option(help="The folder of the sweep; what it holds already is not done again.")]
    sets: Annotated[int, typer.Option(help="Sets a row, from seed 0 on.")] = 3
    networks: Annotated[int, typer.Option(help="Networks that are trained on each set.")] = 2
    network: Annotated[str | None, typer.Option(help="Such as convnet3-w32; default: as the image size asks.")] = None
    controls: Annotated[
        str | None, typer.Option(help="Selections of real images, by commas, or none; default: all, or the usual.")
    ] = None
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="published: optimizer, schedule, source, start and steps at 10 images per class, where there is one."
        ),
    ] = RecipeName.tuned
    steps: Annotated[int | None, typer.Option(help="Optimisation steps of each set; default: the recipe's.")] = None
    budget: Annotated[float | None, typer.Option(help="CPU seconds a set, instead of steps: a few are timed.")] = None
    evaluation_steps: Annotated[int | None, typer.Option(help="Training steps of a network; default: 400.")] = None
    scores: Annotated[bool, typer.Option("--scores", help="Add LRS and ARS: trains three times as much.")] = False
    workers: Annotated[int, typer.Option(help="Cells side by side, in processes of one thread.")] = 1
    so_far: Annotated[bool, typer.Option("--so-far", help="The tables of what the folder holds; compute nothing.")] = (
        False
    )
    ray: Annotated[str | None, typer.Option(help="Cells as tasks of a Ray cluster: auto, local, ray://HOST.")] = None
    data_root: DataRoot = None
    plugin: Plugin = None
    device: Device = None
    precision: Precisely = Precision.float32
    form: Output = Format.text


def _sweep(function: Callable[..., None]) -> None:
    """Make a command of a function whose last parameter is a `Sweeping`: its options become the command's."""
    hints = typing.get_type_hints(function, include_extras=True) | typing.get_type_hints(Sweeping, include_extras=True)
    own = list(inspect.signature(function).parameters.values())[:-1]
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=inspect.Parameter.empty if field.default is MISSING else field.default,
        )
        for field in fields(Sweeping)
    ]

    @functools.wraps(function)
    def called(**options: Any) -> None:
        common = Sweeping(**{field.name: options.pop(field.name) for field in fields(Sweeping)})
        _check(common)
        set_up(threads=1, plugins=common.plugin)
        warn_of_slow(common.precision)
        function(**options, common=common)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared
    guarded = command(called)
    guarded.__signature__ = inspect.Signature([p.replace(annotation=hints[p.name]) for p in parameters])  # type: ignore[attr-defined]
    guarded.__annotations__ = {p.name: hints[p.name] for p in parameters}
    guarded.__doc__ = f"{inspect.getdoc(function)}\n\n{_EACH}"
    example = {"table": "digits --objectives dm,dsa --ipc 1,10", "scaling": "digits --ipc 1,10,50"}
    name = function.__name__
    app.command(name, epilog=f"Example: fedcondense sweep {name} {example.get(name, 'digits')} --output runs/{name}")(
        guarded
    )


Objective = Annotated[str | None, typer.Option(help="Default: mmd-ridge.")]
Ipc = Annotated[int, typer.Option(help="Images per class whose bytes a set may take.")]
Ipcs = Annotated[str, typer.Option("--ipc", help="Images per class whose bytes a set may take, by commas.")]


@_sweep
def table(
    names: Annotated[list[str], typer.Argument(metavar="DATA...")],
    objectives: Annotated[str | None, typer.Option(help="By commas; default: all.")] = None,
    parametrization: Annotated[str, typer.Option(help="How their images are stored.")] = "pixels",
    ipc: Ipcs = "1,10",
    *,
    common: Sweeping,
) -> None:
    """Compare objectives on each DATA at each number of images per class, with real images of as many bytes."""
    from fedcondense.objectives import OBJECTIVES
    from fedcondense.sweeps import figures, grids

    methods = _names("objective", objectives, OBJECTIVES)
    if numbers := [name for name in names if name.isdecimal()]:
        raise SettingError(f"no data set is called {numbers[0]!r}; lists go by commas: --ipc 1,10")
    bases = [_base(name, common, parametrization=parametrization) for name in names]
    lines = grids.table(bases, methods, _numbers(ipc), _controls(common), common.sets)
    _finish(lines, common, figures.by_method)


@_sweep
def parametrizations(
    name: DataName,
    names: Annotated[str | None, typer.Option("--parametrizations", help="By commas; default: all.")] = None,
    objective: Objective = None,
    ipc: Ipcs = "1,10",
    *,
    common: Sweeping,
) -> None:
    """Compare the ways to store the images of one objective, at equal bytes."""
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.sweeps import figures, grids

    stores = _names("parametrization", names, PARAMETRIZATIONS)
    base = _base(name, common, objective)
    lines = grids.parametrizations(base, stores, _numbers(ipc), _controls(common), common.sets)
    _finish(lines, common, figures.by_method)


@_sweep
def architectures(
    name: DataName,
    made_with: Annotated[str | None, typer.Option(help="Networks that condense, by commas.")] = None,
    tested_with: Annotated[str | None, typer.Option(help="Networks that are tested, by commas: mlp,resnet18.")] = None,
    objective: Objective = None,
    parametrization: Annotated[str, typer.Option(help="How images are stored.")] = "pixels",
    ipc: Ipc = 10,
    *,
    common: Sweeping,
) -> None:
    """Condense with some networks and test with others; by default with --network in all its norms."""
    from fedcondense.networks import NETWORKS, parts
    from fedcondense.sweeps import figures, grids, tables

    base = _base(name, common, objective, parametrization=parametrization, ipc=ipc)
    network = base.making.network
    variants = ",".join(other for other in NETWORKS if f"{other}-".startswith(f"{network}-"))
    makers, testers = (_names("network", text or variants, NETWORKS, parts) for text in (made_with, tested_with))
    base = replace(base, measuring=replace(base.measuring, test_networks=tuple(testers)))
    lines = grids.architectures(base, makers, _controls(common, "random"), common.sets)
    _finish(lines, common, figures.by_network, head=tables.matrix)


@_sweep
def sensitivity(
    name: DataName,
    vary: Annotated[str | None, typer.Option(help="By commas; default: lr, steps, seed and the real batch.")] = None,
    objective: Objective = None,
    parametrization: Annotated[str, typer.Option(help="How images are stored.")] = "pixels",
    ipc: Ipc = 10,
    *,
    common: Sweeping,
) -> None:
    """Vary one setting at a time around the recipe: step size, steps, real batch (`per_class`), seeds."""
    from fedcondense.sweeps import figures, grids

    base = _base(name, common, objective, parametrization=parametrization, ipc=ipc)
    if common.budget is not None:  # the centre: other steps are multiples of it
        centre = grids.Line((base,), base.making.network)
        base = _chosen([centre], common)[0].cells[0]
        if common.so_far and base.making.tuning.steps is None:
            raise SettingError(f"{common.output} keeps no steps of this budget; leave --so-far out to time them")
        base = replace(base, making=replace(base.making, tuning=replace(base.making.tuning, budget=None)))
    batch = [factor for factor in grids.factors_of(base.making.method) if factor == "per_class"]
    factors = ["lr", "steps", *batch, "seed"] if vary is None else _split(vary)
    lines = grids.sensitivity(base, factors, _controls(common, "random"), common.sets)
    _finish(lines, common, figures.by_factor)


@_sweep
def scaling(
    name: DataName,
    objective: Objective = None,
    parametrization: Annotated[str, typer.Option(help="How images are stored.")] = "pixels",
    ipc: Ipcs = "1,10,50,200,1000",
    *,
    common: Sweeping,
) -> None:
    """Compare distilled with real images from one image per class to a thousand, and say from where it does not pay."""
    from fedcondense.sweeps import conclusions, figures, grids

    base = _base(name, common, objective, parametrization=parametrization)
    lines = grids.scaling(base, _numbers(ipc), _controls(common, "random,k-means"), common.sets)
    _finish(lines, common, figures.by_ipc, said=conclusions)


def _base(
    name: str, common: Sweeping, objective: str | None = None, *, parametrization: str = "pixels", ipc: int = 1
) -> Cell:
    """Check what the options name, and return a cell from which a grid makes the others."""
    from fedcondense.errors import look_up
    from fedcondense.networks import default_network, parts
    from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.sweeps.cells import data_of
    from fedcondense.sweeps.grids import Cell, Making, Measuring, Tuning
    from fedcondense.training.fit import Fit

    train, test = data_of(name, _place(common))
    network = common.network or default_network(train.spec.shape)
    parts(network)
    look_up("parametrization", parametrization, PARAMETRIZATIONS)
    look_up("objective", objective or DEFAULT_OBJECTIVE, OBJECTIVES)
    tuning = Tuning(steps=common.steps, recipe=common.recipe.value, budget=common.budget)
    making = Making(
        name,
        objective or DEFAULT_OBJECTIVE,
        ipc,
        parametrization=parametrization,
        network=network,
        tuning=tuning,
        precision=common.precision.value,
        fingerprint=train.fingerprint,
    )
    fit = Fit() if common.evaluation_steps is None else Fit(steps=common.evaluation_steps)
    return Cell(making, Measuring((network,), common.networks, fit, common.scores, test.fingerprint))


def _check(common: Sweeping) -> None:
    """Refuse numbers that cannot work and a folder that cannot be written, before any work."""
    for name in ("sets", "networks", "workers"):
        if getattr(common, name) < 1:
            raise SettingError(f"{getattr(common, name)} {name}; needed: 1 or more")
    if common.budget is not None and common.steps is not None:
        raise SettingError("--budget chooses the steps; leave --steps out, or --budget")
    if common.budget is not None and not common.budget > 0:
        raise SettingError(f"a budget of {common.budget:g} CPU seconds; needed: more than 0")
    if common.ray is not None and common.workers > 1:
        raise SettingError("--ray and --workers both say where cells are computed; leave one out")
    check_folder(common.output)


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _names(
    kind: str, text: str | None, known: Mapping[str, Any], find: Callable[[str], Any] | None = None
) -> list[str]:
    """Return the names in a list by commas, or all of them; `find` refuses those that are not known."""
    from fedcondense.errors import look_up

    names = list(known) if text is None else list(dict.fromkeys(_split(text)))
    for name in names:
        (find or partial(look_up, kind, known=known))(name)
    if not names:
        raise SettingError(f"no {kind} is named; give some by commas, such as {','.join(list(known)[:2])}")
    return names


def _numbers(text: str) -> list[int]:
    numbers = list(dict.fromkeys(_split(text)))
    if not numbers or not all(number.isdecimal() and int(number) for number in numbers):
        raise SettingError(f"--ipc {text}; needed: whole numbers from 1 by commas, such as 1,10")
    return [int(number) for number in numbers]


def _controls(common: Sweeping, default: str | None = None) -> list[str]:
    """Return the selections to set beside; ``none`` for none of them."""
    from fedcondense.sets.selection import SELECTIONS

    text = common.controls or default
    return [] if text == "none" else _names("selection", text, SELECTIONS)


def _place(common: Sweeping) -> Place:
    from fedcondense.sweeps import Place

    root = None if common.data_root is None else str(common.data_root)
    return Place(root, pick_device(common.device))


def _workers(common: Sweeping) -> Workers:
    from fedcondense.sweeps import Here, Processes, Ray

    start = partial(set_up, 1, common.plugin)
    if common.ray is not None:
        return Ray(common.ray, start, gpus=1.0 if pick_device(common.device).startswith("cuda") else 0.0)
    return Here() if common.workers == 1 else Processes(common.workers, start)


def _finish(
    lines: Sequence[Line],
    common: Sweeping,
    draw: Callable[[Sequence[Row]], Figure],
    *,
    head: Callable[[Sequence[Row]], str] | None = None,
    said: Callable[[Sequence[Row]], list[str]] | None = None,
) -> None:
    """Compute what the folder lacks, write the table and the figure, and print the table."""
    from fedcondense.files import write_file
    from fedcondense.sweeps import finished, read, run, to_csv, to_markdown

    place, workers = _place(common), _workers(common)
    with progress("sweep") as update:

        def follow(now: Done) -> None:
            last = "" if now.last is None else f", {now.last.making.data} {now.last.making.method}"
            ready = now.done - now.found
            update(ready / max(1, now.cells - now.found), f"{now.done} of {now.cells} cells{last}")

        if common.budget is not None:
            update(0.0, "timing some steps")
        try:
            chosen = _chosen(lines, common)
            if common.so_far:
                chosen, outcomes = finished(chosen, common.output)
            else:
                outcomes = run(chosen, common.output, place=place, workers=workers, progress=follow)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"{common.output} keeps the cells that are done; go on with: {invocation()}"
            ) from None
    if not chosen:
        raise SettingError(f"{common.output} holds no cell of this sweep; leave --so-far out to compute them")
    rows = read(chosen, outcomes)
    texts = [] if said is None else said(rows)
    markdown = ("" if head is None else f"{head(rows)}\n\n") + to_markdown(rows, texts)
    figure = common.output / "figure.png"
    for path, text in ((common.output / "table.md", markdown), (common.output / "table.csv", to_csv(rows))):
        write_file(path, text.encode(), overwrite=True)
    write_file(figure, _png(draw(rows)), overwrite=True)
    failed = sum("error" in outcome for outcome in outcomes.values())
    result = {
        "rows": [row.to_dict() for row in rows],
        "conclusions": texts,
        "cells": len(outcomes),
        "failed": failed,
        "output": common.output,
    }
    emit(result, markdown.rstrip(), common.form)
    finish([common.output / "table.md", common.output / "table.csv", figure], _next(chosen, rows, common.output))
    if failed:
        note(f"{failed} of {len(outcomes)} cells failed; their rows say why, and the same command tries them again")
        raise typer.Exit(1)


def _chosen(lines: Sequence[Line], common: Sweeping) -> list[Line]:
    """Return the lines with the steps that their budget buys, if they name one."""
    from fedcondense.sweeps import with_budget, with_kept_budget

    if common.so_far:
        return with_kept_budget(lines, common.output)
    return with_budget(lines, common.output, place=_place(common), workers=_workers(common))


def _next(lines: Sequence[Line], rows: Sequence[Row], folder: Path) -> list[str | Path]:
    """Return the command that shows a set of the best row."""
    from fedcondense.sweeps.cells import set_path

    best = max(zip(rows, lines, strict=True), key=lambda pair: (pair[0].is_distilled, pair[0].accuracy or 0.0))
    paths = [set_path(folder, cell.making) for cell in best[1].cells]
    made = next((path for path in paths if path.exists()), paths[0])
    return ["show", made, "--output", folder / "best.png"]


def _png(figure: Figure) -> bytes:
    import io

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150)
    return buffer.getvalue()
