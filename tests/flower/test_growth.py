"""What the server does grows with the number of sites, not with its square: eight times the sites, some eight times."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

from fedcondense.contract import Holder
from fedcondense.flower.around import GridAround
from fedcondense.flower.arrivals import KeepingGrid
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.payloads import Metrics, Weights
from fedcondense.flower.replies import Mailbox, ReplyLimits, Sent
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.serialised import bytes_of_each, message_bytes
from fedcondense.flower.sites import names_of
from fedcondense.flower.wire import pack_question

FEW, TIMES = 250, 8
MOST = 3 * TIMES  # a square would take 64 times as long


def growth(work: Callable[[int], Callable[[], Any]]) -> float:
    """Return how many times the CPU seconds of `FEW` things `TIMES` as many take: the least of three each."""

    def least(count: int) -> float:
        took = []
        for _ in range(3):
            run = work(count)
            began = time.process_time()
            run()
            took.append(time.process_time() - began)
        return min(took)

    return least(TIMES * FEW) / max(least(FEW), 1e-6)


@dataclass(frozen=True)
class Look(Task[Metrics]):
    """A task that carries weights."""

    weights: Weights = Weights({"w": torch.zeros(10_000)})

    name: ClassVar[str] = "look"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        raise AssertionError


class Looking(Rounds):
    """Asks everybody the same."""

    task: Question = Look()

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        return self.task

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        return state


class Registered(GridAround):
    """So many nodes that are registered by name."""

    def __init__(self, count: int) -> None:
        self.infos = [NodeInfo(node_id=k + 1, name=f"site-{k}") for k in range(count)]

    def get_node_ids(self) -> Iterable[int]:
        return [info.node_id for info in self.infos]

    def get_nodes(self) -> Iterable[Any]:
        return self.infos

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        raise AssertionError


def mailbox(count: int) -> Mailbox:
    """Return a mailbox whose questions were sent to so many nodes."""
    sent = []
    for k in range(count):
        message = Message(RecordDict({}), k + 1, "query.look")
        message.metadata.__dict__["_message_id"] = f"id-{k}"
        sent.append(Sent(message, Site("", str(k + 1), k + 1), Metrics))
    return Mailbox(sent, ReplyLimits())


def refusal(sent: Sent) -> Message:
    reply = Message(Error(2, "no"), reply_to=sent.message)
    reply.metadata.__dict__.update(_src_node_id=sent.site.node)
    return reply


def names(count: int) -> Callable[[], Any]:
    sites = [Site("", str(k), k) for k in range(count)]
    claims = {k: f"client-{k}" for k in range(count)}
    return lambda: names_of(sites, claims)


def polls(count: int) -> Callable[[], Any]:
    box = mailbox(count)
    replies = [refusal(sent) for sent in box.sent]

    def run() -> None:
        for part in range(5):
            for reply in replies[part::5]:
                box.take(reply)
            box.open()
            box.second()

    return run


def questions(count: int) -> Callable[[], Any]:
    strategy, grid = Looking(min_train_nodes=count, min_available_nodes=count), Registered(count)
    return lambda: strategy._questions(1, "answer", State(), grid)


def resumed(count: int) -> Callable[[], Any]:
    grid = KeepingGrid(Registered(0), Path("nowhere"))
    box = mailbox(count)
    grid._found = {sent.message.metadata.message_id: refusal(sent) for sent in box.sent}
    wanted = list(grid._found)
    return lambda: grid.pull_messages(wanted)


@pytest.mark.parametrize("work", [names, polls, questions, resumed], ids=lambda work: work.__name__)
def test_eight_times_the_sites_take_about_eight_times_as_long(work: Callable[[int], Callable[[], Any]]) -> None:
    with task_identity():
        assert growth(work) < MOST


def test_a_question_for_all_is_packed_once_and_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    packed, pack = list[Any](), pack_question

    def counted(*args: Any) -> RecordDict:
        packed.append(args)
        return pack(*args)

    monkeypatch.setattr("fedcondense.flower.asking.pack_question", counted)
    grid: Grid = Registered(50)
    with task_identity():
        sent = Looking(min_train_nodes=50)._questions(1, "answer", State(), grid).sent
        assert len(packed) == 1
        assert len({id(one.message.content) for one in sent}) == 1
        assert len({one.message.metadata.dst_node_id for one in sent}) == 50
        messages = [one.message for one in sent]
        assert list(bytes_of_each(messages)) == [message_bytes(message) for message in messages]


def test_nodes_are_asked_again_once_however_often_the_server_looks() -> None:
    asked = list[int]()

    def again(site: Site, reason: str) -> None:
        asked.append(site.node)

    with task_identity():
        box = mailbox(20)
        box.again = again
        for sent in box.sent:
            box.take(refusal(sent))
            box.second()
    assert asked == list(range(1, 21))
