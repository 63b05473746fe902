"""What the commands around one set say of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcondense.sets.synthetic import SyntheticSet


def test_the_seconds_of_a_joined_set_are_those_of_all_its_parts(cli: Any, made: Path, tmp_path: Path) -> None:
    parts = [SyntheticSet.load(made).with_record(seconds=seconds) for seconds in (1.0, 2.5)]
    path = SyntheticSet.join(parts).save(tmp_path / "joined.safetensors")
    assert "made in 3.5 s" in cli.run("show", path, "--output", tmp_path / "grid.png").stdout
