"""The rate rule: what a budget is spent on."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.condensing.rate import Expected, default_parametrization, rate_at, rate_of, typical
from fedcondense.data.images import Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.parametrizations import Bases, MultiFormation, Pixels
from fedcondense.sets.fitting import Within
from fedcondense.sets.forecast import largest_file
from fedcondense.sets.parts import Record


def spec(classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> Spec:
    names = tuple(map(str, range(classes)))
    return Spec("toy", shape, names, (0.5,) * shape[0], (0.25,) * shape[0])


def needed(budget: str, *given: Any, **named: Any) -> int:
    with pytest.raises(SettingError, match=r"a budget of \d+ bytes is too small for one image of each of") as refused:
        rate_of(spec(), [50] * 10, budget, *given, **named)
    return int(str(refused.value).split("needed: ")[1].split()[0])


def test_two_bits_and_as_many_images_as_fit() -> None:
    small, large = (rate_of(spec(), [500] * 10, budget) for budget in ("5 kB", "20 kB"))
    assert small.codec == large.codec == "bits-2"
    assert small.ipc < large.ipc
    assert 18_500 < large.nbytes <= 20_000
    assert large.most is not None
    assert large.most > large.nbytes
    assert sum(large.images) > 10 * (large.ipc - 1)


def test_one_bit_where_not_every_class_fits_in_two() -> None:
    assert rate_of(spec(), [50] * 10, "2 kB").codec == "bits-1"
    assert rate_of(spec(), [50] * 10, "3 kB").codec == "bits-2"


def test_more_bits_where_there_are_no_more_images() -> None:
    rate = rate_of(spec(), [4] * 10, "1 MB")
    assert (rate.ipc, rate.codec) == (4, "bits-6")


def test_the_smallest_budget_that_is_named_works_and_the_next_smaller_does_not() -> None:
    least = needed("1 kB")
    rate = rate_of(spec(), [50] * 10, least)
    assert (rate.codec, min(rate.images)) == ("bits-1", 1)
    assert rate.nbytes <= least
    assert needed(f"{least - 1} B") == least


def test_a_smaller_budget_than_any_is_named_by_what_does_not_work() -> None:
    with pytest.raises(SettingError, match=r"in 'bits-3', with record and room for an evaluation; needed: \d+ bytes"):
        rate_of(spec(), [50] * 10, Within("2 kB", "bits-3"))
    assert needed("2 kB", Bases(8, 2)) > 2000


@settings(deadline=None, derandomize=True, max_examples=25)
@given(
    st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any),
    st.integers(1500, 30_000),
    st.sampled_from([0.2, 0.5, 1.0]),
    st.sampled_from([None, Pixels(), MultiFormation(2)]),
)
def test_images_are_within_the_limit_and_what_is_expected_within_the_budget(
    counts: list[int], nbytes: int, limit: float, parametrization: Any
) -> None:
    rate = rate_of(spec(len(counts), (1, 16, 16)), counts, nbytes, parametrization, limit=limit)
    assert rate.nbytes <= nbytes
    assert rate.ipc == max(rate.images)
    for images, records in zip(rate.images, counts, strict=True):
        assert images == 0 if not records else 1 <= images <= max(1, int(limit * records))
    more = rate_of(spec(len(counts), (1, 16, 16)), counts, 2 * nbytes, parametrization, limit=limit)
    assert sum(more.images) >= sum(rate.images)


def test_the_last_images_are_those_of_larger_classes() -> None:
    for size in range(4000, 9000, 700):
        images = rate_of(spec(3), [9, 500, 80], size, limit=0.5).images
        assert images[1] >= images[2] >= images[0]
        assert images[0] <= 4


def test_what_is_expected_of_the_images_moves_their_number() -> None:
    rough = rate_of(spec(), [500] * 10, "20 kB", expect=lambda codec: Expected(0, 300))
    smooth = rate_of(spec(), [500] * 10, "20 kB", expect=lambda codec: Expected(0, 100))
    assert 1.9 * sum(rough.images) < sum(smooth.images)
    assert rough.most is not None
    assert rough.nbytes <= rough.most  # no estimate is above what cannot be passed


def test_what_cannot_be_left_out_is_planned_by_the_most_that_it_takes() -> None:
    soft = rate_of(spec(), [500] * 10, "20 kB", soft=True, expect=lambda codec: Expected(0, 1))
    assert soft.most is not None
    assert soft.most <= 20_000
    shared = rate_of(spec(), [500] * 10, "40 kB", Bases(8, 2))
    assert (shared.codec, shared.nbytes) == ("raw", shared.most)
    assert 30_000 < shared.nbytes <= 40_000


def test_a_codec_that_the_budget_names_is_taken() -> None:
    rate = rate_of(spec(), [50] * 10, Within("20 kB", "jpeg-10"))
    assert (rate.codec, rate.most) == ("jpeg-10", None)
    assert rate_of(spec(), [50] * 10, Within("20 kB", "raw")).codec == "raw"


def test_tiles_where_there_is_something_to_lose() -> None:
    assert default_parametrization((3, 32, 32)) == default_parametrization((1, 28, 28)) == MultiFormation(2)
    assert default_parametrization((1, 8, 8)) == default_parametrization((3, 33, 33)) == Pixels()


def test_a_number_of_images_takes_no_more_than_the_most() -> None:
    record = Record("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.25,), seconds=1.0)
    rate = rate_at([3, 1], "bits-2", Pixels(), record, expect=lambda codec: Expected(10, 1e6))
    assert (rate.ipc, rate.images) == (3, (3, 1))
    assert rate.nbytes == rate.most
    exact = largest_file(Pixels(), record, [3, 1], "bits-2")
    assert exact is not None
    assert rate.most is not None
    assert exact <= rate.most <= exact + 24  # a record of seconds that are not known yet


def test_typical_images_take_less_than_all_their_bits() -> None:
    assert typical("raw", Pixels(), (3, 4, 4)) == typical("bits-2", Bases(), (3, 4, 4)) == Expected(0, 48)
    assert 10 < typical("bits-2", Pixels(), (3, 4, 4)).each < 12
    assert typical("jpeg-10", Pixels(), (3, 4, 4)).each < 48


def test_nobody_has_a_record() -> None:
    with pytest.raises(DataError, match="toy: no images to condense"):
        rate_of(spec(), [0] * 10, "20 kB")
