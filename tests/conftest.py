"""What holds for every test: one thread, generated input that is the same each time and is not timed, and copies."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

# Results do not depend on the machine's cores, and workers of pytest-xdist do not fight.
torch.set_num_threads(1)
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


class Ended(NamedTuple):
    """What a process leaves: its exit code, or minus the signal that ended it, and what it printed."""

    code: int | None
    out: str
    err: str


class Forked:
    """Work in a process of its own: a copy of this one, so that nobody pays seconds to import everything again.

    Args:
        work: What it does.
        folder: Where what it prints is kept, in a file each for stdout and stderr.
    """

    def __init__(self, work: Callable[[], object], folder: Path) -> None:
        self._printed = [folder / f"{len(list(folder.glob('*.printed')))}-{name}.printed" for name in ("out", "err")]
        for path in self._printed:
            path.touch()
        self._process = multiprocessing.get_context("fork").Process(target=self._run, args=(work,))
        self._process.start()

    def _run(self, work: Callable[[], object]) -> None:
        for number, path in enumerate(self._printed, 1):
            with open(path, "wb") as file:
                os.dup2(file.fileno(), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        signal.signal(signal.SIGINT, signal.default_int_handler)  # deaf to it, if the suite is in a shell's background
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        work()

    def is_running(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        pid = self._process.pid
        assert pid is not None
        os.kill(pid, number)

    def end(self, seconds: float = 600) -> Ended:
        """Wait until it ended."""
        self._process.join(seconds)
        return Ended(self._process.exitcode, *(path.read_text() for path in self._printed))


@pytest.fixture(scope="session")
def forked() -> type[Forked]:
    """Return what runs a function in a copy of this process."""
    importlib.import_module("torch._dynamo")  # what torch imports at the first step, each copy would import again
    return Forked
