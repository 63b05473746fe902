"""A file of lines that can only grow: damage, edits and cuts are noticed, and a crash in mid-line does no harm.

A line is a SHA-256 and a text; the SHA-256 covers the text and the SHA-256 before it, so that an edited or missing line
breaks the chain. A hidden neighbour, ``.NAME.head``, is written after a line and before `Turn.append` returns: how many
lines there are, and the last one's SHA-256. So a file that was cut between lines, emptied, or deleted by itself is
noticed, too. What follows the line that the head names was being appended when a process died: a valid line stands, and
of a torn one its bytes stay where they are, covered by the SHA-256 of the line after it. Nothing is ever cut off.

It withstands accidents, not whoever may write the folder: they can restore both files from a copy, compute the chain
anew, or delete both.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from fedcondense.errors import OutputError, ResumeError
from fedcondense.flower.private_files import take_turns, write_private

__all__ = ["Turn", "turn"]

_BEGIN = b"0" * 64


@dataclass
class Turn:
    """The file while no other process has it.

    Args:
        path: Where.
        lines: The texts of the valid lines.
        torn: How many pieces of lines processes left that died.
    """

    path: Path
    lines: list[bytes]
    torn: int
    _file: int
    _before: list[bytes]  # what the next line's SHA-256 covers beside its text
    _cut_short: bool  # the last line or piece of one has no newline

    def append(self, text: bytes) -> None:
        """Add a line; it is on the disk when this returns. Once in a turn.

        Raises:
            OutputError: The disk is full, say.
        """
        digest = _digest(self._before, text)
        line = b"\n" * self._cut_short + digest + b" " + text + b"\n"
        try:
            while line:
                line = line[os.write(self._file, line) :]
            os.fsync(self._file)
        except OSError as error:
            raise OutputError(f"{self.path}: {error.strerror}; free the disk") from error
        _write_head(self.path, len(self.lines) + 1, digest)


@contextmanager
def turn(path: Path) -> Iterator[Turn]:
    """Wait for one's turn, make the file where there never was one, and read it.

    Raises:
        ResumeError: It is damaged, cut or missing.
        OutputError: It cannot be opened or made.
    """
    began = _head(path).exists()  # looked for first: a process that begins now makes the file before its head
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path.parent}: {error.strerror}; choose a folder that can be made") from error
    try:
        with take_turns(path, make=not began) as file:
            os.fchmod(file, 0o600)
            with open(file, "rb", closefd=False) as reader:
                blob = reader.read()
            if not blob and not _head(path).exists():
                _write_head(path, 0, _BEGIN)
            yield _follow(path, file, blob)
    except FileNotFoundError:
        _refuse(path, f"is missing, though {_head(path).name} beside it says that it was there")


def _follow(path: Path, file: int, blob: bytes) -> Turn:
    """Follow the chain to the line that the head names, and beyond it as far as it is valid."""
    head, texts, before, torn = _read_head(path), list[bytes](), [_BEGIN], 0
    reached = head == (0, _BEGIN)
    for line in blob.removesuffix(b"\n").split(b"\n") if blob else ():
        digest, _, text = line.partition(b" ")
        if digest == _digest(before, text):
            texts.append(text)
            torn += len(before) - 1
            before = [digest]
            reached = reached or head == (len(texts), digest)
        else:
            before.append(line)  # torn, if the next valid line covers it or the head is reached
    if not reached:
        _refuse(path, f"has {len(texts)} lines that follow from each other, of {head[0]} that were written")
    return Turn(path, texts, torn + len(before) - 1, file, before, not blob.endswith(b"\n") and blob != b"")


def _digest(before: list[bytes], text: bytes) -> bytes:
    return hashlib.sha256(b"\n".join((*before, text))).hexdigest().encode()


def _head(path: Path) -> Path:
    return path.with_name(f".{path.name}.head")


def _write_head(path: Path, count: int, digest: bytes) -> None:
    write_private(_head(path), b"%d %s\n" % (count, digest))


def _read_head(path: Path) -> tuple[int, bytes]:
    try:
        count, digest = _head(path).read_bytes().split()
        return int(count), digest
    except FileNotFoundError:
        _refuse(path, f"has lines, but {_head(path).name} beside it is missing")
    except (OSError, ValueError):
        _refuse(path, f"cannot be checked: {_head(path).name} beside it is damaged")


def _refuse(path: Path, what: str) -> NoReturn:
    raise ResumeError(
        f"{path} {what}; look at it (a line is a checksum and JSON), then restore both files from a copy, or move both "
        "away to begin at zero, which forgets what was counted"
    )
