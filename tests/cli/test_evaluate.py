"""`evaluate`: the measured, repeated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fedcondense.data.loading import load_data
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training import PROTOCOLS


def test_evaluate_prints_the_documented_keys(cli: Any, made: Path) -> None:
    result = cli.done("evaluate", made, "--seeds", 1)
    keys = {"accuracy", "accuracy_std", "accuracies", "per_class", "network", "seeds", "recipe", "weighted", "test"}
    keys |= {"protocol", "seconds", "missing"}
    assert set(result) == keys | {"rows", "nbytes", "data", "file"}
    assert result["rows"] == [{key: result[key] for key in result["rows"][0]}]
    assert set(result["rows"][0]) == keys
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


def test_a_list_of_networks_is_a_row_each_and_a_table(
    cli: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PROTOCOLS, "quick", PROTOCOLS["short"])  # gone again after the test
    plugin = tmp_path / "quick.py"
    plugin.write_text(
        "from fedcondense.training import PROTOCOLS, Fit, Protocol\n"
        "PROTOCOLS['quick'] = Protocol(Fit(steps=2), width=16)\n"
    )
    options = ("--network", "mlp,convnet1-w16", "--protocol", "quick", "--seeds", 1, "--plugin", plugin)
    rows = cli.done("evaluate", made, *options)["rows"]
    assert [(row["network"], row["protocol"]) for row in rows] == [("mlp", "quick"), ("convnet1-w16", "quick")]
    ended = cli.run("evaluate", made, *options)
    assert ended.stdout.splitlines()[-3].split()[:2] == ["network", "protocol"]
    assert "mlp, quick protocol: " in ended.stderr


def test_all_networks_are_looked_at_before_the_first_is_trained(cli: Any, made: Path) -> None:
    said = cli.refused("evaluate", made, "--network", "mlp,lenett", "--seeds", 1)
    assert "no network is called 'lenett'; did you mean 'lenet'?" in said
    assert "protocol: " not in said


def test_a_file_of_other_code_is_evaluated_as_it_is(cli: Any, tmp_path: Path) -> None:
    """Real images as other code would save them: networks learn from them what they would from a set of ours."""
    train, _ = load_data("digits")
    index = torch.cat([(train.labels == label).nonzero().flatten()[:3] for label in range(10)])
    batch = train.batch(index)
    torch.save({"data": [[batch.images, train.labels[index]]]}, tmp_path / "res_DSA.pt")
    found = cli.done("evaluate", tmp_path / "res_DSA.pt", "--data", "digits", "--seeds", 1)
    assert found["accuracy"] > 60
    torch.save(batch.images, tmp_path / "images_best.pt")
    torch.save(train.labels[index], tmp_path / "labels_best.pt")
    named = ("--data", "digits", "--seeds", 1, "--labels", tmp_path / "labels_best.pt")
    assert cli.done("evaluate", tmp_path / "images_best.pt", *named)["accuracies"] == found["accuracies"]
    assert "name the data, such as --data cifar10" in cli.refused("evaluate", tmp_path / "res_DSA.pt")


def test_a_file_of_other_code_that_lacks_a_class_says_so(cli: Any, tmp_path: Path) -> None:
    train, _ = load_data("digits")
    index = torch.cat([(train.labels == label).nonzero().flatten()[:2] for label in range(9)])
    torch.save({"data": [[train.batch(index).images, train.labels[index]]]}, tmp_path / "nine.pt")
    ended = cli.run("evaluate", tmp_path / "nine.pt", "--data", "digits", "--seeds", 1, "--format", "json")
    assert (
        "no image of 9 in the set: networks do not learn this class, whose test images count as wrong" in ended.stderr
    )
    found = json.loads(ended.stdout)
    assert (found["missing"], found["per_class"]["9"]) == (["9"], 0)


def test_values_of_other_code_in_0_to_1_are_taken_as_such(cli: Any, tmp_path: Path) -> None:
    """As import takes them; the next command repeats how they are meant."""
    train, _ = load_data("digits")
    index = torch.cat([(train.labels == label).nonzero().flatten()[:3] for label in range(10)])
    path = tmp_path / "plain.pt"
    torch.save((train.images[index] / 255.0, train.labels[index]), path)
    ended = cli.run("evaluate", path, "--data", "digits", "--seeds", 1, "--unit", "--format", "json")
    assert json.loads(ended.stdout)["accuracy"] > 60
    assert "--unit" in ended.stderr.splitlines()[-1]
    assert "are in [0, 1]; if not normalised" in cli.run("evaluate", path, "--data", "digits", "--seeds", 1).stderr
    torch.save((train.images[index].float(), train.labels[index]), path)
    assert "divide by 255 and pass" in cli.refused("evaluate", path, "--data", "digits", "--seeds", 1)
