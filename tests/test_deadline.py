from __future__ import annotations

import time

import pytest

from fedcondense.deadline import OutOfTime, check_time, is_timed, stop_at


def test_without_a_moment_time_is_never_up() -> None:
    with stop_at(None):
        check_time()
        assert not is_timed()


def test_a_moment_holds_inside_and_not_behind() -> None:
    with stop_at(time.monotonic() - 1):
        assert is_timed()
        with pytest.raises(OutOfTime):
            check_time()
    check_time()
    assert not is_timed()


@pytest.mark.parametrize(("outer", "inner"), [(-1.0, 1000.0), (1000.0, -1.0), (-1.0, None)])
def test_of_two_moments_the_earlier_counts(outer: float, inner: float | None) -> None:
    now = time.monotonic()
    with stop_at(now + outer), stop_at(None if inner is None else now + inner), pytest.raises(OutOfTime):
        check_time()


def test_a_moment_ends_with_an_error_too() -> None:
    with pytest.raises(KeyError), stop_at(0.0):
        raise KeyError
    check_time()
