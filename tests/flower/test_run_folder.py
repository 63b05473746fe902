from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedcondense.data.images import Data
from fedcondense.errors import OutputError, ResumeError
from fedcondense.flower.contract import Site, State, Verdict
from fedcondense.flower.replies import Refusal
from fedcondense.flower.run_folder import FORMAT, RunFolder, judged, plain, records_by_site, refusals
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def sets(train: Data) -> dict[str, SyntheticSet]:
    return {name: select(train, 1, "random", seed=k) for k, name in enumerate(("client-9", "st.marys"))}


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


class TestResult:
    def test_what_is_written_is_read_with_format_and_versions(self, folder: RunFolder) -> None:
        assert not folder.holds_run()
        folder.check_free()
        folder.write_result({"rows": {}, "classes": ["ü"]})
        record = folder.read_result()
        assert (record["format"], record["rows"], record["classes"]) == (FORMAT, {}, ["ü"])
        assert set(record["versions"]) == {"fedcondense", "torch", "flwr", "numpy"}
        with pytest.raises(OutputError, match="holds a result; give another output"):
            folder.check_free()

    @pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": "x"}', "\ud800"])
    def test_a_damaged_file_is_refused(self, folder: RunFolder, text: str) -> None:
        folder.path.mkdir()
        folder.result.write_bytes(text.encode("utf-8", "surrogatepass"))
        with pytest.raises(ResumeError, match="is damaged"):
            folder.read_result()

    def test_a_later_format_is_named(self, folder: RunFolder) -> None:
        folder.path.mkdir()
        folder.result.write_text(json.dumps({"format": FORMAT + 1}))
        with pytest.raises(ResumeError, match=f"is of format {FORMAT + 1}; update fedcondense"):
            folder.read_result()


class TestSets:
    def test_each_is_a_file_of_its_sites_name_as_it_travelled(
        self, folder: RunFolder, sets: dict[str, SyntheticSet]
    ) -> None:
        paths = folder.write_sets(sets, SyntheticSet.join(sets.values()))
        assert [str(path.relative_to(folder.path)) for path in paths] == [
            "clients/client-9.safetensors",
            "clients/st.marys.safetensors",
            "joined.safetensors",
        ]
        for name, synthetic in sets.items():
            assert (folder.path / "clients" / f"{name}.safetensors").read_bytes() == synthetic.to_bytes()

    def test_sets_of_sites_that_left_go_and_what_somebody_else_put_there_stays(
        self, folder: RunFolder, sets: dict[str, SyntheticSet]
    ) -> None:
        folder.write_sets(sets, SyntheticSet.join(sets.values()))
        folder.write_result({"sites": list(sets)})
        (folder.path / "clients" / "mine.safetensors").touch()
        left = {"client-9": sets["client-9"]}
        folder.write_sets(left, SyntheticSet.join(left.values()))
        names = {path.name for path in (folder.path / "clients").iterdir()}
        assert names == {"client-9.safetensors", "mine.safetensors"}


class TestState:
    def test_the_last_round_is_read_and_the_last_two_are_kept_beside_the_first(self, folder: RunFolder) -> None:
        assert folder.read_state() == State()
        for server_round in range(1, 12):
            folder.write_state(State(server_round))
        assert folder.read_state() == State(11)
        assert sorted(path.name for path in (folder.path / "rounds").iterdir()) == [
            "0001.state",
            "0010.state",
            "0011.state",
        ]

    def test_a_damaged_last_round_is_named_and_the_one_before_is_there(self, folder: RunFolder) -> None:
        for server_round in (1, 2):
            last = folder.write_state(State(server_round))
        last.write_bytes(last.read_bytes()[:-1])
        with pytest.raises(ResumeError, match=r"0002\.state is damaged; delete it"):
            folder.read_state()
        last.unlink()
        assert folder.read_state() == State(1)


class TestClear:
    def test_all_that_a_run_wrote_goes_and_nothing_else(self, folder: RunFolder, sets: dict[str, SyntheticSet]) -> None:
        folder.write_sets(sets, SyntheticSet.join(sets.values()))
        folder.write_state(State(1))
        work = ["fedavg-0.safetensors", "0af.kept", "0af.checkpoint", ".lock"]
        ours = ["weights.safetensors", "report.html", *(f"work/{name}" for name in work)]
        others = ["thesis.txt", "work/thesis.txt", "clients/mine.safetensors", "rounds/mine.state"]
        for name in (*ours, *others):
            (folder.path / name).parent.mkdir(exist_ok=True)
            (folder.path / name).touch()
        folder.write_result({"sites": list(sets)})
        folder.clear()
        left = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
        assert left == set(others)

    @pytest.mark.parametrize("sites", [["../../outside"], "client-9", [3, None], {"a": 1}])
    def test_names_in_the_result_that_are_none_delete_nothing(
        self, folder: RunFolder, sites: Any, tmp_path: Path
    ) -> None:
        (tmp_path / "outside.safetensors").touch()
        (folder.path / "clients").mkdir(parents=True)
        folder.write_result({"sites": sites})
        folder.clear()
        assert (tmp_path / "outside.safetensors").exists()


def test_refusals_and_verdicts_are_plain_values() -> None:
    site = Site("a", "00", 2**63)
    said = {"client": "a", "node": str(2**63), "reason": "late", "row": "x", "round": 3}
    assert refusals([(3, Refusal(site, "late"))], "x") == [said]
    verdicts = [(2, site, "cat", Verdict(0.33333)), (2, site, "dog", Verdict(1)), (2, site, "cow", Verdict(1, "alone"))]
    assert judged(verdicts) == [
        {"client": "a", "class": "cat", "weight": 0.333, "why": "", "round": 2},
        {"client": "a", "class": "cow", "weight": 1, "why": "alone", "round": 2},
    ]


def test_nan_is_none() -> None:
    assert plain([1.23456, float("nan")]) == [1.235, None]


def test_what_json_lacks_does_not_lose_a_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_result({"settings": {"timeout": float("inf"), "alpha": float("nan"), "list": (1, float("-inf"))}})
    assert folder.read_result()["settings"] == {"timeout": "inf", "alpha": None, "list": [1, "-inf"]}


def test_a_folder_that_cannot_be_written_is_refused_before_nodes_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(OutputError, match="give an output that can be written"):
            RunFolder(path).check_free()


def test_what_sites_hold_follows_from_the_records_of_their_sets(sets: dict[str, SyntheticSet]) -> None:
    held = records_by_site(sets, ["0", "1", "9", "none"])
    assert held["names"] == list(sets)
    for name, row in zip(held["names"], held["counts"], strict=True):
        record = sets[name].parts[0].record
        counts = dict(zip(record.classes, record.counts, strict=True))
        assert row == [counts["0"], counts["1"], counts["9"], 0]
    assert sum(map(sum, held["counts"])) > 0
