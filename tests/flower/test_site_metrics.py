"""What sites say of a round's weights, by a small strategy whose weights are known."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.apart import is_apart
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.evaluating import Evaluate, train_alone
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.inbox import SILENT
from fedcondense.flower.payloads import Metrics, Weights
from fedcondense.flower.replies import Refusal, ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.site_metrics import Evaluated, SiteMetrics, aggregate
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import Fit, accuracy

NETWORK = "convnet1-w16"
APART = {"keep-apart": 0.25}
STEPS = 5  # for which sites train alone here


@dataclass(frozen=True)
class Idle(Task[Metrics]):
    """Say how many records there are."""

    name: ClassVar[str] = "idle"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        return Job(Cost(), lambda: Metrics({"held": int(holder.counts.sum())}))


class Fixed(Rounds):
    """Each round ends with the same weights."""

    task = Idle()
    network = NETWORK

    def __init__(self, data: Data, weights: Weights, **asked: Any) -> None:
        super().__init__(ReplyLimits.of(data.spec), **{"fraction_evaluate": 1.0, **asked})
        self.weights = weights
        self.asked: list[int] = []

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        return self.task

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        return state.but(weights=self.weights, numbers={"mine": server_round})

    def evaluation(self, state: State) -> Evaluate | None:
        found = super().evaluation(state)
        return None if found is None else replace(found, alone=STEPS)


@pytest.fixture(scope="module")
def parts(train: Data) -> list[Data]:
    """Three sites of 60, 100 and 140 records."""
    return [train.subset(train.per_class(6 + 4 * k, stream(k))) for k in range(3)]


@pytest.fixture(scope="module")
def weights(train: Data) -> Weights:
    return Weights.of(train_alone(train.subset(train.per_class(20, stream(9))), NETWORK, Fit(steps=40)))


def client_of(parts: Sequence[Data], caps: Caps = Caps.none()) -> ClientApp:
    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, tasks=[Idle], caps=caps, is_counted=False)


def run(strategy: Rounds, parts: Sequence[Data], grid: InProcessGrid | None = None, **start: Any) -> Result:
    with task_identity():
        grid = grid or InProcessGrid(client_of(parts), 3, node_config=APART)
        result: Result = strategy.start(grid, **start)
    return result


class TestRounds:
    def test_what_sites_say_is_the_networks_accuracy_on_what_they_keep_apart(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        strategy = Fixed(train, weights)
        result = run(strategy, parts)
        model = weights.load_into(build(NETWORK, train.spec.shape, 10, 0))
        apart = [part.subset(is_apart(part, 0.25)) for part in parts]
        found = [accuracy(model, data) for data in apart]
        sites = strategy.evaluated[1].sites
        assert [one.site.name for one in sites] == ["client-0", "client-1", "client-2"]
        assert [one.records for one in sites] == [len(data) for data in apart] == [10, 20, 30]
        for one, (percent, classes) in zip(sites, found, strict=True):
            assert one.accuracy == pytest.approx(percent)
            assert one.macro == pytest.approx(float(classes.nanmean()), rel=1e-6)
            assert math.isfinite(one.alone)

        metrics = dict(result.evaluate_metrics_clientapp[1])
        percents = [percent for percent, _ in found]
        assert metrics["accuracy"] == pytest.approx(
            sum(p * n for p, n in zip(percents, (10, 20, 30), strict=True)) / 60
        )
        assert metrics["accuracy-mean"] == pytest.approx(sum(percents) / 3)
        assert metrics["accuracy-worst"] == min(percents)
        assert metrics["sites-below-local-only"] == sum(one.accuracy < one.alone for one in sites)
        assert (metrics["sites"], metrics["sites-refused"]) == (3, 0)

    def test_how_good_a_site_is_alone_is_asked_once_and_kept_in_the_state(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        class Noting(InProcessGrid):
            asked: ClassVar[list[int]] = []

            def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
                messages = list(messages)
                for message in messages:
                    if message.metadata.message_type == "query.evaluate_weights":
                        steps: Any = message.content.config_records["config"]["alone"]
                        Noting.asked.append(steps)
                return super().push_messages(messages)

        with task_identity():
            grid = Noting(client_of(parts), 3, node_config=APART)
        first, second = Fixed(train, weights), Fixed(train, weights)
        run(first, parts, grid, num_rounds=2)
        assert Noting.asked == [STEPS] * 3 + [0] * 3
        alone = [[one.alone for one in first.evaluated[k].sites] for k in (1, 2)]
        assert alone[0] == alone[1]
        second.state = load_state(dump_state(first.state), "here")
        run(second, parts, grid, num_rounds=3)
        assert Noting.asked[6:] == [0] * 3
        assert [one.alone for one in second.evaluated[3].sites] == alone[0]

    def test_whoever_cannot_evaluate_is_named_and_fails_no_round(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        class Mute(InProcessGrid):
            """Its first node keeps nothing apart, its second allows no weights."""

            def _context(self, node: int, *given: Any) -> Context:
                made = super()._context(node, *given)
                said: dict[int, dict[str, Any]] = {
                    100: {"keep-apart": 0.0},
                    101: {"allow-weights": False, "allow-evaluate": False},
                }
                made.node_config |= said.get(node, {})
                return made

        with task_identity():
            grid = Mute(client_of(parts), 3, node_config=APART)
        strategy = Fixed(train, weights)
        result = run(strategy, parts, grid)
        assert [one.site.name for one in strategy.evaluated[1].sites] == ["client-2"]
        first, second = strategy.evaluated[1].refused
        assert (first.site.name, second.site.name) == ("client-0", "client-1")
        assert "keep-apart = 0.1" in first.reason
        assert "allow-evaluate = true" in second.reason
        assert result.evaluate_metrics_clientapp[1]["sites-refused"] == 2
        assert (strategy.refused, strategy.left_out) == ((), [])

        down = {node: traffic.down for node, traffic in grid.traffic.items()}
        run(strategy, parts, grid, num_rounds=2)
        assert [one.site.name for one in strategy.evaluated[2].sites] == ["client-2"]
        assert strategy.evaluated[2].refused == ()  # weights are not sent again to those whose config says no
        more = {node: traffic.down - down[node] for node, traffic in grid.traffic.items()}
        assert more[102] > len(weights.to_bytes()) > more[100] == more[101]

    def test_if_nobody_can_the_round_stands_without_metrics(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        strategy = Fixed(train, weights)
        with task_identity():
            result = run(strategy, parts, InProcessGrid(client_of(parts), 3))
        assert result.evaluate_metrics_clientapp == {}
        assert sorted(result.train_metrics_clientapp) == [1]
        assert strategy.evaluated[1].to_dict(1)["sites"] == []
        assert len(strategy.evaluated[1].refused) == 3

    def test_bytes_of_an_evaluation_are_counted(self, train: Data, parts: list[Data], weights: Weights) -> None:
        with task_identity():
            grid = InProcessGrid(client_of(parts), 3, node_config=APART)
        strategy = Fixed(train, weights)
        run(strategy, parts, grid, num_rounds=2)
        up, down = (sum(getattr(t, way) for t in grid.traffic.values()) / 3 for way in ("up", "down"))
        assert strategy.spent["bytes-up"] == pytest.approx(up, rel=0.02)
        assert strategy.spent["bytes-down"] == pytest.approx(down, rel=0.02)
        assert strategy.spent["bytes-down"] > 2 * len(weights.to_bytes())
        assert strategy.state.numbers["mine"] == 2

    def test_a_share_of_the_nodes_is_asked_and_no_silent_one(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        some = Fixed(train, weights, fraction_evaluate=0.5, min_evaluate_nodes=1)
        run(some, parts, num_rounds=2)
        for number in (1, 2):
            (site,) = some.evaluated[number].sites
            assert [site.site.node] == some.asking.sample_to_evaluate([100, 101, 102], number)

        class Silenced(Fixed):
            def combine(self, *given: Any) -> State:
                self.refused = (Refusal(Site("client-1", "101", 101), SILENT),)
                return super().combine(*given)

        silenced = Silenced(train, weights)
        run(silenced, parts)
        assert [one.site.name for one in silenced.evaluated[1].sites] == ["client-0", "client-2"]

    def test_nobody_is_asked_unless_a_fraction_is_given_or_weights_are_there(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        class Weightless(Fixed):
            def combine(self, *given: Any) -> State:
                return super().combine(*given).but(weights=None)

        for strategy in (Fixed(train, weights, fraction_evaluate=0.0), Weightless(train, weights)):
            assert run(strategy, parts).evaluate_metrics_clientapp == {}
            assert strategy.evaluated == {}

    def test_flowers_two_halves_do_what_start_does(self, train: Data, parts: list[Data], weights: Weights) -> None:
        whole, halves = Fixed(train, weights), Fixed(train, weights)
        expected = run(whole, parts).evaluate_metrics_clientapp[1]
        with task_identity():
            grid = InProcessGrid(client_of(parts), 3, node_config=APART)
            questions = list(halves.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
            halves.aggregate_train(1, grid.send_and_receive(questions))
            questions = list(halves.configure_evaluate(1, ArrayRecord(), ConfigRecord(), grid))
            metrics = halves.aggregate_evaluate(1, grid.send_and_receive(questions))
        assert dict(metrics or {}) == dict(expected)

    def test_sites_of_a_server_without_data_are_judged_by_the_classes_of_the_sets(
        self, train: Data, weights: Weights
    ) -> None:
        strategy = Fixed(train, weights)
        strategy.limits = ReplyLimits()
        assert strategy.evaluation(State(1, weights)) is None


class TestAggregation:
    RECORDS: ClassVar[list[RecordDict]] = [
        RecordDict({"metrics": MetricRecord({"num-examples": n, "accuracy": a, "loss": b})})
        for n, a, b in ((10, 50.0, 1.0), (30, 90.0, 0.25), (0, 0.0, 9.0))
    ]

    @pytest.mark.parametrize("key", ["num-examples", "accuracy"])
    def test_it_is_flowers_own(self, key: str) -> None:
        mine, theirs = aggregate(self.RECORDS, key), aggregate_metricrecords(self.RECORDS, key)
        assert set(mine) == set(theirs)
        assert dict(mine) == {name: pytest.approx(value) for name, value in theirs.items()}

    def test_what_not_all_say_is_left_out_and_weights_of_zero_count_alike(self) -> None:
        first, second = MetricRecord({"n": 0, "a": 1.0, "b": 2.0}), MetricRecord({"n": 0, "a": 3.0})
        records = [RecordDict({"m": one}) for one in (first, second)]
        assert dict(aggregate(records, "n")) == {"a": 2.0}

    def test_ones_own_gets_the_sites_records_and_the_key(
        self, train: Data, parts: list[Data], weights: Weights
    ) -> None:
        told: list[tuple[list[RecordDict], str]] = []

        def best(records: list[RecordDict], key: str, /) -> MetricRecord:
            told.append((records, key))
            return MetricRecord({"best": max(float(next(iter(r.metric_records.values()))[key]) for r in records)})  # type: ignore[arg-type]

        evaluated = Fixed(train, weights, evaluate_metrics_aggr_fn=best, weighted_by_key="accuracy")
        metrics = run(evaluated, parts).evaluate_metrics_clientapp[1]
        assert metrics["best"] == max(one.accuracy for one in evaluated.evaluated[1].sites)
        assert "macro-accuracy" not in metrics
        ((records, key),) = told
        assert (len(records), key) == (3, "accuracy")

        trained = Fixed(train, weights, train_metrics_aggr_fn=best, weighted_by_key="num-examples")
        metrics = run(trained, parts).train_metrics_clientapp[1]
        assert (metrics["best"], metrics["clients"]) == (110, 3)
        assert set(told[-1][0][0]["metrics"]) == {"held", "num-examples", "seconds", "bytes"}

    def test_the_mean_may_be_weighed_by_another_metric(self, train: Data, parts: list[Data], weights: Weights) -> None:
        strategy = Fixed(train, weights, weighted_by_key="accuracy")
        metrics = run(strategy, parts).evaluate_metrics_clientapp[1]
        sites = strategy.evaluated[1].sites
        mean = sum(one.accuracy * one.macro for one in sites) / sum(one.accuracy for one in sites)
        assert metrics["macro-accuracy"] == pytest.approx(mean)

    def test_a_weight_that_no_site_says_is_refused_before_any_is_asked(self, train: Data, weights: Weights) -> None:
        with pytest.raises(SettingError, match="weighted_by_key 'records'; sites say num-examples, accuracy"):
            Fixed(train, weights, weighted_by_key="records")

    def test_an_aggregate_that_cannot_be_called_is_refused(self, train: Data, weights: Weights) -> None:
        with pytest.raises(SettingError, match="train-metrics-aggr-fn = 'mean'"):
            Fixed(train, weights, train_metrics_aggr_fn="mean")


class TestEvaluated:
    SITES = (
        SiteMetrics(Site("a"), 10, 50.0, 40.0, 1.0, 60.0),
        SiteMetrics(Site("b"), 30, 90.0, 80.0, 0.5, 70.0),
    )

    def test_it_says_means_the_worst_and_who_would_do_better_alone(self) -> None:
        said = Evaluated(self.SITES, (Refusal(Site("c"), "no"),)).to_dict(3)
        assert said["sites"][0] == {
            "site": "a",
            "records": 10,
            "accuracy": 50.0,
            "macro_accuracy": 40.0,
            "loss": 1.0,
            "local_only": 60.0,
        }
        del said["sites"]
        assert said == {
            "round": 3,
            "refused": [{"client": "c", "reason": "no"}],
            "accuracy": 80.0,
            "macro_accuracy": 70.0,
            "accuracy_mean": 70.0,
            "worst": "a",
            "accuracy_worst": 50.0,
            "local_only_mean": 65.0,
            "below_local_only": ["a"],
        }

    def test_a_site_whose_own_network_nobody_knows_is_not_below_it(self) -> None:
        sites = tuple(one._replace(alone=math.nan) for one in self.SITES)
        said = Evaluated(sites).to_dict(1)
        assert said["below_local_only"] == []
        assert "local_only_mean" not in said


def test_weights_are_what_the_question_carries(train: Data, weights: Weights) -> None:
    question = Fixed(train, weights).evaluation(State(1, weights))
    assert question is not None
    assert question.weights is weights
    assert (question.classes, question.network) == (train.spec.classes, NETWORK)
    assert (question.mean, question.std) == (train.spec.mean, train.spec.std)
    assert torch.is_tensor(question.weights.tensors["classifier.bias"])
