"""What a node does about a question, through a real client app in one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.ledger import Allowance, Ledger
from fedcondense.flower.payloads import Metrics, Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.settings import number
from fedcondense.flower.wire import WIRE, About, own_version, pack_question, read_answer
from fedcondense.sets.synthetic import SyntheticSet

QUICK: dict[str, Any] = {"ipc": 1, "objective": "dm", "steps": 3}
OPEN = Caps(max_seconds=float("inf"), min_records=1)
FEW = {"life-questions": 2}

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


@dataclass(frozen=True)
class Count(Task[Metrics]):
    """A task that costs what it is told, and counts in `done` how often it was done."""

    steps: int = number(0, 0)
    nbytes: int = number(0, 0)
    seconds: float = number(0.0, 0)
    memory: int = number(0, 0)
    pixels: int = number(0, 0)
    network: str = ""
    real: bool = False

    name: ClassVar[str] = "count"
    payload: ClassVar[type[Metrics]] = Metrics
    done: ClassVar[list[Node]] = []

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        costs = {item.name: getattr(self, item.name) for item in fields(self)[:5]}
        cost = Cost(**costs, networks=(self.network,) if self.network else (), is_real=self.real)

        def run() -> Metrics:
            self.done.append(node)
            return Metrics({"times": len(self.done)})

        return Job(cost, run)


@dataclass(frozen=True)
class Look(Task[Metrics]):
    """A task that carries weights."""

    weights: Weights = Weights({})

    name: ClassVar[str] = "look"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        return Job(Cost(), lambda: Metrics({"sum": float(self.weights.tensors["a"].sum())}))


@dataclass(frozen=True)
class Remember(Task[Metrics]):
    """A task that keeps what it was told and answers with what it was told before."""

    value: int = 0

    name: ClassVar[str] = "remember"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        def run() -> Metrics:
            assert node.kept is not None
            before = node.kept.get("told")
            node.kept.put("told", str(self.value).encode())
            return Metrics({"before": -1 if before is None else int(before)})

        return Job(Cost(), run)


@pytest.fixture(autouse=True)
def nothing_done() -> Iterator[None]:
    Count.done.clear()
    yield
    Count.done.clear()


def payload_of(message: Message, kind: Any = Metrics) -> Any:
    assert not message.has_error(), message.error.reason
    return read_answer(message.content, kind, ReplyLimits().limits).payload


class TestWire:
    def test_a_question_of_wire_1_is_answered_as_an_old_server_reads_it(self, ask: Ask, train: Data) -> None:
        """Version 0.1 took exactly these records and numbers, of the partition's number."""
        content = RecordDict({"config": ConfigRecord(QUICK)})
        reply = ask(train, content, node={"partition-id": 4})
        assert not reply.has_error()
        assert set(reply.content) == {"synthetic", "metrics"}
        assert isinstance(reply.content["synthetic"], ArrayRecord)
        assert set(reply.content["synthetic"]) == {"file"}
        metrics = dict(reply.content.metric_records["metrics"])
        assert set(metrics) == {"num-examples", "partition-id", "seconds", "bytes"}
        assert (metrics["partition-id"], metrics["num-examples"]) == (4, len(train))
        new = ask(train, QUICK, node={"partition-id": 4})
        assert payload_of(reply, SyntheticSet).to_bytes()[-640:] == payload_of(new, SyntheticSet).to_bytes()[-640:]

    @pytest.mark.parametrize(("mean", "std"), [(127.5, 64.0), (-0.1, 0.2), (0.5, 1.1)])
    def test_data_whose_scale_no_server_takes_are_refused_before_any_work(
        self, mean: float, std: float, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        data, done = Data(train.images, train.labels, replace(train.spec, mean=(mean,), std=(std,))), len(Count.done)
        assert "possible of pixels in [0, 1]" in reason_of(ask(data, {}, task="count", tasks=[Count]))
        assert len(Count.done) == done

    @pytest.mark.parametrize("std", [1.0, 0.018, 1e-5])
    def test_data_of_any_scale_that_pixels_can_have_are_condensed(self, std: float, ask: Ask, train: Data) -> None:
        data = Data(train.images, train.labels, replace(train.spec, mean=(0.0,), std=(std,)))
        payload_of(ask(data, {}, task="count", tasks=[Count]))

    def test_a_later_wire_is_refused_naming_both_versions(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        content = RecordDict({"about": About(WIRE + 1, "7.5", "condense", 1).record(), "config": ConfigRecord(QUICK)})
        reason = reason_of(ask(train, content))
        both = (
            f"the server speaks wire {WIRE + 1} (fedcondense 7.5), this node wire {WIRE} (fedcondense {own_version()})"
        )
        assert both in reason


class TestCaps:
    """Each of a node's caps, held against what a task says that it costs; the work is not begun."""

    @pytest.mark.parametrize(
        ("node", "asked", "reason"),
        [
            ({"max-steps": 9}, {"steps": 10}, "10 steps; this node allows 9"),
            ({"max-seconds": 9}, {"seconds": 10.0}, "about 10 seconds would be needed; this node allows 9"),
            ({"max-bytes": 100}, {"nbytes": 101}, "101 bytes of payload; this node allows 100"),
            ({"max-memory": 9000}, {"memory": 9001}, "9001 bytes of working memory; this node allows 9000"),
            ({"max-pixels": 9}, {"pixels": 10}, "10 bytes of decoded images; this node allows 9"),
            ({"networks": "mlp"}, {"network": "lenet"}, "networks lenet; this node allows mlp"),
            ({"allow-real": False}, {"real": True}, "publishes real records; this node's config has no allow-real"),
        ],
    )
    def test_a_cost_above_a_cap_is_refused_and_one_at_the_cap_is_not(
        self, node: dict[str, Any], asked: dict[str, Any], reason: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        options: dict[str, Any] = {"task": "count", "tasks": [Count], "node": node}
        assert reason in reason_of(ask(train, asked, **options))
        assert Count.done == []
        ((name, value),) = asked.items()
        within = {"network": "mlp", "real": False}.get(name) if name in ("network", "real") else type(value)(value - 1)
        payload_of(ask(train, {name: within}, **options))
        assert len(Count.done) == 1

    def test_every_cap_is_held_somewhere(self) -> None:
        """Those on costs above, the others below and in the tests of `condense`."""
        on_costs = {"max_steps", "max_seconds", "max_bytes", "max_memory", "max_pixels", "networks", "allow_real"}
        assert {item.name for item in fields(Caps)} == on_costs | {
            "max_ipc",
            "allow_weights",
            "allow_evaluate",
            "min_records",
        }

    def test_a_payload_that_is_larger_than_its_task_said_is_refused(
        self, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        reply = ask(train, {}, task="count", tasks=[Count], node={"max-bytes": 5})
        assert "this node sends at most 5" in reason_of(reply)

    def test_seconds_are_a_moment_at_which_work_ends(self, ask: Ask, train: Data) -> None:
        payload_of(ask(train, {}, task="count", tasks=[Count], node={"max-seconds": 9.0}))
        payload_of(ask(train, {}, task="count", tasks=[Count], node={"max-seconds": float("inf")}))
        assert Count.done[0].until < float("inf")
        assert Count.done[1].until == float("inf")

    def test_a_question_that_carries_weights_is_refused_unread_unless_the_node_allows_it(
        self, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        content = pack_question(Look(Weights({"a": torch.ones(3)})), 1)
        assert "task 'look' carries weights; this node's config has no allow-weights = true" in reason_of(
            ask(train, content, task="look", tasks=[Look])
        )
        allowed = ask(train, content, task="look", tasks=[Look], node={"allow-weights": True})
        assert payload_of(allowed).numbers == {"sum": 3.0}
        payload_of(ask(train, content, task="look", tasks=[Look], caps=Caps.none()))

    def test_what_a_question_carries_is_held_to_the_nodes_memory(
        self, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        content = pack_question(Look(Weights({"a": torch.ones(1000)})), 1)
        node = {"allow-weights": True, "max-memory": 1000}
        assert "allowed: 1000" in reason_of(ask(train, content, task="look", tasks=[Look], node=node))


class TestData:
    def test_classes_of_too_few_records_are_left_out(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        few, least = int(train.counts.argmin()), int(train.counts.min()) + 1
        reply = ask(train, QUICK, caps=replace(OPEN, min_records=least))
        counts = torch.tensor(payload_of(reply, SyntheticSet).record.counts)
        assert counts[few] == 0
        assert ((counts > 0) == (train.counts >= least)).all()
        reason = reason_of(ask(train, QUICK, node={"min-records": 1_000_000}))
        assert "no class has 1000000 records, of which this node asks (min-records); its largest has" in reason

    def test_how_many_records_were_asked_does_not_count_those_left_out(self, ask: Ask, train: Data) -> None:
        least = int(train.counts.min()) + 1
        reply = ask(train, QUICK, caps=replace(OPEN, min_records=least))
        asked = read_answer(reply.content, SyntheticSet, ReplyLimits().limits).num_examples
        assert asked == int(train.counts[train.counts >= least].sum())

    def test_a_node_without_data_says_so(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        empty = train.subset(torch.empty(0, dtype=torch.int64))
        assert reason_of(ask(empty, QUICK)) == "partition 0: has no data"


class TestCache:
    def test_the_same_question_is_answered_from_the_cache_and_another_is_not(
        self, ask: Ask, train: Data, tmp_path: Path
    ) -> None:
        steps: list[int] = []

        def asked(seed: int = 0, server_round: int = 1, **options: Any) -> bytes:
            reply = ask(
                train,
                {**QUICK, "seed": seed},
                server_round=server_round,
                cache=tmp_path,
                progress=lambda place, at: steps.append(at.step),
                **options,
            )
            return bytes(payload_of(reply, SyntheticSet).to_bytes())

        first, done = asked(), len(steps)
        assert asked() == first
        assert len(steps) == done > 0
        assert asked(seed=1) != first
        assert asked(node={"partition-id": 1}) != first
        assert asked(seed=10**9) != first  # larger than a byte
        again = len(steps)
        asked(server_round=2)  # made again: a round is another question, and may be held to another allowance
        assert len(steps) > again
        assert {path.suffix for path in tmp_path.iterdir() if path.name != ".lock"} == {".kept"}

    def test_a_kept_answer_is_held_to_the_caps_of_today(
        self, ask: Ask, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        payload_of(ask(train, QUICK, cache=tmp_path), SyntheticSet)
        small = replace(OPEN, max_bytes=10)
        assert "this node sends at most 10" in reason_of(ask(train, QUICK, caps=small, cache=tmp_path))

    def test_a_damaged_answer_is_made_again(self, ask: Ask, train: Data, tmp_path: Path) -> None:
        options: dict[str, Any] = {"task": "count", "tasks": [Count], "cache": tmp_path}
        for _ in range(2):
            payload_of(ask(train, {}, **options))
        assert len(Count.done) == 1
        (path,) = tmp_path.glob("*.kept")
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert payload_of(ask(train, {}, **options)).numbers == {"times": 2}

    def test_the_nodes_config_names_the_folder_where_the_app_does_not(
        self, ask: Ask, train: Data, tmp_path: Path
    ) -> None:
        for _ in range(2):
            payload_of(ask(train, {}, task="count", tasks=[Count], node={"cache": str(tmp_path / "own")}))
        assert len(Count.done) == 1
        assert len(list((tmp_path / "own").glob("*.kept"))) == 1


class TestKept:
    def test_a_task_finds_what_it_kept_and_nodes_that_share_a_folder_do_not_find_each_others(
        self, ask: Ask, train: Data, tmp_path: Path
    ) -> None:
        def told(value: int, place: int) -> float:
            node = {"partition-id": place}
            reply = ask(train, {"value": value}, task="remember", tasks=[Remember], cache=tmp_path, node=node)
            return float(payload_of(reply).numbers["before"])

        assert [told(10, 0), told(20, 1), told(11, 0), told(21, 1)] == [-1, -1, 10, 20]


class TestLedger:
    def options(self, tmp_path: Path, **node: Any) -> dict[str, Any]:
        config = {"data": "digits", "ledger": str(tmp_path / "ledger"), **node}
        return {"task": "count", "tasks": [Count], "node": config}

    def test_a_question_beyond_the_allowance_is_refused_before_any_work(
        self, ask: Ask, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        options = self.options(tmp_path, **FEW)
        for _ in range(2):
            payload_of(ask(train, {}, **options))
        reason = reason_of(ask(train, {}, **options))
        assert "more than this node gives away in its life: questions 2 + 1, allowed 2" in reason
        assert len(Count.done) == 2
        assert Ledger.open(tmp_path / "ledger", Allowance()).spent().questions == 2

    def test_a_question_that_was_answered_before_is_free(self, ask: Ask, train: Data, tmp_path: Path) -> None:
        options = self.options(tmp_path / "l", **FEW) | {"cache": tmp_path / "cache"}
        for _ in range(5):
            payload_of(ask(train, {}, **options))
        assert Ledger.open(tmp_path / "l" / "ledger", Allowance()).spent().questions == 1

    def test_what_a_set_holds_is_charged_class_by_class(self, ask: Ask, train: Data, tmp_path: Path) -> None:
        options = {**self.options(tmp_path), "task": "condense"}
        config = {**QUICK, "ipc": 2, "parametrization": "multi-formation"}
        sent = payload_of(ask(train, config, **options), SyntheticSet)
        spent = Ledger.open(tmp_path / "ledger", Allowance()).spent()
        assert spent.images == {str(k): 2 for k in range(10)}
        assert spent.decoded == {str(k): 8 for k in range(10)}
        assert spent.nbytes == pytest.approx(sent.nbytes, rel=0.05)

    def test_what_is_refused_by_the_caps_is_not_charged(
        self, ask: Ask, train: Data, tmp_path: Path, reason_of: ReasonOf
    ) -> None:
        reason_of(ask(train, {"steps": 99}, **self.options(tmp_path, **{"max-steps": 1})))
        assert Ledger.open(tmp_path / "ledger", Allowance()).spent().questions == 0

    def test_a_damaged_ledger_answers_nothing(self, ask: Ask, train: Data, tmp_path: Path, reason_of: ReasonOf) -> None:
        options = self.options(tmp_path)
        payload_of(ask(train, {}, **options))
        (tmp_path / "ledger").write_bytes(b"?")
        assert reason_of(ask(train, {"steps": 1}, **options)).endswith("the node's log says more")
        assert len(Count.done) == 1

    def test_public_data_and_an_app_that_does_not_count_have_none(
        self, ask: Ask, train: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        options = self.options(tmp_path / "l")
        payload_of(ask(train, {}, **{**options, "node": {}}))
        payload_of(ask(train, {}, **options, is_counted=False))
        assert list(tmp_path.iterdir()) == []

    def test_a_node_with_data_of_its_own_is_counted_in_the_home_folder(
        self, ask: Ask, train: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        payload_of(ask(train, {}, **{**self.options(tmp_path), "node": {"data": "digits"}}))
        (path,) = (tmp_path / ".fedcondense").glob("ledger-*.jsonl")
        assert Ledger.open(path, Allowance()).spent().questions == 1
