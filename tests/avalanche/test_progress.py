"""Lines on how far an experience is: `reporting` opens them, and the logger only tells it."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin
from torch import nn

from fedcondense import progress
from fedcondense.avalanche import CondensedBuffer, CondensedGDumb, CondensedReplay, ProgressLogger
from fedcondense.memory import Condenser
from fedcondense.progress import reporting


class Clock:
    """Each look at it takes two seconds."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 2
        return self.now


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(progress, "time", Clock())
    with caplog.at_level(logging.INFO, "fedcondense"):
        yield lambda: [record.getMessage() for record in caplog.records if record.name == "fedcondense.progress"]


def of(kind: Any, setting: Any) -> Any:
    told = {} if kind is Naive else {"storage_policy": CondensedBuffer(20, condenser=CONDENSER)}
    evaluator = EvaluationPlugin(loggers=[ProgressLogger()])
    return kind(criterion=nn.CrossEntropyLoss(), **told, **setting(classes=4)(evaluator=evaluator, train_epochs=3))


CONDENSER = Condenser("dm", network="convnet1-w16", steps=1)


@pytest.mark.parametrize("kind", [Naive, CondensedReplay, CondensedGDumb])
def test_epochs_are_told_of_in_any_strategy_that_trains(kind: Any, few: Any, setting: Any, lines: Any) -> None:
    strategy, bench = of(kind, setting), few.with_tasks(2)
    with reporting("stream") as report:
        for done, experience in enumerate(bench.train_stream):
            report(done / 2, f"experience {done + 1} of 2")
            strategy.train(experience)
        strategy.eval(bench.test_stream)
    told = [line for line in lines() if "training" in line]
    assert any(line.startswith("stream: experience 1 of 2, training ") for line in told)
    assert any(line.startswith("stream: 50 %, experience 2 of 2, training ") for line in told)
    assert {f"epoch {n} of 3" for n in (1, 2, 3)} >= {line.split(", ")[-3 if "about" in line else -2] for line in told}


def test_nothing_is_said_where_nobody_opened_a_report(few: Any, setting: Any, lines: Any) -> None:
    of(Naive, setting).train(few.with_tasks(2).train_stream[0])
    assert lines() == []
