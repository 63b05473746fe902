"""Paths that a command writes to: refused before any work where they cannot be written or hold something else."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from fedcondense.errors import OutputError

__all__ = [
    "PICTURE",
    "RUN",
    "SET",
    "SWEEP",
    "check_folder",
    "check_output",
    "check_output_folder",
    "check_resumable",
    "free",
]

SET, PICTURE = "safetensors", "png"
_SAYS = {  # what an ending says that a file is, of those that people give by mistake
    "png": "a picture", "jpg": "a picture", "jpeg": "a picture", "gif": "a picture", "bmp": "a picture",
    "webp": "a picture", "tif": "a picture", "tiff": "a picture", "svg": "a picture", "pdf": "a document",
    "pt": "a file of torch", "pth": "a file of torch", "ckpt": "a file of torch", "checkpoint": "a checkpoint",
    "pkl": "a pickle", "pickle": "a pickle", "npz": "arrays", "npy": "an array", "h5": "an HDF5 file",
    "hdf5": "an HDF5 file", "mat": "a file of MATLAB", "onnx": "an ONNX file", "parquet": "a table", "csv": "a table",
    "tsv": "a table", "json": "JSON", "jsonl": "JSON", "yaml": "YAML", "yml": "YAML", "toml": "TOML", "md": "a text",
    "txt": "a text", "html": "a page", "py": "a program", "zip": "an archive", "tar": "an archive",
    "gz": "an archive", "tgz": "an archive", "safetensors": "a set",
}  # fmt: skip
_LONGEST = 180  # bytes of a name: a checkpoint's and a temporary file's are longer, and most disks take 255


def check_output(path: Path, overwrite: bool, kind: str = SET, reads: Path | None = None) -> None:
    """Refuse a path that exists or whose folder cannot be written, before any work; missing folders are made.

    Args:
        path: Of a file.
        overwrite: Whether a file that is there may be replaced.
        kind: The ending of what is written: another format's would lie.
        reads: A file that the command reads, and does not replace.

    Raises:
        OutputError: The path cannot be used; nothing was changed.
    """
    if path.is_dir() or not path.name or path.name == "..":
        raise OutputError(f"{path} is a folder; give the path of a file in it")
    if len(os.fsencode(path.name)) > _LONGEST:
        name = f"{path.name[:20]}..."
        raise OutputError(f"{name} is a name of {len(os.fsencode(path.name))} bytes; give one of {_LONGEST} at most")
    ending = path.suffix.lower().removeprefix(".")
    if ending in _SAYS and ending != kind:
        raise OutputError(f"{path} would be {_SAYS[ending]} by its name; give one that ends in .{kind}")
    if path.exists() and not path.is_file():
        raise OutputError(f"{path} is no regular file; give the path of a file")
    if path.exists() and reads is not None and reads.exists() and path.samefile(reads):
        raise OutputError(f"{path} is what is read; give another path")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists; choose another path or pass --overwrite")
    check_folder(path.parent)


def check_resumable(output: Path, resume: bool, overwrite: bool) -> Path:
    """Refuse an output path that is taken, unless it belongs to the run that is resumed; return its checkpoint's."""
    if not output.name or output.is_dir():
        check_output(output, overwrite)
    checkpoint = output.with_name(f"{output.name}.checkpoint")
    if not (len(os.fsencode(output.name)) <= _LONGEST and checkpoint.exists()):
        check_output(output, overwrite)
        return checkpoint
    if not (resume or overwrite):
        raise OutputError(f"{checkpoint} is an unfinished run's; pass --resume to go on, or --overwrite to start anew")
    check_output(output, overwrite=True)
    return checkpoint


RUN = ("result.json", "work", "clients", "rounds", "report.html", "joined.safetensors", "weights.safetensors")
_LEFT = {"result.json", "cells", "steps"}  # at once by whoever writes here
SWEEP = ("cells", "sets", "steps", "table.md", "table.csv", "figure.png")


def check_output_folder(folder: Path, writes: Sequence[str]) -> None:
    """Refuse a folder that cannot be written, or that holds somebody's own files by the names that a command writes.

    Args:
        folder: Of a run or a sweep; it is made if need be.
        writes: `RUN` or `SWEEP`.

    Raises:
        OutputError: The folder cannot be used; nothing was changed.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"{folder} is a file; give the path of a folder")
    ending = folder.suffix.lower().removeprefix(".")
    if ending in _SAYS and not folder.exists():
        raise OutputError(f"{folder} would be {_SAYS[ending]} by its name; give the path of a folder")
    others = [name for name in writes if (folder / name).exists()]
    if others and not _LEFT.intersection(others):
        raise OutputError(f"{folder} holds {', '.join(others)} of something else; give a folder of its own")
    check_folder(folder)


def free(path: Path) -> Path:
    """Return a path that a next command can write: one beside it if it is taken, here if its folder is not ours."""
    if not os.access(path.parent, os.W_OK):
        path = Path(path.name)
    taken = (path.with_name(f"{path.stem}{number}{path.suffix}") for number in ("", *(f"-{k}" for k in range(2, 1000))))
    return next(p for p in taken if not (p.exists() or p.with_name(f"{p.name}.checkpoint").exists()))


def check_folder(folder: Path) -> None:
    """Make a folder if need be, and refuse it if no file can be created in it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # the only test that holds for root, quotas and read-only mounts too
            pass
    except OSError as error:
        what = "is a file" if isinstance(error, FileExistsError) else error.strerror
        raise OutputError(f"{folder}: {what}; choose a folder that can be written") from error
