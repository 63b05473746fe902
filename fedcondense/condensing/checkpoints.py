"""Checkpoints of a run: one safetensors file, replaced whole, refused for another configuration."""

from __future__ import annotations

import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fedcondense.errors import ResumeError
from fedcondense.files import write_file

__all__ = ["Checkpoint"]

_RENAMED = {
    "AgedPool": "TrainedPool",
    "Online": "OnlineTrained",
    "RealTrained": "TrainedOnReal",
    "Trained": "TrainedOnSynthetic",
}


@dataclass
class Checkpoint:
    """Where and how often a run keeps its state, and whether it goes on from one.

    Args:
        path: The file; whoever saved the run's set removes it.
        every_s: Seconds between two writes, at least.
        resume: Go on from the file if there is one.
    """

    path: str | os.PathLike[str]
    every_s: float = 5.0
    resume: bool = False
    _written: float = field(default_factory=time.monotonic, repr=False)

    def is_due(self) -> bool:
        """Say whether `every_s` passed since the last write."""
        return time.monotonic() - self._written >= self.every_s

    def write(self, configuration: dict[str, Any], state: dict[str, Any]) -> None:
        """Replace the file by `state`: nested dicts and lists of tensors, numbers and texts."""
        tensors: dict[str, Tensor] = {}
        tree = _split(state, tensors)
        text = json.dumps({"configuration": configuration, "state": tree})
        write_file(self.path, safetensors.torch.save(tensors, metadata={"checkpoint": text}), overwrite=True)
        self._written = time.monotonic()

    def read(self, configuration: dict[str, Any]) -> dict[str, Any] | None:
        """Return the state to go on from, or None: there is none, or `resume` is false.

        Raises:
            ResumeError: The file is damaged, or of another configuration; the message lists what differs.
        """
        if not self.resume or not Path(self.path).exists():
            return None
        try:
            with safetensors.safe_open(self.path, framework="pt") as file:
                content = json.loads(file.metadata()["checkpoint"])
                state = dict(_join(content["state"], {name: file.get_tensor(name) for name in file.keys()}))  # noqa: SIM118
            before = _as_named_today(dict(content["configuration"]))
        except (OSError, ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ResumeError(f"{self.path} is no checkpoint ({error}); delete it and start again") from None
        differs = [
            f"{name} was {before.get(name)!r}, is {configuration.get(name)!r}"
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


def _as_named_today(configuration: dict[str, Any]) -> dict[str, Any]:
    """Return an older configuration with today's names of sources, which were classes of one module."""
    told = dict(configuration)
    if "recipe" in told:
        told["recipe"] = re.sub(r"source=<class '(?:\w+\.)*(\w+)'>", r"source='\1'", str(told["recipe"]))
    for name, pattern in (("recipe", r"(?<=source=')\w+(?=')"), ("source", r"^\w+(?=\()")):
        if name in told:
            told[name] = re.sub(pattern, lambda found: _RENAMED.get(found[0], found[0]), str(told[name]))
    return told


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
