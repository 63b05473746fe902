"""`doctor`: what is installed and what is missing."""

from __future__ import annotations

import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest

from fedcondense.cli import doctor

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]


def name_of(requirement: str) -> str:
    return requirement.split(">")[0].split("=")[0].split("[")[0]


def test_it_looks_for_what_the_project_asks_for() -> None:
    assert [name_of(one) for one in PROJECT["dependencies"]] == list(doctor.NEEDED)
    asked = {extra: [name_of(one) for one in needs] for extra, needs in PROJECT["optional-dependencies"].items()}
    asked["simulation"] = ["ray"]  # which is what flwr[simulation] is
    assert {extra: list(names) for extra, names in doctor.EXTRAS.items()} == {
        extra: asked[extra] for extra in asked if extra not in ("all", "dev", "docs")
    }


def test_it_says_what_is_there(cli: Any, tmp_path: Path) -> None:
    found = cli.done("doctor", "--data-root", tmp_path)
    assert found["packages"]["torch"]
    assert found["devices"][0] == "cpu"
    assert found["data_root"] == str(tmp_path)
    assert "digits" in found["data"]
    assert found["memory"] > 1 << 28


def test_what_is_missing_comes_with_its_command(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        if package == "pydicom":
            raise PackageNotFoundError
        return "1"

    monkeypatch.setattr(doctor, "version", version)
    assert cli.done("doctor")["missing"][0] == "pydicom: pip install 'fedcondense[dicom]'"
    assert "pip install 'fedcondense[dicom]'" in cli.run("doctor").stdout
