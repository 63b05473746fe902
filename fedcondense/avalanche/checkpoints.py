"""Checkpoints of a strategy that work on current torch, and leave the last one whole when the run is killed."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import torch
from avalanche import checkpointing

from fedcondense.checksums import append_checksum, without_checksum
from fedcondense.errors import ResumeError, SettingError
from fedcondense.files import write_file

__all__ = ["maybe_load_checkpoint", "save_checkpoint"]


def save_checkpoint(strategy: Any, path: str | os.PathLike[str], exclude: list[str] | None = None) -> Path:
    """Write a strategy to a file, condensed buffers as bytes; as `avalanche.checkpointing.save_checkpoint`.

    The stock function fails on current torch for any strategy with an optimizer: torch deletes the modules of its
    optimizers from `torch.optim`, so that their classes cannot be found by name. They are put back first.

    A checksum follows: a file that was damaged since is refused, and not unpickled.

    Args:
        strategy: After `train`, not within.
        path: Replaced whole, or not at all.
        exclude: Attributes to leave out.

    Raises:
        SettingError: A part of it cannot be pickled, such as the `replay_loader` of a stock `MIRPlugin`.
        OutputError: The path cannot be written.
    """
    _reattach_optimizers()
    blob = io.BytesIO()
    try:
        checkpointing.save_checkpoint(strategy, blob, exclude)
    except (TypeError, pickle.PicklingError) as error:
        raise SettingError(
            f"{path}: the strategy holds what cannot be kept ({error}); clear it, or exclude it"
        ) from error
    return write_file(path, append_checksum(blob.getvalue()), overwrite=True)


def maybe_load_checkpoint(strategy: Any, path: str | os.PathLike[str], map_location: Any = None) -> tuple[Any, int]:
    """Return the strategy as it was saved and the number of experiences it was trained on; (strategy, 0) if never.

    As `avalanche.checkpointing.maybe_load_checkpoint`: model, optimizer, plugins and buffer are the file's from then
    on, so reach them through the strategy; names given to them before mean the old ones. The file is pickled: load only
    what you wrote. From others, take only the buffer's own file (`CondensedBuffer.load`), which runs no code.

    Raises:
        ResumeError: The file is damaged, or made by other versions. What is damaged is not unpickled.
    """
    _reattach_optimizers()
    if not Path(path).exists():
        return strategy, 0
    try:
        blob = io.BytesIO(without_checksum(Path(path).read_bytes()))
        with contextlib.redirect_stdout(io.StringIO()):  # Avalanche prints a line for each device that it meets
            loaded: tuple[Any, int] = checkpointing.maybe_load_checkpoint(strategy, blob, map_location)
    except Exception as error:  # unpickling may raise anything
        raise ResumeError(
            f"{path} is no checkpoint ({error}); move it away to begin anew, and with it what the new run is not to "
            "replace, such as the buffer's own file"
        ) from error
    return loaded


def _reattach_optimizers() -> None:
    for name, module in list(sys.modules.items()):
        package, _, last = name.rpartition(".")
        if package == "torch.optim" and not hasattr(torch.optim, last):
            setattr(torch.optim, last, module)
