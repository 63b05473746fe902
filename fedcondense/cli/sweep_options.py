"""The options that all sweeps share, and what they name: cells, controls, workers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fedcondense.cli.outputs import SWEEP, check_output_folder
from fedcondense.cli.sets import Seeds
from fedcondense.cli.terminal import DataRoot, Device, Format, Output, Plugin, Precisely, Precision, Size, set_up
from fedcondense.cli.values import Listed, Number, Whole
from fedcondense.errors import SettingError
from fedcondense.machine import usual_device

if TYPE_CHECKING:
    from fedcondense.sweeps import Cell, Site, Workers

__all__ = [
    "RecipeName",
    "Sweeping",
    "base_cell",
    "check_options",
    "listed_controls",
    "listed_names",
    "listed_numbers",
    "site_of",
    "split_list",
    "workers_of",
]


class RecipeName(StrEnum):
    """Which of an objective's recipes is run."""

    tuned = "tuned"
    published = "published"


@dataclass(frozen=True)
class Sweeping:
    """The options that all sweeps have."""

    output: Annotated[Path, typer.Option("-o", "--output", help="The folder of the sweep; what it holds is kept.")]
    sets: Annotated[int, typer.Option(parser=Whole(1, 1000), help="Sets per row, from seed 0 on.")] = 3
    seeds: Seeds = 2
    network: Annotated[str | None, typer.Option(help="Such as convnet3-w32; default: as the image size asks.")] = None
    controls: Annotated[
        str | None,
        typer.Option(
            parser=Listed(), help="Selections of real images, by commas, or none; default: all, or the usual."
        ),
    ] = None
    recipe: Annotated[
        RecipeName,
        typer.Option(
            help="published: optimizer, schedule, source, start and steps at 10 images per class, where there is one."
        ),
    ] = RecipeName.tuned
    steps: Annotated[
        int | None,
        typer.Option(parser=Whole(1, 10**9), help="Optimisation steps of each set; default: the recipe's."),
    ] = None
    budget: Annotated[
        float | None,
        typer.Option(
            "--seconds",
            parser=Number(above=True, most=1e7),
            help="Of a CPU per set, instead of steps: a few are timed.",
        ),
    ] = None
    protocol: Annotated[
        str,
        typer.Option(parser=Listed(), help="short, or published, 10 to 250 times as long; for table both by commas."),
    ] = "short"
    evaluation_steps: Annotated[
        int | None,
        typer.Option(parser=Whole(1, 10**9), help="Training steps of a network; default: the protocol's, 400."),
    ] = None
    against: Annotated[
        str | None, typer.Option(help="The row to which the others' differences are told; default: the first.")
    ] = None
    scores: Annotated[bool, typer.Option("--scores", help="Add LRS and ARS: trains three times as much.")] = False
    workers: Annotated[
        int, typer.Option(parser=Whole(1, 1024), help="Cells side by side, in processes of one thread.")
    ] = 1
    so_far: Annotated[bool, typer.Option("--so-far", help="The tables of what the folder holds; compute nothing.")] = (
        False
    )
    ray: Annotated[str | None, typer.Option(help="Cells as tasks of a Ray cluster: auto, local, ray://HOST.")] = None
    data_root: DataRoot = None
    size: Size = None
    plugin: Plugin = None
    device: Device = None
    precision: Precisely = Precision.float32
    form: Output = Format.text


def base_cell(
    name: str,
    common: Sweeping,
    objective: str | None = None,
    *,
    parametrization: str = "pixels",
    ipc: int = 1,
    protocol: str | None = None,
) -> Cell:
    """Check what the options name, and return a cell from which a grid makes the others."""
    from fedcondense.errors import look_up
    from fedcondense.networks import default_network, network_kinds
    from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.sweeps.compute import data_of
    from fedcondense.sweeps.grids import Cell, EvaluationPlan, SetRecipe, Tuning
    from fedcondense.training.protocols import protocol_named

    under = protocol_named(protocol or common.protocol)
    train, test = data_of(name, site_of(common))
    network = common.network or default_network(train.spec.shape)
    network_kinds(network)
    look_up("parametrization", parametrization, PARAMETRIZATIONS)
    look_up("objective", objective or DEFAULT_OBJECTIVE, OBJECTIVES)
    tuning = Tuning(steps=common.steps, recipe=common.recipe.value, budget=common.budget)
    making = SetRecipe(
        name,
        objective or DEFAULT_OBJECTIVE,
        ipc,
        parametrization=parametrization,
        network=network,
        tuning=tuning,
        precision=common.precision.value,
        fingerprint=train.fingerprint,
    )
    fit = under.recipe
    if common.evaluation_steps is not None:
        fit = replace(fit, steps=common.evaluation_steps, epochs=0)
    tested = common.network or under.network(train.spec.shape)
    return Cell(making, EvaluationPlan((tested,), common.seeds, fit, common.scores, test.fingerprint))


def check_options(common: Sweeping) -> None:
    """Refuse numbers that cannot work and a folder that cannot be written, before any work."""
    for name in ("sets", "seeds", "workers"):
        if getattr(common, name) < 1:
            raise SettingError(f"{getattr(common, name)} {name}; needed: 1 or more")
    if common.budget is not None and common.steps is not None:
        raise SettingError("--seconds chooses the steps; leave --steps out, or --seconds")
    if common.budget is not None and not common.budget > 0:
        raise SettingError(f"--seconds {common.budget:g}; needed: more than 0")
    if common.ray is not None and common.workers > 1:
        raise SettingError("--ray and --workers both say where cells are computed; leave one out")
    check_output_folder(common.output, SWEEP)


def split_list(text: str) -> list[str]:
    """Return the parts of a list by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def listed_names(
    kind: str, text: str | None, known: Mapping[str, Any], find: Callable[[str], Any] | None = None
) -> list[str]:
    """Return the names in a list by commas, or all of them; `find` refuses those that are not known."""
    from fedcondense.errors import look_up

    names = list(known) if text is None else list(dict.fromkeys(split_list(text)))
    for name in names:
        (find or partial(look_up, kind, known=known))(name)
    if not names:
        raise SettingError(f"no {kind} is named; give some by commas, such as {','.join(list(known)[:2])}")
    return names


def listed_numbers(text: str) -> list[int]:
    """Return the whole numbers in a list by commas."""
    numbers = list(dict.fromkeys(split_list(text)))
    if not numbers or not all(number.isdecimal() and int(number) for number in numbers):
        raise SettingError(f"--ipc {text}; needed: whole numbers from 1 by commas, such as 1,10")
    return [int(number) for number in numbers]


def listed_controls(common: Sweeping, default: str | None = None) -> list[str]:
    """Return the selections to set beside; ``none`` for none of them."""
    from fedcondense.sets.selection import SELECTIONS

    text = common.controls or default
    return [] if text == "none" else listed_names("selection", text, SELECTIONS)


def site_of(common: Sweeping) -> Site:
    """Return where data lie and cells are computed."""
    from fedcondense.arguments import device_of
    from fedcondense.sweeps import Site

    root = None if common.data_root is None else str(common.data_root)
    return Site(root, str(device_of(common.device or usual_device())), common.size)


def workers_of(common: Sweeping) -> Workers:
    """Return who computes the cells: this process, others, or a Ray cluster."""
    from fedcondense.arguments import device_of
    from fedcondense.sweeps import Here, Processes, Ray

    start = partial(set_up, 1, common.plugin)
    if common.ray is not None:
        return Ray(common.ray, start, gpus=float(device_of(common.device or usual_device()).type == "cuda"))
    return Here() if common.workers == 1 else Processes(common.workers, start)
