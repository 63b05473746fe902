from __future__ import annotations

from typing import Any

import pytest
import torch
from avalanche.models import IncrementalClassifier
from avalanche.training import DER, Naive
from torch import nn

from fedcondense.avalanche import (
    CondensedBuffer,
    CondensedBufferWithLogits,
    CondensedDER,
    CondensedGDumb,
    CondensedGDumbPlugin,
    CondensedReplay,
    CondensedReplayPlugin,
    WeightAveragingPlugin,
)
from fedcondense.errors import SettingError
from fedcondense.memory import Selector

RANDOM = Selector("random")


def test_condensed_replay_is_the_plugin_with_averaged_weights(few: Any, setting: Any) -> None:
    bench = few.with_tasks(2)
    weights = []
    for make in (
        lambda told, buffer: CondensedReplay(storage_policy=buffer, batch_size_mem=8, **told()),
        lambda told, buffer: Naive(**told(plugins=[CondensedReplayPlugin(None, buffer, 8), WeightAveragingPlugin()])),
    ):
        strategy = make(setting(classes=4), CondensedBuffer(20, condenser=RANDOM))
        torch.manual_seed(0)
        for experience in bench.train_stream:
            strategy.train(experience)
        weights.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*weights)


def test_condensed_gdumb_is_the_plugin_with_averaged_weights(few: Any, setting: Any) -> None:
    weights = []
    for own in (True, False):
        buffer = CondensedBuffer(20, condenser=RANDOM)
        settings = setting(classes=4)
        strategy: Any = (
            CondensedGDumb(storage_policy=buffer, **settings())
            if own
            else Naive(**settings(plugins=[CondensedGDumbPlugin(None, buffer), WeightAveragingPlugin()]))
        )
        torch.manual_seed(0)
        for experience in few.with_tasks(2).train_stream:
            strategy.train(experience)
        weights.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*weights)


def test_condensed_der_is_stock_der_with_the_buffer(few: Any, setting: Any) -> None:
    weights = []
    for own in (True, False):
        settings, buffer = setting(classes=4), CondensedBufferWithLogits(20, condenser=RANDOM)
        if own:
            strategy = CondensedDER(storage_policy=buffer, **settings(batch_size_mem=8))
        else:
            strategy = DER(**settings(mem_size=20, batch_size_mem=8))
            strategy.storage_policy = buffer
        torch.manual_seed(0)
        for experience in few.with_tasks(2).train_stream:
            strategy.train(experience)
        weights.append(torch.cat([p.detach().flatten() for p in strategy.model.parameters()]))
    assert torch.equal(*weights)


def test_a_head_that_grows_is_taught_zero_for_what_it_did_not_have(few: Any, setting: Any) -> None:
    settings = setting(classes=4)
    settings.model = nn.Sequential(nn.Flatten(), IncrementalClassifier(64, 2))
    strategy = CondensedDER(storage_policy=CondensedBufferWithLogits(20, condenser=RANDOM), **settings())
    widths = []

    class Watch:
        def before_backward(self, strategy: Any, **kwargs: Any) -> None:
            if strategy.replay_loader is not None:
                widths.append((strategy.batch_logits.shape[1], bool(strategy.batch_logits[:, 2:].any())))

    strategy.plugins.append(Watch())
    for experience in few.with_tasks(2).train_stream:
        strategy.train(experience)
    assert set(widths) == {(4, False)}


def test_buffers_and_streams_that_do_not_fit_der_are_refused(few: Any, setting: Any) -> None:
    with pytest.raises(SettingError, match="of CondensedBuffer; needed: a CondensedBufferWithLogits"):
        CondensedDER(storage_policy=CondensedBuffer(20), **setting()())
    with pytest.raises(SettingError, match="mem_size 30, but the storage_policy holds 20; give one of them"):
        CondensedDER(mem_size=30, storage_policy=CondensedBufferWithLogits(20), **setting()())
    strategy = CondensedDER(storage_policy=CondensedBufferWithLogits(20, condenser=RANDOM), **setting()())
    first, second = few.without_tasks(2).train_stream
    strategy.train(first)
    with pytest.raises(SettingError, match="a stream without task labels; DER needs them"):
        strategy.train(second)
