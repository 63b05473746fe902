from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcondense as fc
from fedcondense.checkpoints import Checkpoint
from fedcondense.data.images import DataSet
from fedcondense.errors import OutputError, ResumeError
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training import resuming
from fedcondense.training.evaluation import Evaluation, evaluate
from fedcondense.training.fit import Fit

STEPS, SEEDS = 12, (4, 0, 7)
RECIPE = Fit(epochs=6, batch=8)


class BrokenError(Exception):
    """What ends an evaluation from outside."""


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return fc.load_data("digits")


@pytest.fixture(scope="module")
def made(digits: DataSet) -> SyntheticSet:
    return fc.select(digits.train, 1)


def measured(made: SyntheticSet, digits: DataSet, checkpoint: Checkpoint | None, **options: Any) -> Evaluation:
    named: dict[str, Any] = {"network": "convnet1-w16", "recipe": RECIPE, "seeds": SEEDS} | options
    return evaluate(made, digits.test, checkpoint=checkpoint, **named)


def broken(made: SyntheticSet, digits: DataSet, path: Path, at: int, **options: Any) -> None:
    """Leave what an evaluation leaves that is killed after so many steps of all its networks."""

    def stop(step: int, steps: int) -> None:
        assert steps == STEPS * len(SEEDS)
        if step == at:
            raise BrokenError

    with pytest.raises(BrokenError):
        measured(made, digits, Checkpoint(path, 0), progress=stop, **options)


@pytest.mark.parametrize(
    ("at", "says"),
    [
        (5, "step 5 of the network of seed 4"),
        (STEPS + 3, "the tested networks of seeds 4 and step 3 of the network of seed 0"),
        (2 * STEPS + 1, "the tested networks of seeds 4, 0 and step 1 of the network of seed 7"),
    ],
)
def test_killed_and_started_again_it_ends_equal_and_says_what_it_took_over(
    made: SyntheticSet, digits: DataSet, tmp_path: Path, caplog: pytest.LogCaptureFixture, at: int, says: str
) -> None:
    whole = measured(made, digits, None)
    path = tmp_path / "kept"
    broken(made, digits, path, at)
    steps: list[int] = []
    with caplog.at_level(logging.WARNING):
        again = measured(made, digits, Checkpoint(path, 0, resume=True), progress=lambda step, _: steps.append(step))
    assert steps == list(range(at + 1, STEPS * len(SEEDS) + 1))
    assert replace(again, seconds=0) == replace(whole, seconds=0)
    assert f"taken over from {path}: {says}" in caplog.text


def test_networks_that_were_tested_serve_other_numbers_of_seeds(
    made: SyntheticSet, digits: DataSet, tmp_path: Path
) -> None:
    path = tmp_path / "kept"
    broken(made, digits, path, STEPS + 3)
    assert measured(made, digits, Checkpoint(path, 0, resume=True), seeds=(9, 4)).accuracies == (
        measured(made, digits, None, seeds=(9, 4)).accuracies
    )


@pytest.mark.parametrize(
    ("change", "differs"),
    [({"recipe": Fit(epochs=6, batch=9)}, "recipe was"), ({"network": "mlp"}, "network was"),
     ({"weighted": True}, "weighted was False, is True")],
)  # fmt: skip
def test_another_evaluation_takes_nothing_over(
    made: SyntheticSet, digits: DataSet, tmp_path: Path, change: dict[str, Any], differs: str
) -> None:
    path = tmp_path / "kept"
    broken(made, digits, path, STEPS + 3)
    with pytest.raises(ResumeError, match=differs):
        measured(made, digits, Checkpoint(path, 0, resume=True), **change)
    anew = measured(made, digits, Checkpoint(path, 0, resume=True, anew=True), **change)
    assert anew.accuracies == measured(made, digits, None, **change).accuracies


def test_another_set_and_other_test_images_take_nothing_over(
    made: SyntheticSet, digits: DataSet, tmp_path: Path
) -> None:
    path = tmp_path / "kept"
    broken(made, digits, path, STEPS + 3)
    for other, data in ((fc.select(digits.train, 1, seed=1), digits), (made, DataSet(digits.train, digits.train))):
        with pytest.raises(ResumeError, match=r"set was|test data was"):
            measured(other, data, Checkpoint(path, 0, resume=True))


def test_what_is_damaged_is_not_taken_over(made: SyntheticSet, digits: DataSet, tmp_path: Path) -> None:
    path = tmp_path / "kept"
    broken(made, digits, path, STEPS + 3)
    blob = bytearray(path.read_bytes())
    blob[-40] ^= 1
    path.write_bytes(blob)
    with pytest.raises(ResumeError, match="is damaged"):
        measured(made, digits, Checkpoint(path, 0, resume=True))


def test_a_full_disk_ends_the_keeping_and_not_the_evaluation(
    made: SyntheticSet,
    digits: DataSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OutputError("kept: No space left on device")

    whole = measured(made, digits, None)
    monkeypatch.setattr(Checkpoint, "write", full)
    assert measured(made, digits, Checkpoint(tmp_path / "kept", 0)).accuracies == whole.accuracies
    assert caplog.text.count("keeps nothing more") == 1


def test_a_short_evaluation_leaves_nothing(made: SyntheticSet, digits: DataSet, tmp_path: Path) -> None:
    measured(made, digits, Checkpoint(tmp_path / "kept", 1000, resume=True))
    assert list(tmp_path.iterdir()) == []


def test_the_time_of_before_counts(made: SyntheticSet, digits: DataSet, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "kept", 0, resume=True)
    follows = resuming.follows_from(made, digits.test, "convnet1-w16", RECIPE, False, torch.device("cpu"))
    checkpoint.write(follows, {"tested": [], "training": None, "seconds": 5000.0})
    assert measured(made, digits, checkpoint).seconds > 5000
