"""When a lead counts as one: the interval of the difference of two shares."""

from __future__ import annotations

import math

import pytest

from fedcondense.report.leads import doubt


def test_it_is_the_interval_of_agresti_and_caffo() -> None:
    """Of 34 and 35 right among 40, each with one right and one wrong added: shares 35/42 and 36/42."""
    variance = 35 / 42 * 7 / 42 / 42 + 36 / 42 * 6 / 42 / 42
    assert doubt([85.0, 87.5], 40) == pytest.approx(196 * math.sqrt(variance))


def test_ten_thousand_pairs_of_equal_networks_differ_by_more_in_one_of_twenty() -> None:
    import torch

    chance = torch.Generator().manual_seed(0)
    right = torch.rand(10_000, 2, 100, generator=chance).lt(0.8).float().mean(2) * 100
    beyond = [abs(float(a - b)) > doubt((float(a), float(b)), 100) for a, b in right]
    assert 0.03 < sum(beyond) / len(beyond) < 0.06


def test_errors_of_other_origin_add_in_quadrature_and_count_alone_where_records_are_unknown() -> None:
    assert doubt([50.0, 50.0], math.nan, [3.0, 4.0]) == pytest.approx(1.96 * 5)
    assert doubt([50.0, 50.0], 100, [3.0]) == pytest.approx(math.hypot(1.96 * 3, doubt([50.0, 50.0], 100)))


def test_all_right_leaves_doubt_on_few_records() -> None:
    assert doubt([100.0, 100.0], 5) > 20
