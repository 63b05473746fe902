"""The errors that a caller would tell apart: each says what was given, what is needed and what to do next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

__all__ = [
    "DataError",
    "DivergenceError",
    "FedcondenseError",
    "MissingExtraError",
    "OutputError",
    "ResumeError",
    "SettingError",
    "UntrustedSetError",
    "look_up",
    "unknown",
]


class FedcondenseError(Exception):
    """The root: catch this one to catch whatever the toolkit says about its input."""


class SettingError(FedcondenseError, ValueError):
    """An argument, name or combination of them that cannot work."""


class DataError(FedcondenseError, ValueError):
    """Real data that are missing, malformed or too few."""


class UntrustedSetError(FedcondenseError, ValueError):
    """A synthetic set, from a file or the wire, that breaks the format or a limit."""


class OutputError(FedcondenseError, OSError):
    """A path that cannot be written, or that exists and was not to be replaced."""


class ResumeError(FedcondenseError, ValueError):
    """A checkpoint that is missing, damaged or of another configuration."""


class DivergenceError(FedcondenseError, RuntimeError):
    """An optimisation that left the finite numbers; `synthetic` is the last good set."""

    def __init__(self, message: str, synthetic: Any = None) -> None:
        super().__init__(message)
        self.synthetic = synthetic


class MissingExtraError(FedcondenseError, ImportError):
    """An optional dependency that is not installed; the message holds the pip command."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'fedcondense[{extra}]'")


T = TypeVar("T")


def look_up(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return `known[name]`, or raise a SettingError that names the closest entry and all of them."""
    if name in known:
        return known[name]
    raise SettingError(unknown(kind, name, known))


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say that no `kind` is called `name`, which one is close, and which there are."""
    names = sorted(known)
    close = difflib.get_close_matches(str(name), names, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"no {kind} is called {name!r}; {hint}all of them: {', '.join(names)}"
