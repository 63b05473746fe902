from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Message

from fedcondense.condensing import Own
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Node
from fedcondense.flower.serialised import message_bytes
from fedcondense.flower.strategies.in_bytes import InBytes, asked_in_bytes, family_of
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.flower.strategies.ridge import Products
from fedcondense.flower.strategies.selections import Select
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.sets.codecs import CODECS
from fedcondense.sets.format import Limits
from fedcondense.sets.selection import SELECTIONS
from fedcondense.sets.synthetic import SyntheticSet

OPEN = Caps(max_seconds=float("inf"), min_records=2, allow_real=True)
QUICK = Condense(objective="dm", steps=1)

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


def set_of(reply: Message, data: Data) -> SyntheticSet:
    assert not reply.has_error(), reply.error.reason
    received = read_answer(reply.content, SyntheticSet, Limits(), data.spec.classes)
    assert isinstance(received.payload, SyntheticSet)
    return received.payload


@pytest.fixture(scope="module")
def skewed(train: Data) -> Data:
    """Return records of which classes have 0, 4, 8, ... 36."""
    return train.subset(torch.cat([torch.where(train.labels == c)[0][: 4 * c] for c in range(10)]))


class TestBudget:
    @pytest.mark.parametrize("budget", [1400, 1600, 4000])
    @pytest.mark.parametrize(
        "task",
        [
            QUICK,
            replace(QUICK, parametrization=""),
            replace(QUICK, codec="bits-1"),
            replace(QUICK, codec="raw"),
            Select(),
            Select(codec="jpeg-10"),
            Select(method="herding", codec="bits-2"),
        ],
        ids=str,
    )
    def test_no_reply_takes_more_and_none_holds_more_than_half_of_the_records(
        self, task: Any, budget: int, ask: Ask, skewed: Data
    ) -> None:
        asked = asked_in_bytes(replace(task, budget=budget))
        reply = ask(skewed, pack_question(asked, 1, skewed.spec.classes), task=task.name, caps=OPEN)
        sent = set_of(reply, skewed)
        assert message_bytes(reply) <= budget
        assert sent.parts[0].codec == (task.codec or sent.parts[0].codec)
        counts = sent.counts().tolist()
        assert all(1 <= n <= 2 * c for c, n in enumerate(counts) if c)
        assert counts[0] == 0

    @pytest.mark.parametrize("method", SELECTIONS)
    def test_more_bytes_hold_more_real_images_of_every_selection(self, method: str, ask: Ask, skewed: Data) -> None:
        sizes = []
        for budget in (1500, 2200):
            asked = asked_in_bytes(Select(method=method, budget=budget))
            sizes.append(len(set_of(ask(skewed, pack_question(asked, 1), task="select", caps=OPEN), skewed)))
        assert 9 <= sizes[0] < sizes[1]

    def test_real_images_fill_it_but_for_one(self, ask: Ask, skewed: Data) -> None:
        """An image takes some 25 bytes, and some 60 are kept for a longer header and message."""
        asked = asked_in_bytes(Select(budget=1800, codec="jpeg-10"))
        reply = ask(skewed, pack_question(asked, 1, skewed.spec.classes), task="select", caps=OPEN)
        assert 1800 - message_bytes(reply) < 100

    def test_what_is_too_small_says_how_many_bytes_do(self, ask: Ask, skewed: Data, reason_of: ReasonOf) -> None:
        for task in (QUICK, Select()):
            asked = asked_in_bytes(replace(task, budget=700))
            reason = reason_of(ask(skewed, pack_question(asked, 1), task=task.name, caps=OPEN))
            assert "needed:" in reason
            assert "bytes" in reason
        tiny = asked_in_bytes(replace(QUICK, budget=5))
        assert "needed" in reason_of(ask(skewed, pack_question(tiny, 1), caps=OPEN))

    def test_images_per_class_stay_within_the_nodes_cap(self, ask: Ask, skewed: Data) -> None:
        for task in (QUICK, Select()):
            asked = asked_in_bytes(replace(task, budget=8000, ipc=99))  # no part is played by the 99
            reply = ask(skewed, pack_question(asked, 1), task=task.name, caps=replace(OPEN, max_ipc=3))
            assert max(set_of(reply, skewed).counts().tolist()) == 3

    def test_a_server_that_reads_no_codec_gets_raw_images_within_it(self, ask: Ask, skewed: Data) -> None:
        for task in (QUICK, Select()):
            reply = ask(skewed, pack_question(replace(task, budget=2000), 1), task=task.name, caps=OPEN)
            assert set_of(reply, skewed).parts[0].codec == "raw"
            assert message_bytes(reply) <= 2000

    def test_the_cost_is_within_it(self, skewed: Data) -> None:
        job = replace(QUICK, budget=2000, codecs=("bits",)).prepare(Own(skewed), Node("a", OPEN))
        assert job.run().nbytes <= job.cost.nbytes <= 2000

    def test_a_reply_that_would_pass_it_is_not_sent(self, skewed: Data) -> None:
        made = Select(ipc=2).prepare(Own(skewed), Node("a", OPEN)).run()
        with pytest.raises(SettingError, match=r"a reply of \d+ bytes for a budget of 900: ask for 800"):
            InBytes(budget=900).checked(made, Node("a", OPEN))
        assert InBytes().checked(made, Node("a", OPEN)) is made


class TestAsked:
    def test_tasks_that_ask_for_bytes_say_what_the_server_reads(self) -> None:
        for task in (Condense(budget=1), Condense(codec="bits-2"), Select(codec="raw")):
            assert asked_in_bytes(task).codecs == tuple(CODECS)
            assert asked_in_bytes(replace(task, codecs=("bits",))).codecs == ("bits",)

    def test_others_stay_as_they_are(self) -> None:
        for task in (Condense(), Select(), Products()):
            assert asked_in_bytes(task) is task


@pytest.mark.parametrize(("name", "family"), [("bits-2-patch", "bits"), ("webp-20", "webp"), ("raw", "raw")])
def test_a_family_is_the_word_that_names_begin_with(name: str, family: str) -> None:
    assert family_of(name) == family
