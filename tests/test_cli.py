"""The command line: stable keys on stdout, one clear line for what a user can mend, nothing lost when it is stopped."""

from __future__ import annotations

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from fedcondense.cli import app
from fedcondense.cli.terminal import check_folder, columns, jsonable
from fedcondense.errors import OutputError
from fedcondense.synthetic import SyntheticSet

SCRIPT = [sys.executable, "-c", "import sys; from fedcondense.cli import main; sys.argv[0] = 'fedcondense'; main()"]
QUICK = ("--ipc", "1", "--steps", "2", "--no-evaluate")
COMMANDS = ("data", "plan", "condense", "evaluate", "show", "federate", "report")


def run(*arguments: object) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def done(*arguments: object) -> Any:
    """Run a command that must succeed, and return its JSON."""
    ended = run(*arguments, "--format", "json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


def refused(*arguments: object) -> str:
    """Run a command that must be refused, and return its one line."""
    ended = run(*arguments)
    assert ended.exit_code == 2, (ended.output, ended.exception)
    assert ended.stdout == ""
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, ended.stderr
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of digits in a folder of its own."""
    path = tmp_path_factory.mktemp("made") / "digits.safetensors"
    done("condense", "digits", *QUICK, "--output", path)
    return path


class TestHelp:
    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_ends_in_an_example_that_names_it(self, name: str) -> None:
        text = " ".join(run(name, "-h").stdout.split())
        assert re.search(rf"Example: fedcondense {name} ", text)
        assert run(name, "--help").exit_code == 0

    @pytest.mark.parametrize("name", COMMANDS)
    def test_of_each_command_documents_its_json_keys(self, name: str) -> None:
        assert "JSON keys:" in run(name, "-h").stdout

    def test_lists_the_commands(self) -> None:
        assert all(name in run("--help").stdout for name in COMMANDS)

    def test_version(self) -> None:
        assert re.fullmatch(r"fedcondense \S.*\n", run("--version").stdout)

    def test_the_command_line_itself_imports_nothing_heavy(self) -> None:
        code = "import sys, typer; before = set(sys.modules); import fedcondense.cli, fedcondense.cli.sets;"
        code += "new = {n.partition('.')[0] for n in set(sys.modules) - before};"
        code += "assert not new & {'flwr', 'matplotlib', 'jinja2', 'sklearn', 'ray'}, new"
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


class TestCondense:
    def test_prints_the_documented_keys(self, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        result = done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 2, "--output", output)
        assert list(result) == [
            "data", "method", "ipc", "images", "nbytes", "seconds", "network", "accuracy", "accuracy_std", "output",
        ]  # fmt: skip
        assert result["nbytes"] == output.stat().st_size
        assert result["images"] == 10
        assert 10 < result["accuracy"] <= 100
        evaluation = SyntheticSet.load(output).evaluation
        assert evaluation is not None
        assert evaluation["accuracy"] == result["accuracy"]

    def test_leaves_the_accuracy_null_when_it_does_not_measure(self, tmp_path: Path) -> None:
        result = done("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert result["accuracy"] is None
        assert result["accuracy_std"] is None

    def test_ends_with_the_path_and_the_next_command_on_stderr(self, tmp_path: Path) -> None:
        output = tmp_path / "new" / "a set.safetensors"
        ended = run("condense", "digits", *QUICK, "--output", output)
        assert f"wrote {output}" in ended.stderr
        following = re.search(r"next: (.*)", ended.stderr)
        assert following
        assert shlex.split(following[1])[:3] == ["fedcondense", "show", str(output)]
        assert run(*shlex.split(following[1])[1:]).exit_code == 0
        assert "wrote" not in ended.stdout

    def test_a_method_selects_instead(self, tmp_path: Path) -> None:
        result = done(
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

    def test_a_plugin_adds_a_method_by_name(self, tmp_path: Path) -> None:
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
            result = done("condense", "digits", *QUICK, "--objective", "mine", "--plugin", plugin, "--output", output)
        finally:
            OBJECTIVES.pop("mine", None)
        assert result["method"].startswith("Mine(")

    def test_no_checkpoint_stays_behind(self, made: Path) -> None:
        assert [path.name for path in made.parent.iterdir()] == [made.name]

    def test_progress_vanishes_in_a_pipe(self, tmp_path: Path) -> None:
        ended = run("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert len(ended.stderr.splitlines()) == 2


class TestTheOtherCommands:
    def test_evaluate_prints_the_documented_keys(self, made: Path) -> None:
        result = done("evaluate", made, "--seeds", 1)
        keys = {"accuracy", "accuracy_std", "accuracies", "per_class", "network", "seeds", "recipe", "weighted", "test"}
        assert set(result) == keys | {"seconds", "nbytes", "data", "file"}
        assert list(result["per_class"]) == [str(digit) for digit in range(10)]
        assert result["seeds"] == [0]

    def test_a_set_evaluates_itself_to_the_number_in_its_file(self, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        first = done("condense", "digits", "--ipc", 1, "--steps", 2, "--seeds", 1, "--network", "convnet2-w32",
                     "--output", output)  # fmt: skip
        assert done("evaluate", output, "--seeds", 1)["accuracies"] == [first["accuracy"]]

    def test_show_writes_a_png(self, made: Path, tmp_path: Path) -> None:
        output = tmp_path / "grid.png"
        assert done("show", made, "--output", output) == {
            "output": str(output),
            "images": 10,
            "nbytes": made.stat().st_size,
        }
        assert output.read_bytes().startswith(b"\x89PNG")

    def test_plan_prints_the_documented_keys(self) -> None:
        result = done("plan", "digits", "--ipc", 1, "--steps", 10)
        assert {"nbytes", "decoded", "steps", "seconds", "memory", "advice"} <= set(result)
        assert result["decoded"] == 10

    def test_data_says_where_each_set_is_or_is_looked_for(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "own.npz", x_train=np.zeros((2, 8, 8), np.uint8), y_train=np.zeros(2, np.int64),
                 x_test=np.zeros((2, 8, 8), np.uint8), y_test=np.zeros(2, np.int64))  # fmt: skip
        result = done("data", "--data-root", tmp_path)
        assert result["root"] == str(tmp_path)
        assert result["data"]["digits"]["where"] == "scikit-learn"
        assert result["data"]["mnist"]["where"] is None
        assert result["data"]["own"]["where"] == str(tmp_path / "own.npz")
        assert str(tmp_path) in run("data", "--data-root", tmp_path).stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return what `federate` wrote; what was typed and printed lies beside it."""
    pytest.importorskip("flwr")
    folder = tmp_path_factory.mktemp("federation") / "run"
    rows = "one-shot,fedavg-1,random-real,ridge"
    settings = ("--clients", 2, "--alpha", 1, "--ipc", 1, "--steps", 2, "--seeds", 1, "--rows", rows)
    result = done("federate", "digits", *settings, "--output", folder)
    (folder.parent / "printed.json").write_text(json.dumps(result))
    (folder.parent / "typed.json").write_text(json.dumps([str(s) for s in settings]))
    return folder


class TestFederate:
    def test_prints_an_object_a_row_with_bytes_both_ways(self, folder: Path) -> None:
        result = json.loads((folder.parent / "printed.json").read_text())
        assert list(result["rows"]) == ["one-shot", "fedavg-1", "random-real", "ridge"]
        for row in result["rows"].values():
            assert {"accuracy", "accuracy_std", "bytes_up", "bytes_down", "seconds"} <= set(row)
            assert row["bytes_up"] > 0
        keys = {"rows", "partition", "refused", "coverage", "classes", "settings", "versions", "command", "output"}
        assert set(result) == keys

    def test_writes_the_result_the_sets_and_the_report(self, folder: Path) -> None:
        names = {str(path.relative_to(folder)) for path in folder.rglob("*.*") if "work" not in path.parts}
        assert {"result.json", "report.html", "joined.safetensors", "clients/00.safetensors"} <= names

    def test_a_folder_that_holds_a_run_is_refused_before_work(self, folder: Path) -> None:
        assert "pass --resume" in refused("federate", "digits", "--output", folder)

    def test_resume_of_a_finished_run_gives_the_same_rows(self, folder: Path) -> None:
        typed = json.loads((folder.parent / "typed.json").read_text())
        result = done("federate", "digits", *typed, "--output", folder, "--resume")
        assert result["rows"] == json.loads((folder.parent / "printed.json").read_text())["rows"]
        assert "--resume" not in result["command"]

    def test_resume_with_other_settings_is_refused(self, folder: Path) -> None:
        assert "another run" in refused(
            "federate", "digits", "--clients", 2, "--ipc", 3, "--output", folder, "--resume"
        )

    def test_report_builds_the_page_anew(self, folder: Path) -> None:
        (folder / "report.html").unlink()
        assert done("report", folder) == {"output": str(folder / "report.html")}
        assert (folder / "report.html").exists()

    def test_an_unknown_row_or_partition_names_the_closest(self, tmp_path: Path) -> None:
        assert "'one-shot'" in refused("federate", "digits", "--rows", "oneshot", "--output", tmp_path / "a")
        assert "'dirichlet'" in refused("federate", "digits", "--partition", "dirichle", "--output", tmp_path / "b")


def test_a_missing_extra_names_the_pip_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fedcondense.flower

    monkeypatch.delitem(vars(fedcondense.flower), "federate", raising=False)
    for name in [n for n in sys.modules if n.startswith("fedcondense.flower.")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [n for n in sys.modules if n == "flwr" or n.startswith("flwr.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "flwr", None)
    assert "pip install 'fedcondense[flower]'" in refused("federate", "digits", "--output", tmp_path / "run")


class TestBadInput:
    """Each is one line with what was given, what is needed and what to do."""

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("digit",), "no data set is called 'digit'; did you mean 'digits'?"),
            (("digits", "--objective", "dm-rigde"), "did you mean 'dm-ridge'?"),
            (("digits", "--network", "convnet2-w3"), "no network is called"),
            (("digits", "--parametrization", "pixel"), "did you mean 'pixels'?"),
            (("digits", "--method", "k-mean"), "did you mean 'k-means'?"),
            (("digits", "--start", "gausian"), "did you mean 'gaussian'?"),
            (("digits", "--ipc", "0"), "ipc 0"),
            (("digits", "--steps", "-1"), "-1 steps"),
            (("digits", "--threads", "0"), "0 threads"),
            (("digits", "--device", "gpu"), "device 'gpu' cannot be used"),
            (("digits", "--plugin", "missing.py"), "missing.py: no such plugin"),
            (("digits", "--method", "random", "--objective", "dm"), "leave one side out"),
            (("npz:nowhere.npz",), "nowhere.npz: no such file"),
            (("folder:nowhere",), "nowhere: no such folder"),
        ],
    )
    def test_of_condense(self, arguments: tuple[str, ...], says: str, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        assert says in refused("condense", *arguments, "--output", output, "--no-evaluate", "--data-root", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_nan_in_the_data(self, tmp_path: Path) -> None:
        images = np.zeros((4, 8, 8), np.float32)
        images[0, 0, 0] = np.nan
        labels = np.arange(4) % 2
        np.savez(tmp_path / "nan.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        said = refused("condense", f"npz:{tmp_path / 'nan.npz'}", *QUICK, "--output", tmp_path / "set.safetensors")
        assert re.search("(?i)nan|finite", said)

    def test_more_images_than_records_takes_what_is_there_and_says_so(self, tmp_path: Path) -> None:
        images, labels = np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2
        images += np.arange(4, dtype=np.uint8)[:, None, None]
        np.savez(tmp_path / "few.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
        ended = subprocess.run(
            [*SCRIPT, "condense", f"npz:{tmp_path / 'few.npz'}", "--ipc", "9", "--method", "random", "--no-evaluate",
             "--output", str(tmp_path / "set.safetensors"), "--format", "json"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        assert json.loads(ended.stdout)["images"] == 4
        assert "they get what is there" in ended.stderr

    def test_an_output_that_exists_is_refused_before_work_and_kept(self, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        output.write_text("precious")
        assert "exists; choose another path or pass --overwrite" in refused("condense", "nonsense", "--output", output)
        assert output.read_text() == "precious"

    @pytest.mark.parametrize("folder", ["/proc/here", "{tmp}/file"])
    def test_a_folder_that_cannot_be_written_is_refused_before_work(self, folder: str, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        output = Path(folder.format(tmp=tmp_path)) / "set.safetensors"
        assert "choose a folder that can be written" in refused("condense", "nonsense", "--output", output)

    def test_a_folder_as_the_output(self, tmp_path: Path) -> None:
        assert "is a folder" in refused("condense", "digits", "--output", tmp_path)

    @pytest.mark.parametrize("name", ["evaluate", "show"])
    @pytest.mark.parametrize("damage", ["missing", "corrupt", "truncated", "newer"])
    def test_a_file_that_is_no_whole_set(self, name: str, damage: str, made: Path, tmp_path: Path) -> None:
        file = tmp_path / "bad.safetensors"
        if damage == "corrupt":
            file.write_bytes(b"\xff" * 100)
        elif damage == "truncated":
            file.write_bytes(made.read_bytes()[:-7])
        elif damage == "newer":
            blob = re.sub(rb'(\\"version\\":)\d', rb"\g<1>9", made.read_bytes(), count=1)
            assert blob != made.read_bytes()
            file.write_bytes(blob)
        options = ("--output", tmp_path / "grid.png") if name == "show" else ()
        said = refused(name, file, *options)
        assert str(file) in said
        if damage == "newer":
            assert "upgrade fedcondense" in said

    def test_a_strangers_file_does_not_choose_what_is_read_from_this_disk(self, made: Path, tmp_path: Path) -> None:
        synthetic = SyntheticSet.load(made).with_record(data="folder:/etc")
        file = synthetic.save(tmp_path / "odd.safetensors")
        assert "name the data to test on with --data" in refused("evaluate", file)
        assert run("evaluate", file, "--data", "digits", "--seeds", 1).exit_code == 0

    def test_names_in_a_file_cannot_reach_the_terminals_controls(self, made: Path, tmp_path: Path) -> None:
        synthetic = SyntheticSet.load(made).with_record(method="evil\n\x1b[2J", data="no\x1b[31mne")
        file = synthetic.save(tmp_path / "odd.safetensors")
        ended = run("show", file, "--output", tmp_path / "grid.png")
        assert ended.exit_code == 0
        assert "\x1b" not in ended.output
        assert "\x1b" not in refused("evaluate", file)

    def test_no_result_in_a_folder(self, tmp_path: Path) -> None:
        assert "result.json does not exist" in refused("report", tmp_path)

    def test_missing_data_says_which_files_were_looked_for_and_where(self, tmp_path: Path) -> None:
        said = refused(
            "condense", "tiny-imagenet", "--data-root", tmp_path / "root", "--output", tmp_path / "a.safetensors"
        )
        assert str(tmp_path / "root") in said
        assert "wnids.txt" in said

    def test_zero_seeds(self, made: Path) -> None:
        assert "0 seeds" in refused("evaluate", made, "--seeds", 0)


class TestInterruption:
    @staticmethod
    def start(output: Path, *more: str) -> subprocess.Popen[str]:
        """Start a run of many steps that writes checkpoints all the time, and wait for the first."""
        arguments = ["condense", "digits", "--ipc", "1", "--steps", "120", "--no-evaluate", "--checkpoint-every", "0"]
        arguments += ["--threads", "1", "--output", str(output), *more]
        process = subprocess.Popen([*SCRIPT, *arguments], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        end = time.monotonic() + 60
        while not output.with_name(f"{output.name}.checkpoint").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < end
            time.sleep(0.01)
        return process

    def test_killed_and_resumed_is_bit_equal_to_uninterrupted(self, tmp_path: Path) -> None:
        whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
        self.start(whole).communicate(timeout=120)
        process = self.start(parts)
        process.kill()
        process.communicate(timeout=60)
        assert not parts.exists()
        assert "pass --resume" in refused("condense", "digits", "--output", parts)
        self.start(parts, "--resume").communicate(timeout=120)
        first, second = (SyntheticSet.load(path).with_record(seconds=0.0).to_bytes() for path in (whole, parts))
        assert first == second

    def test_ctrl_c_keeps_the_checkpoint_and_says_how_to_go_on(self, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        process = self.start(output)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert printed == ""
        assert said.startswith("interrupted; ")
        assert said.rstrip().endswith("--resume")
        assert len(said.splitlines()) == 1
        typed = shlex.split(said[said.index("go on with: ") + len("go on with: ") :])
        assert subprocess.run([*SCRIPT, *typed[1:]], timeout=120, check=False).returncode == 0
        assert output.exists()

    def test_resume_with_another_configuration_is_refused_and_the_checkpoint_kept(self, tmp_path: Path) -> None:
        output = tmp_path / "set.safetensors"
        process = self.start(output)
        process.kill()
        process.communicate(timeout=60)
        said = refused("condense", "digits", "--ipc", 2, "--steps", 120, "--output", output, "--resume")
        assert "ipc was 1, is 2" in said
        assert output.with_name(f"{output.name}.checkpoint").exists()

    def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("set.safetensors: No space left on device; free the disk")

        monkeypatch.setattr(SyntheticSet, "save", full)
        said = refused("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert "No space left on device" in said
        assert "--resume" in said
        assert (tmp_path / "set.safetensors.checkpoint").exists()

    def test_divergence_keeps_the_last_good_set(
        self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fedcondense.condensation
        from fedcondense.errors import DivergenceError

        def diverge(*_: object, **__: object) -> None:
            raise DivergenceError("the loss is nan at step 7", SyntheticSet.load(made))

        monkeypatch.setattr(fedcondense.condensation, "condense", diverge)
        ended = run("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert ended.exit_code == 2
        assert ended.stderr.splitlines()[-1] == "error: the loss is nan at step 7"
        assert (tmp_path / "set-last-good.safetensors").read_bytes() == made.read_bytes()

    def test_an_error_of_the_system_names_the_file(
        self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fedcondense.pictures

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "grid.png")

        monkeypatch.setattr(fedcondense.pictures, "show_set", full)
        said = refused("show", made, "--output", tmp_path / "grid.png")
        assert "grid.png: No space left on device" in said

    def test_a_bug_keeps_its_traceback(self, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import fedcondense.pictures

        monkeypatch.setattr(fedcondense.pictures, "show_set", lambda *_: 1 / 0)
        assert isinstance(run("show", made, "--output", tmp_path / "grid.png").exception, ZeroDivisionError)


def test_json_has_no_nan_and_no_tuples() -> None:
    assert jsonable({1: (float("nan"), 2.0), "p": Path("a")}) == {"1": [None, 2.0], "p": "a"}


def test_columns_are_aligned() -> None:
    assert columns([("a", 1), ("long", 22)]) == "a     1\nlong  22"


def test_a_folder_is_checked_by_writing_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
