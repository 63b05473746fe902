"""What all commands share."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedcondense.cli.outputs import check_folder
from fedcondense.cli.terminal import Precision, columns, jsonable, warn_of_slow
from fedcondense.sets.synthetic import SyntheticSet


def test_json_has_no_nan_and_no_tuples() -> None:
    assert jsonable({1: (float("nan"), 2.0), "p": Path("a")}) == {"1": [None, 2.0], "p": "a"}


def test_the_module_is_the_script() -> None:
    script = "import sys; from fedcondense.cli import main; sys.argv[0] = 'fedcondense'; main()"
    asked = [[sys.executable, *start, "--version"] for start in (("-c", script), ("-m", "fedcondense"))]
    told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for command in asked]
    assert told[0] == told[1]
    assert told[0].startswith("fedcondense ")


def test_columns_are_aligned() -> None:
    assert columns([("a", 1), ("long", 22)]) == "a     1\nlong  22"


def test_a_folder_is_checked_by_writing_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("capability", "warned"), [("AVX2", True), ("AVX512", False)])
def test_bfloat16_on_a_cpu_that_has_none_is_said_to_be_slow(
    capability: str, warned: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    warn_of_slow(Precision.float32)
    assert not capsys.readouterr().err
    warn_of_slow(Precision.bfloat16)
    assert ("no bfloat16 arithmetic" in capsys.readouterr().err) == warned


def test_bfloat16_is_asked_for_by_name_and_changes_the_set_a_little(start: Any, tmp_path: Path) -> None:
    sets = []  # in processes of their own: precision is set for all of one
    for precision in ("float32", "bfloat16"):
        path = tmp_path / f"{precision}.safetensors"
        command = ["condense", "digits", "--ipc", "1", "--steps", "5", "--no-evaluate", "--threads", "1"]
        ended = start(tmp_path, *command, "--precision", precision, "--output", path).end()
        assert ended.code == 0, ended.err
        sets.append(SyntheticSet.load(path).pixels().images)
    difference = (sets[0] - sets[1]).abs()
    assert 0 < float(difference.max()) < 0.2


def test_json_for_short_and_o_for_output(cli: Any, tmp_path: Path) -> None:
    ended = cli.run("new-app", "one-shot", "-o", tmp_path / "app", "--json")
    assert json.loads(ended.stdout)["output"] == str(tmp_path / "app")
    assert json.loads(cli.run("doctor", "--json").stdout)["fedcondense"]
