"""Checkpoints of a run: one safetensors file with a checksum, replaced whole, refused for another configuration."""

from __future__ import annotations

import logging
import os
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fedcondense.checksums import DamagedError, dump_tensors, load_tensors
from fedcondense.errors import ResumeError
from fedcondense.files import hold, write_file

__all__ = ["Checkpoint"]

_FORMAT = 2
_LOG = logging.getLogger(__name__)


@dataclass
class Checkpoint:
    """Where and how often a run keeps its state, and whether it goes on from one.

    Args:
        path: The file; whoever saved the run's set removes it. One run has it at a time.
        every_s: Seconds between two writes, at least.
        resume: Go on from the file if there is one.
        anew: Start again, with a line in the log, where the file is damaged or of another run, instead of refusing:
            for files that nobody looks after.
    """

    path: str | os.PathLike[str]
    every_s: float = 5.0
    resume: bool = False
    anew: bool = False
    _written: float = field(default_factory=time.monotonic, repr=False)

    def is_due(self) -> bool:
        """Say whether `every_s` passed since the last write."""
        return time.monotonic() - self._written >= self.every_s

    def held(self) -> AbstractContextManager[None]:
        """Have the file for the length of a run.

        Raises:
            OutputError: Another run has it.
        """
        return hold(self.path)

    def write(self, configuration: dict[str, Any], state: dict[str, Any]) -> None:
        """Replace the file by `state`: nested dicts and lists of tensors, numbers and texts."""
        tensors: dict[str, Tensor] = {}
        record = {"format": _FORMAT, "configuration": configuration, "state": _split(state, tensors)}
        write_file(self.path, dump_tensors(tensors, "checkpoint", record), overwrite=True)
        self._written = time.monotonic()

    def read(self, configuration: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state to go on from, or None: there is none, or `resume` is false.

        Raises:
            ResumeError: The file is damaged, or of another configuration; the message lists what differs.
        """
        if not self.resume or not Path(self.path).exists():
            return None
        try:
            return self._read(configuration)
        except ResumeError as error:
            if not self.anew:
                raise
            _LOG.warning("%s; the run starts again", error)
            return None

    def _read(self, configuration: dict[str, Any]) -> dict[str, Any]:
        try:
            tensors, record = load_tensors(Path(self.path).read_bytes(), "checkpoint")
            if (number := record["format"]) != _FORMAT:
                raise DamagedError(f"it is of format {number!r}, this version reads {_FORMAT}")
            before, state = dict(record["configuration"]), dict(_join(record["state"], tensors))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ResumeError(
                f"{self.path} is no checkpoint of this version, or is damaged ({error}); delete it and start again"
            ) from None
        differs = [
            f"{name} was {before.get(name)!r:.200}, is {configuration.get(name)!r:.200}"
            for name in sorted({*before, *configuration})
            if before.get(name) != configuration.get(name)
        ]
        if differs:
            raise ResumeError(
                f"{self.path} belongs to another run: {'; '.join(differs)}. Resume with the settings it was started "
                "with, or delete it to start again"
            )
        return state

    def remove(self) -> None:
        """Delete the file: the run is done."""
        Path(self.path).unlink(missing_ok=True)


def _split(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Return a JSON tree in which tensors are names into `tensors`."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"items": [[key, _split(item, tensors)] for key, item in value.items()]}  # keys may be integers
    if isinstance(value, (list, tuple)):
        return [_split(item, tensors) for item in value]
    return value


def _join(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict):
        if "tensor" in tree:
            return tensors[tree["tensor"]]
        return {key: _join(item, tensors) for key, item in tree["items"]}
    if isinstance(tree, list):
        return [_join(item, tensors) for item in tree]
    return tree
