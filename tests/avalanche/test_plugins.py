from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from avalanche.benchmarks.scenarios.online import split_online_stream
from avalanche.models import MTSimpleMLP
from avalanche.training import Naive
from avalanche.training.storage_policy import ClassBalancedBuffer
from torch import Tensor, nn

from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedGDumb,
    CondensedGDumbPlugin,
    CondensedReplay,
    CondensedReplayPlugin,
)
from fedcondense.avalanche.sampling import Sampler
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.memory import Condenser, Selector
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

NAIVE = 0.2
RANDOM = Selector("random")
CPU = torch.device("cpu")
Accuracy = Callable[[Any, Data], float]


class Soft:
    """Gives each image of a real selection a tenth of probability for the other classes of its set."""

    per_image = 1

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        (part,) = select(data, ipc, "random", seed).parts
        hard = F.one_hot(part.targets.long(), len(data.spec.classes)).float()
        others = (1 - hard) / max(1, hard.shape[1] - 1)
        return SyntheticSet([replace(part, targets=(0.9 * hard + 0.1 * others).half())])


def filled(bench: Any, buffer: CondensedBuffer | None = None) -> CondensedBuffer:
    buffer = buffer or CondensedBuffer(20, condenser=RANDOM)
    for experience in bench.train_stream:
        buffer.post_adapt(None, experience)
    return buffer


class Losses:
    """A plugin that computes what the loss of each iteration has to be, and keeps what it is."""

    def __init__(self, plugin: CondensedReplayPlugin, expected: Callable[[Any, Sampler], Tensor]) -> None:
        self.plugin, self.expected, self.pairs = plugin, expected, list[tuple[float, float]]()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Before the plugin, which comes after this one, and before the criterion is asked."""
        sampler = self.plugin._sampler
        assert sampler is not None
        self.wanted = self.expected(strategy, copy.deepcopy(sampler)).item()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.pairs.append((strategy.loss.item(), self.wanted))


class TestReplay:
    @pytest.mark.parametrize("stream", ["with_tasks", "without_tasks"])
    @pytest.mark.parametrize("asymmetric", [True, False])
    def test_it_remembers(self, stream: str, asymmetric: bool, streams: Any, setting: Any, accuracy: Accuracy) -> None:
        buffer = CondensedBuffer(100, condenser=Condenser("dm", "pixels", steps=20))
        plugin = CondensedReplayPlugin(storage_policy=buffer, asymmetric=asymmetric)
        strategy = Naive(**setting()(plugins=[plugin]))
        for experience in getattr(streams, stream)().train_stream:
            strategy.train(experience)
        assert accuracy(strategy, streams.test) > 0.7
        assert len(buffer.buffer) == 100

    @pytest.mark.parametrize("asymmetric", [True, False])
    def test_domains_that_follow_each_other_are_remembered(
        self, asymmetric: bool, streams: Any, setting: Any, accuracy: Accuracy
    ) -> None:
        buffer = CondensedBuffer(240, condenser=RANDOM)
        plugin = CondensedReplayPlugin(storage_policy=buffer, asymmetric=asymmetric)
        strategy, naive = Naive(**setting()(plugins=[plugin])), Naive(**setting()())
        for experience in streams.domains().train_stream:
            strategy.train(experience)
            naive.train(experience)
        assert accuracy(strategy, streams.test) > max(0.6, accuracy(naive, streams.test) + 0.1)

    def test_an_online_stream_is_remembered(self, few: Any, setting: Any, accuracy: Accuracy) -> None:
        buffer = CondensedBuffer(40, condenser=RANDOM, min_samples=30)
        strategy = CondensedReplay(storage_policy=buffer, **setting(classes=4)(train_epochs=6))
        for experience in split_online_stream(few.without_tasks(2).train_stream, experience_size=50, seed=0):
            strategy.train(experience)
        assert accuracy(strategy, few.test) > 0.75

    def test_tasks_go_to_their_heads(self, streams: Any, setting: Any) -> None:
        settings = setting()
        settings.model = MTSimpleMLP(input_size=64, hidden_size=64)
        strategy = CondensedReplay(storage_policy=CondensedBuffer(100, condenser=RANDOM), **settings())
        bench = streams.tasks()
        for experience in bench.train_stream:
            strategy.train(experience)
        images, labels, tasks = zip(*(s for e in bench.test_stream for s in e.dataset), strict=True)
        with torch.no_grad():
            found = strategy.model.eval()(torch.stack(images), torch.tensor(tasks)).argmax(1)
        assert (found == torch.tensor(labels)).float().mean() > 0.8


class TestLoss:
    @staticmethod
    def losses(few: Any, setting: Any, expected: Callable[[Any, Sampler], Tensor], **told: Any) -> None:
        """Train on two experiences of two classes each, and compare the losses of the second."""
        buffer = CondensedBuffer(20, condenser=told.pop("condenser", RANDOM))
        plugin = CondensedReplayPlugin(storage_policy=buffer, **told)
        strategy = Naive(**setting(classes=4)(plugins=[plugin], train_epochs=1))
        first, second = few.with_tasks(2).train_stream
        strategy.train(first)
        watch = Losses(plugin, expected)
        strategy.plugins.insert(0, watch)
        strategy.train(second)
        assert len(watch.pairs) == 8  # 120 images in batches of 16
        got, wanted = zip(*watch.pairs, strict=True)
        assert got == pytest.approx(wanted, rel=1e-5)

    def test_balanced_it_weighs_each_class_alike(self, few: Any, setting: Any) -> None:
        """Two classes in the memory, two in the stream: half and half, though the batches hold 16 and 4 images."""

        def expected(strategy: Any, sampler: Sampler) -> Tensor:
            batch = sampler.draw(4)
            memory = F.cross_entropy(strategy.model(batch.images), batch.labels)
            return (F.cross_entropy(strategy.mb_output, strategy.mb_y) + memory) / 2

        self.losses(few, setting, expected, batch_size_mem=4, asymmetric=False)

    def test_unbalanced_it_weighs_each_image_alike(self, few: Any, setting: Any) -> None:
        def expected(strategy: Any, sampler: Sampler) -> Tensor:
            batch = sampler.draw(4)
            images, labels = torch.cat([strategy.mb_x, batch.images]), torch.cat([strategy.mb_y, batch.labels])
            return F.cross_entropy(strategy.model(images), labels)

        self.losses(few, setting, expected, batch_size_mem=4, asymmetric=False, balance=False)

    def test_asymmetric_the_stream_chooses_among_its_own_classes(self, few: Any, setting: Any) -> None:
        """The memory holds the new classes too: four of them against two of the stream."""

        def expected(strategy: Any, sampler: Sampler) -> Tensor:
            batch = sampler.draw(16)
            stream = F.cross_entropy(strategy.mb_output[:, 2:], strategy.mb_y - 2)
            memory = F.cross_entropy(strategy.model(batch.images), batch.labels)
            return (2 * stream + 4 * memory) / 6

        self.losses(few, setting, expected)

    def test_soft_targets_are_what_the_memory_s_images_are_taught(self, few: Any, setting: Any) -> None:
        def expected(strategy: Any, sampler: Sampler) -> Tensor:
            batch = sampler.draw(16)
            assert batch.targets.amax() < 0.95
            wide = torch.zeros(len(batch.images), 4)
            wide[:, sampler.decoded.labels] = batch.targets
            memory: Tensor = -(wide * strategy.model(batch.images).log_softmax(1)).sum(1).mean()
            return (F.cross_entropy(strategy.mb_output, strategy.mb_y) + memory) / 2

        self.losses(few, setting, expected, condenser=Soft(), asymmetric=False)

    def test_a_class_that_was_appended_twice_weighs_once(self, few: Any, setting: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM, update="append")
        first, _ = few.with_tasks(2).train_stream
        for _ in range(2):
            buffer.post_adapt(None, first)
        assert len(buffer.memory.names) == 4
        assert Sampler(buffer, CPU, False, 0).classes == 2

    def test_a_label_in_two_tasks_weighs_twice(self, few: Any) -> None:
        assert Sampler(filled(few.repeated_tasks()), CPU, False, 0).classes == 12

    def test_the_first_experience_is_learned_without_a_memory(self, few: Any, setting: Any) -> None:
        plugin = CondensedReplayPlugin(storage_policy=CondensedBuffer(20, condenser=RANDOM), asymmetric=False)
        weights = []
        for plugins in ([plugin], []):
            strategy = Naive(**setting(classes=4)(plugins=plugins))
            torch.manual_seed(0)
            strategy.train(few.with_tasks(2).train_stream[0])
            weights.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
        assert torch.equal(*weights)


class TestGDumb:
    @pytest.mark.parametrize("stream", ["with_tasks", "without_tasks"])
    def test_a_fresh_model_learns_all_classes_from_the_buffer(
        self, stream: str, streams: Any, setting: Any, accuracy: Accuracy
    ) -> None:
        buffer = CondensedBuffer(100, condenser=Condenser("dm", "pixels", steps=20))
        strategy = CondensedGDumb(storage_policy=buffer, **setting()(train_epochs=15))
        for experience in getattr(streams, stream)().train_stream:
            strategy.train(experience)
        assert accuracy(strategy, streams.test) > 0.7

    def test_soft_targets_are_its_loss(self, few: Any, setting: Any, accuracy: Accuracy) -> None:
        losses = []

        class Watch:
            def after_backward(self, strategy: Any, **kwargs: Any) -> None:
                targets = torch.where(F.one_hot(strategy.mb_y, 4) == 1, 0.9, 0.1 / 3)
                wanted = -(targets * strategy.mb_output.log_softmax(1)).sum(1).mean()
                losses.append((strategy.loss.item(), wanted.item()))

        plugin = CondensedGDumbPlugin(storage_policy=CondensedBuffer(20, condenser=Soft()))
        strategy = Naive(**setting(classes=4)(plugins=[plugin, Watch()], train_epochs=15))
        strategy.train(few.with_tasks(1).train_stream[0])  # one set holds all four classes
        got, wanted = zip(*losses, strict=True)
        assert len(got) == 30
        assert got == pytest.approx(wanted, rel=1e-3)  # probabilities are stored in half precision
        assert accuracy(strategy, few.test) > 0.7

    def test_it_never_sees_the_stream(self, few: Any, setting: Any) -> None:
        seen: set[bytes] = set()

        class Watch:
            def after_forward(self, strategy: Any, **kwargs: Any) -> None:
                seen.update(image.numpy().tobytes() for image in strategy.mb_x)

        buffer = CondensedBuffer(8, condenser=RANDOM)
        plugin = CondensedGDumbPlugin(storage_policy=buffer, augment=False)
        strategy = Naive(**setting(classes=4)(plugins=[plugin, Watch()]))
        strategy.train(few.with_tasks(1).train_stream[0])
        assert seen == {sample[0].numpy().tobytes() for sample in buffer.buffer}


class TestRefusals:
    @pytest.mark.parametrize("plugin", [CondensedReplayPlugin, CondensedGDumbPlugin])
    def test_buffers_that_do_not_fit_are_refused_at_once(self, plugin: Any) -> None:
        buffer = CondensedBuffer(20, condenser=RANDOM)
        with pytest.raises(SettingError, match="mem_size 30, but the storage_policy holds 20; give one of them"):
            plugin(30, buffer)
        with pytest.raises(SettingError, match="ClassBalancedBuffer; give a CondensedBuffer, or the stock plugin"):
            plugin(storage_policy=ClassBalancedBuffer(20))
        assert plugin(20, buffer).storage_policy is buffer
        assert plugin(40).storage_policy.max_size == 40
        assert plugin().storage_policy.max_size == 200

    def test_no_images_an_iteration_are_refused(self) -> None:
        with pytest.raises(SettingError, match="batch_size_mem 0; needed: 1 or more"):
            CondensedReplayPlugin(20, batch_size_mem=0)

    @pytest.mark.parametrize("make", [CondensedReplay, CondensedGDumb])
    def test_a_model_without_outputs_for_the_buffer_s_labels_is_told_so(
        self, make: Any, few: Any, setting: Any, tmp_path: Any
    ) -> None:
        path = filled(few.with_tasks(2), CondensedBuffer(20, condenser=Soft())).save(tmp_path / "buffer")
        buffer = CondensedBuffer(20, condenser=Soft())
        buffer.load(path)
        strategy = make(storage_policy=buffer, **setting(classes=2)())
        with pytest.raises(SettingError, match="the buffer holds label 3, the model has 2 outputs; widen its head"):
            strategy.train(few.with_tasks(2).train_stream[0])


def test_a_model_that_is_frozen_in_part_is_left_so(few: Any, setting: Any) -> None:
    """The plugins never touch modes or gradients of the model themselves."""
    settings = setting(classes=4)
    settings.model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 4))
    frozen = settings.model[1].requires_grad_(False)
    before = frozen.weight.clone()
    strategy = CondensedReplay(storage_policy=CondensedBuffer(20, condenser=RANDOM), **settings())
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    assert torch.equal(frozen.weight, before)
