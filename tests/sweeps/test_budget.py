"""Steps for a budget: the closed form, and that the folder keeps what was chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import fedcondense.sweeps.budget as budgets
from fedcondense.data.images import Data
from fedcondense.networks import build
from fedcondense.objectives import OBJECTIVES
from fedcondense.sources.trajectories import Trajectories
from fedcondense.sweeps.budget import pool_for, steps_for, with_budget
from fedcondense.sweeps.compute import LOCAL
from fedcondense.sweeps.grids import Cell, EvaluationPlan, SetRecipe, Tuning, objective_and_recipe, table

COST = st.floats(0.001, 1)
BASE = Cell(
    SetRecipe("digits", "kip", network="convnet1-w16", tuning=Tuning(budget=0.3)), EvaluationPlan(("convnet1-w16",))
)


@given(st.floats(1, 100), COST, COST, COST, st.integers(0, 50))
def test_the_steps_fit_into_the_budget_and_one_more_would_not(
    budget: float, start: float, new: float, seen: float, pool: int
) -> None:
    def cost(steps: int) -> float:
        first = min(steps, pool) if pool else steps
        return start + first * new + (steps - first) * seen

    steps = steps_for(budget, start=start, new=new, seen=seen, pool=pool)
    assert cost(steps) <= budget * (1 + 1e-6) or steps == 1
    assert cost(steps + 1) > budget * (1 - 1e-6)


def test_a_budget_below_the_start_buys_one_step() -> None:
    assert steps_for(1, start=5, new=0.1, seen=0.1, pool=3) == 1


@given(st.floats(1, 100), COST, st.integers(0, 200))
def test_draws_of_a_pool_take_at_most_half_of_what_is_left(budget: float, new: float, pool: int) -> None:
    size = pool_for(budget, start=0.5, new=new, pool=pool)
    assert size <= pool
    assert size == pool or size <= 8 or size * new <= (budget - 0.5) / 2 + 1e-6
    assert size == pool or (size + 1) * new > (budget - 0.5) / 2 - 1e-6


def test_a_pool_that_a_budget_cannot_fill_is_made_smaller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_trial", lambda *_: budgets.Timed(start=0, new=1, seen=0.1, pool=96, trial=100))
    base = replace(BASE, making=replace(BASE.making, method="dm", tuning=Tuning(budget=60.0)))
    for _ in range(2):  # timed, and as the folder keeps it
        (line,) = with_budget(table([base], ["dm"], [1], [], sets=1), tmp_path)
        tuning = line.cells[0].making.tuning
        assert (tuning.pool, tuning.steps) == (30, 330)
    assert objective_and_recipe(line.cells[0].making)[1].source.keywords == {"size": 30}  # type: ignore[attr-defined]


def test_sets_of_a_line_get_equal_steps_which_the_folder_keeps(tmp_path: Path) -> None:
    lines = table([BASE], ["kip"], [1], ["random"], sets=3)
    chosen = with_budget(lines, tmp_path)
    steps = {cell.making.tuning.steps for cell in chosen[1].cells}
    assert len(steps) == 1
    number = steps.pop()
    assert number is not None
    assert number > 1
    assert chosen[0] == lines[0]  # a selection takes no steps
    assert with_budget(lines, tmp_path) == chosen
    (file,) = (tmp_path / "steps").iterdir()
    assert json.loads(file.read_text())["steps"] == number


def test_experts_are_paid_at_the_start_and_not_by_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that counts trained snapshots: four experts of ten each, whatever the steps meet."""
    clock = [0.0]
    extend = Trajectories._extend

    def counted(self: Trajectories, expert: int, kept: list[Tensor], wanted: int, data: Data) -> None:
        clock[0] += max(0, wanted - max(1, len(kept)))
        extend(self, expert, kept, wanted, data)

    monkeypatch.setattr(Trajectories, "_extend", counted)
    monkeypatch.setattr("fedcondense.sweeps.budget.time.process_time", lambda: clock[0])
    base = replace(BASE, making=replace(BASE.making, method="mtt", tuning=Tuning(budget=100.0)))
    timed = budgets._trial(base.making, LOCAL, 100.0)
    recipe = OBJECTIVES["mtt"].recipe
    source = recipe.source(lambda seed: build("convnet1-w16", (1, 8, 8), 10, seed), (), 10)
    assert isinstance(source, Trajectories)
    assert timed.start == source.experts * (source.latest + source.span)
    assert timed.new == timed.seen == 0
    assert timed.trial == source.latest + source.span


def test_steps_that_are_given_are_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "_trial", lambda *_: pytest.fail("timed"))
    given_steps = replace(BASE, making=replace(BASE.making, tuning=Tuning(steps=3, budget=1.0)))
    lines = table([given_steps], ["kip"], [1], [], sets=1)
    assert with_budget(lines, tmp_path) == lines


def test_cells_that_cannot_start_are_left_to_say_so_when_they_run(tmp_path: Path) -> None:
    making = replace(BASE.making, network="convnet4-w16")  # halves 8x8 to nothing
    lines = table([replace(BASE, making=making)], ["kip"], [1], [], sets=1)
    assert with_budget(lines, tmp_path) == lines
