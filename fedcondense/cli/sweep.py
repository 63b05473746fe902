"""The sweeps: `sweep table | parametrizations | architectures | sensitivity | scaling`."""

from __future__ import annotations

import functools
import inspect
import typing
from collections.abc import Callable
from dataclasses import MISSING, fields, replace
from typing import Annotated, Any

import typer

from fedcondense.cli.sets import DataName
from fedcondense.cli.sweep_options import (
    Sweeping,
    base_cell,
    check_options,
    listed_controls,
    listed_names,
    listed_numbers,
    split_list,
)
from fedcondense.cli.sweep_run import finish_sweep, with_steps
from fedcondense.cli.terminal import command, set_up, warn_of_slow
from fedcondense.cli.usage import Command
from fedcondense.cli.values import Listed, Whole
from fedcondense.errors import SettingError

_EACH = """DIR gets `table.md`, `table.csv`, `figure.png`, a file per cell (`cells/`) and each set (`sets/`). A sweep
that was killed goes on when the same command is given again. Exit code 1: some cells failed, and their rows say why.

JSON keys: `rows`, each with `objective`, `parametrization`, `data`, `network`, `test_network`, `ipc` (null: all real
data), `nbytes`, `accuracy` (percent) and `accuracy_std` (over sets and networks; null: nothing, or one, was measured),
`sets`, `networks`, `steps`, `cpu_seconds` (a set), `lrs` and `ars` (0 to 100), `varied` and `value` (sensitivity),
`train_accuracy`, `hard_accuracy`, `plain_accuracy`, `warnings` (texts), `error`, `protocol`, `against`, `difference`
(points, paired by seed) and `difference_error` (standard error over sets), `peak_bytes`, `version` (of the code),
`setting`; `conclusions` (texts), `cells` and `failed` (their numbers), `output`."""

app = typer.Typer(
    name="sweep",
    help="Compare objectives, parametrizations, networks and settings, beside real images of as many bytes.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def add_to(parent: typer.Typer) -> None:
    """Add these commands to the command line."""
    parent.add_typer(app)


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
        check_options(common)
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
    app.command(
        name,
        cls=Command,
        epilog=f"Example: fedcondense sweep {name} {example.get(name, 'digits')} --output runs/{name}",
    )(guarded)


Objective = Annotated[str | None, typer.Option(help="Default: mmd-ridge.")]
Ipc = Annotated[int, typer.Option(parser=Whole(1, 10**6), help="Images per class whose bytes a set may take.")]
Ipcs = Annotated[
    str, typer.Option("--ipc", parser=Listed(), help="Images per class whose bytes a set may take, by commas.")
]


@_sweep
def table(
    names: Annotated[list[str], typer.Argument(metavar="DATA...")],
    objectives: Annotated[str | None, typer.Option(parser=Listed(), help="By commas; default: all.")] = None,
    parametrization: Annotated[str, typer.Option(help="How their images are stored.")] = "pixels",
    ipc: Ipcs = "1,10",
    *,
    common: Sweeping,
) -> None:
    """Compare objectives on each DATA at each number of images per class, with real images of as many bytes."""
    from fedcondense.objectives import OBJECTIVES
    from fedcondense.sweeps import figures, grids

    methods = listed_names("objective", objectives, OBJECTIVES)
    if numbers := [name for name in names if name.isdecimal()]:
        raise SettingError(f"no data set is called {numbers[0]!r}; lists go by commas: --ipc 1,10")
    bases = [
        base_cell(name, common, parametrization=parametrization, protocol=protocol)
        for name in names
        for protocol in split_list(common.protocol)
    ]
    lines = grids.table(bases, methods, listed_numbers(ipc), listed_controls(common), common.sets)
    finish_sweep(lines, common, figures.by_method)


@_sweep
def parametrizations(
    name: DataName,
    names: Annotated[
        str | None, typer.Option("--parametrizations", parser=Listed(), help="By commas; default: all.")
    ] = None,
    objective: Objective = None,
    ipc: Ipcs = "1,10",
    *,
    common: Sweeping,
) -> None:
    """Compare the ways to store the images of one objective, at equal bytes."""
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.sweeps import figures, grids

    stores = listed_names("parametrization", names, PARAMETRIZATIONS)
    base = base_cell(name, common, objective)
    lines = grids.parametrizations(base, stores, listed_numbers(ipc), listed_controls(common), common.sets)
    finish_sweep(lines, common, figures.by_method)


@_sweep
def architectures(
    name: DataName,
    made_with: Annotated[str | None, typer.Option(parser=Listed(), help="Networks that condense, by commas.")] = None,
    tested_with: Annotated[
        str | None, typer.Option(parser=Listed(), help="Networks that are tested, by commas: mlp,resnet18.")
    ] = None,
    objective: Objective = None,
    parametrization: Annotated[str, typer.Option(help="How images are stored.")] = "pixels",
    ipc: Ipc = 10,
    *,
    common: Sweeping,
) -> None:
    """Condense with some networks and test with others; by default with --network in all its norms."""
    from fedcondense.networks import NETWORKS, network_kinds
    from fedcondense.sweeps import figures, grids, tables

    base = base_cell(name, common, objective, parametrization=parametrization, ipc=ipc)
    network = base.making.network
    variants = ",".join(other for other in NETWORKS if f"{other}-".startswith(f"{network}-"))
    makers, testers = (
        listed_names("network", text or variants, NETWORKS, network_kinds) for text in (made_with, tested_with)
    )
    base = replace(base, measuring=replace(base.measuring, test_networks=tuple(testers)))
    lines = grids.architectures(base, makers, listed_controls(common, "random"), common.sets)
    finish_sweep(lines, common, figures.by_network, head=tables.matrix)


@_sweep
def sensitivity(
    name: DataName,
    vary: Annotated[
        str | None,
        typer.Option(
            parser=Listed(),
            help="By commas; default: lr, steps, seed, and per_class where the objective has it.",
        ),
    ] = None,
    objective: Objective = None,
    parametrization: Annotated[str, typer.Option(help="How images are stored.")] = "pixels",
    ipc: Ipc = 10,
    *,
    common: Sweeping,
) -> None:
    """Vary one setting at a time around the recipe: step size, steps, seeds, and numbers of the objective's own.

    Of those, `per_class` is how many records of a class a step of dm or dsa draws; the default objective draws none.
    """
    from fedcondense.sweeps import figures, grids

    base = base_cell(name, common, objective, parametrization=parametrization, ipc=ipc)
    if common.budget is not None:  # the centre: other steps are multiples of it
        centre = grids.TableRow((base,), base.making.network)
        base = with_steps([centre], common)[0].cells[0]
        if common.so_far and base.making.tuning.steps is None:
            raise SettingError(f"{common.output} keeps no steps of this budget; leave --so-far out to time them")
        base = replace(base, making=replace(base.making, tuning=replace(base.making.tuning, budget=None)))
    batch = [factor for factor in grids.factors_of(base.making.method) if factor == "per_class"]
    factors = ["lr", "steps", *batch, "seed"] if vary is None else split_list(vary)
    lines = grids.sensitivity(base, factors, listed_controls(common, "random"), common.sets)
    finish_sweep(lines, common, figures.by_factor)


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

    base = base_cell(name, common, objective, parametrization=parametrization)
    lines = grids.scaling(base, listed_numbers(ipc), listed_controls(common, "random,k-means"), common.sets)
    finish_sweep(lines, common, figures.by_ipc, said=conclusions)
