"""`plan`: what a run would take, and the command that runs it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from fedcondense.sets.synthetic import SyntheticSet


def test_plan_prints_the_documented_keys(cli: Any) -> None:
    result = cli.done("plan", "digits", "--ipc", 1, "--steps", 10)
    assert {"nbytes", "decoded", "steps", "seconds", "memory", "advice"} <= set(result)
    assert result["decoded"] == 10


def test_plan_ends_with_the_run_that_it_planned(cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("plan", "condense"):  # it sets precision for the process
        monkeypatch.setattr(f"fedcondense.cli.{name}.set_up", lambda *given: None)
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


def test_a_budget_is_planned_and_passed_on(cli: Any, tmp_path: Path) -> None:
    result = cli.done("plan", "digits", "--budget", "3 kB", "--steps", 2, "--network", "convnet1-w16")
    assert result["codec"] == "bits-2"
    assert result["nbytes"] <= result["most"] == 3000
    ended = cli.run("plan", "digits", "--budget", "3 kB", "--steps", 2, "--network", "convnet1-w16")
    assert re.search(r"about (2\.9\d|3) kB, never above 3 kB", ended.stdout)
    assert "--budget '3 kB'" in ended.stderr
    assert "--ipc" not in ended.stderr
