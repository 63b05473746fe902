"""What other plugins and criteria make of a loss holds beside a condensed buffer, in any order and any strategy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from avalanche.core import SupervisedPlugin
from avalanche.training import DER, ER_ACE, Naive
from avalanche.training.plugins import AGEMPlugin, EWCPlugin, LFLPlugin, LwFPlugin, ReplayPlugin
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedBufferWithLogits,
    CondensedDER,
    CondensedGDumbPlugin,
    CondensedReplay,
    CondensedReplayPlugin,
    WeightAveragingPlugin,
)
from fedcondense.errors import SettingError
from fedcondense.memory import Selector
from tests.avalanche.test_plugins import Soft

RANDOM = Selector("random")
FEW = settings(
    max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


class Change(SupervisedPlugin):  # type: ignore[misc]
    """Adds a penalty on the weights to the loss, scales it, or both, in one of the ways in which plugins write it."""

    def __init__(self, penalty: float, scale: float, in_place: bool) -> None:
        super().__init__()
        self.penalty, self.scale, self.in_place = penalty, scale, in_place

    def of(self, loss: Tensor, model: nn.Module) -> Tensor:
        squares = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return (loss + self.penalty * squares) * self.scale

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        changed = self.of(strategy.loss, strategy.model)
        if self.in_place:
            strategy.loss += changed - strategy.loss
        else:
            strategy.loss = changed


class Seen(SupervisedPlugin):  # type: ignore[misc]
    """First in the list: works out the loss before others touch it; keeps what is given to the optimizer."""

    def __init__(self, replay: CondensedReplayPlugin, changes: list[Change]) -> None:
        super().__init__()
        self.replay, self.changes, self.pairs = replay, changes, list[tuple[float, float]]()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        sampler = copy.deepcopy(self.replay._sampler)
        assert sampler is not None
        batch = sampler.draw(strategy.train_mb_size)
        classes = self.replay._classes
        place = torch.stack([(classes == label).nonzero().squeeze() for label in strategy.mb_y])
        streamed = F.cross_entropy(strategy.mb_output[:, classes], place)
        memory = F.cross_entropy(strategy.model(batch.images), batch.labels)
        loss = (len(classes) * streamed + sampler.classes * memory) / (len(classes) + sampler.classes)
        for change in self.changes:
            loss = change.of(loss, strategy.model)
        self.wanted = loss.item()

    def after_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.pairs.append((strategy.loss.item(), self.wanted))


def buffer(size: int = 20) -> CondensedBuffer:
    return CondensedBuffer(size, condenser=RANDOM)


def weights(strategy: Any) -> Tensor:
    return torch.cat([p.detach().flatten() for p in strategy.model.parameters()])


def trained(few: Any, setting: Any, plugins: list[Any], make: Any = Naive, **more: Any) -> Any:
    torch.manual_seed(0)
    strategy = make(**setting(classes=4)(plugins=plugins, train_epochs=1, **more))
    torch.manual_seed(0)
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    return strategy


CHANGES = st.builds(Change, st.sampled_from([0.0, 0.01, 0.1]), st.sampled_from([0.5, 1.0, 2.0]), st.booleans())


@FEW
@given(before=st.lists(CHANGES, max_size=2), after=st.lists(CHANGES, max_size=2))
def test_any_list_of_plugins_changes_the_mixed_loss_once_and_in_its_order(
    before: list[Change], after: list[Change], few: Any, setting: Any
) -> None:
    replay = CondensedReplayPlugin(storage_policy=buffer())
    seen = Seen(replay, [*before, *after])
    strategy = Naive(**setting(classes=4)(plugins=[seen, *before, replay, *after], train_epochs=1, train_mb_size=60))
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    got, wanted = zip(*seen.pairs, strict=True)
    assert len(got) == 4
    assert got == pytest.approx(wanted, rel=1e-4)


MAKERS: dict[str, Callable[[float], Any]] = {
    "ewc": EWCPlugin,
    "lwf": lambda strength: LwFPlugin(alpha=strength),
    "lfl": LFLPlugin,
}


@pytest.mark.parametrize("name", MAKERS)
def test_stock_plugins_have_their_effect_on_either_side_of_ours(name: str, few: Any, setting: Any) -> None:
    make = MAKERS[name]
    ends = []
    for strength, first in ((1.0, True), (1.0, False), (30.0, True)):
        theirs, ours = make(strength), CondensedReplayPlugin(storage_policy=buffer())
        plugins = [theirs, ours] if first else [ours, theirs]
        ends.append(weights(trained(few, setting, plugins)))
    torch.testing.assert_close(ends[0], ends[1], rtol=1e-4, atol=1e-6)
    assert (ends[0] - ends[2]).abs().max() > 1e-4


def test_weights_that_other_plugins_keep_are_those_that_the_model_ends_with(few: Any, setting: Any) -> None:
    ewc = EWCPlugin(1.0)
    strategy = trained(few, setting, [ewc], CondensedReplay, storage_policy=buffer())
    assert any(isinstance(plugin, WeightAveragingPlugin) for plugin in strategy.plugins)
    kept = torch.cat([ewc.saved_params[1][name].data.flatten() for name, _ in strategy.model.named_parameters()])
    assert torch.equal(kept, weights(strategy))


class TestCriterion:
    @pytest.mark.parametrize("asymmetric", [True, False])
    @pytest.mark.parametrize(
        "criterion",
        [
            nn.CrossEntropyLoss(label_smoothing=0.2),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), label_smoothing=0.2),
            nn.MultiMarginLoss(),
            lambda output, labels: 3 * F.cross_entropy(output, labels),
        ],
    )
    def test_it_is_the_loss_of_both_sides(self, criterion: Any, asymmetric: bool, few: Any, setting: Any) -> None:
        """Both experiences at once: all classes belong to the experience, and nothing is hidden."""
        replay = CondensedReplayPlugin(storage_policy=buffer(), asymmetric=asymmetric, augment=False)
        pairs = []

        class Watch(SupervisedPlugin):  # type: ignore[misc]
            def after_forward(self, strategy: Any, **kwargs: Any) -> None:
                sampler = copy.deepcopy(replay._sampler)
                self.wanted = None
                if sampler is not None:
                    batch = sampler.draw(16)
                    streamed = criterion(strategy.mb_output, strategy.mb_y)
                    self.wanted = (streamed + criterion(strategy.model(batch.images), batch.labels)) / 2

            def after_backward(self, strategy: Any, **kwargs: Any) -> None:
                if self.wanted is not None:
                    pairs.append((strategy.loss.item(), self.wanted.item()))

        strategy = Naive(**setting(classes=4)(plugins=[Watch(), replay], train_epochs=1, criterion=criterion))
        for _ in range(2):
            strategy.train(few.with_tasks(1).train_stream[0])
        got, wanted = zip(*pairs, strict=True)
        assert len(got) >= 15
        assert got == pytest.approx(wanted, rel=1e-5)

    def test_smoothing_is_shared_among_the_classes_that_real_images_choose_from(self, few: Any, setting: Any) -> None:
        strategy = trained(
            few,
            setting,
            [],
            CondensedReplay,
            storage_policy=buffer(),
            criterion=nn.CrossEntropyLoss(label_smoothing=0.1),
        )
        plain = trained(few, setting, [], CondensedReplay, storage_policy=buffer())
        assert strategy.loss.item() < 10
        assert not torch.equal(weights(strategy), weights(plain))

    def test_one_that_weighs_hidden_outputs_is_refused(self, few: Any, setting: Any) -> None:
        def squares(output: Tensor, labels: Tensor) -> Tensor:
            return (output - F.one_hot(labels, output.shape[1])).square().mean()

        with pytest.raises(
            SettingError, match=r"criterion squares weighs .* CondensedReplayPlugin\(asymmetric=False\)"
        ):
            trained(few, setting, [], CondensedReplay, storage_policy=buffer(), criterion=squares)
        plugin = CondensedReplayPlugin(storage_policy=buffer(), asymmetric=False)
        assert weights(trained(few, setting, [plugin], criterion=squares)).isfinite().all()

    @pytest.mark.parametrize("plugin", [CondensedReplayPlugin, CondensedGDumbPlugin])
    def test_soft_labels_go_to_cross_entropy_alone(self, plugin: Any, few: Any, setting: Any) -> None:
        soft = CondensedBuffer(20, condenser=Soft())
        with pytest.raises(SettingError, match="soft labels, which the criterion MultiMarginLoss may not take"):
            trained(few, setting, [plugin(storage_policy=soft)], criterion=nn.MultiMarginLoss())

    def test_real_images_of_other_classes_that_a_stock_plugin_replays_keep_their_outputs(
        self, few: Any, setting: Any
    ) -> None:
        class Watch(SupervisedPlugin):  # type: ignore[misc]
            most = 0.0

            def after_backward(self, strategy: Any, **kwargs: Any) -> None:
                self.most = max(self.most, strategy.loss.item())

        watch = Watch()
        trained(few, setting, [ReplayPlugin(20), CondensedReplayPlugin(storage_policy=buffer()), watch])
        assert 0 < watch.most < 20


class TestStockStrategies:
    @pytest.mark.parametrize("make", [partial(DER, mem_size=20), partial(ER_ACE, mem_size=20), CondensedDER, Naive])
    def test_each_trains_with_penalties_and_our_plugin(self, make: Any, few: Any, setting: Any) -> None:
        """Where no criterion is asked for, the memory's loss is added to the strategy's own."""
        more = {"storage_policy": CondensedBufferWithLogits(20, condenser=RANDOM)} if make is CondensedDER else {}
        ends = []
        for penalty in (0.0, 0.1):
            ours = CondensedReplayPlugin(storage_policy=buffer(), batch_size_mem=4)
            agem = [AGEMPlugin(10, 10)] if make is Naive else []
            more = {"storage_policy": CondensedBufferWithLogits(20, condenser=RANDOM)} if more else {}
            strategy = trained(few, setting, [Change(penalty, 1.0, True), ours, *agem], make, **more)
            assert "criterion" not in vars(strategy)
            ends.append(weights(strategy))
        assert (ends[0] - ends[1]).abs().max() > 1e-4

    def test_der_s_loss_gets_the_memory_s_once(self, few: Any, setting: Any) -> None:
        ours = CondensedReplayPlugin(storage_policy=buffer(), balance=False, augment=False)
        pairs = []

        class First(SupervisedPlugin):  # type: ignore[misc]
            def before_backward(self, strategy: Any, **kwargs: Any) -> None:
                if strategy.replay_loader is not None:
                    batch = copy.deepcopy(ours._sampler).draw(16)  # type: ignore[union-attr]
                    memory = F.cross_entropy(strategy.model(batch.images), batch.labels)
                    self.wanted = strategy.loss + memory * (16 / len(strategy.mb_x))

            def after_backward(self, strategy: Any, **kwargs: Any) -> None:
                if strategy.replay_loader is not None:
                    pairs.append((strategy.loss.item(), self.wanted.item()))

        trained(few, setting, [First(), ours], partial(DER, mem_size=20))
        got, wanted = zip(*pairs, strict=True)
        assert got == pytest.approx(wanted, rel=1e-5)

    def test_an_interrupted_training_leaves_the_strategy_its_criterion(self, few: Any, setting: Any) -> None:
        class Stop(SupervisedPlugin):  # type: ignore[misc]
            on = True

            def after_forward(self, strategy: Any, **kwargs: Any) -> None:
                if self.on:
                    raise KeyboardInterrupt

        stop, bench = Stop(), few.with_tasks(2)
        strategy = Naive(**setting(classes=4)(plugins=[CondensedReplayPlugin(storage_policy=buffer()), stop]))
        with pytest.raises(KeyboardInterrupt):
            strategy.train(bench.train_stream[0])
        strategy.eval(bench.test_stream[:1])  # with its own criterion
        stop.on = False
        strategy.train(bench.train_stream[1])
        assert "criterion" not in vars(strategy)

    def test_a_strategy_with_a_loss_of_its_own_is_told_what_to_do(self, few: Any, setting: Any) -> None:
        class Own(Naive):  # type: ignore[misc]
            def criterion(self) -> Tensor:
                return F.cross_entropy(self.mb_output, self.mb_y)

        with pytest.raises(SettingError, match=r"Own has a loss of its own.*asymmetric=False"):
            trained(few, setting, [CondensedReplayPlugin(storage_policy=buffer())], Own)
        trained(few, setting, [CondensedReplayPlugin(storage_policy=buffer(), asymmetric=False)], Own)
