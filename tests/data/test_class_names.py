from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.data.class_names import LONGEST, MOST_CLASSES, check_class_names, class_names, folder_names
from fedcondense.errors import DataError
from fedcondense.plain import hidden

KINDS = st.one_of(
    st.text(max_size=8),
    st.text("ab\u0301\u00e9 \0\t\u202e\u200d\u2028\ud800", max_size=4),
    st.binary(max_size=4),
    st.integers(-3, 3),
    st.none(),
    st.floats(),
    st.booleans(),
    st.lists(st.text(max_size=3), max_size=3).map(tuple),
)


@pytest.mark.parametrize(
    ("given_names", "wanted"),
    [
        ([("tench", "Tinca tinca"), ("springer",)], ("tench, Tinca tinca", "springer")),
        ([3, 4], ("3", "4")),
        (np.array([b"w", "é".encode()]), ("w", "é")),
        (np.array(["a", "b"]), ("a", "b")),
        (torch.tensor([7, 5]), ("7", "5")),
        ([False, True], ("False", "True")),
        (["e\u0301", " a\n"], ("é", "a")),
        (["a", "A"], ("a", "A")),
        (["\U0001f469\u200d\U0001f52c"], ("\U0001f469\u200d\U0001f52c",)),
        ([], ()),
    ],
)
def test_what_data_sets_call_their_classes_becomes_text(given_names: Any, wanted: tuple[str, ...]) -> None:
    names = class_names(given_names)
    assert names == wanted
    assert all(type(name) is str for name in names)
    assert check_class_names(names) == names


@pytest.mark.parametrize(
    ("given_names", "says"),
    [
        ([None, "a"], "class name None of label 0 is of type NoneType; needed: a text"),
        ([1.5], "of type float"),
        ([b"\xff"], "is not UTF-8"),
        (["a", ""], "of label 1 is empty"),
        ([" \t"], "is empty"),
        (["a" * (LONGEST + 1)], "has 201 characters; needed: 1 to 200"),
        (["a\0b"], r"has U\+0000, which is not seen"),
        (["a\nb"], r"has U\+000A"),
        (["a\u202eb"], r"has U\+202E"),
        (["a\u200bb"], r"has U\+200B"),
        (["\ud800"], r"has U\+D800"),
        (["é", "x", "e\u0301"], "class name 'é' of labels 0 and 2"),
        ([1, "1"], "class name '1' of labels 0 and 1"),
        ([[["a"]]], "of type list"),
        ("abc", "class names 'abc'; needed: a sequence"),
        ({"a": 0}, "needed: a sequence"),
        ({"a"}, "needed: a sequence"),
        (None, "needed: a sequence"),
        (range(MOST_CLASSES + 1), "10001 class names; allowed: 10000"),
    ],
)
def test_what_nobody_could_read_is_refused_by_name(given_names: Any, says: str) -> None:
    with pytest.raises(DataError, match=says):
        class_names(given_names)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.lists(KINDS, max_size=4))
def test_names_are_in_normal_form_or_refused_by_one_line(given_names: list[Any]) -> None:
    try:
        names = class_names(given_names)
    except DataError as refused:
        reason = str(refused)
    else:
        reason = ""
    assert hidden(reason) is None
    assert not reason or "class name" in reason
    if reason:
        return
    assert len(set(names)) == len(names) == len(given_names)
    for name in names:
        assert name == unicodedata.normalize("NFC", name).strip()
        assert 0 < len(name) <= LONGEST
        assert name.encode().decode() == name
    assert class_names(names) == check_class_names(names) == names


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.lists(KINDS, max_size=4))
def test_from_a_file_names_are_as_they_would_be_written_or_refused(given_names: list[Any]) -> None:
    try:
        names = check_class_names(given_names)
    except DataError:
        return
    assert list(names) == given_names


def test_folders_of_classes_are_names_that_any_file_system_takes_none_twice() -> None:
    assert folder_names(("a/b", "a:b", "A_B", "..", "cat")) == ["a_b", "a_b 1", "A_B 2", "__", "cat"]
    assert folder_names(("x" * 100,)) == ["x" * 60]
