from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fedcondense.condensing import condense
from fedcondense.data.images import Data
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.stores import EveryRound, Latest, Rising, ThisRound
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def of(train: Data) -> Callable[..., SyntheticSet]:
    """Return a set of one image for each of some digits."""

    def make(*digits: int, seed: int = 0) -> SyntheticSet:
        index = torch.cat([torch.where(train.labels == digit)[0][:20] for digit in digits])
        return select(train.subset(index), 1, "random", seed=seed)

    return make


@pytest.fixture(scope="module")
def many(train: Data) -> Callable[..., SyntheticSet]:
    """Return a set of some images for each digit."""

    def make(images: int, seed: int = 0) -> SyntheticSet:
        return select(train, images, "random", seed=seed)

    return make


def answers(**sets: SyntheticSet) -> list[Answer[SyntheticSet]]:
    return [Answer(Site(name.replace("_", "-")), synthetic) for name, synthetic in sets.items()]


def counts(synthetic: SyntheticSet) -> dict[str, int]:
    return {name: n for name, n in zip(synthetic.classes, synthetic.counts().tolist(), strict=True) if n}


class TestLatest:
    def test_an_absent_sites_set_stays(self, of: Callable[..., SyntheticSet]) -> None:
        first, second = of(1, 2), of(3)
        kept = Latest().take(1, answers(a=first, b=second), {})
        newer = of(3, seed=1)
        kept = Latest().take(2, answers(b=newer), kept)
        assert kept == {"a": first, "b": newer}

    def test_a_class_that_is_gone_stays_and_the_others_are_the_new_ones(self, of: Callable[..., SyntheticSet]) -> None:
        old, new = of(1, 2, 3), of(2, 3, 4, seed=5)
        kept = Latest().take(2, answers(a=new), {"a": old})["a"]
        assert counts(kept) == {"1": 1, "2": 1, "3": 1, "4": 1}
        images = {name: kept.pixels().images[kept.pixels().targets[:, k] > 0] for k, name in enumerate(kept.classes)}
        for name, source in (("1", old), ("2", new), ("4", new)):
            k = source.classes.index(name)
            own = source.pixels().images[source.pixels().targets[:, k] > 0]
            torch.testing.assert_close(images[name], own, rtol=0, atol=0)

    def test_what_is_gone_stays_over_many_rounds_and_does_not_grow(self, of: Callable[..., SyntheticSet]) -> None:
        kept = Latest().take(1, answers(a=of(1, 2)), {})
        for server_round in range(2, 6):
            kept = Latest().take(server_round, answers(a=of(2, seed=server_round)), kept)
        assert counts(kept["a"]) == {"1": 1, "2": 1}

    def test_a_new_set_of_the_same_classes_takes_the_place_of_the_old(self, of: Callable[..., SyntheticSet]) -> None:
        new = of(1, 2, seed=1)
        assert Latest().take(2, answers(a=new), {"a": of(1, 2)}) == {"a": new}

    def test_a_set_that_cannot_be_cut_goes_as_a_whole(self, of: Callable[..., SyntheticSet], train: Data) -> None:
        shared = condense(train, 4, "dm", "bases", seed=0, steps=1, start="gaussian")
        new = of(2)
        assert Latest().take(2, answers(a=new), {"a": shared}) == {"a": new}

    def test_sites_are_in_natural_order_and_what_was_kept_is_not_changed(self, of: Callable[..., SyntheticSet]) -> None:
        before = {"client-10": of(1)}
        kept = Latest().take(2, answers(client_9=of(2), client_2=of(3)), before)
        assert list(kept) == ["client-2", "client-9", "client-10"]
        assert list(before) == ["client-10"]


def test_this_round_forgets_who_is_absent(of: Callable[..., SyntheticSet]) -> None:
    new = of(2)
    assert ThisRound().take(2, answers(b=new), {"a": of(1)}) == {"b": new}


class TestEveryRound:
    def test_sets_of_all_rounds_stay_as_they_came(self, of: Callable[..., SyntheticSet]) -> None:
        first, second, late = of(1), of(1, seed=1), of(2)
        kept = EveryRound().take(1, answers(a=first), {})
        kept = EveryRound().take(2, answers(a=second, b=late), kept)
        kept = EveryRound().take(3, answers(), kept)
        assert kept == {"a": first, "a+2": second, "b+2": late}

    def test_sites_stand_in_natural_order_each_with_its_rounds(self, of: Callable[..., SyntheticSet]) -> None:
        kept: dict[str, SyntheticSet] = {}
        for server_round in (1, 2, 10):
            kept = EveryRound().take(server_round, answers(client_10=of(1), client_2=of(2)), kept)
        assert list(kept) == [f"client-{k}{late}" for k in (2, 10) for late in ("", "+2", "+10")]


class TestRising:
    def test_the_share_of_a_set_falls_as_its_round_over_the_last(self, many: Callable[..., SyntheticSet]) -> None:
        kept: dict[str, SyntheticSet] = {}
        for server_round in range(1, 5):
            kept = Rising().take(server_round, answers(a=many(12, server_round)), kept)
        assert {name: set(counts(one).values()) for name, one in kept.items()} == {
            "a": {12 // 4},
            "a+2": {12 * 2 // 4},
            "a+3": {12 * 3 // 4},
            "a+4": {12},
        }

    def test_what_is_left_are_the_first_images_of_each_class(self, many: Callable[..., SyntheticSet]) -> None:
        old = many(4)
        kept = Rising().take(2, answers(a=many(4, 1)), {"a": old})["a"]
        for k in range(10):
            was, now = (one.pixels().images[one.pixels().targets[:, k] > 0] for one in (old, kept))
            assert torch.equal(now, was[:2])

    def test_a_class_never_goes_and_an_absent_sites_set_fades_too(self, many: Callable[..., SyntheticSet]) -> None:
        kept = {"a": many(1), "b": many(4)}
        for server_round in range(2, 9):
            kept = Rising().take(server_round, answers(), kept)
        assert {name: set(counts(one).values()) for name, one in kept.items()} == {"a": {1}, "b": {1}}

    def test_what_cannot_be_cut_stays_whole_while_it_counts_a_half(
        self, many: Callable[..., SyntheticSet], train: Data
    ) -> None:
        shared = condense(train, 4, "dm", "bases", seed=0, steps=1, start="gaussian")
        kept = {"a+2": shared}
        for server_round, stays in ((3, True), (4, True), (5, False)):
            kept = Rising().take(server_round, answers(), kept)
            assert kept == ({"a+2": shared} if stays else {})
