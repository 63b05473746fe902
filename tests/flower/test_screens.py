from __future__ import annotations

import pytest
import torch

from fedcondense.condensing import condense
from fedcondense.data.images import Data
from fedcondense.flower.contract import Verdict
from fedcondense.flower.screens import weighed
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def four_each(train: Data) -> SyntheticSet:
    return select(train, 4, "random", seed=0)


def counts(synthetic: SyntheticSet | None) -> dict[str, int]:
    assert synthetic is not None
    return {name: n for name, n in zip(synthetic.classes, synthetic.counts().tolist(), strict=True) if n}


ALL = {str(k): 4 for k in range(10)}


class TestWeighed:
    @pytest.mark.parametrize(("weight", "left"), [(1.0, 4), (0.75, 3), (0.51, 3), (0.5, 2), (0.01, 1), (0.0, 0)])
    def test_a_class_keeps_its_share_rounded_up(self, four_each: SyntheticSet, weight: float, left: int) -> None:
        found = counts(weighed(four_each, {"3": Verdict(weight)}))
        assert found == {name: n for name, n in {**ALL, "3": left}.items() if n}

    def test_what_is_left_are_the_first_images_as_they_were(self, four_each: SyntheticSet) -> None:
        left = weighed(four_each, {"3": Verdict(0.5)})
        assert left is not None
        before, after = four_each.pixels(), left.pixels()
        of_3 = [pixels.images[pixels.targets[:, 3] > 0] for pixels in (before, after)]
        torch.testing.assert_close(of_3[1], of_3[0][:2], rtol=0, atol=0)

    def test_several_classes_are_judged_at_once(self, four_each: SyntheticSet) -> None:
        found = counts(weighed(four_each, {"0": Verdict(0), "1": Verdict(0.5, "odd"), "2": Verdict(1)}))
        assert found == {**{name: 4 for name in ALL if name != "0"}, "1": 2}

    def test_nothing_is_left_when_all_is_left_out(self, four_each: SyntheticSet) -> None:
        assert weighed(four_each, dict.fromkeys(four_each.classes, Verdict(0))) is None

    def test_a_class_that_the_set_lacks_changes_nothing(self, four_each: SyntheticSet) -> None:
        assert counts(weighed(four_each, {"11": Verdict(0)})) == ALL

    def test_shares_count_over_all_parts(self, four_each: SyntheticSet) -> None:
        """Two parts of four images are eight, and a quarter of eight is two, whichever part they are from."""
        both = SyntheticSet.join([four_each, four_each.with_record(classes=four_each.classes)])
        assert counts(weighed(both, {"3": Verdict(0.25)})) == {**dict.fromkeys(ALL, 8), "3": 2}

    def test_a_set_of_shared_codes_is_left_out_as_a_whole(self, train: Data) -> None:
        shared = condense(train, 4, "dm", "bases", seed=0, steps=1, start="gaussian")
        assert weighed(shared, {"3": Verdict(0.5)}) is None
        assert weighed(shared, {"3": Verdict(0)}) is None

    def test_other_class_names_are_none_of_this_sets(self, four_each: SyntheticSet) -> None:
        renamed = four_each.with_record(classes=tuple("abcdefghij"))
        assert counts(weighed(renamed, {"3": Verdict(0), "d": Verdict(0.5)}))["d"] == 2
