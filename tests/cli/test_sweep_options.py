"""What the options of a sweep name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedcondense.cli.sweep_options import (
    RecipeName,
    Sweeping,
    base_cell,
    check_options,
    listed_controls,
    listed_names,
    listed_numbers,
    site_of,
    workers_of,
)
from fedcondense.errors import SettingError
from fedcondense.sets.selection import SELECTIONS
from fedcondense.sweeps import Here, Processes


def test_lists_go_by_commas_once_each_in_their_order() -> None:
    assert listed_numbers(" 10, 1,10,") == [10, 1]
    assert listed_names("colour", "red , blue,red", {"blue": 0, "red": 1, "green": 2}) == ["red", "blue"]
    assert listed_names("colour", None, {"blue": 0, "red": 1}) == ["blue", "red"]


@pytest.mark.parametrize("text", ["", "1 10", "0", "-1", "1.5", "ten"])
def test_other_texts_are_no_numbers(text: str) -> None:
    with pytest.raises(SettingError, match="needed: whole numbers from 1 by commas, such as 1,10"):
        listed_numbers(text)


def test_a_name_that_is_unknown_and_a_list_of_none_are_refused() -> None:
    with pytest.raises(SettingError, match="no colour is called 'rad'; did you mean 'red'"):
        listed_names("colour", "rad", {"red": 0})
    with pytest.raises(SettingError, match="no colour is named; give some by commas, such as red"):
        listed_names("colour", ",", {"red": 0})


def test_controls_are_those_named_or_the_usual_or_all_or_none(tmp_path: Path) -> None:
    common = Sweeping(tmp_path)
    assert listed_controls(common) == list(SELECTIONS)
    assert listed_controls(common, "random") == ["random"]
    assert listed_controls(replace(common, controls="herding"), "random") == ["herding"]
    assert listed_controls(replace(common, controls="none"), "random") == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sets": 0}, "0 sets; needed: 1 or more"),
        ({"workers": 0}, "0 workers; needed: 1 or more"),
        ({"budget": 5.0, "steps": 5}, "--seconds chooses the steps"),
        ({"budget": float("nan")}, "--seconds nan; needed: more than 0"),
        ({"ray": "auto", "workers": 2}, "leave one out"),
    ],
)
def test_options_that_cannot_work_are_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    check_options(Sweeping(tmp_path))
    with pytest.raises(SettingError, match=says):
        check_options(replace(Sweeping(tmp_path), **changes))


def test_a_base_cell_holds_what_was_asked_for_and_the_data_s_fingerprints(tmp_path: Path) -> None:
    common = Sweeping(tmp_path, steps=7, recipe=RecipeName.published, evaluation_steps=9, scores=True)
    cell = base_cell("digits", common, "dm", ipc=3)
    assert (cell.making.method, cell.making.ipc, cell.making.network) == ("dm", 3, "convnet2-w32")
    assert (cell.making.tuning.steps, cell.making.tuning.recipe) == (7, "published")
    assert (cell.measuring.fit.steps, cell.measuring.scores, cell.measuring.networks) == (9, True, 2)
    assert cell.making.fingerprint != cell.measuring.fingerprint
    with pytest.raises(SettingError, match="no objective is called 'dn'"):
        base_cell("digits", common, "dn")


def test_a_size_makes_other_data_of_a_sweep(tmp_path: Path) -> None:
    small, large = (base_cell("digits", Sweeping(tmp_path, size=size, device="cpu")).making for size in (None, 16))
    assert small.fingerprint != large.fingerprint


def test_cells_are_computed_here_unless_there_are_workers(tmp_path: Path) -> None:
    common = Sweeping(tmp_path, data_root=tmp_path, size=16, device="cpu")
    assert site_of(common) == (str(tmp_path), "cpu", 16)
    assert isinstance(workers_of(common), Here)
    side_by_side = workers_of(replace(common, workers=3))
    assert isinstance(side_by_side, Processes)
    assert side_by_side.number == 3
