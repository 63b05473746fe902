"""Flower phones nobody from the tests; what the tests of this folder share."""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

from collections.abc import Callable, Mapping
from typing import Any

import pytest

pytest.importorskip("flwr")

from flwr.app import ConfigRecord, Message, RecordDict

from fedcondense.data.images import Data, DataSet
from fedcondense.data.loading import load_data
from fedcondense.data.partitions import Partition, partition
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.wire import WIRE, About


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="session")
def held(digits: DataSet) -> Partition:
    """Three clients, label-skewed."""
    return partition(digits.train, 3, "dirichlet", alpha=0.5, seed=1)


@pytest.fixture(scope="session")
def train(digits: DataSet) -> Data:
    return digits.train


@pytest.fixture(scope="session")
def test(digits: DataSet) -> Data:
    return digits.test


Ask = Callable[..., Message]
"""What the fixture `ask` returns."""


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Return a function that asks one node with some data and returns its reply as it arrives."""

    def ask_one(
        data: Data,
        question: Mapping[str, Any] | RecordDict,
        *,
        task: str = "condense",
        caps: Caps = Caps(max_seconds=float("inf"), min_records=1),  # without an estimate, which takes seconds
        node: Mapping[str, Any] | None = None,
        server_round: int = 1,
        **options: Any,
    ) -> Message:
        client = make_client_app(lambda context: data, caps=caps, **options)
        if isinstance(question, RecordDict):
            content = question
        else:
            about, config = About(WIRE, "test", task, server_round).record(), dict[str, Any](question)
            content = RecordDict({"about": about, "config": ConfigRecord(config)})
        with task_identity():
            grid = InProcessGrid(client, 1, node_config={"num-partitions": 0, **(node or {})})
            return next(iter(grid.send_and_receive([Message(content, 100, f"query.{task}")])))

    return ask_one


@pytest.fixture(scope="session")
def reason_of() -> Callable[[Message], str]:
    """Return a function that returns why a node refused."""

    def reason(message: Message) -> str:
        assert message.has_error()
        return message.error.reason or ""

    return reason
