from __future__ import annotations

import numpy as np
import pytest
import torch

from fedcondense.data.splits import check_labels, hold_out, to_data, to_tensor
from fedcondense.errors import DataError


def numbered(count: int) -> np.ndarray:
    """Return images (N, 8, 8, 1) whose bytes are their number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 8, 8, 1)).copy()


def test_one_image_in_five_of_each_class_is_held_out_and_none_is_lost() -> None:
    labels = np.repeat([0, 1, 2], [10, 23, 4])
    (train, train_labels), (test, test_labels) = hold_out(numbered(37), labels, "toy")
    assert np.bincount(test_labels, minlength=3).tolist() == [2, 4, 0]
    assert sorted([*train[:, 0, 0, 0], *test[:, 0, 0, 0]]) == list(range(37))
    assert np.array_equal(labels[train[:, 0, 0, 0]], train_labels)


def test_the_split_of_a_source_is_the_same_each_time() -> None:
    labels = np.arange(50) % 5
    first, again = (hold_out(numbered(50), labels, "toy") for _ in range(2))
    assert np.array_equal(first[1][0], again[1][0])


def test_mean_and_deviation_are_those_of_training_pixels_and_a_flat_channel_keeps_a_step_of_grey() -> None:
    images = np.zeros((4, 8, 8, 3), dtype=np.uint8)
    images[:2, ..., 1] = 255  # mean 0.5, deviation 0.5
    images[..., 2] = 51  # flat: 0.2
    train, test = to_data("toy", [(images, np.array([0, 1, 0, 1])), (images[:1] + 1, np.array([1]))], ())
    assert train.spec is test.spec
    assert train.spec.mean == (0.0, 0.5, 0.2)
    assert train.spec.std == (round(1 / 255, 4), 0.5, round(1 / 255, 4))
    assert train.spec.classes == ("0", "1")


def test_names_that_repeat_and_splits_of_two_shapes_are_refused() -> None:
    labels = np.array([0])
    with pytest.raises(DataError, match=r"class name '.*' of labels 0 and 1; needed: a name of its own"):
        to_data("toy", [(numbered(1), labels)], ("a", "a"))
    with pytest.raises(DataError, match=r"train images are \(8, 8, 1\), test images \(9, 8, 1\); needed: one shape"):
        to_data("toy", [(numbered(1), labels), (np.zeros((1, 9, 8, 1), dtype=np.uint8), labels)], ())


@pytest.mark.parametrize("labels", [[0.0, 1.0], [[0, 1]], [0, -1], [0, 10_000], [0]])
def test_labels_are_whole_numbers_from_0_one_per_image(labels: list[object]) -> None:
    with pytest.raises(DataError, match="toy: labels"):
        check_labels(np.array(labels), 2, "toy")


def test_a_column_of_labels_is_labels() -> None:
    assert check_labels(np.array([[3], [4]], dtype=np.uint8), 2, "toy").tolist() == [3, 4]


def test_channels_go_first() -> None:
    images = np.arange(2 * 8 * 9 * 3).astype(np.uint8).reshape(2, 8, 9, 3)
    assert torch.equal(to_tensor(images), torch.from_numpy(images).permute(0, 3, 1, 2))
