from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError

SPEC = Spec("toy", (3, 8, 8), ("a", "b", "c", "d"), (0.5, 0.25, 0.0), (0.5, 0.25, 1.0))


def toy(labels: list[int], seed: int = 0) -> Data:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (len(labels), 3, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.tensor(labels), SPEC)


def test_counts_keep_a_place_for_absent_classes() -> None:
    assert toy([1, 1, 3]).counts.tolist() == [0, 2, 0, 1]


def test_counts_and_order_are_the_callers_own() -> None:
    data = toy([1, 1, 3])
    data.counts.zero_()
    data.per_class(None, torch.Generator()).zero_()
    assert data.counts.tolist() == [0, 2, 0, 1]
    assert data.per_class(None, torch.Generator()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_labels_that_are_no_whole_numbers_are_not_cut_to_some(dtype: torch.dtype) -> None:
    data = toy([1, 1, 3])
    with pytest.raises(DataError, match=r"toy: labels are torch.*needed: whole numbers"):
        Data(data.images, data.labels.to(dtype), SPEC)


def test_a_batch_is_normalised_channel_by_channel() -> None:
    """255 is 1 in [0, 1] space: (1 - mean) / std by hand."""
    data = Data(torch.full((1, 3, 8, 8), 255, dtype=torch.uint8), torch.tensor([2]), SPEC)
    batch = data.batch()
    torch.testing.assert_close(batch.images[0, :, 0, 0], torch.tensor([1.0, 3.0, 1.0]))
    assert batch.targets.tolist() == [[0, 0, 1, 0]]


def test_a_batch_takes_an_index_a_slice_or_everything() -> None:
    data = toy([0, 1, 2, 3])
    everything = data.batch()
    torch.testing.assert_close(data.batch(torch.tensor([3, 1])).images, everything.images[[3, 1]])
    torch.testing.assert_close(data.batch(slice(1, 3)).targets, everything.targets[1:3])


def test_a_draw_a_class_has_no_repeats_and_the_right_classes() -> None:
    data = toy([3, 0, 0, 1, 3, 3, 0, 3, 0, 1])
    for seed in range(20):
        drawn = data.per_class(2, torch.Generator().manual_seed(seed))
        assert len(set(drawn.tolist())) == len(drawn)
        assert data.labels[drawn].tolist() == [0, 0, 1, 1, 3, 3]


def test_a_class_with_fewer_than_asked_gives_all_it_has() -> None:
    data = toy([0] * 5 + [1] * 2 + [3])
    drawn = data.per_class(3, torch.Generator().manual_seed(0))
    assert torch.bincount(data.labels[drawn], minlength=4).tolist() == [3, 2, 0, 1]
    assert set(drawn[3:5].tolist()) == {5, 6}


def test_no_count_means_all_class_by_class() -> None:
    assert toy([1, 0, 1, 0]).per_class(None, torch.Generator()).tolist() == [1, 3, 0, 2]


def test_each_example_of_a_class_is_drawn_equally_often() -> None:
    """2 of 5 in 3,000 draws: 1,200 each, with a deviation of sqrt(3000 * 0.4 * 0.6) = 27; five are allowed."""
    data = toy([1, 0, 0, 0, 0, 0])
    generator = torch.Generator().manual_seed(1)
    drawn = torch.cat([data.per_class(2, generator) for _ in range(3000)])
    seen = torch.bincount(drawn, minlength=6)
    assert seen[0] == 3000
    assert (seen[1:] - 1200).abs().max() < 135


def test_equal_generators_draw_the_same() -> None:
    data = toy([0, 1] * 10)
    first, second = (data.per_class(4, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(first, second)


def test_a_subset_by_index_or_mask_keeps_the_class_names() -> None:
    data = toy([0, 1, 2, 2])
    by_index = data.subset(torch.tensor([3, 0]))
    by_mask = data.subset(data.labels == 2)
    assert by_index.labels.tolist() == [2, 0]
    assert torch.equal(by_index.images, data.images[[3, 0]])
    assert by_mask.counts.tolist() == [0, 0, 2, 0]
    assert by_mask.spec is data.spec


def test_a_client_without_data_is_a_subset_too() -> None:
    nobody = toy([0, 1]).subset(torch.tensor([], dtype=torch.int64))
    assert len(toy([0, 1]).subset(torch.tensor([]))) == 0  # what an empty list becomes
    assert len(nobody) == 0
    assert nobody.counts.tolist() == [0, 0, 0, 0]
    assert nobody.per_class(3, torch.Generator()).tolist() == []


def test_the_fingerprint_changes_with_a_pixel_a_label_and_the_order() -> None:
    data = toy([0, 1, 2])
    pixel = data.images.clone()
    pixel[2, 0, 7, 7] ^= 1
    assert data.fingerprint == toy([0, 1, 2]).fingerprint
    assert len({data.fingerprint, Data(pixel, data.labels, SPEC).fingerprint, toy([0, 1, 3]).fingerprint}) == 3
    assert data.subset(torch.tensor([1, 0, 2])).fingerprint != data.fingerprint


def test_named_changes_the_name_alone() -> None:
    data = toy([0, 1])
    other = data.named("other")
    assert other.spec.name == "other"
    assert other.spec.std == SPEC.std
    assert other.fingerprint == data.fingerprint


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), r"are torch.float32 .*needed: torch.uint8 \(N, 3, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1]), r"\(2, 1, 8, 8\); needed"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0]), r"2 images but labels of shape \(1,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([0, 4]), r"labels go from 0 to 4; needed: 0 to 3"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.tensor([-1, 0]), r"labels go from -1 to 0"),
    ],
)
def test_malformed_tensors_are_refused(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Data(images, labels, SPEC)
