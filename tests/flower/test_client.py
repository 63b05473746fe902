from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp.mod import arrays_size_mod, message_size_mod
from torch.nn.functional import cross_entropy

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import DataError, DivergenceError, SettingError, UntrustedSetError
from fedcondense.flower.apart import is_apart
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import app, make_client_app
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.ledger import Allowance, Ledger
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.wire import WIRE, About, pack_question
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


@dataclass(frozen=True)
class Fail(Task[Metrics]):
    """A task that raises what it is told."""

    kind: str = ""

    name: ClassVar[str] = "fail"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        text = "/home/alice/patients.csv: Bob <b>has</b> no label"
        kinds = (SettingError, UntrustedSetError, DivergenceError, DataError, ZeroDivisionError, KeyError)
        raise {kind.__name__: kind for kind in kinds}[self.kind](text)


class TestErrors:
    @pytest.mark.parametrize("kind", ["SettingError", "UntrustedSetError", "DivergenceError"])
    def test_a_refusal_travels_in_text_that_is_safe_to_show(
        self, kind: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        reason = reason_of(ask(train, {"kind": kind}, task="fail", tasks=[Fail]))
        assert reason == "partition 0: /home/alice/patients.csv: Bob (b)has(/b) no label"

    @pytest.mark.parametrize("kind", ["DataError", "ZeroDivisionError", "KeyError"])
    def test_the_text_of_an_unexpected_error_stays_on_the_node(
        self, kind: str, ask: Ask, train: Data, reason_of: ReasonOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        reason = reason_of(ask(train, {"kind": kind}, task="fail", tasks=[Fail]))
        assert reason == f"partition 0: failed with {kind}; the node's log says more"
        assert "Bob" in caplog.text

    def test_so_does_that_of_a_loader(self, reason_of: ReasonOf, caplog: pytest.LogCaptureFixture) -> None:
        def secret(context: Context) -> Data:
            raise DataError("/home/alice/patients.csv: Bob has no label")

        with task_identity():
            grid = InProcessGrid(make_client_app(secret), 1)
            message = Message(pack_question(TASKS["condense"](), 1), 100, "query.condense")
            reply = next(iter(grid.send_and_receive([message])))
        assert reason_of(reply) == "partition 0: failed with DataError; the node's log says more"
        assert "Bob" in caplog.text

    def test_a_node_without_a_partition_is_called_by_its_id(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        reason = reason_of(ask(train, {"kind": "SettingError"}, task="fail", tasks=[Fail], node={"partition-id": "x"}))
        assert reason.startswith("node 100: ")


class TestTasks:
    def test_a_task_of_ones_own_goes_before_one_of_the_same_name(self, ask: Ask, train: Data) -> None:
        @dataclass(frozen=True)
        class Condense(Task[Metrics]):
            name: ClassVar[str] = "condense"
            payload: ClassVar[type[Metrics]] = Metrics

            def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
                return Job(Cost(), lambda: Metrics({"mine": 1.0}))

        reply = ask(train, {}, tasks=[Condense])
        assert not reply.has_error()
        assert bytes(reply.content.array_records["payload"]["file"].numpy()) == b'{"mine": 1.0}'
        assert TASKS["condense"] is not Condense


class TestTrain:
    def content(self, train: Data) -> RecordDict:
        model = build("convnet1-w16", train.spec.shape, 10, 0)
        config = ConfigRecord({"network": "convnet1-w16", "classes": list(train.spec.classes)})
        return RecordDict({"arrays": ArrayRecord(dict(model.state_dict())), "config": config})

    def asked(self, train: Data, node: dict[str, Any], about: About | None = None) -> Message:
        client, content = make_client_app(lambda context: train, caps=Caps(min_records=1)), self.content(train)
        if about is not None:
            content["about"] = about.record()
        with task_identity():
            grid = InProcessGrid(client, 1, node_config={"num-partitions": 0, **node})
            return next(iter(grid.send_and_receive([Message(content, 100, "train")])))

    def test_flowers_own_message_is_answered_where_weights_are_allowed(self, train: Data) -> None:
        few = train.subset(torch.arange(64))
        reply = self.asked(few, {"allow-weights": True})
        assert not reply.has_error()
        assert reply.content.metric_records["metrics"]["num-examples"] == 64

    def test_classes_of_few_records_are_left_out_here_too(self, train: Data) -> None:
        few = torch.cat([torch.where(train.labels == 0)[0][:30], torch.where(train.labels == 1)[0][:5]])
        reply = self.asked(train.subset(few), {"allow-weights": True, "min-records": 6})
        assert reply.content.metric_records["metrics"]["num-examples"] == 30

    def test_a_server_of_a_later_wire_is_refused_in_a_line_before_anything_is_charged(
        self, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        node = {"data": "digits", "ledger": str(tmp_path / "ledger"), "allow-weights": True}
        reason = reason_of(self.asked(train, node, About(WIRE + 1, "9.0.0", "train")))
        assert f"the server speaks wire {WIRE + 1} (fedcondense 9.0.0), this node wire {WIRE}" in reason
        assert not (tmp_path / "ledger").exists()
        assert not self.asked(train.subset(torch.arange(64)), node, About(WIRE, "0.1.0", "train")).has_error()

    def test_a_round_counts_as_a_question_and_one_that_is_refused_does_not(
        self, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        few = train.subset(torch.arange(64))
        node = {"data": "digits", "ledger": str(tmp_path / "ledger"), "life-questions": 2}
        for _ in range(3):
            assert "allow-weights" in reason_of(self.asked(few, node))
        for _ in range(2):
            assert not self.asked(few, {**node, "allow-weights": True}).has_error()
        assert "questions 2 + 1, allowed 2" in reason_of(self.asked(few, {**node, "allow-weights": True}))
        assert Ledger.open(tmp_path / "ledger", Allowance()).spent().questions == 2


class TestEvaluate:
    """Flower's own message, from the same content as ``train``."""

    def asked(self, train: Data, node: dict[str, Any], caps: Caps = Caps(min_records=1)) -> Message:
        client = make_client_app(lambda context: train, caps=caps)
        with task_identity():
            grid = InProcessGrid(client, 1, node_config={"num-partitions": 0, **node})
            return next(iter(grid.send_and_receive([Message(TestTrain().content(train), 100, "evaluate")])))

    def few(self, train: Data) -> Data:
        return train.subset(train.per_class(20, stream(0)))

    def test_flowers_own_message_is_answered_where_weights_are_allowed(self, train: Data) -> None:
        few = self.few(train)
        reply = self.asked(few, {"allow-weights": True, "keep-apart": 0.25})
        apart = few.subset(is_apart(few, 0.25))
        model = build("convnet1-w16", train.spec.shape, 10, 0)
        percent, classes = accuracy(model, apart)
        loss = float(cross_entropy(model.eval()(apart.batch().images), apart.labels).detach())
        metrics = dict(reply.content.metric_records["metrics"])
        assert set(reply.content) == {"metrics"}
        assert metrics == {
            "num-examples": 50,
            "accuracy": pytest.approx(percent),
            "macro-accuracy": pytest.approx(float(classes.mean()), rel=1e-6),
            "loss": pytest.approx(loss, rel=1e-5),
        }

    def test_classes_of_few_records_are_left_out_here_too(self, train: Data) -> None:
        few = torch.cat([torch.where(train.labels == 0)[0][:30], torch.where(train.labels == 1)[0][:5]])
        reply = self.asked(train.subset(few), {"allow-evaluate": True, "min-records": 6, "keep-apart": 0.5})
        metrics = reply.content.metric_records["metrics"]
        assert (metrics["num-examples"], "loss" in metrics) == (15, False)

    def test_a_round_counts_as_a_question_and_one_that_is_refused_does_not(
        self, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        few = self.few(train)
        node = {"data": "digits", "ledger": str(tmp_path / "ledger"), "life-questions": 2}
        allowed = {**node, "allow-evaluate": True}
        assert "allow-evaluate" in reason_of(self.asked(few, node))
        assert "keep-apart" in reason_of(self.asked(few, {**allowed, "keep-apart": 0.0}))
        for _ in range(2):  # a node with data of its own keeps a tenth apart
            assert self.asked(few, allowed).content.metric_records["metrics"]["num-examples"] == 20
        assert "questions 2 + 1, allowed 2" in reason_of(self.asked(few, allowed))
        assert Ledger.open(tmp_path / "ledger", Allowance()).spent().questions == 2


class TestMods:
    def test_flowers_mods_and_ones_own_are_around_every_answer(
        self, train: Data, caplog: pytest.LogCaptureFixture
    ) -> None:
        seen: list[str] = []
        select = TASKS["select"](ipc=1)  # type: ignore[call-arg]

        def outer(message: Message, context: Context, call_next: Any) -> Message:
            seen.append(f"outer {message.metadata.message_type}")
            reply: Message = call_next(message, context)
            seen.append("answer")
            return reply

        def inner(message: Message, context: Context, call_next: Any) -> Message:
            seen.append("inner")
            reply: Message = call_next(message, context)
            return reply

        mods = [outer, message_size_mod, arrays_size_mod, inner]
        client = make_client_app(lambda context: train, tasks=[Fail], caps=Caps.none(), mods=mods)
        with task_identity(), caplog.at_level("INFO", logger="flwr"):
            grid = InProcessGrid(client, 1)
            for content, kind in ((pack_question(select, 1), "query.select"), (TestTrain().content(train), "train")):
                (reply,) = grid.send_and_receive([Message(content, 100, kind)])
                assert not reply.has_error()
        assert seen == ["outer query.select", "inner", "answer", "outer train", "inner", "answer"]
        assert "Incoming message size" in caplog.text
        assert "Total array elements sent" in caplog.text

    def test_a_refusal_keeps_its_reason_though_flowers_mods_read_a_content_that_it_lacks(
        self, train: Data, ask: Ask, reason_of: ReasonOf
    ) -> None:
        reply = ask(train, {"kind": "SettingError"}, task="fail", tasks=[Fail], mods=[message_size_mod])
        assert reason_of(reply).startswith("partition 0: /home/alice/patients.csv")

    def test_what_a_mod_says_when_it_fails_stays_on_the_node(
        self, train: Data, ask: Ask, reason_of: ReasonOf, caplog: pytest.LogCaptureFixture
    ) -> None:
        def broken(message: Message, context: Context, call_next: Any) -> Message:
            raise ValueError("Bob has no label")

        reply = ask(train, {"kind": "SettingError"}, task="fail", tasks=[Fail], mods=[broken])
        assert reason_of(reply) == "partition 0: a mod failed with ValueError; the node's log says more"
        assert "Bob" in caplog.text


class TestStockApp:
    def asked(self, node: dict[str, Any], reason_of: ReasonOf) -> str:
        with task_identity():
            grid = InProcessGrid(app, 1, node_config={"num-partitions": 0, **node})
            message = Message(pack_question(TASKS["select"](ipc=1), 1), 100, "query.select")  # type: ignore[call-arg]
            reply = next(iter(grid.send_and_receive([message])))
        return reason_of(reply) if reply.has_error() else ""

    def test_public_data_are_nobodys_records(self, reason_of: ReasonOf) -> None:
        assert self.asked({}, reason_of) == ""

    def test_data_of_its_own_are_somebodys(self, reason_of: ReasonOf) -> None:
        assert "has no allow-real = true" in self.asked({"data": "digits"}, reason_of)

    def test_it_knows_all_keys_of_a_nodes_config(self, reason_of: ReasonOf) -> None:
        assert "no setting is called 'hospital'" in self.asked({"hospital": "st-marys"}, reason_of)


def test_apps_travel_to_the_processes_of_ray() -> None:
    """Ray sends handlers by value, with whatever of this library they name."""
    cloudpickle = pytest.importorskip("ray.cloudpickle", reason="Ray is an extra")
    for client in (app, make_client_app(lambda context: None)):  # type: ignore[arg-type,return-value]
        assert cloudpickle.dumps(client)


def test_a_node_imports_no_host_and_nothing_that_only_servers_need() -> None:
    """Each message starts a process: what it imports, every node waits for."""
    program = (
        "import sys, fedcondense.flower.client\n"
        "heavy = ('ray', 'torchvision', 'matplotlib', 'sklearn')\n"
        "odd = [name for name in sys.modules if name.split('.')[0] in heavy]\n"
        "rooms = tuple('fedcondense.' + name for name in ('flower.hosts', 'flower.comparison', 'report'))\n"
        "odd += [name for name in sys.modules if name.startswith(rooms)]\n"
        "assert not odd, odd\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
