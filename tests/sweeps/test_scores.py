"""The scores at points where the formula can be solved by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.sweeps.scores import (
    augmentation_robust_score,
    hard_label_recovery,
    improvement_over_random,
    label_robust_score,
)

POINTS = st.floats(-100, 100)
NOTHING = 100 / (math.e + 1)  # (1 - 1/e) / (e - 1/e)


def test_recovery_and_improvement_are_differences_with_opposite_signs() -> None:
    assert hard_label_recovery(90, 60) == 30
    assert improvement_over_random(60, 45) == 15


def test_nothing_gained_and_nothing_lost_scores_one_over_e_plus_one() -> None:
    assert label_robust_score(0, 0) == pytest.approx(NOTHING)
    assert augmentation_robust_score(0, 0) == pytest.approx(NOTHING)


def test_the_ends_are_zero_and_a_hundred() -> None:
    assert label_robust_score(hlr=-100, ior=100) == pytest.approx(100)
    assert label_robust_score(hlr=100, ior=-100) == pytest.approx(0)
    assert augmentation_robust_score(100, 100) == pytest.approx(100)
    assert augmentation_robust_score(-100, -100) == pytest.approx(0)


def test_a_number_worked_out_by_hand() -> None:
    """HLR 30 and IOR 20 points: alpha = 0.5 * 0.2 - 0.5 * 0.3 = -0.05."""
    by_hand = 100 * (math.exp(-0.05) - math.exp(-1)) / (math.exp(1) - math.exp(-1))
    assert by_hand == pytest.approx(24.82, abs=0.005)
    assert label_robust_score(30, 20) == pytest.approx(by_hand)
    assert augmentation_robust_score(-20, 10) == pytest.approx(by_hand)


def test_the_weights_choose_between_the_two_terms() -> None:
    assert label_robust_score(hlr=55, ior=0, weight=1) == pytest.approx(NOTHING)
    assert label_robust_score(hlr=0, ior=55, weight=0) == pytest.approx(NOTHING)
    assert augmentation_robust_score(0, 55, weight=1) == pytest.approx(NOTHING)
    assert augmentation_robust_score(55, 0, weight=0) == pytest.approx(NOTHING)


@given(POINTS, POINTS, st.floats(0.1, 10))
def test_more_recovered_and_more_gained_score_higher(hlr: float, ior: float, more: float) -> None:
    assert label_robust_score(hlr - more, ior) > label_robust_score(hlr, ior)
    assert label_robust_score(hlr, ior + more) > label_robust_score(hlr, ior)
    assert augmentation_robust_score(hlr + more, ior) > augmentation_robust_score(hlr, ior)
    assert augmentation_robust_score(hlr, ior + more) > augmentation_robust_score(hlr, ior)
