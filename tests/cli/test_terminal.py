"""What all commands share."""

from __future__ import annotations

from pathlib import Path

from fedcondense.cli.terminal import check_folder, columns, jsonable


def test_json_has_no_nan_and_no_tuples() -> None:
    assert jsonable({1: (float("nan"), 2.0), "p": Path("a")}) == {"1": [None, 2.0], "p": "a"}


def test_columns_are_aligned() -> None:
    assert columns([("a", 1), ("long", 22)]) == "a     1\nlong  22"


def test_a_folder_is_checked_by_writing_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
