"""Numbers of long work for experiment trackers: losses of condensing, accuracies and bytes of rounds and rows.

    with fc.logged("tensorboard:runs/log"):
        fc.condense(train, ipc=10)

Without one open nothing is said, and nothing is worked out for it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Protocol

from fedcondense.errors import MissingExtraError, OutputError, SettingError, unknown
from fedcondense.progress import where

__all__ = ["LOGGERS", "JsonLines", "Logger", "TensorBoard", "log_numbers", "logged", "logger_of"]

_LOG = logging.getLogger(__name__)


class Logger(Protocol):
    """What takes numbers: one of `LOGGERS`, or a class of the user's own for another tracker."""

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Take finite numbers.

        Args:
            name: Whose they are, such as ``"condensing digits"``; parts of longer work follow it after a ``/``.
            values: By name: ``loss``, ``accuracy``, ``bytes_up``, ...
            step: Of condensing, or the round. Equal names may begin again with step 1.
        """

    def close(self) -> None:
        """Write what is left."""


class JsonLines:
    """Appends a line of JSON for each call to a file: ``name``, ``step``, ``time`` (Unix seconds), and the numbers.

    Args:
        path: The file.
    """

    def __init__(self, path: str) -> None:
        try:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            self._file = Path(path).open("a", encoding="utf-8")  # noqa: SIM115 - open until `close`
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; needed: a file that numbers can be appended to") from error

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Append a line, and hand it to the system."""
        self._file.write(json.dumps({"name": name, "step": step, "time": round(time.time(), 3), **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class TensorBoard:
    """Writes an event file that TensorBoard draws; needs the extra ``tensorboard``.

    Args:
        path: A folder.
    """

    def __init__(self, path: str) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "tensorboard") from error
        try:
            self._writer: Any = SummaryWriter(path)
        except OSError as error:
            raise OutputError(f"{path}: {error.strerror}; needed: a folder that can be written") from error

    def log(self, name: str, values: Mapping[str, float], step: int) -> None:
        """Add a point to a curve for each number."""
        for key, value in values.items():
            self._writer.add_scalar(f"{name}/{key}", value, step)

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


LOGGERS: dict[str, Callable[[str], Logger]] = {"jsonl": JsonLines, "tensorboard": TensorBoard}
"""What makes a logger of the text after ``NAME:``, by name. A plugin adds its own."""

_LOGGER: ContextVar[Logger | None] = ContextVar("logger", default=None)


def logger_of(given: str) -> Logger:
    """Return the logger that ``NAME:WHERE`` stands for, such as ``jsonl:run.jsonl`` or ``tensorboard:runs/log``.

    Raises:
        SettingError: There is none of that name, or nothing follows it.
        MissingExtraError: What it writes with is not installed.
        OutputError: It cannot write there.
    """
    name, _, place = given.partition(":")
    if name not in LOGGERS:
        raise SettingError(f"{unknown('logger', name, LOGGERS)}; one's own come with a file: --plugin FILE")
    make = LOGGERS[name]
    if not place:
        raise SettingError(f"logger {given!r} says not where to; needed: {name}:PATH")
    return make(place)


@contextmanager
def logged(to: Logger | str | None) -> Iterator[None]:
    """Send numbers of all work inside, in this thread, to a logger, and close it.

    A logger that fails ends no run: it is said once, and the run goes on without it. One that cannot be made does.

    Args:
        to: A logger, or what `logger_of` takes; None or empty: nothing changes.
    """
    if not to:
        yield
        return
    logger = logger_of(to) if isinstance(to, str) else to
    token = _LOGGER.set(logger)
    try:
        yield
    finally:
        has_failed = _LOGGER.get() is not logger  # and was told of
        _LOGGER.reset(token)
        if has_failed:
            with suppress(Exception):
                logger.close()
        else:
            _guarded(logger.close)


def log_numbers(step: int, values: Mapping[str, Any]) -> None:
    """Give the logger numbers of what is being done, named as the progress lines name it; without one do nothing."""
    logger = _LOGGER.get()
    if logger is None:
        return
    kept = {k: float(v) for k, v in values.items() if type(v) in (int, float) and math.isfinite(v)}
    if kept and not _guarded(logger.log, "/".join(where()) or "fedcondense", kept, step):
        _LOGGER.set(None)


def _guarded(call: Callable[..., None], *given: Any) -> bool:
    """Call what belongs to the user or to a service; return whether it worked."""
    try:
        call(*given)
    except Exception as error:  # a tracker's own kinds: hours of work do not end with its connection
        _LOG.warning("the logger failed (%s: %s); the run goes on without it", type(error).__name__, error)
        return False
    return True
