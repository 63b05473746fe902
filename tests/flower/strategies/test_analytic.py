from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Sums
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.strategies.analytic import Analytic, ProductsOfClasses
from fedcondense.flower.strategies.factors import extended, factored, products_of
from fedcondense.flower.strategies.features import random_features
from fedcondense.flower.strategies.incremental import tasks_of
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.networks import build
from fedcondense.training.fit import accuracy

NETWORK, FORM = "convnet1-w16", "int8-deflated"
Ask = Callable[..., Message]


def strategy(train: Data, **changes: Any) -> Analytic:
    """Return five tasks of two digits for three sites."""
    usual: dict[str, Any] = {"tasks": tasks_of(train.spec.classes, 2), "memory": 12_000, "min_train_nodes": 2}
    return Analytic(train.spec, network=NETWORK, **{**usual, **changes})


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    parts = [train.subset(index) for index in held]
    return make_client_app(
        lambda context: parts[int(context.node_config["partition-id"])], caps=Caps.none(), is_counted=False
    )


def run(made: Analytic, client: ClientApp, rounds: int | None = None, away: tuple[int, int] = (0, 0)) -> None:
    """Run rounds; in a round, the first of `away`, a node is not there."""

    class Grid(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return [n for n in super().get_node_ids() if (made.state.round + 1, n - 100) != away]

    with task_identity():
        made.start(Grid(client, 3), num_rounds=rounds)


def counts_of(made: Analytic) -> torch.Tensor:
    """Return how many records of each class stand in what it keeps: products of the constant with labels."""
    kept = Sums({name: made.state.tensors[name] for name in ("rows", "scales")})
    return products_of(kept, made.size, 10, FORM)[1][-1]


def known(made: Analytic, test: Data) -> torch.Tensor:
    """Return percent right per class."""
    assert made.state.weights is not None
    return accuracy(made.state.weights.load_into(build(NETWORK, test.spec.shape, 10, 0)), test)[1]


@pytest.fixture(scope="module")
def ran(train: Data, client: ClientApp) -> Analytic:
    made = strategy(train)
    run(made, client)
    return made


class TestAnalytic:
    def test_tasks_one_after_another_give_what_all_records_at_once_give(
        self, ran: Analytic, train: Data, test: Data, client: ClientApp
    ) -> None:
        at_once = strategy(train, tasks=[train.spec.classes])
        run(at_once, client)
        assert float(known(ran, test).mean()) > 80
        assert float(known(ran, test).mean()) == pytest.approx(float(known(at_once, test).mean()), abs=3)
        torch.testing.assert_close(counts_of(ran), train.counts.double(), rtol=0.2, atol=0)

    def test_what_it_keeps_has_the_size_of_a_task_however_many_there_were(
        self, ran: Analytic, train: Data, client: ClientApp
    ) -> None:
        first = strategy(train)
        run(first, client, 1)
        for made in (first, ran):
            kept = Sums({name: made.state.tensors[name] for name in ("rows", "scales")})
            assert 6_000 < len(kept.to_bytes()) <= 12_000

    def test_a_class_that_nobody_has_had_yet_is_never_answered(
        self, train: Data, test: Data, client: ClientApp
    ) -> None:
        made = strategy(train)
        run(made, client, 2)
        assert made.seen == ("0", "1", "2", "3")
        per_class = known(made, test)
        assert float(per_class[:4].min()) > 70
        assert float(per_class[4:].max()) == 0

    def test_a_site_that_was_away_is_asked_for_what_it_missed_and_nothing_counts_twice(
        self, ran: Analytic, train: Data, client: ClientApp
    ) -> None:
        made = strategy(train)
        run(made, client, away=(2, 1))
        torch.testing.assert_close(counts_of(made), train.counts.double(), rtol=0.2, atol=0)

    def test_after_the_last_task_nobody_is_asked(self, train: Data, client: ClientApp) -> None:
        more = strategy(train)
        run(more, client, 7)
        assert more.state.round == 5

    def test_a_task_that_no_site_has_ends_the_run_in_one_line_and_keeps_what_was(
        self, train: Data, held: Partition
    ) -> None:
        def load(context: Context) -> Data:
            mine = train.subset(held[int(context.node_config["partition-id"])])
            return mine.subset(mine.labels < 2)

        made = strategy(train)
        with pytest.raises(AggregationError, match="of the classes of this task, '2', '3', client-0 has no data"):
            run(made, make_client_app(load, caps=Caps.none(), is_counted=False))
        assert (made.state.round, made.seen) == (1, ("0", "1"))

    def test_it_answers_as_least_squares_on_all_records_do(self, train: Data, client: ClientApp) -> None:
        made = strategy(train, task=ProductsOfClasses(dims=30))
        run(made, client)
        assert made.state.weights is not None
        network = made.state.weights.load_into(build(NETWORK, train.spec.shape, 10, 0)).eval()
        features, targets = extended(random_features(train, NETWORK, 0, 30), train)
        exact = features @ torch.linalg.lstsq(features, targets).solution
        with torch.no_grad():
            same = network(train.batch(torch.arange(len(train))).images).argmax(1) == exact.argmax(1)
        assert float(same.float().mean()) > 0.97

    @pytest.mark.parametrize(
        ("changes", "needed"),
        [
            ({"tasks": []}, "classes-per-task = 1 or more"),
            ({"tasks": [("0",), ("0",)]}, "task 2 of 2: class '0' is unknown or came before"),
        ],
    )
    def test_streams_that_cannot_be_are_refused(self, changes: dict[str, Any], needed: str, train: Data) -> None:
        with pytest.raises(SettingError, match=needed):
            strategy(train, **changes)

    def test_sums_of_other_features_are_left_out(self, train: Data) -> None:
        made = strategy(train)
        few = train.subset(torch.arange(50))
        other = factored(*extended(random_features(few, NETWORK, 0, made.size), few), FORM)
        with pytest.raises(UntrustedSetError):
            made.examine("answer", Answer(Site("a"), other))

    def test_sums_of_nothing_are_no_crash(self, train: Data) -> None:
        made = strategy(train)
        few = train.subset(torch.arange(300))
        sums = factored(*extended(random_features(few, NETWORK, 0, made.size - 1), few), FORM)
        nothing = Sums({**sums.tensors, "scales": torch.zeros_like(sums.tensors["scales"])})
        made.examine("answer", Answer(Site("a"), nothing))
        state = made.combine(1, "answer", State(), [Answer(Site("a", "a"), nothing)])
        assert state.weights is not None
        assert all(bool(value.isfinite().all()) for value in state.weights.tensors.values())


class TestProductsOfClasses:
    def test_they_are_of_the_classes_that_are_asked_for_alone(self, ask: Ask, train: Data) -> None:
        task = ProductsOfClasses(train.spec.classes, ("3", "7"), network=NETWORK, dims=6)
        reply = ask(train, pack_question(task, 1), task=task.name, caps=Caps.none())
        found = read_answer(reply.content, Sums, ReplyLimits().limits).payload
        _, targets = products_of(found, 7, 10, FORM)
        expected = [float(n) if name in "37" else 0.0 for name, n in zip(*counted(train), strict=True)]
        torch.testing.assert_close(targets[-1], torch.tensor(expected).double(), rtol=0.05, atol=0.5)

    def test_images_are_normalised_as_the_question_says(self, ask: Ask, train: Data) -> None:
        task = ProductsOfClasses(train.spec.classes, (), (0.1,), (0.9,), NETWORK, dims=6)
        answers = []
        for spec in (train.spec, replace(train.spec, mean=(0.3,), std=(0.2,))):
            data = Data(train.images, train.labels, spec)
            reply = ask(data, pack_question(task, 1), task=task.name, caps=Caps.none())
            answers.append(read_answer(reply.content, Sums, ReplyLimits().limits).payload.to_bytes())
        assert answers[0] == answers[1]


def counted(data: Data) -> tuple[tuple[str, ...], list[int]]:
    return data.spec.classes, data.counts.tolist()
