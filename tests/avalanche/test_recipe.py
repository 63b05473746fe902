"""The program in `strategies/condensed-replay`, as a user would start it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedcondense as fc

PROGRAM = Path(__file__).parents[2] / "strategies" / "condensed-replay" / "train.py"


def run(output: Path, *flags: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", str(PROGRAM), "--output", str(output), "--steps", "40", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert found.returncode == 0, found.stderr[-2000:]
    assert len(found.stdout.splitlines()) < 60
    (line,) = [line for line in found.stdout.splitlines() if line.startswith('{"accuracy"')]
    result: dict[str, Any] = json.loads(line)
    return result


@pytest.mark.slow
def test_the_recipe_learns_the_digits_leaves_a_memory_and_started_again_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = run(tmp_path, "--epochs", "60")
    assert first["accuracy"] > 80
    assert first["images"] == 100
    memory = fc.SyntheticSet.load(first["memory"])
    assert len(memory) == 100
    assert Path(first["memory"]).stat().st_size == first["nbytes"]
    assert any((tmp_path / "tensorboard").iterdir())
    assert Path(first["picture"]).read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "accuracies.json").read_text())
    assert [len(row) for row in table] == [1, 2, 3, 4, 5]
    alone = fc.train(memory, recipe=fc.Fit(steps=200))
    test = fc.load_data("digits").test
    called = [alone.classes[c] for c in alone.predict(test.images).tolist()]
    right = [name == test.spec.classes[label] for name, label in zip(called, test.labels.tolist(), strict=True)]
    assert sum(right) / len(right) > 0.7
    assert run(tmp_path, "--epochs", "60") == first
    other = [sys.executable, "-W", "ignore", str(PROGRAM), "--output", str(tmp_path), "--strategy", "replay"]
    refused = subprocess.run(other, capture_output=True, text=True, check=False)
    assert refused.returncode == 1
    assert "is of other arguments" in refused.stderr.splitlines()[-1]
