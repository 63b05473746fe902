"""The commands around one set: stable keys on stdout, the next command on stderr."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.main import get_command

from fedcondense.cli import app
from fedcondense.objectives import OBJECTIVES
from fedcondense.sets.synthetic import SyntheticSet

KEYS = ["data", "method", "ipc", "images", "nbytes", "seconds", "network", "accuracy", "accuracy_std", "output"]
QUICK = ("--ipc", "1", "--steps", "2", "--no-evaluate")
COMMANDS = ("data", "plan", "condense", "evaluate", "relabel", "show", "federate", "report")


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_ends_in_an_example_that_names_it(self, cli: Any, name: str) -> None:
        text = " ".join(cli.run(name, "-h").stdout.split())
        assert re.search(rf"Example: fedcondense {name} ", text)
        assert cli.run(name, "--help").exit_code == 0

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_documents_its_json_keys(self, cli: Any, name: str) -> None:
        assert "JSON keys:" in cli.run(name, "-h").stdout

    def test_lists_the_commands(self, cli: Any) -> None:
        assert all(name in cli.run("--help").stdout for name in COMMANDS)

    def test_version(self, cli: Any) -> None:
        assert re.fullmatch(r"fedcondense \S.*\n", cli.run("--version").stdout)

    def test_the_command_line_itself_imports_nothing_heavy(self) -> None:
        code = "import sys, typer; before = set(sys.modules); import fedcondense.cli, fedcondense.cli.sets;"
        code += "new = {n.partition('.')[0] for n in set(sys.modules) - before};"
        code += "assert not new & {'flwr', 'matplotlib', 'jinja2', 'sklearn', 'ray'}, new"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class TestCondense:
    def test_prints_the_documented_keys(self, cli: Any, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        result = cli.done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 2, "--output", output)
        assert list(result) == KEYS
        assert result["nbytes"] == output.stat().st_size
        assert result["images"] == 10
        assert 10 < result["accuracy"] <= 100
        evaluation = SyntheticSet.load(output).evaluation
        assert evaluation is not None
        assert evaluation["accuracy"] == result["accuracy"]

    def test_leaves_the_accuracy_null_when_it_does_not_measure(self, cli: Any, tmp_path: Path) -> None:
        result = cli.done("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert result["accuracy"] is None
        assert result["accuracy_std"] is None

    def test_ends_with_the_path_and_the_next_command_on_stderr(self, cli: Any, tmp_path: Path) -> None:
        output = tmp_path / "new" / "a set.safetensors"
        ended = cli.run("condense", "digits", *QUICK, "--output", output)
        assert f"wrote {output}" in ended.stderr
        following = re.search(r"next: (.*)", ended.stderr)
        assert following
        assert shlex.split(following[1])[:3] == ["fedcondense", "show", str(output)]
        assert cli.run(*shlex.split(following[1])[1:]).exit_code == 0
        assert "wrote" not in ended.stdout

    def test_a_method_selects_instead(self, cli: Any, tmp_path: Path) -> None:
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

    def test_a_plugin_adds_a_method_by_name(self, cli: Any, tmp_path: Path) -> None:
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
            result = cli.done(
                "condense", "digits", *QUICK, "--objective", "mine", "--plugin", plugin, "--output", output
            )
        finally:
            OBJECTIVES.pop("mine", None)
        assert result["method"].startswith("Mine(")

    def test_experts_are_kept_in_their_folder_and_serve_again(self, cli: Any, tmp_path: Path) -> None:
        told, folder = ("condense", "digits", *QUICK, "--objective", "mtt"), tmp_path / "experts"
        cli.done(*told, "--experts", folder, "--output", tmp_path / "first.safetensors")
        files = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
        assert files
        cli.done(*told, "--experts", folder, "--output", tmp_path / "second.safetensors")
        assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == files

    def test_experts_of_an_objective_that_has_none_are_refused(self, cli: Any, tmp_path: Path) -> None:
        told = ("condense", "digits", *QUICK, "--experts", tmp_path / "experts")
        assert "but the objective has none" in cli.refused(*told, "--output", tmp_path / "set.safetensors")

    def test_labels_are_learned_where_the_objective_can(self, cli: Any, tmp_path: Path) -> None:
        path = tmp_path / "set.safetensors"
        cli.done("condense", "digits", *QUICK, "--learn-labels", "--output", path)
        assert SyntheticSet.load(path).parts[0].targets.ndim == 2
        told = ("condense", "digits", *QUICK, "--objective", "dm", "--learn-labels", "--overwrite")
        assert "dm cannot learn soft labels" in cli.refused(*told, "--output", path)

    def test_prefixes_are_for_condensing_alone(self, cli: Any, tmp_path: Path) -> None:
        path = tmp_path / "set.safetensors"
        cli.done("condense", "digits", *QUICK, "--prefixes", "--output", path)
        told = ("condense", "digits", "--method", "random", "--prefixes", "--output", path, "--overwrite")
        assert "--method random selects, and takes no --prefixes" in cli.refused(*told)

    def test_the_help_names_every_objective(self) -> None:
        (option,) = [p for p in get_command(app).commands["condense"].params if p.name == "objective"]  # type: ignore[attr-defined]
        assert set(OBJECTIVES) <= set(re.findall(r"[a-z-]+", option.help))

    def test_no_checkpoint_stays_behind(self, made: Path) -> None:
        assert [path.name for path in made.parent.iterdir()] == [made.name]

    def test_progress_vanishes_in_a_pipe(self, cli: Any, tmp_path: Path) -> None:
        ended = cli.run("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert len(ended.stderr.splitlines()) == 2


class TestTheOtherCommands:
    def test_evaluate_prints_the_documented_keys(self, cli: Any, made: Path) -> None:
        result = cli.done("evaluate", made, "--seeds", 1)
        keys = {"accuracy", "accuracy_std", "accuracies", "per_class", "network", "seeds", "recipe", "weighted", "test"}
        assert set(result) == keys | {"seconds", "nbytes", "data", "file"}
        assert list(result["per_class"]) == [str(digit) for digit in range(10)]
        assert result["seeds"] == [0]

    def test_a_set_evaluates_itself_to_the_number_in_its_file(self, cli: Any, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        first = cli.done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 1, "--network", "convnet2-w32",
                     "--output", output)  # fmt: skip
        again = cli.done("evaluate", output)  # as recorded: one network of that kind
        assert again["accuracies"] == [first["accuracy"]]
        assert (again["network"], again["seeds"]) == ("convnet2-w32", [0])

    def test_the_seconds_of_a_joined_set_are_those_of_all_its_parts(self, cli: Any, made: Path, tmp_path: Path) -> None:
        parts = [SyntheticSet.load(made).with_record(seconds=seconds) for seconds in (1.0, 2.5)]
        path = SyntheticSet.join(parts).save(tmp_path / "joined.safetensors")
        assert "made in 3.5 s" in cli.run("show", path, "--output", tmp_path / "grid.png").stdout

    def test_an_evaluation_that_cannot_be_repeated_is_said(self, cli: Any, made: Path, tmp_path: Path) -> None:
        """Its network was a plugin's, say."""
        measured = {"accuracy": 1.0, "network": "mine", "recipe": {}, "seeds": [0], "weighted": False}
        path = SyntheticSet.load(made).with_evaluation(measured).save(tmp_path / "of-mine.safetensors")
        ended = cli.run("evaluate", path, "--format", "json")
        assert ended.exit_code == 0
        assert "cannot be repeated (no network is called 'mine'" in ended.stderr
        assert len(json.loads(ended.stdout)["seeds"]) == 3

    def test_relabel_prints_the_documented_keys_and_counts_the_bytes(
        self, cli: Any, made: Path, tmp_path: Path
    ) -> None:
        output = tmp_path / "taught.safetensors"
        found = cli.done("relabel", made, "--output", output, "--network", "convnet1-w16", "--seeds", 1)
        assert list(found) == KEYS
        assert found["nbytes"] == output.stat().st_size > SyntheticSet.load(made).nbytes
        assert found["method"] == "mmd-ridge, labels 0.5 by 1 convnet1-w16 at temperature 2"
        assert "exists" in cli.refused("relabel", made, "--output", output)
        assert "a share above 0" in cli.refused("relabel", made, "--output", tmp_path / "b.safetensors", "--share", 0)

    def test_show_writes_a_png(self, cli: Any, made: Path, tmp_path: Path) -> None:
        output = tmp_path / "grid.png"
        assert cli.done("show", made, "--output", output) == {
            "output": str(output),
            "images": 10,
            "nbytes": made.stat().st_size,
        }
        assert output.read_bytes().startswith(b"\x89PNG")

    def test_plan_prints_the_documented_keys(self, cli: Any) -> None:
        result = cli.done("plan", "digits", "--ipc", 1, "--steps", 10)
        assert {"nbytes", "decoded", "steps", "seconds", "memory", "advice"} <= set(result)
        assert result["decoded"] == 10

    def test_plan_ends_with_the_run_that_it_planned(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("fedcondense.cli.sets.set_up", lambda *given: None)  # it sets precision for the process
        chosen = ["--objective", "dm", "--parametrization", "multi-formation", "--network", "convnet1-w16"]
        chosen += ["--steps", "2", "--data-root", str(tmp_path), "--precision", "bfloat16"]
        ended = cli.run("plan", "digits", "--ipc", "1", *chosen)
        following = re.search(r"next: (.*)", ended.stderr)
        assert following
        assert cli.run(*shlex.split(following[1])[1:], "--no-evaluate").exit_code == 0
        record = SyntheticSet.load(tmp_path / "digits.safetensors").record
        assert (record.method, record.ipc, record.steps, record.network) == ("dm", 1, 2, "convnet1-w16")
        for option, value in zip(chosen[::2], chosen[1::2], strict=True):
            assert f"{option} {value}" in following[1]

    def test_data_says_where_each_set_is_or_is_looked_for(self, cli: Any, tmp_path: Path) -> None:
        np.savez(tmp_path / "own.npz", x_train=np.zeros((2, 8, 8), np.uint8), y_train=np.zeros(2, np.int64),
                 x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.zeros(2, np.int64))  # fmt: skip
        result = cli.done("data", "--data-root", tmp_path)
        assert result["root"] == str(tmp_path)
        assert result["data"]["digits"]["where"] == "scikit-learn"
        assert result["data"]["mnist"]["where"] is None
        assert result["data"]["own"]["where"] == str(tmp_path / "own.npz")
        assert str(tmp_path) in cli.run("data", "--data-root", tmp_path).stderr
