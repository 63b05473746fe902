"""A federation from the command line: keys, files, report, resume."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="module")
def folder(cli: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what `federate` wrote; what was typed and printed lies beside it."""
    pytest.importorskip("flwr")
    folder = tmp_path_factory.mktemp("federation") / "run"
    rows = "one-shot,fedavg-1,random-real,ridge"
    settings = ("--clients", 2, "--alpha", 1, "--ipc", 1, "--steps", 2, "--seeds", 1, "--rows", rows)
    result = cli.done("federate", "digits", *settings, "--output", folder)
    (folder.parent / "printed.json").write_text(json.dumps(result))
    (folder.parent / "typed.json").write_text(json.dumps([str(s) for s in settings]))
    return folder


class TestFederate:
    def test_prints_an_object_a_row_with_bytes_both_ways(self, folder: Path) -> None:
        result = json.loads((folder.parent / "printed.json").read_text())
        assert list(result["rows"]) == ["one-shot", "fedavg-1", "random-real", "ridge"]
        for row in result["rows"].values():
            assert {"accuracy", "accuracy_std", "bytes_up", "bytes_down", "seconds"} <= set(row)
            assert row["bytes_up"] > 0
        keys = {"format", "rows", "partition", "refused", "coverage", "classes", "sites", "settings", "versions"}
        assert set(result) == {*keys, "by_site", "broken", "tested", "command", "output"}
        assert [one["last"] for one in result["by_site"]] == [1] * len(result["sites"])

    def test_writes_the_result_the_sets_and_the_report(self, folder: Path) -> None:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*.*") if "work" not in path.parts}
        assert {"result.json", "report.html", "joined.safetensors", "clients/client-0.safetensors"} <= names

    def test_a_folder_that_holds_a_run_is_refused_before_work(self, cli: Any, folder: Path) -> None:
        assert "pass --resume" in cli.refused("federate", "digits", "--output", folder)

    def test_resume_of_a_finished_run_gives_the_same_rows(self, cli: Any, folder: Path) -> None:
        typed = json.loads((folder.parent / "typed.json").read_text())
        result = cli.done("federate", "digits", *typed, "--output", folder, "--resume")
        assert result["rows"] == json.loads((folder.parent / "printed.json").read_text())["rows"]
        assert "--resume" not in result["command"]

    def test_resume_with_other_settings_is_refused(self, cli: Any, folder: Path) -> None:
        assert "another run" in cli.refused(
            "federate", "digits", "--clients", 2, "--ipc", 3, "--output", folder, "--resume"
        )

    def test_report_builds_the_page_anew(self, cli: Any, folder: Path) -> None:
        (folder / "report.html").unlink()
        assert cli.done("report", folder) == {"output": str(folder / "report.html")}
        assert (folder / "report.html").exists()

    def test_an_unknown_row_or_partition_names_the_closest(self, cli: Any, tmp_path: Path) -> None:
        assert "'one-shot'" in cli.refused("federate", "digits", "--rows", "oneshot", "--output", tmp_path / "a")
        assert "'dirichlet'" in cli.refused("federate", "digits", "--partition", "dirichle", "--output", tmp_path / "b")

    def test_a_published_division_is_read_and_its_sha256_recorded(self, cli: Any, tmp_path: Path) -> None:
        lists = tmp_path / "lists.json"
        lists.write_text(
            json.dumps({"client_idx": [list(range(100)), list(range(100, 150))], "client_classes": [[], []]})
        )
        row = ("--rows", "random-real", "--ipc", 1, "--seeds", 1, "--partition", f"file:{lists}")
        result = cli.done("federate", "digits", *row, "--clients", 2, "--output", tmp_path / "run")
        assert result["partition"]["settings"]["sha256"] == hashlib.sha256(lists.read_bytes()).hexdigest()
        assert [sum(counts) for counts in result["partition"]["counts"]] == [100, 50]
        told = cli.refused("federate", "digits", *row, "--output", tmp_path / "other")
        assert "lists 2 clients, 10 were asked for" in told


def test_a_missing_extra_names_the_pip_command(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedcondense.flower

    monkeypatch.delitem(vars(fedcondense.flower), "federate", raising=False)
    for name in [n for n in sys.modules if n.startswith("fedcondense.flower.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n == "flwr" or n.startswith("flwr.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    assert "pip install 'fedcondense[flower]'" in cli.refused("federate", "digits", "--output", tmp_path / "run")


def test_several_data_are_not_divided(cli: Any, tmp_path: Path) -> None:
    """What would be left aside is refused, before anything is loaded."""
    for words in (("--clients", "3"), ("--alpha", "0.1"), ("--partition", "iid")):
        said = cli.refused("federate", "digits", "other=digits", *words, "--output", tmp_path / "run")
        assert "2 DATA are a client each, which nothing divides" in said
