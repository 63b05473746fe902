"""A node's log: a line for each question, on the disk before the answer leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import ResumeError
from fedcondense.flower.caps import Cost
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.ledger import Allowance, Charge, Ledger
from fedcondense.flower.node_log import LogLine, NodeLog, line_of
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.serialised import content_bytes
from fedcondense.flower.settings import number
from fedcondense.flower.wire import WIRE, About

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


@dataclass(frozen=True)
class Say(Task[Metrics]):
    """A task that answers with a number, or fails."""

    value: int = number(1, 0, 9)
    fails: bool = False

    name: ClassVar[str] = "say"
    payload: ClassVar[type[Metrics]] = Metrics
    done: ClassVar[list[int]] = []

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        def run() -> Metrics:
            if self.fails:
                raise RuntimeError("record 17 is odd")
            self.done.append(self.value)
            return Metrics({"value": self.value})

        return Job(Cost(), run)


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    Say.done.clear()
    return {"data": "digits", "ledger": str(tmp_path / "ledger.jsonl")}


@pytest.fixture
def log(tmp_path: Path) -> NodeLog:
    return NodeLog(tmp_path / "ledger.jsonl.log")


@pytest.fixture
def say(ask: Ask, train: Data, node: dict[str, Any]) -> Ask:
    def ask_it(question: Any, **options: Any) -> Message:
        options = {"node": node, **options}
        return ask(train, question, task="say", tasks=[Say], **options)

    return ask_it


class TestLines:
    def test_an_answer_is_named_by_what_left(self, say: Ask, log: NodeLog) -> None:
        reply = say({"value": 3}, server_round=4)
        (line,), torn = log.lines()
        assert (line.task, line.round, line.version, line.wire) == ("say", 4, "test", WIRE)
        assert (line.asked, line.decision, line.reason, torn) == ({"value": 3}, "answered", "", 0)
        assert line.sha256 == reply.content.object_id
        assert line.nbytes == content_bytes(reply.content)
        assert line.run == reply.metadata.run_id

    def test_what_was_kept_and_leaves_again_is_said(
        self, say: Ask, log: NodeLog, node: dict[str, Any], tmp_path: Path
    ) -> None:
        for _ in range(2):
            say({}, node={**node, "cache": str(tmp_path / "cache")})
        say({"value": 2}, node={**node, "cache": str(tmp_path / "cache")})
        assert [line.decision for line in log.lines()[0]] == ["answered", "kept", "answered"]

    @pytest.mark.parametrize(
        ("question", "changes", "reason"),
        [
            ({"value": 10}, {}, "value = 10; needed"),
            ({"vaule": 1}, {}, "no setting is called 'vaule'"),
            ({}, {"life-questions": 0}, "questions 0 + 1, allowed 0"),
            ({}, {"min-records": 10**6}, "no class has 1000000 records"),
            (RecordDict({"about": ArrayRecord({})}), {}, "'about' is no ConfigRecord"),
            (RecordDict({"about": About(WIRE + 1, "9", "say").record()}), {}, "the server speaks wire"),
        ],
    )
    def test_refusals_have_a_line_with_their_reason(
        self, say: Ask, log: NodeLog, node: dict[str, Any], question: Any, changes: dict[str, Any], reason: str
    ) -> None:
        assert say(question, node={**node, **changes}).has_error()
        (line,), _ = log.lines()
        assert (line.decision, line.nbytes, line.sha256) == ("refused", 0, "")
        assert reason in line.reason

    def test_a_config_that_cannot_be_read_is_logged_where_it_names_a_file(
        self, say: Ask, node: dict[str, Any], tmp_path: Path
    ) -> None:
        assert say({}, node={**node, "max-ipx": 3, "log": str(tmp_path / "own.log")}).has_error()
        (line,), _ = NodeLog(tmp_path / "own.log").lines()
        assert "did you mean 'max-ipc'" in line.reason

    def test_or_beside_the_ledger_that_it_names_and_its_people_read_why(
        self, say: Ask, node: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level(logging.INFO, "flwr")
        ledger = tmp_path / "other.jsonl"
        assert say({}, node={**node, "name": "west", "max-ipx": 3, "ledger": str(ledger)}).has_error()
        (line,), _ = NodeLog(tmp_path / "other.jsonl.log").lines()
        assert line.reason.startswith("west: ")
        assert line.reason in caplog.text

    def test_a_surprise_is_logged_without_its_text(self, say: Ask, log: NodeLog) -> None:
        say({"fails": True})
        (line,), _ = log.lines()
        assert line.decision == "failed"
        assert "17" not in line.reason

    def test_a_task_that_the_node_does_not_know_is_logged(
        self, ask: Ask, train: Data, node: dict[str, Any], log: NodeLog
    ) -> None:
        assert ask(train, {}, task="unheard", node=node).has_error()
        (line,), _ = log.lines()
        assert (line.task, line.decision) == ("unheard", "refused")
        assert "No query function registered with name 'unheard'" in line.reason

    def test_flowers_own_messages_are_logged_too(self, train: Data, node: dict[str, Any], log: NodeLog) -> None:
        content = RecordDict({"arrays": ArrayRecord({}), "config": ConfigRecord({"lr": 0.1})})
        with task_identity():
            grid = InProcessGrid(make_client_app(lambda context: train), 1, node_config={"num-partitions": 0, **node})
            list(grid.send_and_receive([Message(content, 100, "train")]))
        (line,), _ = log.lines()
        assert (line.task, line.decision, line.asked) == ("train", "refused", {"arrays": "0 bytes", "lr": "0.1"})

    def test_public_data_and_this_process_keep_none(self, say: Ask, log: NodeLog, node: dict[str, Any]) -> None:
        assert not say({}, node={}).has_error()
        assert not say({}, is_counted=False).has_error()
        assert not log.path.exists()


class TestWhatCannotBeWritten:
    def test_a_full_disk_withholds_the_answer_and_a_cache_sends_it_later(
        self,
        say: Ask,
        log: NodeLog,
        node: dict[str, Any],
        tmp_path: Path,
        reason_of: ReasonOf,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        node["cache"] = str(tmp_path / "cache")
        log.check()
        fsync, logged = os.fsync, os.stat(log.path).st_ino

        def full(file: int) -> None:
            if os.fstat(file).st_ino == logged:
                raise OSError(28, "No space left on device")
            fsync(file)

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            reason = reason_of(say({}))
        assert "this node's log cannot be written, so nothing leaves" in reason
        assert str(tmp_path) not in reason
        assert not say({}).has_error()
        assert Say.done == [1]
        assert [line.decision for line in log.lines()[0]][-1] == "kept"

    def test_a_damaged_log_is_seen_before_the_work_and_before_the_charge(
        self, say: Ask, log: NodeLog, node: dict[str, Any], reason_of: ReasonOf
    ) -> None:
        say({})
        log.path.write_bytes(log.path.read_bytes().replace(b'"answered"', b'"refused" '))
        assert "nothing leaves" in reason_of(say({"value": 2}))
        assert Say.done == [1]
        assert Ledger.open(Path(node["ledger"]), Allowance()).spent().questions == 1
        with pytest.raises(ResumeError, match="follow from each other"):
            log.lines()

    def test_a_line_that_is_none_of_ours_is_named(self, tmp_path: Path) -> None:
        ledger = Ledger.open(tmp_path / "ledger", Allowance())
        ledger.charge("a charge", Charge())
        with pytest.raises(ResumeError, match="holds a line that is no question"):
            NodeLog(tmp_path / "ledger").lines()


def test_a_line_is_short_and_on_one_line_whatever_was_asked() -> None:
    hostile = {f"key-{k}\n" * 50: ["x\x1b[31m" * 500] * 50 for k in range(100)}
    content = RecordDict({"config": ConfigRecord({**hostile, "nan": float("nan"), "blob": b"\x00" * 10_000})})
    with task_identity():
        message = Message(content, 100, "query.say")
    log = line_of(message, None, "because")
    assert isinstance(log, LogLine)
    assert log.asked["..."] == "82 more"
    assert sum(len(name) + len(str(value)) for name, value in log.asked.items()) < 21 * 130
    assert all(text.isprintable() for name, value in log.asked.items() for text in (name, str(value)))


def test_nothing_is_begun_by_looking(tmp_path: Path) -> None:
    assert NodeLog(tmp_path / "none.log").lines() == ([], 0)
    assert not list(tmp_path.iterdir())
