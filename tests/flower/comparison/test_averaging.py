from __future__ import annotations

import importlib
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fedcondense.flower.fedavg import FedAvgRow, LocalTraining, fedavg, train_locally
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from torch import nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import ResumeError, SettingError
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy

NETWORK = "convnet2-w32"
FAST = LocalTraining(lr=0.1)


@pytest.fixture(scope="module")
def two_rounds(train: Data, test: Data, held: Partition) -> dict[int, FedAvgRow]:
    return fedavg(train, held, test, NETWORK, rounds=2, training=FAST, evaluate_at=(1, 2))


def test_one_client_with_all_data_is_plain_training(train: Data, test: Data) -> None:
    """FedAvg of one client averages nothing: two rounds equal two local trainings, bit by bit."""
    everything = [torch.arange(len(train))]
    told: list[tuple[int, int]] = []
    rows = fedavg(
        train, everything, test, NETWORK, rounds=2, training=FAST, seed=3, progress=lambda *now: told.append(now)
    )
    model = build(NETWORK, train.spec.shape, 10, 3)
    for number in (1, 2):
        train_locally(model, train, FAST, stream(3, "fedavg", 0, number))
    assert rows[2].accuracy == accuracy(model, test)[0]
    assert told == [(1, 2), (2, 2)]


def test_bytes_are_the_weights_each_way_and_round(two_rounds: dict[int, FedAvgRow]) -> None:
    state = build(NETWORK, (1, 8, 8), 10, 0).state_dict()
    weights = sum(len(array.data) for array in ArrayRecord(dict(state)).values())
    for rounds, row in two_rounds.items():
        assert row.bytes_up == pytest.approx(rounds * weights, rel=0.12)
        assert row.bytes_down == pytest.approx(rounds * weights, rel=0.12)


def test_the_same_seed_gives_the_same_rows(
    two_rounds: dict[int, FedAvgRow], train: Data, test: Data, held: Partition
) -> None:
    again = fedavg(train, held, test, NETWORK, rounds=2, training=FAST, evaluate_at=(1, 2))
    assert [row[:5] for row in again.values()] == [row[:5] for row in two_rounds.values()]


class TestResume:
    def test_a_run_that_was_cut_ends_as_one_that_was_not(
        self,
        two_rounds: dict[int, FedAvgRow],
        train: Data,
        test: Data,
        held: Partition,
        tmp_path: Path,
    ) -> None:
        checkpoint = tmp_path / "fedavg.safetensors"

        class CutError(Exception):
            pass

        def cut(number: int, rounds: int) -> None:
            if number == 1:
                raise CutError

        arguments = (train, held, test, NETWORK)
        options: dict[str, Any] = {"rounds": 2, "training": FAST, "evaluate_at": (1, 2), "checkpoint": checkpoint}
        with pytest.raises(CutError):
            fedavg(*arguments, **options, progress=cut)
        resumed = fedavg(*arguments, **options, resume=True)
        assert [row[:5] for row in resumed.values()] == [row[:5] for row in two_rounds.values()]
        finished = fedavg(*arguments, **options, resume=True, progress=cut)  # nothing is left to do
        assert finished == resumed
        further = fedavg(*arguments, **options | {"rounds": 3}, resume=True)
        assert further[2] == resumed[2]
        assert fedavg(*arguments, **options | {"rounds": 3, "evaluate_at": (2, 3)}, resume=True)[3] == further[3]

    def test_rounds_that_nobody_tested_are_run_again(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        options: dict[str, Any] = {"rounds": 2, "training": FAST, "checkpoint": tmp_path / "fedavg.safetensors"}
        last = fedavg(train, held, test, NETWORK, **options, evaluate_at=())
        both = fedavg(train, held, test, NETWORK, **options, evaluate_at=(1,), resume=True)
        assert sorted(both) == [1, 2]
        assert both[2][:5] == last[2][:5]

    def test_another_configuration_is_refused_by_name(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        checkpoint = tmp_path / "fedavg.safetensors"
        fedavg(train, held, test, NETWORK, rounds=1, training=FAST, checkpoint=checkpoint)
        with pytest.raises(ResumeError, match="training differ"):
            fedavg(train, held, test, NETWORK, rounds=1, checkpoint=checkpoint, resume=True)

    def test_a_damaged_checkpoint_is_refused(self, train: Data, test: Data, held: Partition, tmp_path: Path) -> None:
        checkpoint = tmp_path / "fedavg.safetensors"
        checkpoint.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
        with pytest.raises(ResumeError, match="delete it"):
            fedavg(train, held, test, NETWORK, rounds=1, checkpoint=checkpoint, resume=True)


class TestFailures:
    def test_a_client_that_diverges_is_counted_and_named(
        self,
        train: Data,
        test: Data,
        held: Partition,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def failing(network: nn.Module, data: Data, training: LocalTraining, generator: torch.Generator) -> float:
            if len(data) > 20:
                raise SettingError("local training diverged")
            return train_locally(network, data, training, generator)

        monkeypatch.setattr(importlib.import_module("fedcondense.flower.fedavg"), "train_locally", failing)
        parts = [held[0][:20], held[1], held[2][:20]]
        with caplog.at_level(logging.WARNING):
            rows = fedavg(train, parts, test, NETWORK, rounds=2, training=FAST, evaluate_at=(1, 2))
        assert [row.failed for row in rows.values()] == [1, 2]
        assert "round 1: 1 clients failed, 2 are left; SettingError: local training diverged" in caplog.text

    def test_nothing_but_failures_is_an_error(self, train: Data, test: Data, held: Partition) -> None:
        with pytest.raises(AggregationError, match=r"3 clients failed, 0 are left; .*diverged at lr"):
            fedavg(train, held, test, NETWORK, rounds=1, training=replace(FAST, lr=1e9))


def test_a_client_without_data_is_left_out(train: Data, test: Data, held: Partition) -> None:
    rows = fedavg(train, [*held, torch.empty(0, dtype=torch.int64)], test, NETWORK, rounds=1, training=FAST)
    assert rows[1].accuracy > 0
    assert rows[1].failed == 0
