"""`recode`: what a codec saves and costs, and that a second one is a second loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fedcondense.sets.synthetic import SyntheticSet

KEYS = ["data", "method", "ipc", "images", "nbytes", "codec", "seconds", "network", "accuracy", "accuracy_std"]


def test_bytes_before_and_after(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    found = cli.done("recode", made, "--codec", "bits-2", "--output", output)
    assert list(found) == [*KEYS, "nbytes_before", "accuracy_before", "output"]
    assert found["codec"] == "bits-2" == SyntheticSet.load(output).parts[0].codec
    assert found["nbytes"] == output.stat().st_size < found["nbytes_before"] == SyntheticSet.load(made).nbytes
    assert found["accuracy"] is found["accuracy_before"] is None


def test_accuracy_before_and_after_where_data_are_named(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "small.safetensors"
    chosen = ("--data", "digits", "--network", "convnet1-w16", "--seeds", 1)
    found = cli.done("recode", made, "--codec", "bits-3", *chosen, "--output", output)
    evaluation = SyntheticSet.load(output).evaluation
    assert evaluation is not None
    assert evaluation["accuracy"] == found["accuracy"]
    assert 5 < found["accuracy_before"] <= 100


def test_a_second_codec_is_a_second_loss_and_says_so(cli: Any, made: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    cli.done("recode", made, "--codec", "bits-2", "--output", first)
    ended = cli.run("recode", first, "--codec", "bits-1", "--output", second)
    assert ended.exit_code == 0
    assert "was coded by bits-2: bits-1 is a second loss; recode the original" in ended.stderr
    assert "% of before" in ended.stdout
    again = cli.run("recode", first, "--codec", "bits-2", "--output", tmp_path / "third.safetensors")
    assert "second loss" not in again.stderr
    assert (tmp_path / "third.safetensors").read_bytes() == first.read_bytes()


def test_what_cannot_be_is_one_line(cli: Any, made: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.safetensors"
    assert "9 bits a value; needed: from 1 to 6" in cli.refused("recode", made, "--codec", "bits-9", "--output", output)
    assert "no codec is called 'zip'" in cli.refused("recode", made, "--codec", "zip", "--output", output)
    assert "these images have 1 channel" in cli.refused("recode", made, "--codec", "palette-8", "--output", output)
    assert not output.exists()
    assert "exists" in cli.refused("recode", made, "--codec", "bits-2", "--output", made)
