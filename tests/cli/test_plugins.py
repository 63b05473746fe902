"""A user's own file: what is wrong in it is one line that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedcondense.networks import NETWORKS
from fedcondense.plugins import fault_of_plugin, load_plugins

RGB = """
from torch import nn
from fedcondense import NETWORKS
class Rgb(nn.Module):
    def __init__(self, shape, classes):
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)
    def forward(self, x):
        return self.layer(x).mean((2, 3))
NETWORKS["rgb-of-test"] = Rgb
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def f(:\n", "line 1: SyntaxError"),
        ("\n\n1 / 0\n", "line 3: ZeroDivisionError"),
        ("import nothing_of_this_name\n", "ModuleNotFoundError"),
        ("raise SystemExit(0)\n", "line 1: SystemExit"),
        ("x = open('nowhere')\n", "FileNotFoundError"),
        ("\0", "null bytes"),
        ("raise RuntimeError('two\\nlines')\n", "RuntimeError"),
    ],
)
def test_a_file_that_does_not_run(cli: Any, tmp_path: Path, text: str, says: str) -> None:
    plugin = tmp_path / "mine.py"
    plugin.write_text(text)
    said = cli.refused("plan", "digits", "--plugin", plugin)
    assert "mine.py" in said
    assert says in said


def test_a_folder_and_a_text_are_no_plugins(cli: Any, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    assert "no such plugin" in cli.refused("plan", "digits", "--plugin", tmp_path)
    assert "must end in .py" in cli.refused("plan", "digits", "--plugin", tmp_path / "a.txt")


def test_what_a_plugin_raises_later_is_told_as_its_own(tmp_path: Path) -> None:
    plugin = tmp_path / "later.py"
    plugin.write_text("from fedcondense import STARTS\ndef mine(*_, **__):\n    raise ValueError('by chance')\n")
    load_plugins([plugin])
    import sys

    with pytest.raises(ValueError, match="by chance") as raised:
        sys.modules["fedcondense_plugin_later"].mine()
    assert "later.py, line 3, in mine: ValueError: by chance" in fault_of_plugin(raised.value)
    assert fault_of_plugin(KeyError("ours")) == ""


def test_a_network_for_other_images(cli: Any, tmp_path: Path) -> None:
    plugin = tmp_path / "rgb.py"
    plugin.write_text(RGB)
    try:
        cli.refused("condense", "digits", "--objective", "dm", "--steps", 1, "--ipc", 1, "--network", "rgb-of-test",
                    "--no-evaluate", "--plugin", plugin, "--output", tmp_path / "a.safetensors")  # fmt: skip
    finally:
        NETWORKS.pop("rgb-of-test", None)
    assert not (tmp_path / "a.safetensors").exists()
