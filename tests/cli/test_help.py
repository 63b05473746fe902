"""The help of every command: an example, the JSON keys, and nothing heavy imported for it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import fedcondense

COMMANDS = ("data", "plan", "condense", "evaluate", "relabel", "show", "federate", "report", "join", "train", "forget")


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
        subprocess.run([sys.executable, "-c", code], check=True, timeout=600)


def test_nothing_asks_for_click_itself() -> None:
    """Newer versions of typer have it inside, and an install without Flower brings those."""
    package = Path(fedcondense.__file__).parent
    asking = [
        path
        for path in package.rglob("*.py")
        if re.search(r"^\s*(import|from) click|click_type", path.read_text(), re.M)
    ]
    assert asking == []
