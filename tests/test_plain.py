from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.errors import SettingError
from fedcondense.plain import finite_number, hidden, listed, plain_text, plain_value, plain_values, whole_number
from fedcondense.randomness import child_seed

INTEGERS: tuple[Callable[[int], Any], ...] = (int, np.int64, np.uint8, np.int16, np.array, torch.tensor)
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=3),
    st.lists(st.integers(), max_size=2),
    st.integers(-5, 5).map(np.int16),
    st.integers(-5, 5).map(torch.tensor),
    st.floats(width=32).map(np.float32),
    st.floats(width=32).map(torch.tensor),
    st.booleans().map(np.bool_),
    st.complex_numbers(),
)


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 127), st.sampled_from(INTEGERS))
def test_whole_numbers_of_other_libraries_become_python_s(number: int, kind: Callable[[int], Any]) -> None:
    found = whole_number(kind(number), "seed")
    assert found == number
    assert type(found) is int
    assert child_seed(kind(number), "a") == child_seed(number, "a")


@settings(deadline=None, derandomize=True)
@given(
    st.one_of(
        st.booleans(),
        st.floats(),
        st.text(),
        st.none(),
        st.lists(st.integers()),
        st.integers(max_value=-1),
        st.integers(min_value=2**63),
        st.builds(np.bool_, st.booleans()),
        st.builds(torch.tensor, st.one_of(st.booleans(), st.floats(width=32))),
        st.builds(np.float32, st.floats(width=32)),
        st.lists(st.integers(0, 9), min_size=1, max_size=2).map(np.array),
        st.lists(st.integers(0, 9), min_size=1, max_size=2).map(torch.tensor),
    )
)
def test_all_else_is_no_whole_number_and_is_refused_by_name(value: Any) -> None:
    with pytest.raises(SettingError, match=r"^seed .*; needed: a whole number from 0, below 2\*\*63$"):
        whole_number(value, "seed")


@pytest.mark.parametrize(
    "row", [[0, 1], (0, 1), range(2), np.arange(2), torch.arange(2), {0: "a", 1: "b"}.keys(), (k for k in range(2))]
)
def test_a_row_of_any_kind_is_listed(row: Any) -> None:
    assert listed(row, "mean") == (0, 1)


@pytest.mark.parametrize(
    "other",
    [
        3,
        0.5,
        "01",
        b"01",
        {0, 1},
        {0: 1},
        None,
        list,
        np.eye(2, dtype=int),
        np.float32(1),
        torch.tensor(1),
        torch.eye(2),
    ],
)
def test_what_is_no_row_is_refused_by_name(other: Any) -> None:
    with pytest.raises(SettingError, match=r"^mean .*; needed: a sequence$"):
        listed(other, "mean")


def test_dicts_of_plain_values_are_told_from_others() -> None:
    assert plain_values({"a": np.float64(0.5), "b": None}, "privacy") == {"a": 0.5, "b": None}
    for broken in ({"a": {"b": 1}}, {"a": math.nan}, {1: 2}, [1], {"a\nb": 1, "a b": 2}):
        with pytest.raises(SettingError, match=r"^privacy"):
            plain_values(broken, "privacy")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(VALUES)
def test_a_value_is_refused_by_one_line_or_comes_back_from_json_equal(value: Any) -> None:
    for settle in (whole_number, finite_number, plain_text, plain_value):
        try:
            plain = settle(value, "the value")
        except SettingError as refused:
            reason = str(refused)
        else:
            reason = ""
        assert hidden(reason) is None
        assert not reason or reason.startswith("the value")
        if not reason:
            assert type(plain) in (int, float, str, bool, type(None))
            assert json.loads(json.dumps(plain, allow_nan=False)) == plain
            assert settle(plain, "the value") == plain
