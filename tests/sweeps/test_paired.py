"""Rows compared set by set, on numbers that were worked out by hand, and sets that share what is drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedcondense.errors import SettingError
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.sweeps import Cell, EvaluationPlan, SetRecipe, TableRow, Tuning, read, run, table, to_markdown
from fedcondense.sweeps.paired import Difference, difference, references
from fedcondense.training.fit import Fit

PLAN = EvaluationPlan(("net",), networks=2)


def row(method: str, *accuracies: list[float]) -> tuple[TableRow, dict[Cell, Any]]:
    cells = tuple(Cell(SetRecipe("data", method, seed=seed), PLAN) for seed in range(len(accuracies)))
    measured = [{"measured": {"net": {"accuracies": of_set}}} for of_set in accuracies]
    return TableRow(cells, "net"), dict(zip(cells, measured, strict=True))


def test_it_is_the_mean_over_sets_with_its_standard_error() -> None:
    """Means over networks are 61, 71, 81 and 60, 69, 78: apart by 1, 2, 3, of standard deviation 1."""
    mine, outcomes = row("mine", [60, 62], [70, 72], [80, 82])
    theirs, others = row("dm", [60, 60], [69, 69], [78, 78])
    found = difference(mine, theirs, outcomes | others)
    assert found == Difference(2.0, round(3**-0.5, 3))
    assert str(found) == "+2.0 ± 0.6"
    assert str(difference(theirs, mine, outcomes | others)) == "-2.0 ± 0.6"


def test_seeds_that_one_row_lacks_are_left_out_and_one_seed_has_no_error() -> None:
    mine, outcomes = row("mine", [60.0, 62.0], [70.0, 72.0])
    theirs, others = row("dm", [60.0, 60.0])
    assert difference(mine, theirs, outcomes | others) == Difference(1.0, None)
    assert difference(mine, mine, outcomes) is None
    failed = {cell: {"error": "does not fit"} for cell in theirs.cells}
    assert difference(mine, theirs, outcomes | failed) is None


@pytest.mark.parametrize(("mean", "error", "says"), [(0.5, 0.5, "+0.5 ± 0.5 (tie)"), (0.6, 0.5, "+0.6 ± 0.5")])
def test_a_difference_that_is_not_above_its_error_is_a_tie(mean: float, error: float, says: str) -> None:
    assert str(Difference(mean, error)) == says


def test_the_first_row_is_the_reference_unless_another_is_named() -> None:
    (random, _), (dm, _) = row("random", [1.0]), row("dm", [1.0])
    larger = replace(dm, cells=tuple(replace(c, making=replace(c.making, ipc=10)) for c in dm.cells))
    assert list(references([random, dm, larger], None).values()) == [random, larger]
    assert list(references([random, dm, larger], "dm").values()) == [dm, larger]
    with pytest.raises(SettingError, match="no row is called 'dn'; needed for --against: one of random, dm"):
        references([random, dm], "dn")


def test_two_names_of_one_objective_are_a_tie_at_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So networks, draws and test images are the same in cells of one seed, whatever the rows are called."""
    monkeypatch.setitem(OBJECTIVES, "twin", DistributionMatching())
    making = SetRecipe("digits", "dm", network="convnet1-w16", tuning=Tuning(steps=2))
    base = Cell(making, EvaluationPlan(("convnet1-w16",), networks=1, fit=Fit(steps=3)))
    lines = table([base], ["dm", "twin"], [1], [], sets=2)
    rows = read(lines, run(lines, tmp_path))
    assert [(row.difference, row.difference_error, row.against) for row in rows] == [(None, None, ""), (0, 0, "dm")]
    assert "+0.0 ± 0.0 (tie) to dm" in to_markdown(rows)
    assert all(row.version.startswith("0.") for row in rows)
    assert [row.setting["steps"] for row in rows] == [2, 2]
