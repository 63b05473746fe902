from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.errors import SettingError
from fedcondense.plain import finite_number, hidden, listed, plain_text, plain_value, plain_values, whole_number
from fedcondense.randomness import child_seed

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


@pytest.mark.parametrize("given_number", [3, np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_numbers_of_other_libraries_become_python_s(given_number: Any) -> None:
    number = whole_number(given_number, "seed")
    assert number == 3
    assert type(number) is int
    assert child_seed(given_number, "a") == child_seed(3, "a")


@pytest.mark.parametrize("given_number", [2.0, True, np.True_, torch.tensor(True), "4", None, -1, 2**63, np.array([3])])
def test_what_is_no_seed_is_refused_by_name(given_number: Any) -> None:
    with pytest.raises(SettingError, match=r"^seed .*; needed: a whole number from 0, below 2\*\*63$"):
        whole_number(given_number, "seed")


def test_sequences_and_dicts_are_told_from_single_values() -> None:
    assert listed(np.array([1, 2]), "mean") == listed([1, 2], "mean") == (1, 2)
    for single in (0.5, "ab", None, np.float32(1), torch.tensor(1), {"a": 1}):
        with pytest.raises(SettingError, match=r"mean .*needed: a sequence"):
            listed(single, "mean")
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
