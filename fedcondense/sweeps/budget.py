"""Budgets: as many steps as some CPU seconds buy, so that objectives of any price are compared at equal cost."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from fedcondense.checksums import dump_json
from fedcondense.condensing import prepare
from fedcondense.condensing.planning import make_trial
from fedcondense.errors import FedcondenseError
from fedcondense.files import write_file
from fedcondense.sweeps.cells import digest, meaning, read_json, stem
from fedcondense.sweeps.compute import LOCAL, Site, autocast_of, data_of
from fedcondense.sweeps.grids import Cell, SetRecipe, TableRow, objective_and_recipe
from fedcondense.sweeps.workers import Here, Workers

__all__ = ["pool_for", "steps_for", "with_budget", "with_kept_budget"]

_NEW = 0.5  # the share of a budget that meeting new draws of a pool may take
_FEWEST = 8  # draws of a pool that is made smaller
_TRIAL = 0.05  # the share of a budget that timing its steps may take
_WARM_UP_S = 5.0  # of a first trial that is not counted
_TRIED = (6, 50)  # steps that are timed, at least and at most


def with_budget(
    lines: Sequence[TableRow], folder: Path, *, site: Site = LOCAL, workers: Workers | None = None
) -> list[TableRow]:
    """Choose steps for the cells whose tuning names a budget and no steps, by timing a few steps of each kind once.

    A pool whose draws would take more than half of the budget is made smaller, to leave time for steps. The sets of a
    line get the same, which the folder keeps (``steps/*.json``): a resumed sweep has the same cells. Cells that cannot
    start keep no steps, and say why when they are run.
    """
    paths = _paths(lines, folder)
    missing = [kind for kind, path in paths.items() if read_json(path) is None]
    for number, timed in (workers or Here()).map(_time_steps, [(kind, site) for kind in missing]):
        if timed is not None:
            write_file(paths[missing[number]], dump_json(timed), overwrite=True)
    return with_kept_budget(lines, folder)


def with_kept_budget(lines: Sequence[TableRow], folder: Path) -> list[TableRow]:
    """As `with_budget`, of what the folder keeps already: nothing is timed."""
    kept = {kind: timed for kind, path in _paths(lines, folder).items() if (timed := read_json(path)) is not None}

    def chosen(cell: Cell) -> Cell:
        timed = kept.get(replace(cell.making, seed=0))
        if timed is None:
            return cell
        tuning = replace(cell.making.tuning, steps=timed["steps"], pool=timed.get("pool_size"))
        return replace(cell, making=replace(cell.making, tuning=tuning))

    return [replace(line, cells=tuple(map(chosen, line.cells))) for line in lines]


def _paths(lines: Sequence[TableRow], folder: Path) -> dict[SetRecipe, Path]:
    """Return where the steps of each kind of cell are kept whose tuning names a budget and no steps."""
    makings = [cell.making for line in lines for cell in line.cells]
    kinds = dict.fromkeys(replace(m, seed=0) for m in makings if m.tuning.budget and m.tuning.steps is None)
    return {kind: folder / "steps" / f"{stem(kind)}-{digest(meaning(kind))}.json" for kind in kinds}


class Timed(NamedTuple):
    """What the steps of a cell cost, in CPU seconds."""

    start: float  # before the first step, and what that one alone had to do; all experts, where there are some
    new: float  # a step on a draw that is met for the first time
    seen: float  # a step on a draw that came before
    pool: int  # how many different draws there are; 0: each is new
    trial: float  # finding this out


def _time_steps(making: SetRecipe, site: Site) -> dict[str, float | None] | None:
    """Return how many steps a budget buys, and what they were found to cost; None if there is nothing to time."""
    budget = making.tuning.budget or 0.0
    try:
        with autocast_of(making, site):
            timed = _trial(making, site, budget)
            if timed.trial < max(_WARM_UP_S, budget / 2):  # torch's start-up, once per process, is no cost of a cell
                timed = _trial(making, site, budget)
    except FedcondenseError:
        return None
    pool = pool_for(budget, start=timed.start, new=timed.new, pool=timed.pool)
    steps = steps_for(budget, start=timed.start, new=timed.new, seen=timed.seen, pool=pool)
    chosen = {"steps": steps, "pool_size": pool if pool < timed.pool else None}
    return chosen | {name: round(value, 5) for name, value in timed._asdict().items()}


def _trial(making: SetRecipe, site: Site, budget: float) -> Timed:
    """Take the first steps of a cell."""
    train = data_of(making.data, site).train
    objective, recipe = objective_and_recipe(making)
    began = time.process_time()
    network = making.network or None
    loop = prepare(train, making.ipc, objective, making.parametrization, network=network, recipe=recipe)
    start, times = time.process_time() - began, list[float]()
    pool, experts = make_trial(loop, time.process_time)
    start += experts
    least, most = _TRIED
    while len(times) < least or (len(times) < most and sum(times) < _TRIAL * budget):
        before = time.process_time()
        float(loop.step())
        times.append(time.process_time() - before)
    new = times[1] if pool else statistics.fmean(times[1:])
    seen = statistics.fmean(times[2:]) if pool else new
    return Timed(start + max(0.0, times[0] - new), new, seen, pool, time.process_time() - began)


def pool_for(budget: float, *, start: float, new: float, pool: int) -> int:
    """Return how many draws a pool should have: `pool`, or as many as half of what is left of the budget buys.

    Args:
        budget: Seconds per set.
        start: Seconds before the first step.
        new: Seconds of a step on a draw that is met for the first time.
        pool: How many different draws the recipe has; 0: each is new.

    >>> [pool_for(60, start=2, new=new, pool=96) for new in (0.1, 1, 30)], pool_for(60, start=2, new=1, pool=0)
    ([96, 29, 8], 0)
    """
    return min(pool, max(_FEWEST, int(_NEW * (budget - start) / new + 1e-9))) if new else pool


def steps_for(budget: float, *, start: float, new: float, seen: float, pool: int) -> int:
    """Return how many steps fit into a budget of seconds, at least one.

    Args:
        budget: Seconds per set.
        start: Seconds before the first step.
        new: Seconds of a step on a draw that is met for the first time.
        seen: Seconds of a step on a draw that came before.
        pool: How many different draws there are; 0: each is new.

    >>> steps_for(10, start=1, new=0.5, seen=0.1, pool=8), steps_for(10, start=1, new=0.5, seen=0.5, pool=0)
    (58, 18)
    >>> steps_for(1, start=3, new=0.5, seen=0.1, pool=8)
    1
    """
    left = budget - start
    steps = left / new
    if pool and steps > pool:
        steps = pool + (left - pool * new) / seen
    return max(1, int(steps + 1e-9))
