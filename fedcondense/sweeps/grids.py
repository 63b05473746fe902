"""What a sweep compares: a `Cell` is one set and how it is measured, a `TableRow` the cells that differ in the seed.

The grids are pure functions from base cells, whose seeds do not count, to lines. Nothing here knows a method by its
name: those in `OBJECTIVES`, `PARAMETRIZATIONS`, `NETWORKS` and `SELECTIONS` are all there is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from typing import Any

from fedcondense.contract import Objective, Recipe
from fedcondense.errors import SettingError, look_up
from fedcondense.objectives import OBJECTIVES
from fedcondense.training.fit import Fit

__all__ = [
    "ALL_REAL",
    "Cell",
    "EvaluationPlan",
    "SetRecipe",
    "TableRow",
    "Tuning",
    "architectures",
    "factors_of",
    "objective_and_recipe",
    "parametrizations",
    "scaling",
    "sensitivity",
    "table",
]

ALL_REAL = "all-real"
"""The method of cells whose networks are trained on all real data."""

_TIMES = (0.25, 0.5, 1, 2, 4)  # by which a sensitivity sweep multiplies a factor


@dataclass(frozen=True)
class Tuning:
    """What departs from an objective's own settings.

    Args:
        steps: Optimisation steps; None: the recipe's.
        lr: Step size; None: the recipe's.
        settings: Fields of the objective and their values.
        recipe: ``"tuned"``, or ``"published"`` for objectives that have such a recipe.
        budget: CPU seconds per set for which `with_budget` chose `steps` and `pool`; None: no budget.
        pool: Draws of the recipe's pool; None: the recipe's.
    """

    steps: int | None = None
    lr: float | None = None
    settings: tuple[tuple[str, float], ...] = ()
    recipe: str = "tuned"
    budget: float | None = None
    pool: int | None = None


@dataclass(frozen=True)
class SetRecipe:
    """How a set is made: equal values, equal sets.

    Args:
        data: A name that `load_data` knows.
        method: A name in `OBJECTIVES` or `SELECTIONS`, or `ALL_REAL`.
        ipc: Byte budget per class, counted in uncompressed images.
        seed: The set's root seed.
        parametrization: A name in `PARAMETRIZATIONS`; empty for a selection, which brings its own.
        network: The name in `NETWORKS` that condenses; empty for a selection.
        tuning: What departs from the objective's own settings.
        precision: What features are computed in: ``"float32"`` or ``"bfloat16"``.
        fingerprint: Of the real images; a folder of the same name may hold others tomorrow.
    """

    data: str
    method: str
    ipc: int = 1
    seed: int = 0
    parametrization: str = "pixels"
    network: str = ""
    tuning: Tuning = Tuning()
    precision: str = "float32"
    fingerprint: str = ""


@dataclass(frozen=True)
class EvaluationPlan:
    """How a set is measured.

    Args:
        test_networks: Names in `NETWORKS`; each is trained from scratch on the set.
        networks: How many of each, with seeds of their own in each set.
        fit: How they are trained.
        scores: Train them with hard labels and without augmentation, too.
        fingerprint: Of the test images.
    """

    test_networks: tuple[str, ...]
    networks: int = 2
    fit: Fit = Fit()
    scores: bool = False
    fingerprint: str = ""


@dataclass(frozen=True)
class Cell:
    """One set and what is measured on it."""

    making: SetRecipe
    measuring: EvaluationPlan


@dataclass(frozen=True)
class TableRow:
    """A row: the cells of several seeds, seen by one test network.

    Args:
        cells: One a set.
        test_network: One of their test networks.
        varied: The setting that a sensitivity sweep varies here; empty elsewhere.
        value: Its value.
    """

    cells: tuple[Cell, ...]
    test_network: str
    varied: str = ""
    value: float | None = None


def table(
    bases: Iterable[Cell], objectives: Iterable[str], ipc: Iterable[int], controls: Iterable[str], sets: int
) -> list[TableRow]:
    """Return a line for each data set, number of images per class, control and objective; bases have one data each."""
    lines, objectives, ipc, controls = [], list(objectives), list(ipc), list(controls)
    for base in bases:
        for n in ipc:
            lines += _controls(_made(base, ipc=n), controls, sets)
            lines += [line for name in objectives for line in _lines(_made(base, ipc=n, method=name), sets)]
        lines += _all_real(base)
    return lines


def parametrizations(
    base: Cell, names: Iterable[str], ipc: Iterable[int], controls: Iterable[str], sets: int
) -> list[TableRow]:
    """Return a line for each way to store the images of one objective, beside the controls of as many bytes."""
    lines, names, controls = [], list(names), list(controls)
    for n in ipc:
        lines += _controls(_made(base, ipc=n), controls, sets)
        lines += [line for name in names for line in _lines(_made(base, ipc=n, parametrization=name), sets)]
    return lines + _all_real(base)


def architectures(base: Cell, made_with: Iterable[str], controls: Iterable[str], sets: int) -> list[TableRow]:
    """Return a line for each network that condenses and each of the base's test networks: they share the sets."""
    lines = _controls(base, controls, sets)
    lines += [line for name in made_with for line in _lines(_made(base, network=name), sets)]
    return lines + _all_real(base)


def sensitivity(base: Cell, factors: Sequence[str], controls: Iterable[str], sets: int) -> list[TableRow]:
    """Return lines that vary one factor each around the base's own value.

    Args:
        base: Its objective's recipe, and what its tuning says, is the centre.
        factors: Some of ``"lr"`` and ``"steps"``, ``"seed"`` for a line each seed, and numeric fields of the objective:
            ``"per_class"``, the real batch, where it has one.
        controls: Selections to set beside it.
        sets: A line's, except for the factor ``"seed"``.

    Raises:
        SettingError: A factor that the objective does not have.
    """
    making = base.making
    objective, recipe = objective_and_recipe(making)
    lines = _controls(base, controls, sets)
    for factor in factors:
        if factor == "seed":
            for seed in range(sets):
                lines += [
                    TableRow((_made(base, seed=seed),), name, factor, seed) for name in base.measuring.test_networks
                ]
            continue
        centre = {"lr": recipe.lr, "steps": recipe.steps, **_numbers(objective)}.get(factor)
        if centre is None:
            known = ["lr", "steps", "seed", *_numbers(objective)]
            raise SettingError(f"{making.method} has no number {factor!r} to vary; it has: {', '.join(known)}")
        met = set()
        for times in _TIMES:
            value = max(1, round(centre * times)) if isinstance(centre, int) else centre * times
            if value in met:
                continue  # a quarter and a half of one step
            met.add(value)
            if times == 1:
                tuning = making.tuning  # the base itself, whose cells all factors share
            elif factor in ("lr", "steps"):
                tuning = replace(making.tuning, **{factor: value})  # type: ignore[arg-type]
            else:
                kept = tuple(s for s in making.tuning.settings if s[0] != factor)
                tuning = replace(making.tuning, settings=(*kept, (factor, value)))
            lines += [replace(line, varied=factor, value=value) for line in _lines(_made(base, tuning=tuning), sets)]
    return lines + _all_real(base)


def factors_of(method: str) -> list[str]:
    """Return the numeric fields of an objective: what a sensitivity sweep may vary beside steps and step size."""
    return list(_numbers(look_up("objective", method, OBJECTIVES)))


def _numbers(objective: Any) -> dict[str, int | float]:
    values = {f.name: getattr(objective, f.name) for f in fields(objective)} if is_dataclass(objective) else {}
    return {k: v for k, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def scaling(base: Cell, ipc: Iterable[int], controls: Iterable[str], sets: int) -> list[TableRow]:
    """Return lines for growing numbers of images per class, of one objective and of the controls."""
    lines, controls = [], list(controls)
    for n in sorted(set(ipc)):
        lines += _controls(_made(base, ipc=n), controls, sets) + _lines(_made(base, ipc=n), sets)
    return lines + _all_real(base)


def _made(base: Cell, **changes: Any) -> Cell:
    return replace(base, making=replace(base.making, **changes))


def _lines(base: Cell, sets: int) -> list[TableRow]:
    cells = tuple(_made(base, seed=seed) for seed in range(sets))
    return [TableRow(cells, name) for name in base.measuring.test_networks]


def _controls(base: Cell, names: Iterable[str], sets: int) -> list[TableRow]:
    plain = {"parametrization": "", "network": "", "tuning": Tuning()}  # none of them matters to a selection
    return [line for name in names for line in _lines(_made(base, method=name, **plain), sets)]


def _all_real(base: Cell) -> list[TableRow]:
    """Return what the label-robust score needs: networks trained on everything."""
    if not base.measuring.scores:
        return []
    making = replace(base.making, method=ALL_REAL, ipc=0, seed=0, parametrization="", network="", tuning=Tuning())
    return [TableRow((Cell(making, base.measuring),), name) for name in base.measuring.test_networks]


def objective_and_recipe(making: SetRecipe) -> tuple[Objective, Recipe]:
    """Return the objective and the recipe that a cell names.

    Raises:
        SettingError: An unknown name, a field that the objective lacks, or no such recipe.
    """
    tuning = making.tuning
    objective = look_up("objective", making.method, OBJECTIVES)
    if tuning.settings:
        try:
            objective = replace(objective, **dict(tuning.settings))  # type: ignore[type-var]
        except TypeError as error:
            raise SettingError(f"{making.method}: {error}; its settings: {objective!r}") from None
    recipe = getattr(objective, "recipe" if tuning.recipe == "tuned" else tuning.recipe, None)
    if not isinstance(recipe, Recipe):
        raise SettingError(f"{making.method} has no {tuning.recipe!r} recipe; take 'tuned'")
    source: Any = recipe.source
    pool = None if tuning.pool is None else partial(source, size=tuning.pool)
    changes = {"steps": tuning.steps, "lr": tuning.lr, "source": pool}
    return objective, replace(recipe, **{name: value for name, value in changes.items() if value is not None})  # type: ignore[arg-type]
