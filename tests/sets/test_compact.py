"""Short forms in the header of a coded set: the same record and evaluation come back, and one text has one meaning."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.data.augment import OPERATIONS
from fedcondense.errors import UntrustedSetError
from fedcondense.parametrizations import Pixels
from fedcondense.sets.compact import USUAL_RECIPE, long_evaluation, long_record, short_evaluation, short_record
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

RECORD = Record("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.25,), augmentation=OPERATIONS, counts=(30, 30))
EVALUATION = {"accuracy": 81.25, "recipe": dict(USUAL_RECIPE), "seeds": [0, 1]}


def coded(record: Record, evaluation: dict[str, Any] | None = None) -> SyntheticSet:
    images = torch.arange(128, dtype=torch.uint8).view(2, 1, 8, 8)
    part = Part({"images": images}, torch.tensor([0, 1], dtype=torch.uint8), Pixels(), record)
    made = SyntheticSet([part]).recode("bits-2")
    return made if evaluation is None else made.with_evaluation(evaluation)


def test_the_usual_recipe_is_that_of_an_evaluation_and_what_changes_leaves_this_table_alone() -> None:
    """If a default of `Fit` changes, compare with a new name: files that say {} mean these numbers for good."""
    assert asdict(Fit()) == {**USUAL_RECIPE, "epochs": 0}  # which no evaluation names


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(0, 3), max_size=2).filter(lambda counts: len(counts) != 1),
    st.lists(st.sampled_from(OPERATIONS), unique=True) | st.just(list(OPERATIONS)),
    st.sampled_from([{}, dict(USUAL_RECIPE), {**USUAL_RECIPE, "steps": 1000}, {"steps": 3}]),
)
def test_any_record_and_recipe_come_back(counts: list[int], operations: list[str], recipe: dict[str, Any]) -> None:
    record = replace(RECORD, counts=tuple(counts), augmentation=tuple(operations))
    before = coded(record, {**EVALUATION, "recipe": recipe})
    after = SyntheticSet.from_bytes(before.to_bytes())
    assert after.record == record
    assert after.evaluation is not None
    assert after.evaluation["recipe"] == {**USUAL_RECIPE, **recipe}
    assert after.to_bytes() == before.to_bytes()


def test_what_is_usual_takes_few_bytes() -> None:
    bare = coded(replace(RECORD, counts=(), augmentation=()))
    assert coded(RECORD).nbytes - bare.nbytes <= 16
    unusual = {**EVALUATION, "recipe": {**USUAL_RECIPE, "steps": 401}}
    assert 0 <= coded(RECORD, unusual).nbytes - coded(RECORD, EVALUATION).nbytes <= 16


def test_a_set_that_nothing_packs_is_written_as_before() -> None:
    plain = coded(RECORD, EVALUATION).recode("raw").with_evaluation(EVALUATION)
    assert b"cutout" in plain.to_bytes()
    assert b"one-cycle" in plain.to_bytes()
    assert b"one-cycle" not in coded(RECORD, EVALUATION).to_bytes()


@pytest.mark.parametrize(
    "given",
    [
        {"counts": [3, 3]},
        {"counts": "3"},
        {"augmentation": list(OPERATIONS)},
        {"augmentation": "color"},
        {"augmentation": None},
    ],
)
def test_a_record_that_is_written_in_another_way_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(UntrustedSetError, match=r"of a record") as caught:
        long_record({"augmentation": [], **given} if "counts" in given else given, 2)
    assert len(str(caught.value)) < 600


def test_the_usual_recipe_in_words_is_refused() -> None:
    with pytest.raises(UntrustedSetError, match="with usual values, which are left out"):
        long_evaluation(EVALUATION)
    assert long_evaluation(short_evaluation(EVALUATION)) == EVALUATION
    assert short_evaluation({"accuracy": 1.0}) == long_evaluation({"accuracy": 1.0}) == {"accuracy": 1.0}


def test_one_number_of_counts_is_every_class_s() -> None:
    assert short_record({"counts": (7, 7, 7), "augmentation": OPERATIONS}, 3) == {"counts": 7}
    assert long_record({"counts": 7}, 3) == {"counts": (7, 7, 7), "augmentation": OPERATIONS}
