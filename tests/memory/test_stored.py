from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcondense.data.images import Data, Spec
from fedcondense.memory.stored import (
    bytes_by_class,
    count_stored,
    cut,
    image_bytes,
    join,
    merge,
    mix,
    real_set,
    thin,
    with_inseparable,
)
from fedcondense.parametrizations import MultiFormation
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

SPEC = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))


def images(count: int, value: int = 0) -> torch.Tensor:
    return torch.full((count, 1, 8, 8), value, dtype=torch.uint8)


def real(**groups: int) -> SyntheticSet:
    made = real_set({name: images(n, k) for k, (name, n) in enumerate(groups.items())}, SPEC, "real", 0)
    assert made is not None
    return made


def test_nothing_joined_is_nothing() -> None:
    assert join([None, None]) is None
    assert join([]) is None
    whole = join([None, real(a=1), real(b=2)])
    assert whole is not None
    assert len(whole) == 3


def test_real_images_come_back_by_group_bit_by_bit() -> None:
    groups = {"x": images(2, 7), "y": images(1, 250)}
    made = real_set(groups, SPEC, "real", 3)
    assert made is not None
    assert (made.record.method, made.record.start, made.record.seed) == ("real", "real", 3)
    again = bytes_by_class(made)
    assert all(torch.equal(again[name], groups[name]) for name in groups)
    assert real_set({"x": images(0)}, SPEC, "real", 0) is None


def test_a_group_is_counted_over_all_sets_by_stored_images() -> None:
    tiles = SyntheticSet([replace(part, parametrization=MultiFormation(2)) for part in real(a=2).parts])
    assert count_stored([real(a=1, b=2), tiles]) == {"a": 3, "b": 2}
    assert image_bytes(tiles) == 2 * 64
    assert image_bytes(None) == 0


class TestCut:
    def test_a_group_in_several_sets_keeps_its_bound_in_all_of_them_together(self) -> None:
        sets = [real(a=4, b=1), real(a=4), real(a=2)]
        for offset in (0.0, 0.3, 0.99):
            kept = cut(sets, {"a": 5, "b": 1}, lambda name, offset=offset: offset)  # type: ignore[misc]
            assert count_stored(kept) == {"a": 5, "b": 1}

    def test_a_group_without_a_bound_is_left_out(self) -> None:
        assert count_stored(cut([real(a=2, b=2)], {"a": 1}, lambda name: 0.5)) == {"a": 1}
        assert cut([real(a=2)], {}, lambda name: 0.5) == []

    def test_a_set_of_which_nothing_leaves_is_the_same_set(self) -> None:
        whole = real(a=2, b=3)
        assert cut([whole], {"a": 9, "b": 3}, lambda name: 0.0)[0] is whole


class TestMix:
    def test_stored_images_repeat_by_the_records_they_stand_for(self) -> None:
        """Two stored images that stand for 7 records: each counts as round(7 / 2) = 4 of the new ones."""
        mixed = mix(["a", "b"], {"a": images(3, 1)}, {"a": images(2, 2), "b": images(1, 3)}, {"a": 7, "b": 5})
        assert mixed.labels.tolist() == [0] * 11 + [1]
        assert mixed.stored.tolist() == [False] * 3 + [True] * 9
        assert mixed.images[:, 0, 0, 0].tolist() == [1] * 3 + [2] * 8 + [3]
        assert mixed.counts == (10, 5)

    def test_a_group_without_stored_images_is_its_new_ones(self) -> None:
        mixed = mix(["a"], {"a": images(3, 1)}, {}, {"a": 7})
        assert (len(mixed.images), mixed.counts, mixed.stored.any().item()) == (3, (3,), False)


@pytest.mark.parametrize("names", [["a"], ["b", "a"]])
def test_groups_of_a_set_with_soft_labels_are_made_again_together(names: list[str]) -> None:
    hard = select(
        Data(torch.cat([images(2), images(2, 9)]), torch.tensor([0, 0, 1, 1]), replace(SPEC, classes=("a", "b"))), 1
    )
    soft = SyntheticSet([replace(hard.parts[0], targets=torch.tensor([[0.9, 0.1], [0.1, 0.9]]).half())])
    assert with_inseparable([hard], names) == names
    assert sorted(with_inseparable([real(c=1), soft], names)) == ["a", "b"]


def test_parts_that_were_made_alike_become_one_with_each_image_in_its_group() -> None:
    tiles = SyntheticSet([replace(part, parametrization=MultiFormation(2)) for part in real(a=2).parts])
    sets = [real(a=1, b=2), tiles, real(c=1, b=1)]
    merged = merge(sets)
    assert [len(one.parts) for one in merged] == [1, 1]
    assert merged[0].classes == ("a", "b", "c")
    assert merged[0].record.counts == (1, 3, 1)
    assert count_stored(merged) == count_stored(sets)
    before, after = (bytes_by_class(join(some)) for some in (sets, merged))
    for name, found in before.items():
        assert sorted(image.numpy().tobytes() for image in found) == sorted(
            image.numpy().tobytes() for image in after[name]
        )
    assert sum(one.nbytes for one in merged) < sum(one.nbytes for one in sets)


class TestThin:
    def test_images_are_left_out_evenly(self) -> None:
        """Twelve images of one group, the first six of them older: halves of both stay."""
        made = real_set(
            {"x": torch.arange(12, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)}, SPEC, "real", 0
        )
        assert made is not None
        for uniform in (0.0, 0.3, 0.99):
            found = thin(made, {"x": 6}, lambda _, u=uniform: u)  # type: ignore[misc]
            kept = bytes_by_class(found)["x"][:, 0, 0, 0].tolist()
            assert len(kept) == 6
            assert sum(value < 6 for value in kept) == 3

    def test_groups_without_images_leave_the_table_of_names(self) -> None:
        made = real(a=3, b=2, c=1)
        found = thin(made, {"a": 1, "c": 1}, lambda _: 0.0)
        assert found is not None
        assert found.classes == ("a", "c")
        assert found.record.counts == (3, 1)
        assert found.parts[0].labels().tolist() == [0, 1]
        assert thin(made, {}, lambda _: 0.0) is None
        whole = thin(made, {"a": 3, "b": 2, "c": 1}, lambda _: 0.5)
        assert whole is not None
        assert whole.parts[0] is made.parts[0]

    def test_coded_images_keep_what_they_decode_to(self) -> None:
        grey = torch.arange(0, 240, 20, dtype=torch.uint8).view(-1, 1, 1, 1).repeat(1, 1, 8, 8)
        made = real_set({"x": grey}, SPEC, "real", 0)
        assert made is not None
        coded = made.recode("jpeg-30")
        found = thin(coded, {"x": 5}, lambda _: 0.4)
        before = {image.numpy().tobytes() for image in coded.pixels().images}
        assert found is not None
        assert len(found) == 5
        assert {image.numpy().tobytes() for image in found.pixels().images} <= before
