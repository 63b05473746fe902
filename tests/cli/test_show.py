"""`show`: a set as a PNG, a run as tables."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def test_show_writes_a_png(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "grid.png"
    assert cli.done("show", made, "--output", output) == {
        "output": str(output),
        "images": 10,
        "nbytes": made.stat().st_size,
        "codec": "raw",
    }
    assert output.read_bytes().startswith(b"\x89PNG")


def test_a_run_is_its_rows_and_their_rounds(cli: Any, tmp_path: Path) -> None:
    rounds = [{"round": k, "accuracy": 70.0 + k, "asked": 3, "answered": 2, "sites": 3} for k in (1, 2)]
    rows = {"fedavg-2": {"accuracy": 72.0, "history": rounds}, "one-shot": {"accuracy": 83.0, "history": rounds[:1]}}
    (tmp_path / "result.json").write_text(json.dumps({"rows": rows, "error": "killed"}))
    said = cli.run("show", tmp_path).stdout
    assert [line.split()[:4] for line in said.splitlines() if line.startswith(("1 ", "2 "))] == [
        ["1", "71.0", "%", "2"],
        ["2", "72.0", "%", "2"],
    ]
    assert "one-shot" in said
    assert said.rstrip().endswith("This run is not done: killed")
    assert cli.done("show", tmp_path)["rows"] == rows


def test_a_set_needs_a_file_to_be_drawn_to_and_a_run_none(cli: Any, made: Path, tmp_path: Path) -> None:
    assert f"name it, as in --output {made.stem}.png" in cli.refused("show", made)
    assert "is a run, which is printed" in cli.refused("show", tmp_path, "--output", tmp_path / "grid.png")
