from __future__ import annotations

import pytest

from fedcondense.errors import SettingError
from fedcondense.flower.comparison.rows import ROWS, row_of
from fedcondense.flower.strategies import STRATEGIES


@pytest.mark.parametrize("name", [*STRATEGIES, *ROWS])
def test_every_strategy_and_default_row_has_a_name(name: str) -> None:
    row = row_of(name)
    assert row.name == name
    assert row.entry is STRATEGIES[row.strategy]
    assert row.about["rounds"] == row.rounds >= 1


@pytest.mark.parametrize(
    ("name", "strategy", "rounds"),
    [("fedavg-7", "fedavg", 7), ("iterative-2", "iterative", 2), ("fedavg", "fedavg", 20)],
)
def test_what_starts_from_weights_takes_a_number_of_rounds(name: str, strategy: str, rounds: int) -> None:
    row = row_of(name)
    assert (row.strategy, row.rounds) == (strategy, rounds)
    assert row.about["label"].endswith(f", {rounds} rounds")


@pytest.mark.parametrize(
    "name",
    ["fedavg-0", "fedavg-x", "fedavg-", "one-shot-2", "ridge-1", "fedavg--1", "", "feature-statistics-equal-bytes"],
)
def test_other_names_are_refused_with_what_there_is(name: str) -> None:
    with pytest.raises(SettingError, match=r"no row is called .* NAME-N are N rounds of what starts from weights"):
        row_of(name)


def test_two_rows_of_ridge_differ_in_what_they_say() -> None:
    assert row_of("ridge").about["label"] == "ridge"
    assert row_of("ridge-equal-bytes").about["label"] == "ridge, equal bytes"
