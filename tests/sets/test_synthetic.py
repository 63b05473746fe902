from __future__ import annotations

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from fedcondense.errors import OutputError, SettingError, UntrustedSetError
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.sets.format import Limits
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

RECORD = Record("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,), method="dm", counts=(40, 0, 3))


def toy(labels: list[int], seed: int = 0, **changes: Any) -> SyntheticSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), generator=generator, dtype=torch.uint8)
    targets = torch.tensor(labels, dtype=torch.uint8)
    return SyntheticSet([Part({"images": images}, targets, Pixels(), replace(RECORD, **changes))])


def tiles(labels: list[int], **changes: Any) -> SyntheticSet:
    part = toy(labels, **changes).parts[0]
    return SyntheticSet([replace(part, parametrization=MultiFormation(2))])


class TestDecode:
    def test_pixels_are_bytes_over_255_and_decoding_normalises(self) -> None:
        made = toy([0, 2])
        stored = made.parts[0].codes["images"].float() / 255
        torch.testing.assert_close(made.pixels().images, stored, rtol=0, atol=0)
        torch.testing.assert_close(made.decode().images, (stored - 0.5) / 0.25)
        assert made.decode().targets.tolist() == [[1, 0, 0], [0, 0, 1]]

    def test_channels_have_their_own_mean_and_deviation(self) -> None:
        record = Record("rgb", (3, 8, 8), ("a",), (0.1, 0.2, 0.3), (1.0, 0.5, 0.25))
        part = Part(
            {"images": torch.full((1, 3, 8, 8), 255, dtype=torch.uint8)}, torch.ones(1, 1).half(), Pixels(), record
        )
        torch.testing.assert_close(SyntheticSet([part]).decode().images[0, :, 0, 0], torch.tensor([0.9, 1.6, 2.8]))

    def test_each_part_is_normalised_as_its_own_record_says(self) -> None:
        first, second = toy([0]), toy([0], mean=(0.0,), std=(1.0,))
        images = SyntheticSet.join([first, second]).decode().images
        torch.testing.assert_close(images, torch.cat([first.decode().images, second.pixels().images]))

    def test_len_counts_decoded_images(self) -> None:
        assert len(toy([0, 1, 1])) == 3
        assert len(tiles([0, 1, 1])) == 12
        assert tiles([0, 1, 1]).counts().tolist() == [4, 8, 0]

    def test_soft_targets_count_for_their_largest_entry(self) -> None:
        part = replace(toy([0, 0]).parts[0], targets=torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]).half())
        assert SyntheticSet([part]).counts().tolist() == [1, 0, 1]


class TestJoin:
    def test_classes_are_united_by_name_in_order_of_appearance(self) -> None:
        first = toy([0, 2])
        second = toy([0, 1, 2], seed=1, classes=("c", "d", "a"), counts=(5, 6, 7))
        joined = SyntheticSet.join([first, second])
        assert joined.classes == ("a", "b", "c", "d")
        assert joined.decode().targets.argmax(1).tolist() == [0, 2, 2, 3, 0]
        assert joined.counts().tolist() == [2, 0, 2, 1]
        assert torch.equal(joined.pixels().images, torch.cat([first.pixels().images, second.pixels().images]))

    def test_sets_of_different_kinds_stay_parts_of_their_own(self) -> None:
        joined = SyntheticSet.join([toy([0, 1]), tiles([2])])
        again = SyntheticSet.from_bytes(joined.to_bytes())
        assert [type(part.parametrization) for part in again.parts] == [Pixels, MultiFormation]
        assert torch.equal(again.decode().images, joined.decode().images)
        assert len(again) == 6

    def test_joining_is_associative(self) -> None:
        a, b, c = toy([0]), toy([1], seed=1, classes=("x", "a", "y")), tiles([2, 0])
        left = SyntheticSet.join([SyntheticSet.join([a, b]), c])
        right = SyntheticSet.join([a, SyntheticSet.join([b, c])])
        assert left.to_bytes() == right.to_bytes() == SyntheticSet.join([a, b, c]).to_bytes()

    def test_a_set_joined_with_itself_is_written(self) -> None:
        twice = SyntheticSet.join([toy([0, 1]), toy([0, 1])])
        same = SyntheticSet([twice.parts[0], twice.parts[0]])
        assert len(SyntheticSet.from_bytes(same.to_bytes())) == 4

    def test_different_shapes_are_refused(self) -> None:
        record = replace(RECORD, shape=(1, 16, 16))
        large = SyntheticSet(
            [Part({"images": torch.zeros(1, 1, 16, 16).byte()}, torch.zeros(1).byte(), Pixels(), record)]
        )
        with pytest.raises(SettingError, match=r"images of different shapes: \[\(1, 8, 8\), \(1, 16, 16\)\]"):
            SyntheticSet.join([toy([0]), large])

    def test_nothing_is_no_set(self) -> None:
        with pytest.raises(SettingError, match="a synthetic set of no parts; give at least one"):
            SyntheticSet.join([])


class TestWeights:
    def test_a_class_s_records_are_shared_among_its_images(self) -> None:
        """40 records of a on four images, 3 of c on two."""
        assert toy([0, 0, 0, 0, 2, 2]).weights().tolist() == [10, 10, 10, 10, 1.5, 1.5]

    def test_they_sum_to_the_records_of_the_classes_that_have_images(self) -> None:
        made = SyntheticSet.join([tiles([0, 2]), toy([0, 1, 2], classes=("c", "b", "a"), counts=(8, 5, 2))])
        assert made.weights().sum() == pytest.approx(43 + 15)
        torch.testing.assert_close(made.weights()[8:], torch.tensor([8.0, 5.0, 2.0]))

    def test_a_soft_label_takes_its_share_of_each_class(self) -> None:
        """Class a has a mass of 1.5: 40 / 1.5 a unit. Class c has 0.5: 6 a unit."""
        part = replace(toy([0, 0]).parts[0], targets=torch.tensor([[1.0, 0, 0], [0.5, 0, 0.5]]).half())
        torch.testing.assert_close(SyntheticSet([part]).weights(), torch.tensor([40 / 1.5, 20 / 1.5 + 3]))

    def test_without_counts_every_image_weighs_one(self) -> None:
        joined = SyntheticSet.join([toy([0, 0], counts=()), toy([0, 0])])
        assert joined.weights().tolist() == [1, 1, 20, 20]


class TestRestrict:
    def test_the_first_images_of_the_named_classes_stay_with_their_counts(self) -> None:
        whole = toy([2, 0, 1, 0, 2, 0], counts=(40, 5, 3))
        cut = whole.restrict(["c", "a"], {"a": 2})
        assert cut is not None
        assert cut.classes == ("a", "c")
        assert cut.parts[0].targets.tolist() == [1, 0, 0, 1]
        assert cut.record.counts == (40, 3)
        assert torch.equal(cut.pixels().images, whole.pixels().images[[0, 1, 3, 4]])

    def test_all_images_of_a_class_without_a_limit_stay(self) -> None:
        cut = toy([0, 0, 2, 2, 2]).restrict(["a", "c"], {"a": 1})
        assert cut is not None
        assert cut.counts().tolist() == [1, 3]

    def test_tiles_are_cut_by_stored_images(self) -> None:
        whole = tiles([0, 2, 0])
        cut = whole.restrict(["a"], {"a": 1})
        assert cut is not None
        assert torch.equal(cut.pixels().images, whole.pixels().images[:4])

    def test_a_set_of_which_nothing_is_left_out_is_returned_itself(self) -> None:
        whole = SyntheticSet.join([toy([0, 1, 2]), tiles([2, 1, 0])])
        assert whole.restrict("abc") is whole
        assert whole.restrict("cba", {"a": 2, "b": 5}) is whole
        assert whole.restrict(["a", "b", "c", "unknown"], {"unknown": 1}) is whole

    def test_nothing_that_is_left_is_none(self) -> None:
        assert toy([0, 2]).restrict(["b", "unknown"]) is None
        assert toy([0, 2]).restrict("abc", dict.fromkeys("abc", 0)) is None

    def test_parts_are_cut_each_on_its_own_and_empty_ones_leave(self) -> None:
        joined = SyntheticSet.join([toy([0, 1]), tiles([1, 2]), toy([2])])
        cut = joined.restrict(["b"])
        assert cut is not None
        assert [type(part.parametrization) for part in cut.parts] == [Pixels, MultiFormation]
        assert cut.counts().tolist() == [5]

    def test_a_class_keeps_so_many_images_in_all_parts_together(self) -> None:
        cut = SyntheticSet.join([toy([0, 0, 1]), toy([0, 1]), toy([0])]).restrict("ab", {"a": 3})
        assert cut is not None
        assert cut.counts().tolist() == [3, 2]
        assert len(cut.parts) == 2

    def test_a_class_without_images_leaves_too(self) -> None:
        cut = toy([0, 2]).restrict(["a", "c"])
        assert cut is not None
        assert cut.classes == ("a", "c")

    def test_labels_take_one_byte_again_where_few_classes_are_left(self) -> None:
        record = replace(RECORD, classes=tuple(f"c{i}" for i in range(300)), counts=())
        images = torch.zeros(300, 1, 8, 8, dtype=torch.uint8)
        whole = SyntheticSet([Part({"images": images}, torch.arange(300).to(torch.int16), Pixels(), record)])
        cut = whole.restrict(["c7", "c299"])
        assert cut is not None
        assert SyntheticSet.from_bytes(cut.to_bytes()).parts[0].targets.tolist() == [0, 1]

    def test_what_was_cut_is_a_set_like_any_other(self) -> None:
        cut = SyntheticSet.join([toy([0, 1, 2, 2]), tiles([1, 2])]).restrict(["c"], {"c": 1})
        assert cut is not None
        again = SyntheticSet.from_bytes(cut.to_bytes())
        assert again.to_bytes() == cut.to_bytes()
        assert torch.equal(again.decode().images, cut.decode().images)

    def test_what_was_measured_on_the_whole_is_not_said_of_a_cut(self) -> None:
        cut = toy([0, 1]).with_evaluation({"accuracy": 90.0}).restrict(["a"])
        assert cut is not None
        assert cut.evaluation is None

    def test_soft_labels_and_shared_codes_cannot_be_cut(self) -> None:
        """Whether codes are shared is the parametrization's to say: there may be as many of them as of targets."""

        class Shared(Pixels):
            shared: ClassVar[bool] = True

        part = toy([0, 1]).parts[0]
        soft = replace(part, targets=torch.tensor([[0.6, 0.4, 0], [0, 0.5, 0.5]]).half())
        shared = replace(part, parametrization=Shared())
        for one in (soft, shared):
            with pytest.raises(SettingError, match="dm: shared codes or soft labels; condense again at the size"):
                SyntheticSet([one]).restrict(["a"])


class TestFile:
    def test_it_loads_what_was_saved(self, tmp_path: Path) -> None:
        made = toy([0, 1]).with_evaluation({"accuracy": 50.0})
        path = made.save(tmp_path / "new" / "folder" / "set.safetensors")
        again = SyntheticSet.load(path)
        assert again.to_bytes() == made.to_bytes()
        assert again.evaluation == {"accuracy": 50.0}

    def test_nbytes_is_the_size_of_the_file(self, tmp_path: Path) -> None:
        for made in (toy([0, 1]), tiles([0]), SyntheticSet.join([toy([0]), tiles([1])]).with_evaluation({"a": 1})):
            path = made.save(tmp_path / "set.safetensors", overwrite=True)
            assert path.stat().st_size == made.nbytes

    def test_an_existing_file_is_kept_unless_told_otherwise(self, tmp_path: Path) -> None:
        path = toy([0]).save(tmp_path / "set.safetensors")
        with pytest.raises(OutputError, match=r"set.safetensors exists; choose another path or pass overwrite=True"):
            toy([1, 1]).save(path)
        assert len(SyntheticSet.load(path)) == 1
        toy([1, 1]).save(path, overwrite=True)
        assert len(SyntheticSet.load(path)) == 2

    @pytest.mark.parametrize("when", ["write", "fsync", "replace"])
    def test_a_full_disk_leaves_the_old_file_and_no_new_one(
        self, when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = toy([0]).save(tmp_path / "set.safetensors")
        before = path.read_bytes()

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        if when == "write":

            class Full:
                def __init__(self, file: int, mode: str) -> None:
                    self.file = file

                def __enter__(self) -> Full:
                    return self

                def __exit__(self, *_: object) -> None:
                    os.close(self.file)

                write = full

            monkeypatch.setattr("builtins.open", Full)
        else:
            monkeypatch.setattr(os, when, full)
        with pytest.raises(OutputError, match="No space left on device; free the disk or choose a folder"):
            toy([1]).save(path, overwrite=True)
        monkeypatch.undo()
        assert [entry.name for entry in tmp_path.iterdir()] == ["set.safetensors"]
        assert path.read_bytes() == before

    def test_a_missing_file_a_folder_and_noise_are_refused_by_their_path(self, tmp_path: Path) -> None:
        (tmp_path / "noise").write_bytes(b"not a set at all")
        for name, reason in (("none", "No such file"), (".", "Is a directory"), ("noise", "a header of")):
            with pytest.raises(UntrustedSetError, match=reason) as refused:
                SyntheticSet.load(tmp_path / name)
            assert str(tmp_path / name) in str(refused.value)

    def test_a_file_larger_than_allowed_is_not_read_to_its_end(self, tmp_path: Path) -> None:
        path = tmp_path / "large"
        with open(path, "wb") as file:
            file.truncate(1 << 40)  # a hole: a terabyte of nothing
        with pytest.raises(UntrustedSetError, match="1001 bytes; allowed: 1000"):
            SyntheticSet.load(path, Limits(nbytes=1000))


def test_records_and_evaluations_are_replaced_on_a_copy() -> None:
    made = SyntheticSet.join([toy([0]), tiles([1])])
    changed = made.with_record(data="other").with_evaluation({"accuracy": 1.0})
    assert [part.record.data for part in changed.parts] == ["other", "other"]
    assert changed.name == "other"
    assert made.name == "toy"
    assert made.evaluation is None
    assert changed.with_record(seed=3).evaluation == {"accuracy": 1.0}


def test_it_prints_what_it_is() -> None:
    assert repr(tiles([0, 1])).startswith("SyntheticSet(toy, 8 images in ")
    assert repr(tiles([0, 1])).endswith("1 part(s), dm)")
