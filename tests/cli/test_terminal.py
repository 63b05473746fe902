"""What all commands share."""

from __future__ import annotations

import subprocess
from pathlib import Path

from fedcondense.cli.terminal import check_folder, columns, jsonable
from fedcondense.synthetic import SyntheticSet


def test_json_has_no_nan_and_no_tuples() -> None:
    assert jsonable({1: (float("nan"), 2.0), "p": Path("a")}) == {"1": [None, 2.0], "p": "a"}


def test_columns_are_aligned() -> None:
    assert columns([("a", 1), ("long", 22)]) == "a     1\nlong  22"


def test_a_folder_is_checked_by_writing_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []


def test_bfloat16_is_asked_for_by_name_and_changes_the_set_a_little(script: list[str], tmp_path: Path) -> None:
    sets = []  # in processes of their own: precision is set for all of one
    for precision in ("float32", "bfloat16"):
        path = tmp_path / f"{precision}.safetensors"
        command = ["condense", "digits", "--ipc", "1", "--steps", "5", "--no-evaluate", "--threads", "1"]
        run = subprocess.run(
            [*script, *command, "--precision", precision, "--output", str(path)],
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stderr
        sets.append(SyntheticSet.load(path).pixels().images)
    difference = (sets[0] - sets[1]).abs()
    assert 0 < float(difference.max()) < 0.2
