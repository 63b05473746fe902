"""`new-app`: a Flower app in a folder of one's own."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path
from typing import Any

import pytest


def test_an_app_is_a_folder_that_flower_takes(cli: Any, tmp_path: Path) -> None:
    found = cli.done("new-app", "one-shot", "--output", tmp_path / "hospitals")
    assert "pyproject.toml" in found["files"]
    written = tomllib.loads((tmp_path / "hospitals" / "pyproject.toml").read_text())
    assert written["tool"]["flwr"]["app"]["components"]["serverapp"] == "fedcondense.flower.server:app"
    assert not list((tmp_path / "hospitals").rglob("__pycache__"))


@pytest.mark.parametrize("is_there", [True, False])
def test_the_next_command_installs_what_it_lacks(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if is_there else None)
    said = cli.run("new-app", "one-shot", "--output", tmp_path / "my app").stderr.splitlines()
    run = f"flwr run '{tmp_path}/my app' --stream"
    install = "" if is_there else "pip install 'flwr[simulation]' && "
    assert said[-1] == f"next: {install}{run}"


def test_without_a_name_they_are_listed(cli: Any, tmp_path: Path) -> None:
    apps = cli.done("new-app")["apps"]
    assert {"one-shot", "anchored", "growing", "incremental", "iterative"} <= set(apps)
    assert "of which app?" in cli.refused("new-app", "--output", tmp_path / "a")


def test_what_is_there_stays(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "pyproject.toml").write_text("mine")
    assert "is there already" in cli.refused("new-app", "one-shot", "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / "pyproject.toml").read_text() == "mine"
    assert "one-shot" in cli.refused("new-app", "one-shott", "--output", tmp_path / "a")
    assert not (tmp_path / "a").exists()
