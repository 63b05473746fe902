"""Runs commands in this process, for the tests of this folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from fedcondense.cli import app, main

COMMANDS = get_command(app)


class CommandLine:
    """Runs commands and says what came of them."""

    def run(self, *arguments: object) -> Any:
        """Run a command, and return typer's result of it, whose own runner makes all commands anew for each."""
        return super(CliRunner, CliRunner()).invoke(COMMANDS, [str(argument) for argument in arguments])

    def done(self, *arguments: object) -> Any:
        """Run a command that must succeed, and return its JSON."""
        ended = self.run(*arguments, "--format", "json")
        assert ended.exit_code == 0, ended.output
        return json.loads(ended.stdout)

    def refused(self, *arguments: object) -> str:
        """Run a command that must be refused, and return its one line."""
        ended = self.run(*arguments)
        assert ended.exit_code == 2, (ended.output, ended.exception)
        assert ended.stdout == ""
        lines = ended.stderr.splitlines()
        assert len(lines) == 1, ended.stderr
        assert lines[0].startswith("error: ")
        return str(lines[0])


@pytest.fixture(scope="session")
def cli() -> CommandLine:
    return CommandLine()


@pytest.fixture(scope="session")
def start(forked: Any) -> Callable[..., Any]:
    """Return a function that starts a command in a copy of this process, with signals and exit codes of its own."""

    def started(folder: Path, *arguments: object) -> Any:
        def command() -> None:
            sys.argv = ["fedcondense", *map(str, arguments)]
            main()

        return forked(command, folder)

    return started


@pytest.fixture(scope="session")
def made(cli: CommandLine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a set of digits in a folder of its own."""
    path = tmp_path_factory.mktemp("made") / "digits.safetensors"
    cli.done("condense", "digits", "--ipc", 1, "--steps", 2, "--no-evaluate", "--output", path)
    return path
