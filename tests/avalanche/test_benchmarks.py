from __future__ import annotations

import pytest
import torch

from fedcondense.avalanche import split_benchmark
from fedcondense.avalanche.benchmarks import NormalisedImages
from fedcondense.data.images import DataSet


def test_samples_are_the_normalised_images_and_whole_numbers(digits: DataSet) -> None:
    samples = NormalisedImages(digits.test)
    image, label = samples[3]
    assert torch.equal(image, digits.test.batch(torch.tensor([3])).images[0])
    assert label == int(digits.test.labels[3])
    assert type(label) is int
    assert len(samples) == len(digits.test) == len(samples.targets)


def test_each_class_is_in_one_experience_and_all_are_in_some(digits: DataSet) -> None:
    bench = split_benchmark(digits.train, digits.test, 5, seed=1)
    shown = [sorted(one.classes_in_this_experience) for one in bench.train_stream]
    assert [len(one) for one in shown] == [2] * 5
    assert sorted(label for one in shown for label in one) == list(range(10))
    assert [sorted(one.classes_in_this_experience) for one in bench.test_stream] == shown
    assert sum(len(one.dataset) for one in bench.train_stream) == len(digits.train)


def test_the_order_follows_from_the_seed(digits: DataSet) -> None:
    orders = [
        [tuple(sorted(one.classes_in_this_experience)) for one in split_benchmark(*digits, 5, seed=seed).train_stream]
        for seed in (0, 0, 1)
    ]
    assert orders[0] == orders[1] != orders[2]


@pytest.mark.parametrize("task_labels", [True, False])
def test_tasks_are_numbered_where_they_are_asked_for_and_classes_keep_their_labels(
    task_labels: bool, digits: DataSet
) -> None:
    bench = split_benchmark(*digits, 5, task_labels=task_labels)
    assert [one.task_label for one in bench.train_stream] == (list(range(5)) if task_labels else [0] * 5)
    assert {int(label) for one in bench.train_stream for label in one.dataset.targets} == set(range(10))
