"""An answer that is held for review: the server is told at once, asks once more, and says so to the end."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from torch import nn

from fedcondense.errors import SettingError
from fedcondense.flower import Condense, OneShot
from fedcondense.flower.client import app
from fedcondense.flower.held import HELD, HELD_THERE, TOLD, as_first, is_held, once_more
from fedcondense.flower.holding import Holding
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.preview import waiting_at
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.run_folder import refusals
from fedcondense.flower.wire import ANSWERS, WIRE, About, pack_question
from fedcondense.networks import build
from fedcondense.sets.synthetic import SyntheticSet

TASK = Condense(ipc=1, steps=2, network="convnet1-w16")


def test_the_same_question_says_that_the_server_was_told_and_is_the_same_when_answers_are_kept() -> None:
    asked = RecordDict({"about": About(WIRE, answers=ANSWERS).record(), "config": ConfigRecord({"ipc": 2})})
    again = once_more(asked, 40.0)
    assert (About.of(again).waits, About.of(once_more(asked, math.inf)).waits) == (40, 300)
    assert About.of(asked).waits == 0
    assert again["config"] == asked["config"]
    assert as_first(again).object_id == asked.object_id
    assert as_first(asked) is asked


def test_what_nodes_say_is_known_again_and_a_server_of_before_is_not_told_at_once() -> None:
    assert is_held(f"north: {HELD}; ask again later")
    assert is_held(HELD_THERE)
    assert not is_held("north: has no data")
    assert TOLD == ANSWERS > 4  # what servers of before read


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    said = {"data": "digits", "send": "ask", "review-seconds": 0.0, "allow-evaluate": False}
    return {**said, "ledger": str(tmp_path / "ledger"), "cache": str(tmp_path / "cache")}


class Agreeing(InProcessGrid):
    """People at the named sites agree as soon as the server was told; the others do not look."""

    sites: tuple[str, ...] = ()
    asked = 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        self.asked += len(messages)
        if self.asked > len(self.traffic):
            self.agree()
        pushed: Iterable[str] = super().push_messages(messages)
        return pushed

    def agree(self) -> None:
        for context in self._contexts.values():
            holding, answers = waiting_at(context.node_config)
            for one in answers:
                if one.site in self.sites:
                    holding.decide(one, "send")


def untrained(joined: SyntheticSet) -> nn.Module:
    return build("convnet1-w16", joined.shape, len(joined.classes), 0)


def run(config: dict[str, Any], agreeing: tuple[str, ...], min_replies: int = 1) -> OneShot:
    with task_identity():
        grid = Agreeing(app, 2, node_config=config)
        grid.sites = agreeing
        strategy = OneShot(untrained, task=TASK, min_replies=min_replies)
        try:
            strategy.start(grid, timeout=20.0)
        finally:
            strategy.asks = grid.asked  # type: ignore[attr-defined]
    return strategy


def test_an_answer_that_is_agreed_to_comes_in_the_same_round_and_the_other_is_no_silence(
    config: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "flwr")
    strategy = run(config, ("client-0",))
    assert [answer.site.name for answer in strategy.answers] == ["client-0"]
    assert [(site.name, reason) for site, reason in strategy.refused] == [("client-1", HELD_THERE)]
    assert strategy.history[-1]["held"] == 1
    assert strategy.history[-1]["refused"] == 0
    assert "2 of 2 hold their answer for review there: client-0, client-1" in caplog.text
    assert "1 of 2 answered, 1 held for review there" in caplog.text
    assert refusals(strategy.left_out, "one-shot")[0]["held"] is True
    assert strategy.asks == 4  # type: ignore[attr-defined]  # a node that does not wait is asked twice, not for ever


def test_a_round_that_fails_of_it_says_what_to_do(config: dict[str, Any]) -> None:
    with pytest.raises(AggregationError, match=r"held for review there; once people there have looked .*resume = true"):
        run(config, ("client-0",), min_replies=2)


def test_another_run_gets_what_people_agreed_to_after_the_first_had_failed(config: dict[str, Any]) -> None:
    with pytest.raises(AggregationError, match="held for review"):
        run(config, ())
    with task_identity():
        later = Agreeing(app, 2, node_config=config)
        later.sites = ("client-1",)
        later.agree()
        assert later.asked == 0
        strategy = OneShot(untrained, task=TASK, min_replies=1)
        strategy.start(later, timeout=20.0)
    assert [answer.site.name for answer in strategy.answers] == ["client-1"]


def test_a_server_of_before_finds_a_node_that_waits(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take what it is told at once for a refusal, and not ask again."""
    waited = list[float]()

    def wait(self: Holding, held: Any, seconds: float, command: str = "") -> None:
        waited.append(seconds)
        raise SettingError(HELD)

    monkeypatch.setattr(Holding, "wait", wait)
    for answers, waits in ((4, 0), (ANSWERS, 0), (ANSWERS, 5), (ANSWERS, 300)):
        content = pack_question(TASK, 1)
        content.config_records["about"].update({"answers": answers, "waits": waits})
        with task_identity():
            grid = InProcessGrid(app, ["north"], node_config={**config, "review-seconds": 7.0})
            grid.send_and_receive([Message(content, dst_node_id=100, message_type="query.condense")])
    assert waited == [7.0, 0.0, 5.0, 7.0]
