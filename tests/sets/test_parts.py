from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import pytest
import torch

from fedcondense.data.images import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.sets.parts import Part, Record, check_joinable, to_storage

RECORD = Record("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))


def part(targets: torch.Tensor, stored: int = 2) -> Part:
    return Part({"images": torch.zeros(stored, 1, 8, 8, dtype=torch.uint8)}, targets, Pixels(), RECORD)


class TestPart:
    def test_the_label_of_an_image_is_its_targets_largest_entry(self) -> None:
        assert part(torch.tensor([2, 0], dtype=torch.uint8)).labels().tolist() == [2, 0]
        assert part(torch.tensor([[0.1, 0.2, 0.7], [0.6, 0.3, 0.1]]).half()).labels().tolist() == [2, 0]

    def test_of_targets_per_decoded_image_the_mean_decides(self) -> None:
        """Four tiles: class c leads in two, class b in the mean (0.45 against 0.40)."""
        tiles = [[0.2, 0.2, 0.6], [0.2, 0.2, 0.6], [0.1, 0.7, 0.2], [0.1, 0.7, 0.2]]
        many = Part({"images": torch.zeros(1, 1, 8, 8).byte()}, torch.tensor(tiles).half(), MultiFormation(2), RECORD)
        assert many.stored == 1
        assert many.labels().tolist() == [1]
        torch.testing.assert_close(many.decode().targets, torch.tensor(tiles).half().float())

    def test_only_hard_labels_and_codes_that_are_not_shared_can_be_cut(self) -> None:
        class Shared(Pixels):
            shared: ClassVar[bool] = True

        hard = part(torch.tensor([0, 1], dtype=torch.uint8))
        assert hard.is_separable
        assert not part(torch.full((2, 3), 1 / 3).half()).is_separable
        assert not replace(hard, parametrization=Shared()).is_separable


class TestRecord:
    def test_of_data_says_what_the_spec_says_and_counts_each_class(self) -> None:
        spec = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,))
        data = Data(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([2, 0, 2]), spec)
        record = Record.of(data, "dm", 4, seed=9)
        assert (record.data, record.classes, record.method, record.ipc, record.seed) == (
            "toy",
            spec.classes,
            "dm",
            4,
            9,
        )
        assert record.counts == (1, 0, 2)
        assert record.augmentation == spec.operations

    @pytest.mark.parametrize("seed", [-1, 2**63])
    def test_a_seed_that_no_file_can_hold_is_refused(self, seed: int) -> None:
        data = Data(
            torch.zeros(1, 1, 8, 8, dtype=torch.uint8),
            torch.tensor([0]),
            Spec("toy", (1, 8, 8), ("a",), (0.5,), (1.0,)),
        )
        with pytest.raises(SettingError, match=f"seed {seed}; needed: a whole number from 0, below"):
            Record.of(data, "dm", 1, seed)


def test_parts_of_other_shapes_and_none_at_all_are_no_set() -> None:
    small = part(torch.tensor([0, 1], dtype=torch.uint8))
    check_joinable([small, small])
    with pytest.raises(SettingError, match="a synthetic set of no parts"):
        check_joinable([])
    with pytest.raises(SettingError, match="images of different shapes"):
        check_joinable([small, replace(small, record=replace(RECORD, shape=(1, 16, 16)))])


class TestStorage:
    def test_bytes_are_rounded_and_clamped(self) -> None:
        codes = {"images": torch.tensor([-0.2, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 1.7]).view(1, 1, 2, 3)}
        stored, _ = to_storage(codes, torch.eye(1), Pixels())
        assert stored["images"].dtype == torch.uint8
        assert stored["images"].flatten().tolist() == [0, 0, 0, 1, 255, 255]

    def test_one_hot_targets_become_labels_and_others_half_precision(self) -> None:
        codes = {"images": torch.zeros(2, 1, 8, 8)}
        _, labels = to_storage(codes, torch.eye(3)[[2, 0]], Pixels())
        _, many = to_storage(codes, torch.eye(300)[[299, 0]], Pixels())
        _, soft = to_storage(codes, torch.tensor([[0.5, 0.5], [1.0, 0.0]]), Pixels())
        assert (labels.dtype, labels.tolist()) == (torch.uint8, [2, 0])
        assert (many.dtype, many.tolist()) == (torch.int16, [299, 0])
        assert (soft.dtype, soft.tolist()) == (torch.float16, [[0.5, 0.5], [1.0, 0.0]])

    def test_what_was_stored_and_stored_again_is_the_same(self) -> None:
        every_byte = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
        stored, _ = to_storage({"images": every_byte.float() / 255}, torch.eye(1), Pixels())
        assert torch.equal(stored["images"], every_byte)
