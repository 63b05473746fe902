from __future__ import annotations

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.bounded import Bounded
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.stores import Latest, ThisRound
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


def of(train: Data, images: int, *digits: int, codec: str = "raw") -> SyntheticSet:
    """Return a set of some images for each of some digits."""
    index = torch.cat([torch.where(train.labels == digit)[0][:20] for digit in digits])
    return select(train.subset(index), images, "random").recode(codec)


def answers(**sets: SyntheticSet) -> list[Answer[SyntheticSet]]:
    return [Answer(Site(name), one) for name, one in sets.items()]


def counts(one: SyntheticSet) -> dict[str, int]:
    return {name: n for name, n in zip(one.classes, one.counts().tolist(), strict=True) if n}


class TestBounded:
    def test_what_fits_is_what_the_store_keeps(self, train: Data) -> None:
        sets = {"a": of(train, 3, 1, 2), "b": of(train, 5, 3)}
        size = SyntheticSet.join(sets.values()).nbytes
        assert Bounded(Latest(), size).take(1, answers(**sets), {}) == sets
        assert Bounded(ThisRound()).take(1, answers(**sets), {"c": sets["a"]}) == sets

    @pytest.mark.parametrize("codec", ["raw", "bits-2", "jpeg-25"])
    def test_the_union_fits_and_one_image_more_would_not(self, codec: str, train: Data) -> None:
        sets = {"a": of(train, 8, 1, 2, codec=codec), "b": of(train, 8, 2, 3, codec=codec)}
        whole = SyntheticSet.join(sets.values()).nbytes
        bound = whole - 150
        kept = Bounded(nbytes=bound).take(1, answers(**sets), {})
        assert SyntheticSet.join(kept.values()).nbytes <= bound
        more = Bounded(nbytes=bound + 70).take(1, answers(**sets), {})
        assert sum(map(len, kept.values())) < sum(map(len, more.values())) <= 32

    def test_the_class_with_most_images_loses_the_last_ones_from_the_site_with_most(self, train: Data) -> None:
        """Of 2 and 8 images of class 2 and 8 of class 3, four go: two of class 2, all from b, and two of class 3."""
        sets = {"a": of(train, 2, 1, 2), "b": of(train, 8, 2, 3)}
        want = {"a": sets["a"], "b": sets["b"].restrict(("2", "3"), {"2": 5, "3": 7})}
        bound = SyntheticSet.join([want["a"], want["b"]]).nbytes  # type: ignore[list-item]
        kept = Bounded(nbytes=bound).take(1, answers(**sets), {})
        assert [counts(one) for one in kept.values()] == [{"1": 2, "2": 2}, {"2": 5, "3": 7}]
        torch.testing.assert_close(kept["b"].pixels().images, want["b"].pixels().images, rtol=0, atol=0)  # type: ignore[union-attr]

    def test_nothing_that_stays_is_encoded_again(self, train: Data) -> None:
        one = of(train, 8, 1, 2, codec="bits-2")
        kept = Bounded(nbytes=one.nbytes - 60).take(1, answers(a=one), {})["a"]
        first = one.restrict(one.classes, counts(kept))
        assert first is not None
        torch.testing.assert_close(kept.pixels().images, first.pixels().images, rtol=0, atol=0)

    def test_a_memory_for_less_than_one_image_of_each_class_is_refused_in_one_line(self, train: Data) -> None:
        with pytest.raises(SettingError, match=r"a memory of 300 bytes cannot hold .* needed: \d+ bytes") as refused:
            Bounded(nbytes=300).take(1, answers(a=of(train, 2, 1, 2)), {})
        assert "\n" not in str(refused.value)
