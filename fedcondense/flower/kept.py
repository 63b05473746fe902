"""What a node keeps between messages, since its process serves one: answers, secrets, decoded data, within a bound.

A folder of the node's own holds a file per entry: a SHA-256 of name and content, then the content. Nobody else reads
them (mode 0600, folder 0700), a process that dies leaves the old entry or the new one, and processes take turns.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedcondense.errors import DataError, OutputError, SettingError
from fedcondense.flower.private_files import PART, remove, take_turns, write_private

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["Kept", "keep_data", "kept_data"]

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_ENDING = ".kept"  # with it no name is a path, not even ".."
_DIGEST = 32  # bytes


class Kept:
    """Named bytes that outlive a message; those that were not used for longest go where the bound asks for room.

    A damaged entry counts as absent: it is logged by its name and removed, and the others serve on. Whoever asks must
    be able to do without: a session whose secrets went is over, and an answer is made again.

    Args:
        folder: Where; if there is none it is made, closed to others. None: in memory, for this process.
        limit_bytes: Of all entries together, with 32 bytes for each.
    """

    def __init__(self, folder: Path | None, limit_bytes: int) -> None:
        if type(limit_bytes) is not int or limit_bytes < 0:
            raise SettingError(f"a bound of {limit_bytes!r}; needed: a whole number of bytes, 0 or more")
        self.folder, self.limit_bytes = folder, limit_bytes
        self._memory: dict[str, bytes] = {}  # in the order in which they were used
        self._thread = threading.Lock()
        if folder is not None:
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                if all(path.name.endswith((_ENDING, PART, ".lock", ".checkpoint")) for path in folder.iterdir()):
                    folder.chmod(0o700)  # a folder that holds other things keeps its mode; ours are closed by theirs
            except OSError as error:
                raise OutputError(f"{folder}: {error.strerror}; choose a folder of the node's own") from error

    def __reduce__(self) -> tuple[type[Kept], tuple[Path | None, int]]:
        """Travel to another process as the folder and the bound: what is in memory stays here."""
        return Kept, (self.folder, self.limit_bytes)

    def get(self, name: str) -> bytes | None:
        """Return an entry, or None where there is none or it is damaged."""
        path = self._path(name)
        with self._turn():
            if path is None:
                if name in self._memory:
                    self._memory[name] = self._memory.pop(name)
                return self._memory.get(name)
            try:
                file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # no link, and no pipe to wait for
                with open(file, "rb") as reader:
                    digest, blob = reader.read(_DIGEST), reader.read(self.limit_bytes + 1)
            except FileNotFoundError:
                return None
            except OSError:
                digest, blob = b"", b""
            if digest == _digest(name, blob) and len(blob) <= self.limit_bytes:
                _note_use(path)
                return blob
            _LOG.warning("what was kept as %s is damaged; it is removed, and made again where that can be", name)
            _remove_whatever(path)
            return None

    def put(self, name: str, blob: bytes) -> None:
        """Keep an entry, in the place of one of its name; entries that were not used for longest make room.

        Raises:
            SettingError: The name is none, or the entry alone is above the bound. Nothing changes.
            OutputError: It cannot be written. The entry that was there is still there.
        """
        path, size = self._path(name), len(blob) + _DIGEST
        if size > self.limit_bytes:
            raise SettingError(f"{name}: {size} bytes to keep; this node keeps at most {self.limit_bytes} in all")
        with self._turn():
            if path is None:
                self._memory.pop(name, None)
                while sum(len(kept) + _DIGEST for kept in self._memory.values()) + size > self.limit_bytes:
                    del self._memory[next(iter(self._memory))]
                self._memory[name] = bytes(blob)
                return
            self._make_room(path, size)
            if path.is_dir():
                _remove_whatever(path)
            write_private(path, _digest(name, blob) + blob)
            _note_use(path)

    def names(self) -> list[str]:
        """Return the names of all entries, sorted; whether an entry is sound is for `get` to say."""
        if self.folder is None:
            return sorted(self._memory)
        return sorted(path.name.removesuffix(_ENDING) for path in self.folder.glob(f"*{_ENDING}"))

    def discard(self, name: str) -> None:
        """Remove an entry if there is one."""
        path = self._path(name)
        with self._turn():
            if path is None:
                self._memory.pop(name, None)
            else:
                remove(path)

    def _path(self, name: str) -> Path | None:
        if not _NAME.fullmatch(name):
            raise SettingError(f"{name!r:.150} as a name; needed: 1 to 128 letters, digits, '-', '_' or '.'")
        return None if self.folder is None else self.folder / f"{name}{_ENDING}"

    def _make_room(self, path: Path, size: int) -> None:
        """Remove what writers left that died, and then what was not used for longest."""
        for left in path.parent.glob(f".*{_ENDING}.*{PART}"):  # whoever writes has the turn, and that is us
            remove(left)
        others = [(p.lstat(), p) for p in path.parent.glob(f"*{_ENDING}") if p != path]
        total = size + sum(state.st_size for state, _ in others)
        for state, other in sorted(others, key=lambda item: item[0].st_mtime_ns):
            if total > self.limit_bytes:
                remove(other)
                total -= state.st_size

    @contextmanager
    def _turn(self) -> Iterator[None]:
        if self.folder is None:
            with self._thread:
                yield
        else:
            with take_turns(self.folder / ".lock"):
                yield


def _digest(name: str, blob: bytes) -> bytes:
    digest = hashlib.sha256(name.encode() + b"\0")  # an entry that was renamed is not taken for another
    digest.update(blob)
    return digest.digest()


def _remove_whatever(path: Path) -> None:
    """Remove a file, or a folder in its place; one that holds something is put aside, so that nothing is blocked."""
    if not path.is_dir() or path.is_symlink():
        remove(path)
        return
    try:
        path.rmdir()
    except OSError:
        with suppress(OSError):
            path.rename(path.with_name(f"{path.name}.aside-{secrets.token_hex(4)}"))


def _note_use(path: Path) -> None:
    """Set the time of last use; the clock that the system stamps files with is too coarse to order them."""
    now = time.time_ns()
    os.utime(path, ns=(now, now), follow_symlinks=False)


def keep_data(kept: Kept, key: str, data: Data) -> bool:
    """Keep decoded data, so that the next process need not decode thousands of files; say whether there was room.

    Args:
        kept: Where.
        key: A name that follows from whatever the data do: the files' paths, sizes and times, and the settings.
        data: On any device.
    """
    import safetensors.torch  # here, so that what needs no data need not wait for torch

    tensors = {"images": data.images.cpu().contiguous(), "labels": data.labels.cpu().contiguous()}
    about = {"spec": json.dumps(asdict(data.spec)), "broken": json.dumps(data.broken)}
    try:
        kept.put(key, safetensors.torch.save(tensors, metadata=about))
    except SettingError as error:
        _LOG.warning("decoded data are not kept, so each message decodes them: %s", error)
        return False
    return True


def kept_data(kept: Kept, key: str) -> Data | None:
    """Return the data that `keep_data` kept, on the CPU; None where there are none, or the entry is something else."""
    import safetensors.torch

    from fedcondense.data.images import Data, Spec

    blob = kept.get(key)
    if blob is None:
        return None
    try:
        tensors = safetensors.torch.load(blob)
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        fields = json.loads(header["__metadata__"]["spec"])
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in fields.items()}
        broken = tuple(map(str, json.loads(header["__metadata__"]["broken"])))
        return Data(tensors["images"], tensors["labels"], Spec(**values), broken)
    except (safetensors.SafetensorError, DataError, ValueError, LookupError, TypeError) as error:
        _LOG.warning("what was kept as %s is no decoded data (%s); they are decoded again", key, error)
        return None
