from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord
from flwr.serverapp.exception import AggregationError
from torch import nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import ResumeError, SettingError
from fedcondense.flower.comparison.averaging import FedAvgRow, Kept, fedavg
from fedcondense.flower.comparison.bench import Bench
from fedcondense.flower.strategies.averaging import LocalTraining, train_locally
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy

NETWORK = "convnet2-w32"
FAST = LocalTraining(lr=0.1)


@pytest.fixture(scope="module")
def bench(train: Data, test: Data, held: Partition) -> Bench:
    return Bench(train, test, held, NETWORK)


@pytest.fixture(scope="module")
def two_rounds(bench: Bench) -> dict[int, FedAvgRow]:
    return fedavg(bench, 2, FAST, evaluate_at=(1, 2))


def test_one_client_with_all_data_is_plain_training(train: Data, test: Data) -> None:
    """FedAvg of one client averages nothing: two rounds equal two local trainings, bit by bit."""
    everything = [torch.arange(len(train))]
    told: list[tuple[int, int]] = []
    rows = fedavg(Bench(train, test, everything, NETWORK, 3), 2, FAST, progress=lambda *now: told.append(now))
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


def test_a_row_knows_what_each_of_its_rounds_took(two_rounds: dict[int, FedAvgRow]) -> None:
    row = two_rounds[2]
    assert [one["accuracy"] for one in row.history] == [pytest.approx(two_rounds[k].accuracy, abs=1e-3) for k in (1, 2)]
    assert len(two_rounds[1].history) == 1
    assert sum(one["bytes_up"] for one in row.history) == pytest.approx(row.bytes_up, rel=0.01)
    assert sum(one["bytes_down"] for one in row.history) == pytest.approx(row.bytes_down, rel=0.01)
    assert all((one["asked"], one["answered"], one["refused"], one["sites"]) == (3, 3, 0, 3) for one in row.history)


def test_eight_bits_take_a_quarter_of_the_bytes_and_hardly_less_accuracy(
    two_rounds: dict[int, FedAvgRow], bench: Bench
) -> None:
    rows = fedavg(bench, 2, FAST, strategy="fedavg-8bit", evaluate_at=(1, 2))
    for number, whole in two_rounds.items():
        assert rows[number].bytes_up < whole.bytes_up / 3.9
        assert rows[number].bytes_down < whole.bytes_down / 3.9
        assert rows[number].accuracy == pytest.approx(whole.accuracy, abs=2)


def test_the_same_seed_gives_the_same_rows(two_rounds: dict[int, FedAvgRow], bench: Bench) -> None:
    again = fedavg(bench, 2, FAST, evaluate_at=(1, 2))
    assert [row[:5] for row in again.values()] == [row[:5] for row in two_rounds.values()]


class TestResume:
    def test_a_run_that_was_cut_ends_as_one_that_was_not(
        self,
        two_rounds: dict[int, FedAvgRow],
        bench: Bench,
        tmp_path: Path,
    ) -> None:
        path = tmp_path / "fedavg.safetensors"

        class CutError(Exception):
            pass

        def cut(number: int, rounds: int) -> None:
            if number == 1:
                raise CutError

        options: dict[str, Any] = {"training": FAST, "evaluate_at": (1, 2), "kept": Kept(path)}
        with pytest.raises(CutError):
            fedavg(bench, 2, **options, progress=cut)
        options["kept"] = Kept(path, resume=True)
        resumed = fedavg(bench, 2, **options)
        assert [row[:5] for row in resumed.values()] == [row[:5] for row in two_rounds.values()]
        finished = fedavg(bench, 2, **options, progress=cut)  # nothing is left to do
        assert finished == resumed
        further = fedavg(bench, 3, **options)
        assert further[2] == resumed[2]
        assert fedavg(bench, 3, **options | {"evaluate_at": (2, 3)})[3] == further[3]

    def test_eight_bits_go_on_with_what_rounding_took(self, bench: Bench, tmp_path: Path) -> None:
        """Sites keep it in the folder of the run: three rounds in two pieces end as in one, bit by bit."""
        ended = []
        for name, cuts in (("one", (3,)), ("two", (2, 3))):
            kept = Kept(tmp_path / f"{name}.safetensors", resume=True)
            with_folder = replace(bench, work=tmp_path / name)
            for rounds in cuts:
                rows = fedavg(with_folder, rounds, FAST, strategy="fedavg-8bit", evaluate_at=(3,), kept=kept)
            ended.append((rows[3].accuracy, rows[3].bytes_up, rows[3].bytes_down))
            assert list((tmp_path / name).glob("*train-error*"))
        assert ended[0] == ended[1]

    def test_moments_of_the_server_go_on(self, bench: Bench, tmp_path: Path) -> None:
        """FedAdam without them, or with rounds that count from 1 again, would end elsewhere."""
        few = replace(bench, partition=[index[:30] for index in bench.partition], network="convnet1-w16")
        kept = Kept(tmp_path / "cut.safetensors", resume=True)
        fedavg(few, 2, FAST, strategy="fedadam", evaluate_at=(3,), kept=kept)
        cut = fedavg(few, 4, FAST, strategy="fedadam", evaluate_at=(4,), kept=kept)[4]
        whole = fedavg(few, 4, FAST, strategy="fedadam", evaluate_at=(2, 4))[4]
        assert cut[:5] == whole[:5]
        assert [one["round"] for one in cut.history] == [1, 2, 3, 4]

    def test_rounds_that_nobody_tested_are_run_again(self, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "fedavg.safetensors"
        last = fedavg(bench, 2, FAST, evaluate_at=(), kept=Kept(path))
        both = fedavg(bench, 2, FAST, evaluate_at=(1,), kept=Kept(path, resume=True))
        assert sorted(both) == [1, 2]
        assert both[2][:5] == last[2][:5]

    def test_another_configuration_is_refused_by_name(self, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "fedavg.safetensors"
        fedavg(bench, 1, FAST, kept=Kept(path))
        for changed, strategy, name in (
            (bench, "fedavg", "training"),
            (replace(bench, min_records=2), "fedavg", "min_records"),
            (replace(bench, seed=1), "fedavg", "seed"),
            (bench, "fedprox", "strategy"),
        ):
            training = LocalTraining() if name == "training" else FAST
            with pytest.raises(ResumeError, match=f"{name} differ"):
                fedavg(changed, 1, training, strategy=strategy, kept=Kept(path, resume=True))

    def test_a_damaged_checkpoint_is_refused(self, bench: Bench, tmp_path: Path) -> None:
        path = tmp_path / "fedavg.safetensors"
        path.write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{}      ")
        with pytest.raises(ResumeError, match="delete it"):
            fedavg(bench, 1, kept=Kept(path, resume=True))


class TestFailures:
    def test_a_client_that_diverges_is_counted_and_named(
        self, bench: Bench, held: Partition, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(network: nn.Module, data: Data, *settings: Any) -> float:
            if len(data) > 20:
                raise SettingError("local training diverged")
            return train_locally(network, data, *settings)

        module = importlib.import_module("fedcondense.flower.strategies.averaging")
        monkeypatch.setattr(module, "train_locally", failing)
        logged = list[str]()
        grid = importlib.import_module("fedcondense.flower.checked_grid")
        monkeypatch.setattr(grid._LOG, "warning", logged.append)  # `fedavg` keeps Flower's lines down
        rows = fedavg(replace(bench, partition=[held[0][:20], held[1], held[2][:20]]), 2, FAST, evaluate_at=(1, 2))
        assert [row.failed for row in rows.values()] == [1, 2]
        assert logged == ["1 sites failed, 2 are left; partition 1: local training diverged"] * 2

    def test_nothing_but_failures_is_an_error(self, bench: Bench) -> None:
        with pytest.raises(AggregationError, match=r"3 sites failed, 0 are left; .*diverged at lr"):
            fedavg(bench, 1, replace(FAST, lr=1e9))

    def test_a_client_without_data_is_left_out(self, bench: Bench, held: Partition) -> None:
        rows = fedavg(replace(bench, partition=[*held, torch.empty(0, dtype=torch.int64)]), 1, FAST)
        assert rows[1].accuracy > 0
        assert rows[1].failed == 0

    def test_a_class_of_few_records_is_left_out_by_every_client(self, bench: Bench, held: Partition) -> None:
        with pytest.raises(AggregationError, match=r"3 sites failed.*\(min-records\)"):
            fedavg(replace(bench, min_records=10**6), 1, FAST)


@pytest.mark.parametrize("strategy", ["fedavg", "fedadam", "fedmedian", "fedtrimmedavg", "krum", "qfedavg"])
def test_networks_that_count_their_batches_are_averaged_over_rounds(bench: Bench, strategy: str) -> None:
    """Their int64 buffers must come back from the average as they went."""
    rows = fedavg(replace(bench, network="convnet1-w16-batch"), 2, FAST, strategy=strategy)
    assert rows[2].failed == 0
