from __future__ import annotations

import importlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fedcondense.flower.baselines import feature_statistics, random_features, ridge, ridge_dims
from fedcondense.flower.fedavg import LocalTraining
from fedcondense.flower.federation import federate
from fedcondense.flower.federation_result import ROWS, FederationProgress, FederationResult

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition, partition
from fedcondense.errors import DataError, OutputError, ResumeError, SettingError
from fedcondense.report.page import read_rows
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate_as_recorded
from fedcondense.training.fit import Fit

NETWORK = "convnet2-w32"
ALL = (*(row for row in ROWS if row != "fedavg-20"), "fedavg-2")
QUICK: dict[str, Any] = {
    "ipc": 1,
    "objective": "dm",
    "steps": 3,
    "recipe": Fit(steps=5),
    "evaluation_seeds": (0, 1),
    "fedavg_grid": (LocalTraining(0.05), LocalTraining(0.1)),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("federation") / "run"


@pytest.fixture(scope="module")
def result(train: Data, test: Data, held: Partition, folder: Path) -> FederationResult:
    return federate(train, test, held, rows=ALL, output=folder, **QUICK)


class TestFederate:
    def test_every_row_has_what_the_command_line_documents(self, result: FederationResult) -> None:
        assert list(result.rows) == list(ALL)
        for name, row in result.rows.items():
            assert 0 <= row["accuracy"] <= 100, name
            assert len(row["per_class"]) == 10
            assert row["bytes_up"] > 0
            assert row["bytes_down"] > 0
            assert row["seconds"] >= 0
        assert result.rows["fedavg-1"]["accuracy_std"] is None
        assert result.rows["one-shot"]["accuracy_std"] >= 0

    def test_fedavg_is_the_best_of_its_grid(self, result: FederationResult) -> None:
        assert {result.rows[name]["lr"] for name in ("fedavg-1", "fedavg-5")} <= {0.05, 0.1}
        assert result.rows["fedavg-5"]["bytes_up"] == pytest.approx(5 * result.rows["fedavg-1"]["bytes_up"], rel=0.01)

    def test_the_folder_holds_every_set_as_it_travelled(self, result: FederationResult, folder: Path) -> None:
        sets = [SyntheticSet.load(path) for path in sorted((folder / "clients").glob("*.safetensors"))]
        assert len(sets) == 3
        joined = SyntheticSet.load(folder / "joined.safetensors")
        torch.testing.assert_close(joined.decode().images, SyntheticSet.join(sets).decode().images, rtol=0, atol=0)
        assert sum(s.nbytes for s in sets) / 3 == result.rows["one-shot"]["set_bytes"]
        assert all(path.exists() for path in result.paths)

    def test_the_joined_set_evaluates_itself(self, result: FederationResult, folder: Path, test: Data) -> None:
        joined = SyntheticSet.load(folder / "joined.safetensors")
        again = evaluate_as_recorded(joined, test).accuracy
        assert again == pytest.approx(result.rows["one-shot"]["accuracy"], abs=1e-3)

    def test_the_report_reads_the_result(self, result: FederationResult, folder: Path) -> None:
        read = json.loads((folder / "result.json").read_text())
        assert {row.name for row in read_rows(read)} == set(ALL)
        assert read["partition"]["hash"] == result.partition["hash"]
        assert sum(read["coverage"].values()) == result.rows["one-shot"]["images"]

    def test_ridge_at_equal_bytes_takes_no_more_than_a_set(self, result: FederationResult) -> None:
        """Beside the message's own bytes, which are about 1 kB."""
        rows = result.rows
        assert rows["ridge-equal-bytes"]["bytes_up"] - rows["one-shot"]["set_bytes"] < 1600
        assert rows["ridge"]["bytes_up"] > rows["ridge-equal-bytes"]["bytes_up"]


class TestResume:
    def test_nothing_is_run_twice(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition
    ) -> None:
        told: list[FederationProgress] = []
        again = federate(train, test, held, rows=ALL, output=folder, resume=True, progress=told.append, **QUICK)
        assert told == []
        assert again.to_dict() == result.to_dict()

    def test_a_row_can_be_added(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        own = shutil.copytree(folder, tmp_path / "run")  # the other tests read the folder
        told: list[FederationProgress] = []
        again = federate(
            train, test, held, rows=("one-shot", "k-means"), output=own, resume=True, progress=told.append, **QUICK
        )
        assert {now.row for now in told} == {"k-means"}
        assert again.rows["one-shot"] == result.rows["one-shot"]
        assert list(again.rows)[:2] == ["one-shot", "k-means"]
        assert set(again.rows) == {*result.rows, "k-means"}  # what was not asked for again is kept, too

    def test_rounds_can_be_added(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        own = shutil.copytree(folder, tmp_path / "run")
        again = federate(train, test, held, rows=("fedavg-6",), output=own, resume=True, **QUICK)
        assert again.rows["fedavg-6"]["bytes_up"] == 3 * result.rows["fedavg-2"]["bytes_up"]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"rows": ("fedavg-x",)}, "no row is called"),
            ({"objective": "dx"}, "no objective is called"),
            ({"parametrization": "pixel"}, "no parametrization is called"),
            ({"start": "reel"}, "no start is called"),
            ({"network": "convnet4-w16", "parametrization": "multi-formation-4"}, "smaller depth"),
            ({"ipc": 0}, "ipc 0; needed"),
            ({"ipc": -1}, "ipc is -1; needed"),
            ({"steps": 0}, "0 steps; give 1 or more"),
            ({"seed": -1}, "seed is -1; needed"),
        ],
    )
    def test_a_wrong_argument_deletes_nothing(
        self,
        wrong: dict[str, Any],
        message: str,
        result: FederationResult,
        folder: Path,
        train: Data,
        test: Data,
        held: Partition,
    ) -> None:
        with pytest.raises(SettingError, match=message):
            federate(train, test, held, output=folder, overwrite=True, **{**QUICK, **wrong})
        assert json.loads((folder / "result.json").read_text())["rows"].keys() == result.rows.keys()

    def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        for name in ("work/thesis.txt", "work/more/thesis.txt", "clients/list.safetensors", "clients/07.safetensors"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("mine")
        for _ in range(2):
            federate(train, test, held, rows=("one-shot",), output=tmp_path, overwrite=True, **QUICK)
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert {"work/thesis.txt", "work/more/thesis.txt", "clients/list.safetensors"} <= left
        assert "clients/07.safetensors" not in left  # of a run before, whose client this one does not have

    def test_a_resumed_run_has_the_same_partition_test_data_and_precision(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition
    ) -> None:
        again: Callable[..., FederationResult] = partial(
            federate, rows=("one-shot",), output=folder, resume=True, **QUICK
        )
        turned = replace(held, indices=tuple(index.flip(0) for index in held.indices))
        assert turned.hash == held.hash
        with pytest.raises(ResumeError, match="indices differ"):
            again(train, test, turned)
        with pytest.raises(ResumeError, match="test differ"):
            again(train, test.subset(torch.arange(20)), held)
        with pytest.raises(ResumeError, match="precision differ"), torch.autocast("cpu", torch.bfloat16):
            again(train, test, held)

    def test_other_settings_and_an_unasked_resume_are_refused(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition
    ) -> None:
        with pytest.raises(ResumeError, match="ipc differ"):
            federate(train, test, held, rows=ALL, output=folder, resume=True, **{**QUICK, "ipc": 2})
        with pytest.raises(OutputError, match="exists"):
            federate(train, test, held, rows=ALL, output=folder, **QUICK)

    def test_a_run_that_was_killed_ends_bit_equal(self, tmp_path: Path) -> None:
        """SIGKILL after the first client's set; the second run goes on from it and ends as an unbroken one."""
        program = (
            "import sys, torch; torch.set_num_threads(1)\n"
            "from fedcondense.data.loading import load_data\n"
            "from fedcondense.data.partitions import partition\n"
            "from fedcondense.flower import federate\n"
            "from fedcondense.training.fit import Fit\n"
            "train, test = load_data('digits')\n"
            "held = partition(train, 3, 'iid', seed=1)\n"
            "federate(train, test, held, rows=('one-shot',), ipc=1, objective='dm', steps=60, recipe=Fit(steps=5),\n"
            "         evaluation_seeds=(0,), output=sys.argv[1], resume=len(sys.argv) > 2)\n"
        )
        command = [sys.executable, "-c", program]
        subprocess.run([*command, str(tmp_path / "whole")], check=True, timeout=120)
        cut = subprocess.Popen([*command, str(tmp_path / "cut")])
        end = time.monotonic() + 100
        while not list((tmp_path / "cut" / "work").glob("[0-9a-f]*.safetensors")) and time.monotonic() < end:
            time.sleep(0.01)
        cut.kill()
        cut.wait()
        assert not (tmp_path / "cut" / "joined.safetensors").exists()
        subprocess.run([*command, str(tmp_path / "cut"), "resume"], check=True, timeout=120)
        one, other = (SyntheticSet.load(tmp_path / name / "joined.safetensors").decode() for name in ("whole", "cut"))
        torch.testing.assert_close(one.images, other.images, rtol=0, atol=0)


class TestOddFederations:
    def test_an_unknown_row_is_refused_before_work(self, train: Data, test: Data, held: Partition) -> None:
        with pytest.raises(SettingError, match="no row is called 'fedavg-x'; did you mean 'fedavg-"):
            federate(train, test, held, rows=("fedavg-x",), **QUICK)

    def test_a_client_without_data_is_refused_by_name_and_the_others_go_on(self, train: Data, test: Data) -> None:
        counts = [[20] * 10, [0] * 10, [30] * 10]
        held = partition(train, 3, "counts", counts=counts, seed=0)
        result = federate(train, test, held, rows=("one-shot", "ridge", "fedavg-1"), **QUICK)
        assert result.refused == [{"client": 1, "reason": "partition 1: has no data", "row": "one-shot"}]
        assert result.rows["one-shot"]["clients"] == 2

    def test_without_a_folder_nothing_is_written(
        self, train: Data, test: Data, held: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = federate(train, test, held, rows=("one-shot", "fedavg-1"), **QUICK)
        assert result.paths == []
        assert list(tmp_path.iterdir()) == []


class TestStatistics:
    def test_ridge_does_not_depend_on_the_partition(self, train: Data, test: Data, held: Partition) -> None:
        """Sums over all clients are sums over all data: one client gives the same classifier."""
        skewed = ridge(train, held, test, NETWORK)
        together = ridge(train, [torch.arange(len(train))], test, NETWORK)
        assert skewed.accuracy == pytest.approx(together.accuracy, abs=0.3)
        assert skewed.accuracy > 90

    def test_they_are_sums_of_full_precision_under_a_callers_autocast(
        self, train: Data, test: Data, held: Partition
    ) -> None:
        plain = ridge(train, held, test, NETWORK), feature_statistics(train, held, test, NETWORK)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            mixed = ridge(train, held, test, NETWORK), feature_statistics(train, held, test, NETWORK)
        for one, other in zip(plain, mixed, strict=True):
            assert one.bytes_up == other.bytes_up
            assert one.accuracy == pytest.approx(other.accuracy, abs=2)

    def test_sums_without_a_client_that_has_data_are_refused(
        self, train: Data, test: Data, held: Partition, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(data: Data, *settings: Any) -> torch.Tensor:
            if len(data) == 20:
                raise RuntimeError("out of memory")
            return random_features(data, *settings)

        assert ridge(train, [*held, held[0][:0]], test, NETWORK).accuracy > 80  # who has no data is left out
        monkeypatch.setattr(importlib.import_module("fedcondense.flower.baselines"), "random_features", failing)
        with pytest.raises(DataError, match="a client failed to send statistics: RuntimeError: out of memory"):
            ridge(train, [*held, held[0][:20]], test, NETWORK)

    def test_ridge_is_least_squares(self, train: Data, test: Data) -> None:
        """On seven features, the closed form must do as `torch.linalg.lstsq` on the stacked rows does."""
        row = ridge(train, [torch.arange(len(train))], test, NETWORK, dims=7, strength=0.0)
        features, tested = (random_features(data, NETWORK, 0, 7) for data in (train, test))
        rows = torch.cat([features, torch.ones(len(features), 1)], 1).double()
        targets = torch.nn.functional.one_hot(train.labels, 10).double()
        weights = torch.linalg.lstsq(rows, targets).solution
        logits = torch.cat([tested, torch.ones(len(tested), 1)], 1).double() @ weights
        assert row.accuracy == pytest.approx(100 * float((logits.argmax(1) == test.labels).double().mean()), abs=0.3)

    @pytest.mark.parametrize("nbytes", [200, 1000, 37_500])
    def test_the_dimensions_fill_the_bytes(self, nbytes: int) -> None:
        def size(dims: int) -> int:
            return 4 * ((dims + 1) * (dims + 2) // 2 + (dims + 1) * 10)

        dims = ridge_dims(nbytes, 10)
        assert size(dims) <= nbytes < size(dims + 1)

    def test_gaussians_of_features_classify(self, train: Data, test: Data, held: Partition) -> None:
        row = feature_statistics(train, held, test, NETWORK)
        assert row.accuracy > 80
        per_class = 2 * 2 * 128 + 16  # means and variances in half precision, a label and a count
        assert row.bytes_up < 10 * per_class + 3000
