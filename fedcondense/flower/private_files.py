"""Files of a node that nobody else reads, written whole or not at all, and turns that processes take. POSIX only."""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedcondense.errors import OutputError

__all__ = ["PART", "remove", "take_turns", "write_private"]

PART = ".part"
"""What the name of a file that is being written ends in; it begins with a dot and the name it will have."""


def write_private(path: Path, blob: bytes) -> None:
    """Write a file that only its owner reads (mode 0600), whole or not at all, and on the disk when this returns.

    The temporary neighbour has a name that nobody can guess and is never one that exists, so that a link which somebody
    put there is not followed.

    Raises:
        OutputError: It cannot be written; a file that was there is still there.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with open(file, "wb") as writer:
            writer.write(blob)
            writer.flush()
            os.fsync(file)
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)  # its entry, too, has to outlive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        remove(temporary)
        raise OutputError(f"{path}: {error.strerror}; free the disk or choose a folder that can be written") from error


@contextmanager
def take_turns(path: Path, *, make: bool = True) -> Iterator[int]:
    """Open a file (mode 0600) to read and append, and wait until no other thread or process has it open so.

    Args:
        path: The file; no link.
        make: Whether to make it where there is none.

    Raises:
        FileNotFoundError: There is none and it was not to be made.
        OutputError: It cannot be opened, or is a link.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | (os.O_CREAT if make else 0)
    try:
        file = os.open(path, flags, 0o600)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise OutputError(f"{path}: {error.strerror}; needed: a plain file in a folder of the node's own") from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # of this opening, so that threads take turns too; closing ends it
        yield file
    finally:
        os.close(file)


def remove(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()
