"""The program in `strategies/condensed-replay`, as a user would start it."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest

import fedcondense as fc

PROGRAM = Path(__file__).parents[2] / "strategies" / "condensed-replay" / "train.py"


def result(printed: str) -> dict[str, Any]:
    assert len(printed.splitlines()) < 60
    (line,) = [line for line in printed.splitlines() if line.startswith('{"accuracy"')]
    told: dict[str, Any] = json.loads(line)
    return told


@pytest.mark.slow
def test_the_recipe_learns_the_digits_leaves_a_memory_and_started_again_has_nothing_left_to_do(
    forked: Any, tmp_path: Path
) -> None:
    flags = ["--output", str(tmp_path / "run"), "--steps", "40", "--epochs", "60"]
    command = [sys.executable, "-W", "ignore", str(PROGRAM), *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert started.returncode == 0, started.stderr[-2000:]
    first = result(started.stdout)
    assert first["accuracy"] > 80
    assert first["images"] == 100
    memory = fc.SyntheticSet.load(first["memory"])
    assert len(memory) == 100
    assert Path(first["memory"]).stat().st_size == first["nbytes"]
    assert any((tmp_path / "run" / "tensorboard").iterdir())
    assert Path(first["picture"]).read_bytes().startswith(b"\x89PNG")
    table = json.loads((tmp_path / "run" / "accuracies.json").read_text())
    assert [len(row) for row in table] == [1, 2, 3, 4, 5]
    alone = fc.train(memory, recipe=fc.Fit(steps=200))
    test = fc.load_data("digits").test
    called = [alone.classes[c] for c in alone.predict(test.images).tolist()]
    right = [name == test.spec.classes[label] for name, label in zip(called, test.labels.tolist(), strict=True)]
    assert sum(right) / len(right) > 0.7

    def again(*flags: str) -> Any:
        def program() -> None:
            sys.argv = [str(PROGRAM), *flags]
            warnings.simplefilter("ignore")
            runpy.run_path(str(PROGRAM), run_name="__main__")

        return forked(program, tmp_path).end()

    assert result(again(*flags).out) == first
    refused = again("--output", str(tmp_path / "run"), "--strategy", "replay")
    assert refused.code == 1
    assert "is of other arguments" in refused.err.splitlines()[-1]
