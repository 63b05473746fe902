from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fedcondense.avalanche import CondensedBuffer, domain_benchmark, split_benchmark
from fedcondense.avalanche.benchmarks import NormalisedImages
from fedcondense.data.images import Data, DataSet
from fedcondense.errors import DataError, SettingError
from fedcondense.memory import Selector


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


def test_what_cannot_be_divided_is_refused(digits: DataSet) -> None:
    with pytest.raises(SettingError, match=r"digits: 3 experiences for 10 classes; needed: .* 1, 2, 5, 10"):
        split_benchmark(*digits, 3)
    for pair, part in (
        ((digits.train.subset(digits.train.labels != 4), digits.test), "to learn from"),
        ((digits.train, digits.test.subset(digits.test.labels != 4)), "to test on"),
    ):
        with pytest.raises(DataError, match=rf"digits: 1 of 10 classes have no images {part} \(4\)"):
            split_benchmark(*pair, 5)


@pytest.mark.parametrize("task_labels", [True, False])
def test_tasks_are_numbered_where_they_are_asked_for_and_classes_keep_their_labels(
    task_labels: bool, digits: DataSet
) -> None:
    bench = split_benchmark(*digits, 5, task_labels=task_labels)
    assert [one.task_label for one in bench.train_stream] == (list(range(5)) if task_labels else [0] * 5)
    assert {int(label) for one in bench.train_stream for label in one.dataset.targets} == set(range(10))


class TestDomains:
    """The digits, and their negatives, whose classes stand in another order."""

    @pytest.fixture
    def domains(self, digits: DataSet) -> list[tuple[str, Data, Data]]:
        def negative(data: Data) -> Data:
            turned = replace(data.spec, classes=data.spec.classes[::-1])
            return Data(255 - data.images, 9 - data.labels, turned)

        return [("day", digits.train, digits.test), ("night", negative(digits.train), negative(digits.test))]

    def test_classes_have_one_label_in_all_domains(self, domains: list[tuple[str, Data, Data]]) -> None:
        bench = domain_benchmark(domains)
        assert [len(one.dataset) for one in bench.train_stream] == [len(train) for _, train, _ in domains]
        assert [one.classes_in_this_experience for one in bench.test_stream] == [set(range(10))] * 2
        day, night = bench.train_stream
        for k in (0, 17):
            assert list(day.dataset[k][1:]) == list(night.dataset[k][1:]) == [int(domains[0][1].labels[k]), 0]
            _, train, _ = domains[1]
            assert torch.equal(night.dataset[k][0], train.batch(torch.tensor([k])).images[0])
        tasks = [one.dataset[0][2] for one in domain_benchmark(domains, task_labels=True).train_stream]
        assert tasks == [0, 1]

    def test_a_memory_learns_from_each_domain(self, domains: list[tuple[str, Data, Data]]) -> None:
        buffer = CondensedBuffer(60, condenser=Selector("random"), update="reservoir")
        for experience in domain_benchmark(domains).train_stream:
            buffer.post_adapt(None, experience)
        assert buffer.seen_classes == set(range(10))
        light = [float(image.mean()) > 0.5 for image, *_ in buffer.buffer]
        assert 15 < sum(light) < 45

    def test_what_does_not_match_is_refused(self, domains: list[tuple[str, Data, Data]]) -> None:
        name, train, test = domains[1]
        other = Data(train.images, train.labels, replace(train.spec, classes=tuple("abcdefghij")))
        with pytest.raises(DataError, match=r"night: class '.' is none of the classes that are known"):
            domain_benchmark([domains[0], (name, other, test)])
        large = Data(train.images.repeat(1, 1, 2, 2), train.labels, replace(train.spec, shape=(1, 16, 16)))
        with pytest.raises(DataError, match=r"night: images of \(1, 16, 16\), those of day are \(1, 8, 8\)"):
            domain_benchmark([domains[0], (name, large, test)])
        with pytest.raises(SettingError, match="domains called day, day; needed"):
            domain_benchmark([domains[0], domains[0]])
