"""A run that is not done: the command that goes on with it, and what is said where its network is asked for."""

from __future__ import annotations

import json
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from fedcondense.cli.new_app import apps_here
from fedcondense.cli.unfinished import go_on_with

FORGOTTEN = "south was forgotten; rounds from 2 to 5 are to be run again: resume = true"


def run_in(folder: Path, **changes: Any) -> Path:
    """Write the result of a run of `anchored` that is not done, with the app's settings but for some."""
    app = apps_here()["anchored"] / "pyproject.toml"
    asked = tomllib.loads(app.read_text())["tool"]["flwr"]["app"]["config"] | {"ipc": 2, "output": str(folder)}
    record = {"error": FORGOTTEN, "settings": asked | changes}
    folder.mkdir(exist_ok=True)
    (folder / "result.json").write_text(json.dumps(record))
    return folder


def test_it_names_the_folder_and_what_is_not_the_app_s_own(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "my run", data="folder:/data/all sites", resume=True)
    words = shlex.split(go_on_with(folder))
    assert words[:-1] == ["flwr", "run", str(apps_here()["anchored"]), "--stream", "--run-config"]
    told = tomllib.loads(words[-1].replace(" ipc=", "\nipc=").replace(" data=", "\ndata="))
    assert told == {"resume": str(folder), "ipc": 2, "data": "folder:/data/all sites"}


def test_no_more_nodes_are_waited_for_than_are_left(tmp_path: Path) -> None:
    folder = run_in(tmp_path / "run")
    path = folder / "result.json"
    record = json.loads(path.read_text())
    record["settings"]["min-available-nodes"] = 3
    path.write_text(json.dumps({**record, "sites": ["north", "east"]}))
    assert "min-available-nodes=2" in go_on_with(folder)


def test_of_a_done_run_and_of_another_app_there_is_none(tmp_path: Path) -> None:
    assert go_on_with(run_in(tmp_path, mine=1)) == ""
    (tmp_path / "result.json").write_text(json.dumps({"settings": {"strategy": "anchored"}}))
    assert go_on_with(tmp_path) == ""


@pytest.mark.parametrize("words", [("predict", "picture.png"), ("export-network", "-o", "network.pt2")])
def test_a_network_that_is_not_there_yet_is_said_so_with_the_command(cli: Any, tmp_path: Path, words: Any) -> None:
    folder = run_in(tmp_path / "run")
    said = cli.refused(words[0], folder, *words[1:])
    assert f"{folder} has no network yet: {FORGOTTEN}; go on with: flwr run " in said
