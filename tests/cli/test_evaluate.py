"""`evaluate`: the measured, repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fedcondense.sets.synthetic import SyntheticSet


def test_evaluate_prints_the_documented_keys(cli: Any, made: Path) -> None:
    result = cli.done("evaluate", made, "--seeds", 1)
    keys = {"accuracy", "accuracy_std", "accuracies", "per_class", "network", "seeds", "recipe", "weighted", "test"}
    assert set(result) == keys | {"seconds", "nbytes", "data", "file"}
    assert list(result["per_class"]) == [str(digit) for digit in range(10)]
    assert result["seeds"] == [0]


def test_a_set_evaluates_itself_to_the_number_in_its_file(cli: Any, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    first = cli.done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 1, "--network", "convnet2-w32",
                 "--output", output)  # fmt: skip
    again = cli.done("evaluate", output)  # as recorded: one network of that kind
    assert again["accuracies"] == [first["accuracy"]]
    assert (again["network"], again["seeds"]) == ("convnet2-w32", [0])


def test_an_evaluation_that_cannot_be_repeated_is_said(cli: Any, made: Path, tmp_path: Path) -> None:
    """Its network was a plugin's, say."""
    measured = {"accuracy": 1.0, "network": "mine", "recipe": {}, "seeds": [0], "weighted": False}
    path = SyntheticSet.load(made).with_evaluation(measured).save(tmp_path / "of-mine.safetensors")
    ended = cli.run("evaluate", path, "--format", "json")
    assert ended.exit_code == 0
    assert "cannot be repeated (no network is called 'mine'" in ended.stderr
    assert len(json.loads(ended.stdout)["seeds"]) == 3
