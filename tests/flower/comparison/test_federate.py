from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition, partition
from fedcondense.errors import OutputError, ResumeError, SettingError
from fedcondense.flower.comparison.federate import Measured, federate
from fedcondense.flower.comparison.result import FederationProgress, FederationResult, Output
from fedcondense.flower.comparison.rows import ROWS
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.strategies.averaging import LocalTraining
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.networks.saved import load_network
from fedcondense.report.page import read_rows
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate_as_recorded
from fedcondense.training.fit import Fit

NETWORK = "convnet2-w32"
ALL = (*(row for row in ROWS if row != "fedavg-20"), "fedavg-2")
ASKED = Condense(1, "dm", steps=3)
GRID = (LocalTraining(0.05), LocalTraining(0.1))
QUICK: dict[str, Any] = {
    "asked": ASKED,
    "measured": Measured(Fit(steps=5), (0, 1), GRID),
    "min_records": 1,
}


def into(path: Path, **options: Any) -> dict[str, Any]:
    return {"output": Output(path, **options)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("federation") / "run"


@pytest.fixture(scope="module")
def result(train: Data, test: Data, held: Partition, folder: Path) -> FederationResult:
    return federate(train, test, held, rows=ALL, **into(folder), **QUICK)


def test_a_training_per_client_is_announced_before_anything_runs(
    train: Data, test: Data, held: Partition, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = ("random-real", "local-only")
    federate(train, test, held, rows=rows, **into(tmp_path / "a"), **QUICK)
    says = f"local-only: {len(held)} trainings, one per client"
    assert caplog.text.count(says) == 1
    federate(train, test, held, rows=rows, **into(tmp_path / "a", resume=True), **QUICK)
    assert caplog.text.count(says) == 1, "the row is there"


class TestBudget:
    def test_no_row_of_images_takes_more_and_all_rows_say_what_they_are(
        self, train: Data, test: Data, held: Partition
    ) -> None:
        rows = ("one-shot", "one-shot-bits-1", "random-real", "random-real-jpeg-10", "ridge-8bit-equal-bytes")
        asked = replace(ASKED, budget=2000, parametrization="")
        found = federate(train, test, held, rows=rows, **(QUICK | {"asked": asked}))
        assert list(found.rows) == list(rows)
        assert all(1000 < row["bytes_up"] <= 2000 for row in found.rows.values())
        assert found.rows["one-shot-bits-1"]["about"]["label"] == "one-shot, bits-1"
        assert (
            {part.codec for part in found.joined.parts} <= {f"bits-{k}" for k in range(1, 7)} if found.joined else False
        )
        assert found.settings["budget"] == 2000

    def test_a_run_without_one_says_what_it_said_before_there_were_budgets(self, result: FederationResult) -> None:
        assert not {"budget", "codec", "codecs"} & set(result.settings)

    def test_one_that_is_too_small_is_refused_before_a_run_is_begun(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        with pytest.raises(SettingError, match="needed: "):
            federate(train, test, held, **(QUICK | {"asked": replace(ASKED, budget=500)}), **into(tmp_path / "run"))
        assert not (tmp_path / "run" / "result.json").exists()


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

    def test_every_row_says_what_it_is(self, result: FederationResult) -> None:
        for name, row in result.rows.items():
            assert set(row["about"]) == {"label", "travels", "seen", "rounds"}, name
        assert result.rows["fedavg-5"]["about"]["label"] == "FedAvg, 5 rounds"
        assert result.rows["ridge-equal-bytes"]["about"]["label"] == "ridge, equal bytes"

    def test_the_network_in_the_folder_has_the_classes_of_the_result(
        self, result: FederationResult, folder: Path, test: Data
    ) -> None:
        network = load_network(folder)
        assert list(network.classes) == result.classes == list(test.spec.classes)
        percent = 100 * float((network.predict(test.images) == test.labels).float().mean())
        assert result.joined is not None
        assert result.joined.evaluation is not None
        assert percent == pytest.approx(result.joined.evaluation["accuracies"][0], abs=1e-3)

    def test_the_folder_holds_every_set_as_it_travelled(self, result: FederationResult, folder: Path) -> None:
        assert result.sites == ["client-0", "client-1", "client-2"]
        sets = [SyntheticSet.load(folder / "clients" / f"{name}.safetensors") for name in result.sites]
        assert len(list((folder / "clients").iterdir())) == 3
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
        again = federate(train, test, held, rows=ALL, **into(folder, resume=True), progress=told.append, **QUICK)
        assert told == []
        assert again.to_dict() == result.to_dict()

    def test_a_row_can_be_added(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        own = shutil.copytree(folder, tmp_path / "run")  # the other tests read the folder
        told: list[FederationProgress] = []
        again = federate(
            train, test, held, rows=("one-shot", "k-means"), **into(own, resume=True), progress=told.append, **QUICK
        )
        assert {now.row for now in told} == {"k-means"}
        assert again.rows["one-shot"] == result.rows["one-shot"]
        assert list(again.rows)[:2] == ["one-shot", "k-means"]
        assert set(again.rows) == {*result.rows, "k-means"}  # what was not asked for again is kept, too

    def test_rounds_can_be_added(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        own = shutil.copytree(folder, tmp_path / "run")
        again = federate(train, test, held, rows=("fedavg-6",), **into(own, resume=True), **QUICK)
        assert again.rows["fedavg-6"]["bytes_up"] == 3 * result.rows["fedavg-2"]["bytes_up"]

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"rows": ("fedavg-x",)}, "no row is called"),
            ({"rows": ("fedavg-0",)}, "no row is called 'fedavg-0'"),
            ({"rows": ("one-shot-3",)}, "no row is called 'one-shot-3'"),
            ({"rows": ()}, "no rows; name some of"),
            ({"min_records": 0}, "min_records 0; needed: a whole number, 1 or more"),
            ({"min_records": True}, "min_records True; needed"),
            ({"asked": replace(ASKED, objective="dx")}, "no objective is called"),
            ({"asked": replace(ASKED, parametrization="pixel")}, "no parametrization is called"),
            ({"asked": replace(ASKED, start="reel")}, "no start is called"),
            ({"asked": replace(ASKED, network="convnet4-w16", parametrization="multi-formation-4")}, "smaller depth"),
            ({"asked": replace(ASKED, network="mlp+lenet")}, "share one: name one"),
            ({"asked": replace(ASKED, ipc=0)}, "ipc = 0; needed: a whole number from 1"),
            ({"asked": replace(ASKED, ipc=-1)}, "ipc = -1; needed"),
            ({"asked": replace(ASKED, steps=-1)}, "steps = -1; needed"),
            ({"asked": replace(ASKED, seed=-1)}, "seed = -1; needed"),
            ({"asked": replace(ASKED, seed=1.5)}, "seed = 1.5; needed"),  # type: ignore[arg-type]
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
            federate(train, test, held, **into(folder, overwrite=True), **{**QUICK, **wrong})
        assert json.loads((folder / "result.json").read_text())["rows"].keys() == result.rows.keys()

    def test_overwriting_deletes_what_a_run_wrote_and_nothing_else(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        for name in ("work/thesis.txt", "work/more/thesis.txt", "clients/list.safetensors", "clients/07.safetensors"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text("mine")
        for _ in range(2):
            federate(train, test, held, rows=("one-shot",), **into(tmp_path, overwrite=True), **QUICK)
        left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
        assert {"work/thesis.txt", "work/more/thesis.txt", "clients/list.safetensors"} <= left
        assert "clients/07.safetensors" not in left  # of a run before, whose client this one does not have

    def test_a_resumed_run_has_the_same_partition_test_data_and_precision(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition
    ) -> None:
        again: Callable[..., FederationResult] = partial(
            federate, rows=("one-shot",), **into(folder, resume=True), **QUICK
        )
        turned = replace(held, indices=tuple(index.flip(0) for index in held.indices))
        assert turned.hash == held.hash
        with pytest.raises(ResumeError, match=r"another run: indices \("):
            again(train, test, turned)
        with pytest.raises(ResumeError, match=r"another run: test \("):
            again(train, test.subset(torch.arange(20)), held)
        with pytest.raises(ResumeError, match=r"another run: precision \("), torch.autocast("cpu", torch.bfloat16):
            again(train, test, held)

    def test_other_settings_and_an_unasked_resume_are_refused(
        self, result: FederationResult, folder: Path, train: Data, test: Data, held: Partition
    ) -> None:
        with pytest.raises(ResumeError, match=r"another run: ipc \(1 there, 2 now\)"):
            federate(
                train, test, held, rows=ALL, **into(folder, resume=True), **{**QUICK, "asked": replace(ASKED, ipc=2)}
            )
        with pytest.raises(OutputError, match="exists"):
            federate(train, test, held, rows=ALL, **into(folder), **QUICK)

    @pytest.mark.slow
    def test_a_run_that_was_killed_ends_bit_equal(
        self, forked: Any, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        """SIGKILL after the first client's set; the second run goes on from it and ends as an unbroken one."""

        def run(name: str, resume: bool = False) -> None:
            output = Output(tmp_path / name, resume=resume)
            told = {**QUICK, "asked": Condense(1, "dm", steps=60), "output": output}
            federate(train, test, held, rows=("one-shot",), **told)

        run("whole")
        cut = forked(partial(run, "cut"), tmp_path)
        end = time.monotonic() + 600
        while not list((tmp_path / "cut" / "work").glob("[0-9a-f]*.kept")) and time.monotonic() < end:
            time.sleep(0.01)
        cut.send(signal.SIGKILL)
        assert cut.end().code == -signal.SIGKILL
        assert not (tmp_path / "cut" / "joined.safetensors").exists()
        run("cut", resume=True)
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
        refused = {"client": "client-1", "node": "101", "reason": "partition 1: has no data", "round": 1}
        assert result.refused == [{**refused, "row": row} for row in ("one-shot", "ridge")]
        assert result.rows["one-shot"]["clients"] == 2

    def test_without_a_folder_nothing_is_written(
        self, train: Data, test: Data, held: Partition, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        result = federate(train, test, held, rows=("one-shot", "fedavg-1"), **QUICK)
        assert result.paths == []
        assert list(tmp_path.iterdir()) == []

    def test_classes_of_few_records_are_left_out_in_every_row(self, train: Data, test: Data) -> None:
        counts = [[20] * 10, [20] * 9 + [5], [20] * 10]
        held = partition(train, 3, "counts", counts=counts, seed=0)
        given = {**QUICK, "min_records": 6}
        result = federate(train, test, held, rows=("one-shot",), **given)
        assert result.coverage == {str(k): 3 - (k == 9) for k in range(10)}
        with pytest.raises(AggregationError, match=r"3 sites failed.*\(min-records\)"):
            federate(train, test, held, rows=("fedavg-1",), **{**QUICK, "min_records": 21})

    def test_any_strategy_by_name_is_a_row(self, train: Data, test: Data, held: Partition) -> None:
        rows = ("iterative-2", "fedprox-1", "herding")
        result = federate(train, test, held, rows=rows, **{**QUICK, "asked": replace(ASKED, network="convnet1-w16")})
        assert list(result.rows) == list(rows)
        assert [row["about"]["rounds"] for row in result.rows.values()] == [2, 1, 1]
        assert [entry["round"] for entry in result.rows["iterative-2"]["history"]] == [1, 2]


class TestDamagedFolder:
    @pytest.mark.parametrize("name", ["weights.safetensors", "joined.safetensors", "clients/client-0.safetensors"])
    def test_what_was_cut_is_made_again(
        self, name: str, train: Data, test: Data, held: Partition, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        asked, measured = Condense(ipc=1, objective="dm", steps=2), Measured(Fit(steps=2), (0,))

        def run(**output: bool) -> FederationResult:
            where = Output(tmp_path, **output)
            return federate(train, test, held, asked=asked, rows=["one-shot"], measured=measured, output=where)

        run()
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-100])
        assert run(resume=True).joined is not None
        assert len((tmp_path / name).read_bytes()) == pytest.approx(len(whole), abs=8)  # a record holds its seconds
        assert "its row is run again" in caplog.text

    def test_a_run_of_a_flower_server_is_not_gone_on_with(
        self, train: Data, test: Data, held: Partition, tmp_path: Path
    ) -> None:
        RunFolder(tmp_path).write_result({"rows": {}, "settings": {}, "refused": [], "coverage": {}})
        with pytest.raises(ResumeError, match="a run that `federate` did not make"):
            federate(train, test, held, rows=["one-shot"], output=Output(tmp_path, resume=True))
