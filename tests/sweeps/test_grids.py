"""Which cells a sweep has: equal bytes beside each other, sets shared, one factor at a time."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fedcondense.errors import SettingError
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.sets.selection import SELECTIONS
from fedcondense.sweeps.grids import (
    ALL_REAL,
    Cell,
    EvaluationPlan,
    SetRecipe,
    Tuning,
    architectures,
    factors_of,
    objective_and_recipe,
    parametrizations,
    scaling,
    sensitivity,
    table,
)

BASE = Cell(SetRecipe("digits", "dm", ipc=2, network="convnet2-w32"), EvaluationPlan(("convnet2-w32",)))
SCORED = replace(BASE, measuring=replace(BASE.measuring, scores=True))


def test_a_table_has_each_control_and_objective_at_each_size_with_as_many_sets() -> None:
    lines = table([BASE], ["dm", "dsa"], [1, 10], ["random", "k-means"], sets=3)
    rows = [(line.cells[0].making.ipc, line.cells[0].making.method) for line in lines]
    assert rows == [(n, name) for n in (1, 10) for name in ("random", "k-means", "dm", "dsa")]
    assert all([cell.making.seed for cell in line.cells] == [0, 1, 2] for line in lines)


def test_controls_do_not_depend_on_what_condenses() -> None:
    """So a folder that holds them for one objective, network or step size holds them for all."""
    other = replace(BASE.making, network="mlp", parametrization="multi-formation", tuning=Tuning(steps=7))
    first, second = (
        table([base], [], [1], ["random"], sets=1)[0].cells for base in (BASE, replace(BASE, making=other))
    )
    assert first == second


def test_parametrizations_vary_nothing_else() -> None:
    lines = parametrizations(BASE, ["pixels", "multi-formation"], [2], [], sets=1)
    pixels, tiles = (line.cells[0] for line in lines)
    assert pixels == BASE
    assert replace(tiles, making=replace(tiles.making, parametrization="pixels")) == BASE


def test_a_matrix_makes_each_set_once_for_all_test_networks() -> None:
    base = replace(BASE, measuring=replace(BASE.measuring, test_networks=("convnet2-w32", "mlp", "convnet1-w16")))
    lines = architectures(base, ["convnet2-w32", "mlp"], ["random"], sets=2)
    assert len(lines) == 9
    assert len({cell for line in lines for cell in line.cells}) == 3 * 2
    assert {line.test_network for line in lines} == set(base.measuring.test_networks)


class TestSensitivity:
    def test_varies_one_factor_at_a_time_and_shares_the_centre(self) -> None:
        base = replace(BASE, making=replace(BASE.making, method="dsa"))
        lines = sensitivity(base, ["lr", "steps", "per_class"], [], sets=2)
        recipe = OBJECTIVES["dsa"].recipe
        values = {factor: [line.value for line in lines if line.varied == factor] for factor in ("lr", "steps")}
        assert values["lr"] == [recipe.lr * times for times in (0.25, 0.5, 1, 2, 4)]
        assert values["steps"] == [recipe.steps * times for times in (0.25, 0.5, 1, 2, 4)]
        assert [line.value for line in lines if line.varied == "per_class"] == [64, 128, 256, 512, 1024]
        assert len({cell for line in lines for cell in line.cells}) == (3 * 4 + 1) * 2

    def test_the_seeds_are_lines_of_sets_that_are_there(self) -> None:
        lines = sensitivity(BASE, ["lr", "seed"], [], sets=3)
        seeds = [line for line in lines if line.varied == "seed"]
        assert [line.value for line in seeds] == [0, 1, 2]
        assert {line.cells[0] for line in seeds} <= {
            cell for line in lines if line.varied == "lr" for cell in line.cells
        }

    def test_the_centre_is_what_the_tuning_says(self) -> None:
        base = replace(BASE, making=replace(BASE.making, tuning=Tuning(steps=4, lr=1.0)))
        assert [line.value for line in sensitivity(base, ["steps"], [], 1)] == [1, 2, 4, 8, 16]
        assert [line.value for line in sensitivity(base, ["lr"], [], 1)] == [0.25, 0.5, 1, 2, 4]

    def test_values_that_round_to_one_are_one_line(self) -> None:
        base = replace(BASE, making=replace(BASE.making, tuning=Tuning(steps=1)))
        assert [line.value for line in sensitivity(base, ["steps"], [], 1)] == [1, 2, 4]

    def test_a_factor_that_the_objective_lacks_is_refused_by_name(self) -> None:
        base = replace(BASE, making=replace(BASE.making, method="dm-ridge"))
        with pytest.raises(SettingError, match="no number 'per_class' to vary; it has: lr, steps, seed"):
            sensitivity(base, ["per_class"], [], sets=1)
        assert "per_class" in factors_of("dsa")
        assert "siamese" not in factors_of("dsa")


def test_scaling_goes_up_whatever_the_order() -> None:
    lines = scaling(BASE, [50, 1, 10, 1], ["random"], sets=1)
    assert [line.cells[0].making.ipc for line in lines] == [1, 1, 10, 10, 50, 50]


def test_scores_ask_for_networks_trained_on_all_real_data_once() -> None:
    lines = table([SCORED], ["dm", "dsa"], [1, 10], ["random"], sets=3)
    real = [line for line in lines if line.cells[0].making.method == ALL_REAL]
    assert len(real) == 1
    assert len(real[0].cells) == 1
    assert not [line for line in table([BASE], ["dm"], [1], [], 1) if line.cells[0].making.method == ALL_REAL]


class TestResolve:
    def test_tuning_changes_recipe_and_objective(self) -> None:
        tuning = Tuning(steps=3, lr=0.5, settings=(("per_class", 8),))
        objective, recipe = objective_and_recipe(replace(BASE.making, tuning=tuning))
        assert objective == DistributionMatching(per_class=8)
        assert (recipe.steps, recipe.lr) == (3, 0.5)
        assert recipe.source == OBJECTIVES["dm"].recipe.source

    def test_published_is_the_papers_recipe(self) -> None:
        _, recipe = objective_and_recipe(replace(BASE.making, tuning=Tuning(recipe="published")))
        assert recipe == DistributionMatching.published
        with pytest.raises(SettingError, match="no 'best' recipe; take 'tuned'"):
            objective_and_recipe(replace(BASE.making, tuning=Tuning(recipe="best")))

    def test_a_field_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(SettingError, match="per_clas"):
            objective_and_recipe(replace(BASE.making, tuning=Tuning(settings=(("per_clas", 8),))))


def test_no_method_is_called_by_name_in_the_library() -> None:
    """Only the random selection is: distilled sets are held against it."""
    from pathlib import Path

    import fedcondense.sweeps

    folder = Path(fedcondense.sweeps.__file__).parent
    text = "".join(path.read_text() for path in folder.glob("*.py") if path.name != "__init__.py")
    assert [name for name in (*OBJECTIVES, *SELECTIONS) if f'"{name}"' in text] == ["random"]
