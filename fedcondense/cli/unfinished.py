"""A run of ``flwr run`` that is not done: the command that goes on with it, and what to do where it has no network."""

from __future__ import annotations

import json
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcondense.cli.new_app import apps_here
from fedcondense.errors import SettingError

if TYPE_CHECKING:
    from fedcondense.networks.saved import SavedNetwork

__all__ = ["go_on_with", "network_of"]


def network_of(path: Path) -> SavedNetwork:
    """Load a network.

    Raises:
        SettingError: It is to be that of a run which is not done; the message says how to go on with it.
    """
    from fedcondense.networks.saved import FILE, load_network

    if (path / "result.json").is_file() and not (path / FILE).exists():
        from fedcondense.report.results import read_result

        if error := read_result(path).get("error"):
            again = go_on_with(path)
            raise SettingError(f"{path} has no network yet: {error}{f'; go on with: {again}' if again else ''}")
    return load_network(path)


def go_on_with(folder: Path) -> str:
    """Return the command that goes on with the run in a folder; empty: it is done, or no app here makes such a run.

    It names those settings of the run that are not the app's own.
    """
    from fedcondense.report.results import read_result

    record = read_result(folder)
    asked = record.get("settings")
    if not (record.get("error") and isinstance(asked, Mapping) and "strategy" in asked):
        return ""
    found = _app_of(asked)
    if found is None:
        return ""
    app, own = found
    given: dict[str, Any] = {"resume": str(folder.absolute())}
    given |= {key: value for key, value in asked.items() if key not in ("resume", "output") and own.get(key) != value}
    left = len(record.get("sites") or ())
    if left and {**own, **given}.get("min-available-nodes", 0) > left:
        given["min-available-nodes"] = left  # a site was forgotten
    config = " ".join(f"{key}={json.dumps(value)}" for key, value in given.items())
    return shlex.join(["flwr", "run", str(app), "--stream", "--run-config", config])


def _app_of(asked: Mapping[str, Any]) -> tuple[Path, dict[str, Any]] | None:
    """Return the folder of an app that takes all settings of a run, and its own; that of the run's strategy first."""
    for app in sorted(apps_here().values(), key=lambda path: path.name != asked["strategy"]):
        config = tomllib.loads((app / "pyproject.toml").read_text(encoding="utf-8"))
        own: dict[str, Any] = config["tool"]["flwr"]["app"]["config"]
        if asked.keys() <= own.keys():
            return app, own
    return None
