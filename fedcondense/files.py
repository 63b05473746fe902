"""Files that are written whole or not at all, and outputs that one run has at a time."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedcondense.errors import OutputError

__all__ = ["PART", "hold", "lock", "remove", "write_file"]

PART = ".part"
"""What the name of a file that is being written ends in; it begins with a dot and the name it will have."""

_LOG = logging.getLogger(__name__)
_NEW = os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)  # what somebody put there is not followed
_HERE = "free the disk or choose a folder that can be written"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EISDIR)  # of a folder, on some file systems


def write_file(path: str | os.PathLike[str], blob: bytes, overwrite: bool, *, private: bool = False) -> Path:
    """Write bytes to a path through a neighbour, so that a full disk or a kill leaves the old file, and return it.

    The neighbour has a name that nobody can guess, and is locked while it is written: what a killed run left is cleared
    away, what another one is writing is not. A new file has the mode that the umask says, a replaced one keeps its own.
    The file is on the disk when this returns.

    Args:
        path: Where; missing folders are made. A link is replaced, and not followed.
        blob: All of it.
        overwrite: Whether to replace a file that is there.
        private: Whether it is its owner's alone (mode 0600), whatever it was.

    Raises:
        OutputError: It cannot be written, or is there already; a file that was there is still there.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise _taken(path)
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_away(path)
        temporary, file = _begin(path, None if private else _mode_of(path), private)
        with open(file, "wb") as writer:
            writer.write(blob)
            writer.flush()
            os.fsync(file)
            _put(temporary, path, overwrite)
        _sync_folder(path.parent)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(f"{path}: {error.strerror}; {_HERE}") from error
    finally:
        if temporary is not None:
            remove(temporary)
    return path


def _taken(path: Path) -> OutputError:
    return OutputError(f"{path} exists; choose another path or pass overwrite=True (--overwrite)")


def _mode_of(path: Path) -> int | None:
    """Return the permissions of a file that is there; None: the umask's."""
    with suppress(OSError):
        found = path.lstat()
        if stat.S_ISREG(found.st_mode):
            return stat.S_IMODE(found.st_mode) & 0o777
    return None


def _begin(path: Path, mode: int | None, private: bool) -> tuple[Path, int]:
    """Make and lock a neighbour."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{PART}")
        file = os.open(temporary, os.O_WRONLY | _NEW, 0o600 if private or mode is not None else 0o666)
        try:
            lock(file, temporary, wait=True)
            if not _is_at(file, temporary):  # somebody took it for left behind, before it was locked
                os.close(file)
                continue
            if mode is not None:
                os.fchmod(file, mode)
        except BaseException:
            os.close(file)
            remove(temporary)
            raise
        return temporary, file


def _put(temporary: Path, path: Path, overwrite: bool) -> None:
    """Give the neighbour its name; unless it may replace a file, only where there is none."""
    if not overwrite:
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise _taken(path) from None
        except OSError:  # a file system without links
            if path.exists():
                raise _taken(path) from None
        else:
            return
    os.replace(temporary, path)


def _clear_away(path: Path) -> None:
    """Remove what killed runs left of this file: neighbours that nobody has locked."""
    with os.scandir(path.parent) as entries:
        names = [e.name for e in entries if e.name.startswith(f".{path.name}.") and e.name.endswith(PART)]
    for left in (path.with_name(name) for name in names):
        with suppress(OSError):  # it is somebody else's
            file = os.open(left, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
            try:
                if stat.S_ISREG(os.fstat(file).st_mode) and lock(file, left, wait=False):
                    remove(left)
            finally:
                os.close(file)


def _sync_folder(folder: Path) -> None:
    """Put the folder's new entry on the disk: it has to outlive a power cut, too."""
    try:
        file = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


def lock(file: int, path: Path, *, wait: bool) -> bool:
    """Lock an open file for this opening alone; closing it ends that.

    Args:
        file: Its descriptor.
        path: For the log.
        wait: Whether to wait for whoever has it.

    Returns:
        Whether it is ours. Where there are no locks it is taken to be, and the log says so.
    """
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except (ImportError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        _LOG.warning("%s: no files can be locked there; see to it that one process at a time writes there", path.parent)
    return True


@contextmanager
def hold(output: str | os.PathLike[str], *, is_folder: bool = False, wait: bool = False) -> Iterator[None]:
    """Have an output for as long as a run lasts: a second run on it is refused, and loses nothing of the first.

    The lock is a file beside the output, or in it where it is a folder, with the process's number; the system ends it
    with the process, however that ends.

    Args:
        output: A file or folder, which need not be there.
        is_folder: Whether it is a folder; it is made.
        wait: Wait for the other run instead of refusing.

    Raises:
        OutputError: Another run has it, or it cannot be written.
    """
    output = Path(output)
    path = output / ".run.lock" if is_folder else output.with_name(f".{output.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = _locked(path, wait)
    except OSError as error:
        raise OutputError(f"{output}: {error.strerror}; {_HERE}") from error
    if file is None:
        raise OutputError(
            f"{output} is being written by another run, of process {_number_in(path)} ({path} is locked); wait for it, "
            "end it, or choose another output"
        )
    try:
        yield
    finally:
        remove(path)
        os.close(file)


def _locked(path: Path, wait: bool) -> int | None:
    """Return a lock file, opened and locked; None: another has it."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
        try:
            if not lock(file, path, wait=wait):
                os.close(file)
                return None
            if _is_at(file, path):
                try:
                    os.ftruncate(file, 0)
                    os.write(file, b"%d\n" % os.getpid())
                except OSError:  # a full disk: nothing stays behind
                    remove(path)
                    raise
                return file
        except OSError:
            os.close(file)
            raise
        os.close(file)  # its run ended and removed it meanwhile


def _number_in(path: Path) -> str:
    with suppress(OSError):
        return path.read_text(encoding="ascii", errors="replace").strip()[:20] or "unknown"
    return "unknown"


def _is_at(file: int, path: Path) -> bool:
    """Say whether an open file still is what a path leads to."""
    try:
        return os.path.samestat(os.fstat(file), path.lstat())
    except FileNotFoundError:
        return False


def remove(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()
