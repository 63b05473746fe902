"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from fedcondense.errors import OutputError

__all__ = ["write_file"]


def write_file(path: str | os.PathLike[str], blob: bytes, overwrite: bool) -> Path:
    """Write bytes to a path through a temporary neighbour, so that a full disk or a kill leaves the old file."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another path or pass overwrite=True (--overwrite)")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # a path through a file has nothing to remove, and says so in its own way
            temporary.unlink()
        raise OutputError(f"{path}: {error.strerror}; free the disk or choose a folder that can be written") from error
    return path
