"""What a sweep writes and prints once its lines are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from fedcondense.cli.sweep_options import Sweeping, base_cell
from fedcondense.cli.sweep_run import finish_sweep, with_steps
from fedcondense.cli.terminal import Format
from fedcondense.errors import SettingError
from fedcondense.sweeps import figures, scaling

COMMON = {"sets": 1, "seeds": 1, "network": "convnet1-w16", "evaluation_steps": 2, "device": "cpu"}


def quick(folder: Path, **more: object) -> Sweeping:
    return Sweeping(folder, form=Format.json, **{**COMMON, **more})  # type: ignore[arg-type]


def test_the_table_on_stdout_is_the_one_in_the_folder_with_head_and_conclusions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = quick(tmp_path)
    lines = scaling(base_cell("digits", common, "dm"), [1], ["random"], 1)[:1]
    finish_sweep(lines, common, figures.by_ipc, head=lambda rows: f"{len(rows)} rows", said=lambda rows: ["it pays"])
    result = json.loads(capsys.readouterr().out)
    assert (result["cells"], result["failed"], result["conclusions"]) == (1, 0, ["it pays"])
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("1 rows\n\n|")
    assert "it pays" in text
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_failed_cell_is_exit_code_1_after_all_is_written(tmp_path: Path) -> None:
    common = quick(tmp_path, network="convnet4-w16")  # halves 8x8 to nothing
    lines = scaling(base_cell("digits", common, "dm"), [1], [], 1)
    with pytest.raises(typer.Exit) as left:
        finish_sweep(lines, common, figures.by_ipc)
    assert left.value.exit_code == 1
    assert "failed" in (tmp_path / "table.md").read_text()


def test_so_far_takes_what_is_kept_and_refuses_an_empty_folder(tmp_path: Path) -> None:
    common = quick(tmp_path, so_far=True)
    lines = scaling(base_cell("digits", common, "dm"), [1], [], 1)
    assert with_steps(lines, common) == lines
    with pytest.raises(SettingError, match="holds no cell of this sweep; leave --so-far out to compute them"):
        finish_sweep(lines, common, figures.by_ipc)
    assert list(tmp_path.iterdir()) == []
