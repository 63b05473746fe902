"""A condensed buffer in the place of Avalanche's own, in Avalanche's own plugins and strategies, unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from avalanche.benchmarks.scenarios.deprecated.generators import data_incremental_benchmark
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import MTSimpleMLP
from avalanche.training import ER_ACE, Naive
from avalanche.training.plugins import GDumbPlugin, MIRPlugin, ReplayPlugin

from fedcondense.avalanche import CondensedBuffer
from fedcondense.data.images import Data
from fedcondense.memory import Condenser, Maker, Selector

NAIVE = 0.2  # a network that remembers nothing knows the two classes of the last experience
CONDENSER = Condenser("dm", "pixels", steps=20)
Accuracy = Callable[[Any, Data], float]


def replay(setting: Any, buffer: CondensedBuffer, **more: Any) -> Naive:
    return Naive(**setting(plugins=[ReplayPlugin(mem_size=buffer.max_size, storage_policy=buffer, **more)]))


def gdumb(setting: Any, buffer: CondensedBuffer) -> Naive:
    plugin = GDumbPlugin(buffer.max_size)
    plugin.storage_policy = buffer
    return Naive(**setting(plugins=[plugin], train_epochs=15))


def er_ace(setting: Any, buffer: CondensedBuffer) -> ER_ACE:
    strategy = ER_ACE(**setting(mem_size=buffer.max_size))
    strategy.storage_policy = buffer
    return strategy


def mir(setting: Any, buffer: CondensedBuffer) -> Naive:
    plugin = MIRPlugin(batch_size_mem=16, mem_size=buffer.max_size, subsample=50)
    plugin.storage_policy = buffer
    return Naive(**setting(plugins=[plugin]))


class Watch:
    """A plugin that looks at the buffer after each experience, and at each batch."""

    def __init__(self, buffer: CondensedBuffer) -> None:
        self.buffer, self.sizes, self.labels = buffer, list[int](), set[int]()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.labels |= set(strategy.mb_y.tolist())

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.sizes.append(len(self.buffer.buffer))


class TestClassIncremental:
    @pytest.mark.parametrize(
        ("stream", "make", "condenser", "beats"),
        [
            ("with_tasks", replay, CONDENSER, 0.5),
            ("with_tasks", gdumb, CONDENSER, 0.7),
            ("with_tasks", er_ace, CONDENSER, 0.7),
            ("with_tasks", mir, Selector("random"), 0.35),  # with any buffer it learns slowly
            ("without_tasks", replay, CONDENSER, 0.5),  # stock ER_ACE and MIR unpack a task label
            ("without_tasks", gdumb, CONDENSER, 0.7),
        ],
    )
    def test_each_strategy_remembers(
        self, stream: str, make: Any, condenser: Maker, beats: float, streams: Any, setting: Any, accuracy: Accuracy
    ) -> None:
        assert beats > NAIVE
        buffer = CondensedBuffer(100, condenser=condenser)
        strategy = make(setting(), buffer)
        watch = Watch(buffer)
        strategy.plugins.append(watch)
        for experience in getattr(streams, stream)().train_stream:
            strategy.train(experience)
        assert accuracy(strategy, streams.test) > beats
        assert watch.sizes[-1] == buffer.max_size == 100
        assert max(watch.sizes) <= 100
        assert buffer.seen_classes == set(range(10))

    def test_without_a_memory_the_same_network_forgets(self, streams: Any, setting: Any, accuracy: Accuracy) -> None:
        strategy = Naive(**setting()())
        for experience in streams.with_tasks().train_stream:
            strategy.train(experience)
        assert accuracy(strategy, streams.test) < NAIVE + 0.02

    def test_a_selection_of_real_images_replays_as_well(self, streams: Any, setting: Any, accuracy: Accuracy) -> None:
        strategy = replay(setting(), CondensedBuffer(100, condenser=Selector("herding")))
        for experience in streams.without_tasks().train_stream:
            strategy.train(experience)
        assert accuracy(strategy, streams.test) > 0.6


class TestDomainIncremental:
    @pytest.mark.parametrize("update", ["recondense", "reservoir", "append"])
    def test_classes_that_come_again_are_remembered_in_all_their_looks(
        self, update: str, streams: Any, setting: Any, accuracy: Accuracy
    ) -> None:
        buffer = CondensedBuffer(240, condenser=Condenser("dm", steps=10), update=update)
        strategy, naive = replay(setting(), buffer), Naive(**setting()())
        sizes = []
        for experience in streams.domains().train_stream:
            strategy.train(experience)
            naive.train(experience)
            sizes.append(len(buffer.buffer))
        assert sizes[0] == 240
        assert max(sizes) <= 240
        assert buffer.seen_classes == set(range(10))
        counts = torch.bincount(torch.tensor(list(buffer.buffer.targets)))
        assert counts.min() == counts.max()
        assert accuracy(strategy, streams.test) > accuracy(naive, streams.test) + 0.1


class TestOnline:
    def test_a_stream_of_small_pieces_is_condensed_when_there_is_enough(
        self, few: Any, setting: Any, accuracy: Accuracy
    ) -> None:
        """240 images in pieces of 50, of two experiences; a class has 60, and waits for 30 of them."""
        buffer = CondensedBuffer(256, condenser=Condenser("dm", steps=5), min_samples=30)
        strategy = replay(setting(classes=4), buffer)
        condensed = []
        for experience in split_online_stream(few.with_tasks(2).train_stream, experience_size=50, seed=0):
            strategy.train(experience)
            assert 0 < len(buffer.buffer) <= 256
            condensed.append(len(buffer.memory.sets))
        assert condensed[0] == 0  # 25 images of each class
        assert condensed[-1] > 0
        assert buffer.seen_classes == set(range(4))
        assert len(buffer.buffer) == 256
        assert accuracy(strategy, few.test) > 0.7

    def test_the_flag_of_the_last_piece_plays_no_part(self, few: Any) -> None:
        """Avalanche never sets it where the size of the pieces divides the experience."""
        buffer = CondensedBuffer(8, condenser=Selector("random"), min_samples=20)
        pieces = list(split_online_stream(few.without_tasks(2).train_stream, experience_size=40, seed=0))
        assert [len(piece.dataset) for piece in pieces] == [40] * 6
        for piece in pieces:
            buffer.post_adapt(None, piece)
        assert buffer.memory.seen.keys() == {"0", "1", "2", "3"}

    def test_a_data_incremental_stream_is_a_stream(self, few: Any, setting: Any, accuracy: Accuracy) -> None:
        buffer = CondensedBuffer(80, condenser=Selector("half-resolution"))
        strategy = replay(setting(classes=4), buffer)
        pieces = data_incremental_benchmark(few.with_tasks(2), experience_size=40).train_stream
        assert len(pieces) == 6
        for experience in pieces:
            strategy.train(experience)
            assert len(buffer.buffer) <= 80
        assert accuracy(strategy, few.test) > 0.7


class TestTaskIncremental:
    @pytest.mark.parametrize("balanced", [False, True])
    def test_task_labels_are_kept_with_the_images(self, balanced: bool, streams: Any, setting: Any) -> None:
        buffer = CondensedBuffer(100, condenser=Condenser("dm", steps=10))
        settings = setting()
        settings.model = MTSimpleMLP(input_size=64, hidden_size=64)
        strategy = replay(settings, buffer, task_balanced_dataloader=balanced)
        watch = Watch(buffer)
        strategy.plugins.append(watch)
        bench = streams.tasks()
        for experience in bench.train_stream:
            strategy.train(experience)
        assert set(zip(buffer.buffer.targets, buffer.buffer.targets_task_labels, strict=True)) == {
            (label, label // 2) for label in range(10)
        }
        assert buffer.buffer.task_set.keys() == set(range(5))
        assert watch.labels == set(range(10))
        scores = []
        for experience in bench.test_stream:
            images, labels, tasks = zip(*experience.dataset, strict=True)
            with torch.no_grad():
                found = strategy.model.eval()(torch.stack(images), torch.tensor(tasks)).argmax(1)
            scores.append(float((found == torch.tensor(labels)).float().mean()))
        assert min(scores) > 0.7

    def test_a_label_in_three_tasks_is_three_groups(self, few: Any) -> None:
        buffer = CondensedBuffer(12, condenser=Selector("random"))
        for experience in few.repeated_tasks().train_stream:
            buffer.post_adapt(None, experience)
        assert buffer.memory.names == [f"{c}{task}" for task in ("", "@1", "@2") for c in range(4)]
        assert buffer.seen_classes == set(range(4))
        assert {label: len(group.buffer) for label, group in buffer.buffer_groups.items()} == dict.fromkeys(range(4), 3)
