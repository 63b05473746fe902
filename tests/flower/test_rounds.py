"""Rounds of a small strategy whose task fails in a round of its choice; sets are in `strategies/test_one_shot`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Metrics, Sums, Weights
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.state_file import dump_state, load_state


@dataclass(frozen=True)
class Count(Task[Sums]):
    """Count the records of a class; fails in a round of its choice."""

    round: int = number(1, 1)
    fails_in: int = number(0, 0)
    label: int = number(0, 0, 9)
    factor: int = 1

    name: ClassVar[str] = "count"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        if self.round == self.fails_in:
            raise SettingError("not today")
        found = self.factor * int(holder.counts[self.label])
        return Job(Cost(), lambda: Sums({"n": torch.tensor([found])}))


@dataclass(frozen=True)
class Check(Task[Metrics]):
    """Say how far a number is from this node's own place."""

    value: int = 0

    name: ClassVar[str] = "check"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        return Job(Cost(), lambda: Metrics({"off": float(self.value - node.place)}))


class Counting(Rounds):
    """Each round counts another class; its weights are the counts so far."""

    rounds = 3

    def __init__(self, task: Count = Count(), **asked: Any) -> None:
        super().__init__(**asked)
        self.task: Count = task

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        return replace(self.task, round=server_round, label=server_round)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        total = sum(int(answer.payload.tensors["n"]) for answer in answers)
        before = torch.zeros(0) if state.weights is None else state.weights.tensors["counts"]
        counts = torch.cat([before, torch.tensor([float(total)])])
        return state.but(weights=Weights({"counts": counts}), numbers={**state.numbers, "total": total})


class Staged(Rounds):
    """Two stages in a round: count, then ask each site something of its own."""

    stages = ("count", "check")

    def ask(
        self, server_round: int, stage: str, state: State, sites: Sequence[Site]
    ) -> Question | Mapping[Site, Question]:
        if stage == "count":
            return Count(label=3)
        return {site: Check(10 + place) for place, site in enumerate(sites) if site.name != "client-1"}

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        found = {f"{stage} {a.site.name}": float(next(iter(vars(a.payload).values())).get("off", 0)) for a in answers}
        return state.but(numbers={**state.numbers, **found})


@pytest.fixture(scope="module")
def client(train: Data) -> ClientApp:
    """Three nodes with 300, 600 and 900 records."""
    parts = [train.subset(torch.arange(300 * k, 300 * k + 300 * (k > 0) + 300)) for k in range(3)]

    def load(context: Any) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, tasks=[Count, Check], caps=Caps.none(), is_counted=False)


def run(strategy: Rounds, client: ClientApp, **start: Any) -> Result:
    with task_identity():
        result: Result = strategy.start(InProcessGrid(client, 3), **start)
    return result


def counts(state: State) -> list[float]:
    assert state.weights is not None
    found: list[float] = state.weights.tensors["counts"].tolist()
    return found


class TestRounds:
    def test_each_round_stands_on_the_state_before_it(self, client: ClientApp) -> None:
        strategy, kept = Counting(), list[State]()
        strategy.keep = lambda strategy: kept.append(strategy.state)
        result = run(strategy, client)
        assert [state.round for state in kept] == [1, 2, 3]
        assert [len(counts(state)) for state in kept] == [1, 2, 3]
        assert counts(kept[2])[:2] == counts(kept[1])
        assert sorted(result.train_metrics_clientapp) == [1, 2, 3]
        assert result.arrays.to_torch_state_dict()["counts"].tolist() == counts(strategy.state)

    def test_a_failure_in_a_round_leaves_the_rounds_before_it(self, client: ClientApp) -> None:
        whole, strategy, kept = Counting(), Counting(Count(fails_in=2)), list[State]()
        strategy.keep = lambda strategy: kept.append(strategy.state)
        run(whole, client, num_rounds=1)
        with pytest.raises(AggregationError, match=r"round 2: 0 usable answers of 3.*client-0: partition 0: not today"):
            run(strategy, client)
        assert dump_state(strategy.state) == dump_state(kept[0])
        assert counts(strategy.state) == counts(whole.state)
        assert len(strategy.refused) == 3

    def test_a_run_that_is_rebuilt_from_its_state_ends_as_one_that_was_not_cut(self, client: ClientApp) -> None:
        whole, first, second = Counting(), Counting(), Counting()
        run(whole, client)
        run(first, client, num_rounds=2)
        second.state = load_state(dump_state(first.state), "here")
        run(second, client)
        assert counts(second.state) == counts(whole.state)
        assert second.state.round == 3
        assert second.spent["bytes-up"] == pytest.approx(whole.spent["bytes-up"], rel=0.01)
        assert second.spent["bytes-down"] == pytest.approx(whole.spent["bytes-down"], rel=0.01)

    def test_a_run_that_is_done_asks_nobody(self, client: ClientApp) -> None:
        strategy = Counting()
        run(strategy, client)
        assert run(strategy, client).train_metrics_clientapp == {}

    def test_the_server_is_asked_for_its_measure_after_each_round_and_of_initial_weights_before(
        self, client: ClientApp
    ) -> None:
        seen: list[tuple[int, int]] = []

        def measured(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            seen.append((server_round, len(arrays["counts"].numpy())))
            return MetricRecord({"n": len(seen)})

        start = ArrayRecord({"counts": torch.zeros(5)})
        result = run(Counting(), client, initial_arrays=start, evaluate_fn=measured, num_rounds=2)
        assert seen == [(0, 5), (1, 6), (2, 7)]
        assert sorted(result.evaluate_metrics_serverapp) == [0, 1, 2]

    def test_weights_that_are_not_finite_end_the_round_and_stay_out_of_the_state(self, client: ClientApp) -> None:
        class Broken(Counting):
            def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
                found = super().combine(server_round, stage, state, answers)
                return (
                    found.but(weights=Weights({"counts": torch.tensor([float("nan")])})) if server_round > 1 else found
                )

        strategy = Broken()
        with pytest.raises(AggregationError, match="round 2: training on the answers of 3 nodes ended in weights"):
            run(strategy, client)
        assert strategy.state.round == 1

    @pytest.mark.parametrize("rounds", [0, -1])
    def test_rounds_are_one_or_more(self, rounds: int, client: ClientApp) -> None:
        with pytest.raises(SettingError, match=f"num_rounds {rounds}; needed: 1 or more"):
            run(Counting(), client, num_rounds=rounds)

    def test_what_sites_are_asked_may_be_changed_at_the_start(self, client: ClientApp) -> None:
        plain, doubled = Counting(), Counting()
        run(plain, client)
        run(doubled, client, train_config=ConfigRecord({"factor": 2}))
        assert counts(doubled.state) == [2 * n for n in counts(plain.state)]
        with pytest.raises(SettingError, match="train_config: no setting is called 'factr'; did you mean 'factor'"):
            run(Counting(), client, train_config=ConfigRecord({"factr": 2}))

    @pytest.mark.parametrize(
        "wrong", [{"min_replies": 0}, {"fraction_train": 2.0}, {"grace": -1.0}, {"wait": float("nan")}]
    )
    def test_numbers_that_cannot_work_are_refused_when_it_is_made(self, wrong: dict[str, Any]) -> None:
        (key,) = wrong
        with pytest.raises(SettingError, match=f"Counting: {key.replace('_', '-')} = "):
            Counting(**wrong)

    def test_another_argument_is_no_keyword(self) -> None:
        with pytest.raises(TypeError, match="min_nodes"):
            Counting(min_nodes=3)

    def test_bytes_and_seconds_add_up_over_rounds_for_each_site_that_is_asked(self, client: ClientApp) -> None:
        strategy, grid = Counting(), InProcessGrid(client, 3)
        with task_identity():
            strategy.start(grid, num_rounds=2)
        up, down = (sum(getattr(t, way) for t in grid.traffic.values()) / 3 for way in ("up", "down"))
        assert strategy.spent["bytes-up"] == pytest.approx(up, rel=0.02)
        assert strategy.spent["bytes-down"] == pytest.approx(down, rel=0.05)

    def test_flowers_two_halves_do_what_a_round_of_start_does(self, client: ClientApp) -> None:
        """Whoever drives a strategy by `configure_train` and `aggregate_train`."""
        whole, halves = Counting(), Counting()
        run(whole, client, num_rounds=1)
        with task_identity():
            grid = InProcessGrid(client, 3)
            messages = list(halves.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
            arrays, metrics = halves.aggregate_train(1, grid.send_and_receive(messages))
        assert arrays is not None
        assert metrics is not None
        assert arrays["counts"].numpy().tolist() == counts(whole.state)
        assert metrics["clients"] == 3
        assert halves.state.round == 1


class TestStages:
    def test_each_stage_sees_what_the_one_before_left_and_may_ask_each_site_its_own(self, client: ClientApp) -> None:
        strategy = Staged()
        run(strategy, client)
        found = {name: value for name, value in strategy.state.numbers.items() if name.startswith(("count", "check"))}
        assert found == {"count client-0": 0, "count client-1": 0, "count client-2": 0} | {
            "check client-0": 10,  # 10 + 0 - 0
            "check client-2": 10,  # 10 + 2 - 2
        }
        assert [answer.site.name for answer in strategy.answers] == ["client-0", "client-2"]

    def test_a_stage_that_fails_leaves_the_state_of_the_round_before(self, client: ClientApp) -> None:
        class Late(Staged):
            def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Any:
                if server_round == 2 and stage == "check":
                    return Count(fails_in=1)
                return super().ask(server_round, stage, state, sites)

        strategy = Late()
        run(strategy, client)
        before = strategy.state
        with pytest.raises(AggregationError, match="round 2: 0 usable answers"):
            run(strategy, client, num_rounds=2)
        assert strategy.state is before


def test_a_task_that_nodes_do_not_know_is_named_with_what_to_install(train: Data) -> None:
    client = make_client_app(lambda context: train, caps=Caps.none())
    with pytest.raises(AggregationError, match=r"'count'.*this node does not know the task; install fedcondense"):
        run(Counting(), client)


def test_questions_carry_flowers_round_and_the_tasks_name(client: ClientApp) -> None:
    with task_identity():
        messages: list[Message] = list(
            Counting().configure_train(2, ArrayRecord(), ConfigRecord(), InProcessGrid(client, 3))
        )
    assert {m.metadata.message_type for m in messages} == {"query.count"}
    assert {m.metadata.group_id for m in messages} == {"2"}
    assert [m.metadata.dst_node_id for m in messages] == [100, 101, 102]
