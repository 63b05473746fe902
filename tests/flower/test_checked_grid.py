from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedcondense.errors import UntrustedSetError
from fedcondense.flower.checked_grid import CheckedGrid, numbers_in, weights_in
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.wire import WIRE, About, own_version
from fedcondense.networks import build

NETWORKS = ("convnet1-w16", "convnet1-w16-batch")


def network(name: str = NETWORKS[0], seed: int = 0) -> nn.Module:
    return build(name, (1, 8, 8), 3, seed)


def record(model: nn.Module, **changes: Any) -> ArrayRecord:
    """Return a network's weights as a record in which some are changed, or left out where the change is None."""
    arrays = dict(ArrayRecord(dict(model.state_dict())))
    for name, change in changes.items():
        key = name.replace("__", ".")
        if change is None:
            del arrays[key]
        else:
            arrays[key] = change if isinstance(change, Array) else Array(np.asarray(change))
    return ArrayRecord(arrays)


class TestWeightsIn:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_weights_and_buffers_of_any_dtype_travel(self, name: str) -> None:
        """Batch normalisation counts its batches in int64."""
        model = network(name, seed=1)
        read = weights_in(record(model), network(name))
        for key, value in model.state_dict().items():
            torch.testing.assert_close(read.tensors[key], value, rtol=0, atol=0)
            assert read.tensors[key].dtype == value.dtype

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"classifier__bias": None}, "other names than those of this network: 'classifier.bias'"),
            ({"more": [1.0]}, "other names than those of this network: 'more'"),
            ({"classifier__bias": np.zeros(4, np.float32)}, "16 bytes; allowed: 12"),
            ({"classifier__bias": np.zeros((3, 1), np.float32)}, r"is \(3, 1\) .*has \(3,\)"),
            ({"classifier__bias": np.zeros(3, np.float64)}, "dtype float64; allowed: float32"),
            ({"classifier__bias": np.zeros(3, np.int32)}, "dtype int32; allowed: float32"),
            (
                {"classifier__bias": np.array([0, np.nan, 0], np.float32)},
                "'classifier.bias' holds numbers that",
            ),
            (
                {"classifier__bias": np.array([0, np.inf, 0], np.float32)},
                "'classifier.bias' holds numbers that",
            ),
            ({"classifier__bias": Array("float32", (3,), "pickle", b"\x80\x04.")}, "serialised as 'pickle'"),
            ({"classifier__bias": Array("float32", (3,), "numpy.ndarray", b"")}, "a damaged npy header"),
        ],
    )
    def test_weights_of_another_network_are_refused(self, changes: dict[str, Any], reason: str) -> None:
        with pytest.raises(UntrustedSetError, match=reason):
            weights_in(record(network(), **changes), network())

    def test_a_count_of_batches_that_is_no_int64_is_refused(self) -> None:
        model = network(NETWORKS[1])
        (name,) = (n for n, value in model.state_dict().items() if value.dtype == torch.int64)
        with pytest.raises(UntrustedSetError, match="dtype float64; allowed: int64"):
            weights_in(record(model, **{name.replace(".", "__"): np.array(1.0)}), model)


def numbers(**changes: Any) -> RecordDict:
    metrics = {"num-examples": 3, "loss": 0.5, **{key.replace("_", "-"): value for key, value in changes.items()}}
    given = {key: value for key, value in metrics.items() if value is not None}
    return RecordDict({"arrays": ArrayRecord({}), "metrics": MetricRecord(given)})


class TestNumbersIn:
    def test_sound_ones_are_named(self) -> None:
        assert numbers_in(numbers()) == {"num-examples", "loss"}

    @pytest.mark.parametrize(
        "content",
        [
            RecordDict({}),
            RecordDict({"arrays": ArrayRecord({})}),
            RecordDict({**numbers(), "more": ConfigRecord({})}),
            RecordDict({**numbers(), "more": ArrayRecord({})}),
            RecordDict({"arrays": ArrayRecord({}), "metrics": ConfigRecord({"num-examples": 3})}),
            numbers(num_examples=None),
            numbers(num_examples=0),
            numbers(num_examples=-5),
            numbers(num_examples=2.5),
            numbers(num_examples=2**50),
            numbers(num_examples=[3]),
            numbers(num_examples=float("nan")),
            numbers(loss=float("nan")),
            numbers(loss=float("inf")),
            numbers(loss=[1.0, 2.0]),
        ],
    )
    def test_others_are_refused(self, content: RecordDict) -> None:
        with pytest.raises(UntrustedSetError):
            numbers_in(content)


class TestEvaluations:
    """What sites say of the weights: numbers alone."""

    def said(self, answers: dict[int, RecordDict | Error], bits: int = 0) -> tuple[CheckedGrid, list[Message]]:
        client = ClientApp()

        @client.evaluate()
        def evaluate(message: Message, context: Context) -> Message:
            return Message(answers[context.node_id - 100], reply_to=message)

        with task_identity():
            inner = InProcessGrid(client, len(answers))
            grid = CheckedGrid(inner, network(), bits=bits)
            content = RecordDict({"arrays": record(network(seed=1)), "config": ConfigRecord()})
            messages = [Message(content, node, "evaluate") for node in grid.get_node_ids()]
            replies = list(grid.send_and_receive(messages))
        assert grid.up == sum(t.up for t in inner.traffic.values())
        assert grid.down == pytest.approx(sum(t.down for t in inner.traffic.values()), rel=0.01)
        return grid, replies

    def metrics(self, **changes: Any) -> RecordDict:
        numbers = {"num-examples": 3, "accuracy": 50.0, **{k.replace("_", "-"): v for k, v in changes.items()}}
        return RecordDict({"metrics": MetricRecord({k: v for k, v in numbers.items() if v is not None})})

    @pytest.mark.parametrize("bits", [0, 8])
    def test_sound_ones_pass_with_the_numbers_that_all_say_and_are_kept_by_node(self, bits: int) -> None:
        grid, replies = self.said({0: self.metrics(loss=0.5), 1: self.metrics(accuracy=70.0)}, bits)
        assert [dict(reply.content["metrics"]) for reply in replies] == [
            {"num-examples": 3, "accuracy": 50.0},
            {"num-examples": 3, "accuracy": 70.0},
        ]
        assert grid.said == {
            100: {"num-examples": 3, "accuracy": 50.0, "loss": 0.5},
            101: {"num-examples": 3, "accuracy": 70.0},
        }
        mean = FedAvg().aggregate_evaluate(1, replies)
        assert mean is not None
        assert dict(mean) == {"accuracy": pytest.approx(60.0)}

    def test_others_are_left_out_and_fail_nothing(self, caplog: pytest.LogCaptureFixture) -> None:
        logging.getLogger("flwr").propagate = True
        bad: dict[int, RecordDict | Error] = {
            1: Error(2, "partition 1: it has no <b>allow-evaluate</b>"),
            2: self.metrics(num_examples=0),
            3: self.metrics(accuracy=float("nan")),
            4: self.metrics(accuracy=100.5),
            5: self.metrics(accuracy=-1.0),
            6: self.metrics(macro_accuracy=1e300),
            7: RecordDict({**self.metrics(), "arrays": record(network())}),
            8: self.metrics(accuracy=[50.0]),
        }
        with caplog.at_level(logging.WARNING, "flwr"):
            grid, replies = self.said({0: self.metrics(), **bad})
        assert [reply.metadata.src_node_id for reply in replies] == [100]
        assert (grid.failed, list(grid.said)) == (0, [100])
        assert "8 sites do not evaluate, 1 do; partition 1: it has no (b)allow-evaluate(/b)" in caplog.text

    def test_nobody_need_answer(self) -> None:
        grid, replies = self.said({0: Error(2, "no"), 1: Error(2, "no")})
        assert (replies, grid.said) == ([], {})
        assert FedAvg().aggregate_evaluate(1, replies) is None


Answer = Callable[[int], RecordDict | Error]


def asked(answer: Answer, nodes: int = 4) -> tuple[CheckedGrid, list[Message]]:
    client = ClientApp()

    @client.train()
    def train(message: Message, context: Context) -> Message:
        said = answer(context.node_id - 100)
        if isinstance(said, Error):
            return Message(said, reply_to=message)
        return Message(said, reply_to=message)

    with task_identity():
        grid = CheckedGrid(InProcessGrid(client, nodes), network())
        messages = [Message(RecordDict({}), node, "train") for node in grid.get_node_ids()]
        return grid, list(grid.send_and_receive(messages))


def sound(k: int, **changes: Any) -> RecordDict:
    return RecordDict({**numbers(**changes), "arrays": record(network(seed=k))})


class TestCheckedGrid:
    def test_unsound_answers_are_left_out_counted_and_named(self, caplog: pytest.LogCaptureFixture) -> None:
        bad: dict[int, RecordDict | Error] = {
            1: RecordDict({**numbers(), "arrays": record(network(), classifier__bias=np.full(3, np.nan, np.float32))}),
            2: sound(2, num_examples=float("nan")),
            3: Error(2, "out of <b>memory</b>"),
        }
        logging.getLogger("flwr").propagate = True
        with caplog.at_level(logging.WARNING, "flwr"):
            grid, replies = asked(lambda k: bad.get(k, sound(k)))
        assert [reply.metadata.src_node_id for reply in replies] == [100]
        assert grid.failed == 3
        assert "3 sites failed, 1 are left; weights: 'classifier.bias' holds numbers that are not finite" in caplog.text

    def test_numbers_of_other_names_than_those_of_most_are_left_out(self) -> None:
        """Flower refuses a whole round in which names differ."""
        grid, replies = asked(lambda k: sound(k, **({"mood": 1.0} if k == 0 else {})))
        assert [reply.metadata.src_node_id for reply in replies] == [101, 102, 103]
        assert grid.failed == 1
        assert FedAvg(fraction_evaluate=0.0).aggregate_train(1, replies)[0] is not None

    def test_a_site_without_data_has_not_failed(self) -> None:
        grid, replies = asked(lambda k: Error(2, "partition 1: has no data") if k == 1 else sound(k))
        assert (len(replies), grid.failed) == (3, 0)

    def test_a_site_that_flower_misses_has_refused_nothing(self) -> None:
        grid, replies = asked(lambda k: Error(5, "Error: Node Unavailable") if k == 1 else sound(k))
        entry = grid.entry(1)
        assert (len(replies), grid.failed) == (3, 1)
        assert (entry["asked"], entry["answered"], entry["refused"]) == (4, 3, 0)

    def test_each_question_says_who_asks_and_by_which_wire(self) -> None:
        seen = list[About]()
        client = ClientApp()

        @client.train()
        def train(message: Message, context: Context) -> Message:
            seen.append(About.of(message.content))
            return Message(sound(0), reply_to=message)

        with task_identity():
            grid = CheckedGrid(InProcessGrid(client, 2), network())
            shared = RecordDict({"config": ConfigRecord({"server-round": 3})})
            list(grid.send_and_receive([Message(shared, node, "train") for node in grid.get_node_ids()]))
        assert seen == [About(WIRE, own_version(), "train", 3)] * 2

    def test_nothing_but_failures_is_an_error_that_says_why(self) -> None:
        with pytest.raises(AggregationError, match=r"4 sites failed, 0 are left; \(b\)no\(/b\)"):
            asked(lambda k: Error(2, "<b>no</b>"))
