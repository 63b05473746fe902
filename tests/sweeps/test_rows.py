"""Rows of outcomes that were written by hand: means, scores, and each warning where it belongs and nowhere else."""

from __future__ import annotations

import statistics
from dataclasses import replace
from typing import Any

import pytest

from fedcondense.sweeps.compute import Outcome
from fedcondense.sweeps.grids import ALL_REAL, Cell, EvaluationPlan, SetRecipe, TableRow, Tuning
from fedcondense.sweeps.rows import KEYS, Row, percent, read
from fedcondense.sweeps.scores import augmentation_robust_score, label_robust_score

MEASURING = EvaluationPlan(("net",), networks=2)
GOOD = ([80.0, 81.0], [79.0, 80.0])
WEAK = ([60.0, 61.0], [59.0, 60.0])


def outcome(accuracies: list[float], on_set: float = 100.0, nbytes: int = 1000, **more: Any) -> Outcome:
    measured: dict[str, list[float]] = {"accuracies": accuracies, "on_set": [on_set] * len(accuracies)}
    measured |= {name: [value] for name, value in more.items()}
    kept = {"nbytes": nbytes, "parametrization": "pixels", "steps": 5, "cpu_seconds": 2.0}
    return {**kept, "measured": {"net": measured}}


def table(budget: float | None = None, **rows: tuple[Outcome, ...]) -> dict[str, Row]:
    """Return the rows of outcomes, one a set, by method."""
    lines, outcomes = [], dict[Cell, Outcome]()
    for method, of_method in rows.items():
        name = method.replace("_", "-")
        making = SetRecipe("data", name, ipc=0 if name == ALL_REAL else 10, tuning=Tuning(budget=budget))
        cells = tuple(Cell(replace(making, seed=seed), MEASURING) for seed in range(len(of_method)))
        outcomes |= dict(zip(cells, of_method, strict=True))
        lines.append(TableRow(cells, "net"))
    return dict(zip(rows, read(lines, outcomes), strict=True))


def sets(accuracies: tuple[list[float], ...], **more: Any) -> tuple[Outcome, ...]:
    return tuple(outcome(of_set, **more) for of_set in accuracies)


class TestValues:
    def test_mean_and_deviation_are_over_sets_and_networks_together(self) -> None:
        row = table(dm=sets(GOOD))["dm"]
        assert row.accuracy == statistics.fmean([80, 81, 79, 80])
        assert row.accuracy_std == round(statistics.stdev([80, 81, 79, 80]), 3)
        assert (row.sets, row.networks, row.steps, row.cpu_seconds) == (2, 2, 5, 2.0)

    def test_one_network_has_no_deviation(self) -> None:
        row = table(dm=(outcome([80.0]),))["dm"]
        assert row.accuracy_std is None
        assert percent(row) == "80.0"

    def test_bytes_are_the_mean_over_sets(self) -> None:
        row = table(dm=(outcome([80.0], nbytes=1000), outcome([80.0], nbytes=1011)))["dm"]
        assert row.nbytes == 1006

    def test_the_keys_are_stable(self) -> None:
        wanted = "objective parametrization data network test_network ipc nbytes accuracy accuracy_std sets networks"
        wanted += " steps cpu_seconds lrs ars varied value train_accuracy hard_accuracy plain_accuracy warnings error"
        wanted += " protocol against difference difference_error peak_bytes version setting"
        assert wanted.split() == list(KEYS)
        assert list(table(dm=sets(GOOD))["dm"].to_dict()) == list(KEYS)

    def test_a_set_that_failed_is_left_out_and_named(self) -> None:
        row = table(dm=(outcome([80.0]), {"error": "does not fit", "kind": "error"}))["dm"]
        assert (row.accuracy, row.sets, row.failed, row.error) == (80.0, 1, 1, "does not fit")

    def test_a_row_of_failures_has_no_accuracy(self) -> None:
        row = table(dm=({"error": "does not fit", "kind": "error"},) * 2)["dm"]
        assert (row.accuracy, row.nbytes, row.sets, row.error) == (None, None, 0, "does not fit")
        assert percent(row) == "failed"


class TestScores:
    def test_come_from_the_random_and_the_whole_row(self) -> None:
        rows = table(
            random=(outcome([60.0], hard=60.0, plain=50.0),),
            dm=(outcome([80.0], hard=75.0, plain=65.0),),
            all_real=(outcome([95.0]),),
        )
        assert rows["dm"].lrs == round(label_robust_score(hlr=95 - 75, ior=80 - 60), 2)
        assert rows["dm"].ars == round(augmentation_robust_score(80 - 60, 65 - 50), 2)
        assert rows["random"].lrs == round(label_robust_score(hlr=95 - 60, ior=0), 2)
        assert rows["all_real"].lrs is None

    def test_are_missing_where_nothing_was_measured_for_them(self) -> None:
        rows = table(random=sets(WEAK), dm=sets(GOOD))
        assert rows["dm"].lrs is None
        assert rows["dm"].ars is None


class TestWarnings:
    def test_a_good_row_has_none(self) -> None:
        assert table(random=sets(WEAK), dm=sets(GOOD), budget=2.0)["dm"].warnings == ()

    def test_no_better_than_random_within_a_deviation(self) -> None:
        (said,) = table(random=sets(WEAK), dm=sets(([60.5, 61.5], [59.5, 60.5])))["dm"].warnings
        assert said.startswith("no better than random real images of as many bytes (60.0 ± 0.8): try ")

    def test_a_larger_gap_between_train_and_test_images_than_fifty_points(self) -> None:
        low = ([40.0, 41.0], [39.0, 40.0])
        weaker = ([20.0, 21.0], [19.0, 20.0])
        (said,) = table(random=sets(weaker), dm=sets(low))["dm"].warnings
        assert said.startswith("networks know 100 % of the set and 40 % of the test images: try more bytes")
        assert table(random=sets(weaker), dm=sets(low, on_set=85.0))["dm"].warnings == ()

    def test_a_spread_of_more_than_three_points(self) -> None:
        (said,) = table(random=sets(WEAK), dm=sets(([75.0, 76.0], [84.0, 85.0])))["dm"].warnings
        assert said.startswith("spreads by 5.2 points over sets and networks: try ")

    def test_divergence(self) -> None:
        bad = {"error": "the loss is nan at step 3 of 5", "kind": "divergence"}
        row = table(random=sets(WEAK), dm=(outcome([80.0]), bad))["dm"]
        assert row.warnings == ("1 of 2 sets diverged: try a smaller step size (`sweep sensitivity` compares some)",)
        assert table(dm=(bad, bad))["dm"].warnings[0].startswith("2 of 2 sets diverged")

    def test_more_bytes_than_random_real_images(self) -> None:
        (said,) = table(random=sets(WEAK), dm=sets(GOOD, nbytes=1400))["dm"].warnings
        assert said == "takes 1,400 bytes where random real images take 1,000: compare at equal bytes"
        assert table(random=sets(WEAK), dm=sets(GOOD, nbytes=1300))["dm"].warnings == ()  # what its method is called

    def test_more_seconds_than_the_budget(self) -> None:
        (said,) = table(random=sets(WEAK), dm=sets(GOOD), budget=1.0)["dm"].warnings
        assert said == "took 2 CPU seconds of 1: compare at equal cost"

    @pytest.mark.parametrize("control", ["random", "herding", "all_real"])
    def test_real_images_have_none(self, control: str) -> None:
        spread = sets(([10.0, 40.0], [20.0, 30.0]), nbytes=5000)
        rows = table(**{"random": sets(WEAK), control: spread}, budget=1.0)
        assert rows[control].warnings == ()
