"""Each command ends in the next one to try: it runs as it is printed, again and again."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import fedcondense as fc
from fedcondense.training.evaluation import Evaluation
from fedcondense.training.fit import Fit


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let nothing be trained: what counts is that a command is taken."""

    def measured(synthetic: Any, test: Any, *_: Any, **__: Any) -> Evaluation:
        return Evaluation((50.0,), (50.0,) * len(test.spec.classes), "convnet2-w32", Fit(), (0,), False, "digits", 0.0)

    def saved(made: Any, output: Path, *_: Any) -> Any:
        made.save(output, overwrite=True)
        return made

    monkeypatch.setattr("fedcondense.condensing.condense", lambda data, ipc, **_: fc.select(data, ipc))
    monkeypatch.setattr("fedcondense.cli.condense.save_measured", saved)
    monkeypatch.setattr("fedcondense.training.evaluation.evaluate", measured)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tile.safetensors").write_bytes(
        fc.select(fc.load_data("digits").train, 1).to_bytes(),
    )
    (tmp_path / "-odd.safetensors").write_bytes((tmp_path / "tile.safetensors").read_bytes())
    return tmp_path


def told(ended: Any) -> list[str]:
    """Return the words of the next command."""
    assert ended.exit_code == 0, (ended.output, ended.exception)
    (line,) = [line for line in ended.stderr.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))[1:]


@pytest.mark.parametrize(
    "words",
    [
        ("data",),
        ("zoo",),
        ("condense", "digits", "--ipc", "1", "--output", "a.safetensors"),
        ("condense", "digits", "--ipc", "1", "--output", "no-ending"),
        ("condense", "digits", "--ipc", "1", "--output=-a.safetensors"),
        ("evaluate", "tile.safetensors"),
        ("show", "tile.safetensors", "--output", "seen.png"),
        ("show", "--output", "seen.png", "--", "-odd.safetensors"),
        ("export", "tile.safetensors", "--output", "arrays.npz"),
        ("node", "check", 'data="digits" min-records=1'),
        ("node", "check", 'data="digits"', "--size", "16"),
        ("train", "tile.safetensors", "--output", "network.safetensors", "--network", "convnet1-w16", "--steps", "2"),
        ("node", "check", 'data="digits" max-ipc=2 max-steps=3 networks="convnet1-w16"'),
    ],
)
def test_runs_as_it_is_printed_and_twice(cli: Any, words: tuple[str, ...]) -> None:
    then = told(cli.run(*words))
    if then[:2] == ["node", "preview"]:
        then += ["--set", "steps=1"] if not any(word.startswith("steps=") for word in then) else []
    ended = cli.run(*then)
    assert ended.exit_code == 0, (then, ended.output)
    again = (words[0], "--overwrite", *words[1:]) if any(w.startswith("--output") for w in words) else words
    second = told(cli.run(*again))  # what the first one wrote is no hindrance
    if second[:2] != ["node", "preview"]:
        assert cli.run(*second).exit_code == 0, second


def test_a_set_of_a_plugin_s_augmentation_is_shown_and_exported_without_it(cli: Any, quick: Path) -> None:
    """What trains needs it, and says so; the next command would, and is not told without it."""
    made = fc.SyntheticSet.load(quick / "tile.safetensors").with_record(augmentation=("crop", "mine"))
    made.save("mine.safetensors")
    for words in (
        ("show", "mine.safetensors", "--output", "seen.png"),
        ("export", "mine.safetensors", "-o", "pictures"),
    ):
        ended = cli.run(*words)
        assert ended.exit_code == 0, ended.output
        assert "next: " not in ended.stderr
    said = cli.refused("train", "mine.safetensors", "--output", "network.safetensors")
    assert "no augmentation is called 'mine'" in said
    assert "--plugin FILE" in said


@pytest.mark.parametrize("data", ["folder:scans", "stream"])
def test_a_set_whose_data_only_its_maker_knows_is_trained_on(cli: Any, quick: Path, data: str) -> None:
    (quick / "theirs").mkdir()
    fc.SyntheticSet.load(quick / "tile.safetensors").with_record(data=data).save("theirs/memory.safetensors")
    (quick / "theirs" / "network.safetensors").write_bytes(b"another")
    words = told(cli.run("show", "theirs/memory.safetensors", "--output", "theirs.png"))
    assert words == ["train", "theirs/memory.safetensors", "--output", "theirs/network-2.safetensors"]
    words = told(cli.run(*words, "--network", "convnet1-w16", "--steps", "2"))
    assert words[0] == "export-network"


def test_predict_is_followed_by_an_export_of_its_network(cli: Any, quick: Path) -> None:
    network = ("--network", "convnet1-w16", "--steps", "2")
    cli.run("train", "tile.safetensors", "--output", "network.safetensors", *network)
    Image.new("L", (8, 8)).save("seen.png")
    (quick / "run").mkdir()
    (quick / "run" / "weights.safetensors").write_bytes((quick / "network.safetensors").read_bytes())
    for where, file in (("network.safetensors", "network.pt2"), ("run", "run/network.pt2")):
        words = told(cli.run("predict", where, "seen.png"))
        assert words == ["export-network", where, "--output", file]
        assert cli.run(*words).exit_code == 0
        assert told(cli.run("predict", where, "seen.png"))[-1] == file.replace(".pt2", "-2.pt2")
