"""Files of a node that nobody else reads, written whole or not at all, and turns that processes take. POSIX only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedcondense.errors import OutputError
from fedcondense.files import PART, lock, remove, write_file

__all__ = ["PART", "remove", "take_turns", "write_private"]


def write_private(path: Path, blob: bytes) -> None:
    """Write a file that only its owner reads (mode 0600), whole or not at all, and on the disk when this returns.

    Raises:
        OutputError: It cannot be written; a file that was there is still there.
    """
    write_file(path, blob, overwrite=True, private=True)


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
        lock(file, path, wait=True)  # of this opening, so that threads take turns too; closing ends it
        yield file
    finally:
        os.close(file)
