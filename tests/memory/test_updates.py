from __future__ import annotations

import pytest

from fedcondense.memory.updates import UPDATES, waited_enough


def test_an_update_does_one_of_three_things() -> None:
    assert [(one.condenses_stored, one.mixes, one.renames) for one in UPDATES.values()] == [
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_only_append_makes_each_addition_a_group() -> None:
    assert [UPDATES[name].group("cat", 3) for name in ("recondense", "reservoir", "append")] == ["cat", "cat", "cat#3"]


@pytest.mark.parametrize(
    ("name", "seen_so_far", "given"), [("recondense", False, False), ("reservoir", True, True), ("append", True, False)]
)
def test_images_are_left_out_where_a_share_shrinks_and_nothing_is_made_again(
    name: str, seen_so_far: bool, given: bool
) -> None:
    assert UPDATES[name].leaves_out_images(None) is seen_so_far
    assert UPDATES[name].leaves_out_images(10) is given


class TestWaiting:
    def test_a_group_is_ready_at_the_minimum(self) -> None:
        assert waited_enough({"a": 5, "b": 4, "c": 6}, minimum=5, most=100) == ["a", "c"]

    def test_beyond_the_budget_the_largest_group_goes_first(self) -> None:
        assert waited_enough({"a": 3, "b": 4, "c": 2}, minimum=5, most=5) == ["b"]
        assert waited_enough({"a": 3, "b": 4, "c": 2}, minimum=5, most=1) == ["b", "a", "c"]

    def test_nothing_waits_for_an_image_it_has(self) -> None:
        assert waited_enough({"a": 1}, minimum=1, most=0) == ["a"]
        assert waited_enough({}, minimum=1, most=0) == []
