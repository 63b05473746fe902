from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.data.images import Spec
from fedcondense.data.loading import load_data
from fedcondense.data.shares import images_per_class
from fedcondense.errors import SettingError


class Counted:
    """What is asked of data or of any holder of them: what they are, and how many of each class."""

    def __init__(self, *counts: int) -> None:
        names = tuple("abcdefgh"[: len(counts)])
        self.spec, self.counts = Spec("toy", (1, 2, 2), names, (0.5,), (0.25,)), torch.tensor(counts)


def test_a_limit_caps_the_share_of_a_class_but_leaves_one() -> None:
    assert images_per_class(Counted(20, 7, 1, 0), 5, 0.5).images == [5, 3, 1, 0]
    assert images_per_class(Counted(20, 7, 1, 0), 5).images == [5, 5, 1, 0]


def test_short_classes_are_returned_by_name_and_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        shares = images_per_class(Counted(20, 7, 1, 0), 5, 0.5)
    assert shares.short == {"b": 3, "c": 1}
    assert shares.warning == (
        "ipc 5 is more than 0.5 of the records of some classes; they get what is there: b (3), c (1)"
    )
    assert not caplog.records


def test_a_caller_who_gave_bytes_is_told_of_bytes() -> None:
    assert images_per_class(Counted(20, 2), 5, given="a memory of 2,000 bytes").warning == (
        "a memory of 2,000 bytes has room for 5 images per class, which is more than the records of some classes; "
        "they get what is there: b (2)"
    )
    assert images_per_class(Counted(20, 7), 5, given="a memory of 2,000 bytes").warning == ""


def test_no_class_is_short_no_warning() -> None:
    assert images_per_class(Counted(5, 5, 0), 5)[1:] == ({}, "")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=8).filter(any), st.integers(1, 20), st.floats(0.01, 1))
def test_no_class_gets_more_than_it_may(counts: list[int], ipc: int, limit: float) -> None:
    images, short, _ = images_per_class(Counted(*counts), ipc, limit)
    for n, got in zip(counts, images, strict=True):
        assert got == 0 if n == 0 else 1 <= got <= max(1, min(ipc, limit * n))
    assert len(short) == sum(0 < got < ipc for got in images)


def test_a_pair_of_data_is_no_data() -> None:
    with pytest.raises(SettingError, match=r"a DataSet in the place of data; needed: .* load_data\(\.\.\.\)\.train"):
        images_per_class(load_data("digits"), 1)  # type: ignore[arg-type]
