"""`condense`: stable keys on stdout, the next command on stderr."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

from typer.main import get_command

from fedcondense.cli import app
from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.synthetic import SyntheticSet

KEYS = [
    *("data", "method", "ipc", "images", "nbytes", "codec", "seconds", "network", "accuracy", "accuracy_std", "output")
]
QUICK = ("--ipc", "1", "--steps", "2", "--no-evaluate")


def test_prints_the_documented_keys(cli: Any, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    result = cli.done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 2, "--output", output)
    assert list(result) == KEYS
    assert result["nbytes"] == output.stat().st_size
    assert result["images"] == 10
    assert 10 < result["accuracy"] <= 100
    evaluation = SyntheticSet.load(output).evaluation
    assert evaluation is not None
    assert evaluation["accuracy"] == result["accuracy"]


def test_leaves_the_accuracy_null_when_it_does_not_measure(cli: Any, tmp_path: Path) -> None:
    result = cli.done("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
    assert result["accuracy"] is None
    assert result["accuracy_std"] is None


def test_ends_with_the_path_and_the_next_command_on_stderr(cli: Any, tmp_path: Path) -> None:
    output = tmp_path / "new" / "a set.safetensors"
    ended = cli.run("condense", "digits", *QUICK, "--output", output)
    assert f"wrote {output}" in ended.stderr
    following = re.search(r"next: (.*)", ended.stderr)
    assert following
    assert shlex.split(following[1])[:3] == ["fedcondense", "show", str(output)]
    assert cli.run(*shlex.split(following[1])[1:]).exit_code == 0
    assert "wrote" not in ended.stdout


def test_a_method_selects_instead(cli: Any, tmp_path: Path) -> None:
    result = cli.done(
        "condense",
        "digits",
        "--ipc",
        1,
        "--method",
        "random",
        "--no-evaluate",
        "--output",
        tmp_path / "r.safetensors",
    )
    assert result["method"] == "random"


def test_a_plugin_adds_a_method_by_name(cli: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from dataclasses import dataclass\n"
        "from fedcondense.objectives import OBJECTIVES\n"
        "from fedcondense.objectives.distribution import DistributionMatching\n"
        "@dataclass(frozen=True)\n"
        "class Mine(DistributionMatching):\n"
        "    scale: float = 2.0\n"
        "OBJECTIVES['mine'] = Mine()\n"
    )
    from fedcondense.objectives import OBJECTIVES

    try:
        output = tmp_path / "set.safetensors"
        result = cli.done("condense", "digits", *QUICK, "--objective", "mine", "--plugin", plugin, "--output", output)
    finally:
        OBJECTIVES.pop("mine", None)
    assert result["method"].startswith("Mine(")


def test_experts_are_kept_in_their_folder_and_serve_again(cli: Any, tmp_path: Path) -> None:
    told, folder = ("condense", "digits", *QUICK, "--objective", "mtt"), tmp_path / "experts"
    cli.done(*told, "--experts", folder, "--output", tmp_path / "first.safetensors")
    files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert files
    cli.done(*told, "--experts", folder, "--output", tmp_path / "second.safetensors")
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files


def test_experts_of_an_objective_that_has_none_are_refused(cli: Any, tmp_path: Path) -> None:
    told = ("condense", "digits", *QUICK, "--experts", tmp_path / "experts")
    assert "but the objective has none" in cli.refused(*told, "--output", tmp_path / "set.safetensors")


def test_labels_are_learned_where_the_objective_can(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    cli.done("condense", "digits", *QUICK, "--learn-labels", "--output", path)
    assert SyntheticSet.load(path).parts[0].targets.ndim == 2
    told = ("condense", "digits", *QUICK, "--objective", "dm", "--learn-labels", "--overwrite")
    assert "dm cannot learn soft labels" in cli.refused(*told, "--output", path)


def test_prefixes_are_for_condensing_alone(cli: Any, tmp_path: Path) -> None:
    path = tmp_path / "set.safetensors"
    cli.done("condense", "digits", *QUICK, "--prefixes", "--output", path)
    told = ("condense", "digits", "--method", "random", "--prefixes", "--output", path, "--overwrite")
    assert "--method random selects, and takes no --prefixes" in cli.refused(*told)


def test_the_help_names_every_objective() -> None:
    (option,) = [p for p in get_command(app).commands["condense"].params if p.name == "objective"]  # type: ignore[attr-defined]
    assert set(OBJECTIVES) <= set(re.findall(r"[a-z-]+", option.help))


def test_no_checkpoint_stays_behind(made: Path) -> None:
    assert [path.name for path in made.parent.iterdir()] == [made.name]


def test_progress_vanishes_in_a_pipe(cli: Any, tmp_path: Path) -> None:
    ended = cli.run("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
    assert len(ended.stderr.splitlines()) == 2


def test_a_budget_bounds_the_file_with_its_evaluation(cli: Any, tmp_path: Path) -> None:
    output = tmp_path / "set.safetensors"
    told = ("--steps", 2, "--seeds", 1, "--network", "convnet1-w16", "--output", output)
    result = cli.done("condense", "digits", "--budget", "2 kB", *told)
    assert list(result) == KEYS
    assert result["accuracy"] is not None
    assert 1700 < output.stat().st_size <= 2000
    stored = SyntheticSet.load(output).parts[0]
    assert stored.codec == "bits-2"
    selected = cli.done(
        *("condense", "digits", "--budget", "2 kB", "--codec", "jpeg-10", "--method", "random", "--no-evaluate"),
        *("--output", output, "--overwrite"),
    )
    assert 1500 < selected["nbytes"] <= 2000
    assert SyntheticSet.load(output).parts[0].codec == "jpeg-10"


def test_budgets_that_cannot_be_are_one_line_before_anything_is_read(cli: Any, tmp_path: Path) -> None:
    told = ("condense", "digits", "--output", tmp_path / "set.safetensors")
    assert "'20 KB'; needed: kB (1,000 bytes) or KiB" in cli.refused(*told, "--budget", "20 KB")
    assert "4 kB per client is for a federation" in cli.refused(*told, "--budget", "4 kB per client")
    assert "give one of them" in cli.refused(*told, "--budget", "4 kB", "--ipc", 3)
    assert "too small for one image of each of 10 classes" in cli.refused(*told, "--budget", "500 B")
    assert "no codec is called 'zip'" in cli.refused(*told, "--codec", "zip")
    assert list(tmp_path.iterdir()) == []
