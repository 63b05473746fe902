from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from fedcondense.flower.message import CONDENSE, Expected, pack
from fedcondense.flower.strategy import AggregationError, OneShot, collect, train_network
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Result
from torch import nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

Answer = Callable[[int, Message], Message]


def client_that(answers: Answer) -> ClientApp:
    app = ClientApp()

    @app.query(CONDENSE.partition(".")[2])
    def answer(message: Message, context: Context) -> Message:
        return answers(int(context.node_config["partition-id"]), message)

    return app


class LateGrid(InProcessGrid):
    """Keeps the replies of some nodes back for good, and gives the others one pull after another."""

    silent: tuple[int, ...] = ()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = [i for i in message_ids if i in self._replies]
        ready = [i for i in wanted if self._replies[i].metadata.src_node_id not in self.silent]
        return super().pull_messages(ready[:1])


@pytest.fixture(scope="module")
def sets(train: Data, held: Partition) -> list[SyntheticSet]:
    return [select(train.subset(index), 1, "random", seed=0) for index in held]


@pytest.fixture
def honest(sets: list[SyntheticSet]) -> Answer:
    def answer(k: int, message: Message) -> Message:
        return Message(pack(sets[k % len(sets)], partition=k, num_examples=10 * (k + 1), seconds=1.0), reply_to=message)

    return answer


def trained(joined: SyntheticSet) -> nn.Module:
    return train_network(joined, recipe=Fit(steps=2))


def run(
    strategy: OneShot, client: ClientApp, nodes: int, grid: type[InProcessGrid] = InProcessGrid, **start: Any
) -> Result:
    with task_identity():
        return strategy.start(grid(client, nodes), **start)


class TestOneShot:
    def test_it_returns_the_trained_weights_and_keeps_the_joined_set(
        self, honest: Answer, sets: list[SyntheticSet], train: Data
    ) -> None:
        strategy = OneShot(trained, Expected.of(train.spec))
        rounds: list[int] = []

        def evaluated(server_round: int, arrays: ArrayRecord) -> MetricRecord:
            rounds.append(server_round)
            return MetricRecord({"arrays": len(arrays)})

        result = run(strategy, client_that(honest), 3, evaluate_fn=evaluated)
        assert strategy.joined is not None
        assert strategy.joined.to_bytes() == SyntheticSet.join(sets).to_bytes()
        for name, weight in trained(strategy.joined).state_dict().items():
            torch.testing.assert_close(result.arrays.to_torch_state_dict()[name], weight, rtol=0, atol=0)
        assert rounds == [1]
        metrics = result.train_metrics_clientapp[1]
        assert metrics["clients"] == 3
        assert metrics["num-examples"] == 60
        assert metrics["bytes-up"] == sum(s.nbytes for s in sets)

    def test_joining_does_not_depend_on_the_order_of_arrival(self, sets: list[SyntheticSet]) -> None:
        def backwards(k: int, message: Message) -> Message:
            content = pack(sets[2 - k], partition=2 - k, num_examples=1, seconds=0.0)
            return Message(content, reply_to=message)

        strategy = OneShot(trained)
        run(strategy, client_that(backwards), 3)
        assert strategy.joined is not None
        assert strategy.joined.to_bytes() == SyntheticSet.join(sets).to_bytes()

    def test_errors_and_duplicates_are_named_and_the_round_goes_on(
        self, honest: Answer, sets: list[SyntheticSet], caplog: pytest.LogCaptureFixture
    ) -> None:
        def mixed(k: int, message: Message) -> Message:
            if k == 1:
                return Message(Error(2, "\x1b[31m<b>has no data</b>"), reply_to=message)
            return honest(0 if k == 3 else k, message)

        logging.getLogger("flwr").propagate = True
        strategy = OneShot(trained)
        with caplog.at_level(logging.WARNING, "flwr"):
            run(strategy, client_that(mixed), 4)
        assert [reply.partition for reply in strategy.accepted] == [0, 2]
        assert [(r.node, r.reason) for r in strategy.refused] == [
            (101, "(b)has no data(/b)"),
            (103, "partition 0 has answered already"),
        ]
        assert "node 101 is left out: (b)has no data(/b)" in caplog.text

    def test_a_set_of_another_shape_than_most_is_refused(self, honest: Answer, sets: list[SyntheticSet]) -> None:
        """It comes first: the first must not decide for the others."""
        part = sets[0].parts[0]
        codes = {"images": part.codes["images"].repeat(1, 3, 1, 1)}
        record = replace(part.record, shape=(3, 8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)
        colour = SyntheticSet([replace(part, codes=codes, record=record)])

        def answers(k: int, message: Message) -> Message:
            if k == 0:
                return Message(pack(colour, partition=0, num_examples=1, seconds=0.0), reply_to=message)
            return honest(k, message)

        strategy = OneShot(trained)
        run(strategy, client_that(answers), 3)
        assert [reply.partition for reply in strategy.accepted] == [1, 2]
        assert "those of most others" in strategy.refused[0].reason

    def test_silence_is_a_refusal_after_the_grace_period(self, honest: Answer) -> None:
        class Grid(LateGrid):
            silent = (101,)

        strategy = OneShot(trained, min_replies=2, grace=0.1)
        run(strategy, client_that(honest), 3, Grid, timeout=60.0)
        assert [reply.partition for reply in strategy.accepted] == [0, 2]
        assert strategy.refused[0][:2] == (101, "no reply within the deadline")

    def test_a_broken_reply_does_not_start_the_grace_period(self, honest: Answer) -> None:
        """It comes alone and first; the usable ones come after the grace period would have ended."""

        class Grid(LateGrid):
            begun = 0.0

            def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
                type(self).begun = self.begun or time.monotonic()
                if time.monotonic() - self.begun < 0.5:
                    message_ids = [i for i in message_ids if self._replies[i].metadata.src_node_id == 100]
                return InProcessGrid.pull_messages(self, message_ids)

        def answers(k: int, message: Message) -> Message:
            if k == 0:
                return Message(RecordDict({"junk": ConfigRecord()}), reply_to=message)
            return honest(k, message)

        strategy = OneShot(trained, min_replies=1, grace=0.05)
        run(strategy, client_that(answers), 3, Grid, timeout=60.0)
        assert [reply.partition for reply in strategy.accepted] == [1, 2]
        assert strategy.refused[0].node == 100

    def test_weights_that_are_not_finite_are_an_error(self, honest: Answer) -> None:
        def broken(joined: SyntheticSet) -> nn.Module:
            network = trained(joined)
            next(iter(network.parameters())).data.fill_(float("nan"))
            return network

        with pytest.raises(AggregationError, match="weights that are not finite"):
            run(OneShot(broken), client_that(honest), 3)

    def test_no_usable_set_is_an_error_that_says_why(self) -> None:
        def none(k: int, message: Message) -> Message:
            return Message(Error(2, f"partition {k}: has no data"), reply_to=message)

        strategy = OneShot(trained)
        with pytest.raises(AggregationError, match=r"0 usable sets of 3, 1 needed; node 100: partition 0: has no data"):
            run(strategy, client_that(none), 3)
        assert len(strategy.refused) == 3

    def test_fewer_sets_than_needed_is_an_error(self, honest: Answer) -> None:
        class Grid(LateGrid):
            silent = (101,)

        with pytest.raises(AggregationError, match="2 usable sets of 3, 3 needed; node 101: no reply"):
            run(OneShot(trained, min_replies=3), client_that(honest), 3, Grid, timeout=1.0)

    def test_too_few_nodes_end_the_wait_at_its_deadline(self, honest: Answer) -> None:
        with pytest.raises(TimeoutError, match=r"1 of 2 nodes connected within 0 s; start the others"):
            run(OneShot(trained, wait=0.0), client_that(honest), 1)

    def test_classes_that_nobody_sent_are_named(
        self, train: Data, held: Partition, caplog: pytest.LogCaptureFixture
    ) -> None:
        few = select(train.subset(torch.where(train.labels < 8)[0]), 1, "random")

        def answers(k: int, message: Message) -> Message:
            return Message(pack(few, partition=k, num_examples=1, seconds=0.0), reply_to=message)

        strategy = OneShot(trained, Expected.of(train.spec))
        with caplog.at_level(logging.WARNING, "flwr"):
            run(strategy, client_that(answers), 2)
        assert strategy.missing == ("8", "9")
        assert "no set holds images of 2 classes: '8', '9'" in caplog.text

    def test_a_fraction_of_the_nodes_is_drawn_by_the_seed(self, honest: Answer) -> None:
        asked = []
        for seed in (0, 0, 1, 2, 3):
            strategy = OneShot(trained, fraction_train=0.4, min_train_nodes=1, seed=seed)
            run(strategy, client_that(honest), 5)
            asked.append(tuple(reply.partition for reply in strategy.accepted))
        assert {len(partitions) for partitions in asked} == {2}
        assert asked[0] == asked[1]
        assert len(set(asked)) > 1

    def test_more_than_one_round_is_refused(self, honest: Answer) -> None:
        with pytest.raises(ValueError, match="one round"):
            run(OneShot(trained), client_that(honest), 3, num_rounds=2)

    def test_classes_that_only_some_clients_know_are_united(self, sets: list[SyntheticSet]) -> None:
        names = [("a", "b"), ("b", "c")]

        def answers(k: int, message: Message) -> Message:
            two = sets[0].parts[0]
            record = replace(two.record, classes=names[k], counts=(5, 5))
            codes = {"images": two.codes["images"][:2]}
            part = replace(two, codes=codes, targets=torch.tensor([0, 1], dtype=torch.uint8), record=record)
            return Message(pack(SyntheticSet([part]), partition=k, num_examples=2, seconds=0.0), reply_to=message)

        strategy = OneShot(trained)
        result = run(strategy, client_that(answers), 2)
        assert strategy.joined is not None
        assert strategy.joined.classes == ("a", "b", "c")
        assert strategy.joined.counts().tolist() == [1, 2, 1]
        assert result.arrays.to_torch_state_dict()["classifier.weight"].shape[0] == 3

        few = OneShot(trained, Expected(limits=replace(Expected().limits, classes=2)))
        run(few, client_that(answers), 2)
        assert [reply.partition for reply in few.accepted] == [0]
        assert few.refused[0].reason == "with it the sets name more than 2 classes"


def test_replies_that_count_as_one_do_not_start_the_grace_period(honest: Answer) -> None:
    class Grid(LateGrid):
        silent = (100,)

    with task_identity():
        grid = Grid(client_that(honest), 3)
        asked = [Message(RecordDict({"config": ConfigRecord()}), node, CONDENSE) for node in (100, 101, 102)]
        began = time.monotonic()
        collect(grid, asked, timeout=1.0, need=2, grace=0.0, usable=lambda reply: 7)
    assert time.monotonic() - began >= 1.0


def test_collect_returns_what_is_there_at_the_deadline(honest: Answer) -> None:
    class Grid(LateGrid):
        silent = (100, 101)

    with task_identity():
        grid = Grid(client_that(honest), 3)
        content = RecordDict({"config": ConfigRecord()})
        replies = collect(grid, [Message(content, node, CONDENSE) for node in (100, 101, 102)], timeout=0.5)
    assert [reply.metadata.src_node_id for reply in replies] == [102]
