"""Killed, interrupted, diverged, out of disk: nothing that was done is lost."""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedcondense.errors import OutputError
from fedcondense.sets.synthetic import SyntheticSet

QUICK = ("--ipc", "1", "--steps", "2", "--no-evaluate")


class TestInterruption:
    @pytest.fixture
    def begin(self, start: Any, tmp_path: Path) -> Any:
        """Return a function that starts a run of many steps with a checkpoint at each, and waits for the first."""

        def begun(output: Path, *more: str) -> Any:
            arguments = ["condense", "digits", "--ipc", "1", "--steps", "40", "--network", "convnet1-w16"]
            arguments += ["--checkpoint-every", "0", "--threads", "1", "--no-evaluate", "--output", str(output), *more]
            process = start(tmp_path, *arguments)
            end = time.monotonic() + 60
            while not output.with_name(f"{output.name}.checkpoint").exists():
                assert process.is_running(), process.end()
                assert time.monotonic() < end
                time.sleep(0.01)
            return process

        return begun

    def test_killed_and_resumed_is_bit_equal_to_uninterrupted(self, cli: Any, begin: Any, tmp_path: Path) -> None:
        whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
        assert begin(whole).end().code == 0
        process = begin(parts)
        process.send(signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
        assert not parts.exists()
        assert "pass --resume" in cli.refused("condense", "digits", "--output", parts)
        assert begin(parts, "--resume").end().code == 0
        first, second = (SyntheticSet.load(path).with_record(seconds=0.0).to_bytes() for path in (whole, parts))
        assert first == second

    @pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
    def test_a_signal_keeps_the_checkpoint_and_says_how_to_go_on(
        self, number: signal.Signals, code: int, cli: Any, begin: Any, tmp_path: Path
    ) -> None:
        output = tmp_path / "set.safetensors"
        process = begin(output)
        process.send(number)
        ended, printed, said = process.end()
        assert ended == code
        assert printed == ""
        assert said.startswith("interrupted; ")
        assert said.rstrip().endswith("--resume")
        assert len(said.splitlines()) == 1
        typed = shlex.split(said[said.index("go on with: ") + len("go on with: ") :])
        assert cli.run(*typed[1:]).exit_code == 0
        assert output.exists()

    @pytest.mark.parametrize(
        ("moment", "then"),
        [("fedcondense.training.labels.relabel", "relabel"), ("fedcondense.training.evaluation.evaluate", "evaluate")],
    )
    def test_ctrl_c_in_relabel_says_what_to_type_before_and_after_the_set_is_written(
        self, cli: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str, then: str
    ) -> None:
        def interrupt(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        output = tmp_path / "soft.safetensors"
        arguments = ["relabel", str(made), "--data", "digits", "--output", str(output), "--seeds", "1"]
        arguments += ["--network", "convnet1-w16", "--teachers", "1"]
        monkeypatch.setattr(sys, "argv", ["fedcondense", *arguments])
        monkeypatch.setattr(moment, interrupt)
        ended = cli.run(*arguments)
        said = ended.stderr.splitlines()[-1]
        assert ended.exit_code == 130
        assert said.startswith("interrupted; ")
        assert output.exists() == (then == "evaluate")
        typed = shlex.split(said[said.index("with: ") + len("with: ") :])[1:]
        assert typed[0] == then
        for told in ("--data digits", "--network convnet1-w16", "--seeds 1"):
            assert told in said
        monkeypatch.undo()
        assert cli.run(*typed).exit_code == 0

    def test_an_evaluation_that_was_killed_goes_on_by_the_same_command(
        self, cli: Any, start: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What was done before the kill is not done again, and the files go at the end."""
        path = tmp_path / "digits.safetensors"
        path.write_bytes(made.read_bytes())
        words = ("evaluate", path, "--network", "mlp,convnet1-w16", "--seeds", "2", "--threads", "1")
        whole = cli.done(*words)
        assert [p.name for p in tmp_path.iterdir()] == [path.name]
        monkeypatch.setattr("fedcondense.cli.sets._KEPT_EVERY_S", 0.2)
        process = start(tmp_path, *words)
        end = time.monotonic() + 60
        while len(list(tmp_path.glob("digits.safetensors.evaluating-*"))) < 2:  # the first network's row is done
            assert process.is_running(), process.end()
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send(signal.SIGKILL)
        assert process.end().code == -signal.SIGKILL
        ended = cli.run(*words, "--format", "json")
        assert "taken over from" in ended.stderr
        assert "the tested networks of seeds 0, 1" in ended.stderr
        rows = json.loads(ended.stdout)["rows"]
        assert [(row["accuracies"], row["per_class"]) for row in rows] == [
            (row["accuracies"], row["per_class"]) for row in whole["rows"]
        ]
        assert not list(tmp_path.glob("*.evaluating-*"))

    def test_resume_with_another_configuration_is_refused_and_the_checkpoint_kept(
        self, cli: Any, begin: Any, tmp_path: Path
    ) -> None:
        output = tmp_path / "set.safetensors"
        process = begin(output)
        process.send(signal.SIGKILL)
        process.end()
        said = cli.refused("condense", "digits", "--ipc", 2, "--steps", 40, "--output", output, "--resume")
        assert "ipc was 1, is 2" in said
        assert output.with_name(f"{output.name}.checkpoint").exists()

    def test_a_full_disk_is_one_line_and_keeps_the_checkpoint(
        self, cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OutputError("set.safetensors: No space left on device; free the disk")

        monkeypatch.setattr(SyntheticSet, "save", full)
        said = cli.refused("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert "No space left on device" in said
        assert "--resume" in said
        assert (tmp_path / "set.safetensors.checkpoint").exists()

    def test_divergence_keeps_the_last_good_set(
        self, cli: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fedcondense.condensing
        from fedcondense.errors import DivergenceError

        def diverge(*_: object, **__: object) -> None:
            raise DivergenceError("the loss is nan at step 7", SyntheticSet.load(made))

        monkeypatch.setattr(fedcondense.condensing, "condense", diverge)
        ended = cli.run("condense", "digits", *QUICK, "--output", tmp_path / "set.safetensors")
        assert ended.exit_code == 2
        assert ended.stderr.splitlines()[-1] == "error: the loss is nan at step 7"
        assert (tmp_path / "set-last-good.safetensors").read_bytes() == made.read_bytes()

    def test_an_error_of_the_system_names_the_file(
        self, cli: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fedcondense.sets.pictures

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "grid.png")

        monkeypatch.setattr(fedcondense.sets.pictures, "show_set", full)
        said = cli.refused("show", made, "--output", tmp_path / "grid.png")
        assert "grid.png: No space left on device" in said

    def test_a_bug_keeps_its_traceback(
        self, cli: Any, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        import fedcondense.sets.pictures

        monkeypatch.setattr(fedcondense.sets.pictures, "show_set", lambda *_: 1 / 0)
        assert isinstance(cli.run("show", made, "--output", tmp_path / "grid.png").exception, ZeroDivisionError)
