from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from fedcondense.errors import UntrustedSetError
from fedcondense.sets.checks import Limits, read_evaluation, read_record, shorten
from fedcondense.sets.parts import Record

GIVEN: Mapping[str, Any] = {
    "data": "toy",
    "shape": [1, 8, 8],
    "classes": ["a", "b"],
    "mean": [0.5],
    "std": [0.25],
    "counts": [3, 0],
    "augmentation": ["flip"],
}


def test_lists_of_json_become_the_record_s_tuples() -> None:
    record = read_record(GIVEN, Limits())
    assert record == Record("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.25,), counts=(3, 0), augmentation=("flip",))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"colour": "red"}, r"record fields \['colour'\] are not known"),
        ({"shape": [8, 8]}, r"images of shape \(8, 8\)"),
        ({"shape": [1, 0, 8]}, "images with a side of 0"),
        ({"shape": "1x8x8"}, "shape .*needed: a sequence"),
        ({"data": "x" * 2001}, "data set's name .* has 2001 characters"),
        ({"classes": ["a", "a"]}, "class name 'a' of labels 0 and 1"),
        ({"classes": []}, "class names"),
        ({"mean": [float("nan")]}, "mean nan; needed: a finite number"),
        ({"std": [0.0]}, "std 0.0; needed: a finite number"),
        ({"std": [0.2, 0.2]}, "std .*needed: 1 numbers, one per channel"),
        ({"counts": [1]}, "1 counts for 2 classes"),
        ({"seed": -1}, "seed -1; needed: a whole number"),
        ({"steps": True}, "steps True; needed: a whole number"),
        ({"seconds": -0.5}, "seconds -0.5"),
        ({"augmentation": ["flip", "flip"]}, "augmentation .*needed: names, each once"),
        ({"augmentation": ["b\x1blur"]}, r"augmentation .* has U\+001B"),
        ({"augmentation": ["x" * 61]}, "augmentation .* has 61 characters"),
        ({"privacy": {"epsilon": [1]}}, "privacy: epsilon .*needed: a text, a finite number"),
    ],
)
def test_each_lie_of_a_record_is_refused_with_its_reason(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UntrustedSetError, match=says):
        read_record({**GIVEN, **changes}, Limits())


def test_the_limit_on_class_names_is_the_callers() -> None:
    read_record(GIVEN, Limits(classes=2))
    with pytest.raises(UntrustedSetError, match="names 2 classes; allowed: 1"):
        read_record(GIVEN, Limits(classes=1))


@pytest.mark.parametrize(
    "evaluation",
    [
        [],
        {"accuracy": "high"},
        {"seeds": 0},
        {"recipe": {"steps": [1]}},
        {"accuracy": 2.0**64},
        {"later": {"deep": {"er": 1}}},
    ],
)
def test_an_evaluation_that_could_not_be_shown_is_refused(evaluation: Any) -> None:
    with pytest.raises(UntrustedSetError, match="evaluation"):
        read_evaluation(evaluation)


def test_plain_fields_of_later_versions_pass() -> None:
    read_evaluation({"accuracy": 81, "seeds": [0, 1], "recipe": {"steps": 400, "note": None}, "later": [True, "text"]})


def test_what_a_stranger_wrote_is_short_and_printable_in_a_message() -> None:
    assert shorten("a\x1b[31m\nb") == "a?[31m?b"
    assert len(shorten(["x" * 1000])) == 203
    assert shorten(ValueError("no")) == "no"
