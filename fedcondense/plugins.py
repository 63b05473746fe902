"""A user's own Python files that add methods by name; what goes wrong in them is told as theirs."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from fedcondense.errors import FedcondenseError, SettingError

__all__ = ["fault_of_plugin", "load_plugins"]

_LOADED: set[str] = set()  # files


def load_plugins(paths: Sequence[Path]) -> None:
    """Run files that add methods to the dicts; they may import what lies beside them, as a program may.

    Raises:
        SettingError: A file is missing, is no Python file, or raises something; the message says in which line.
    """
    for path in paths:
        if not path.is_file():
            raise SettingError(f"{path}: no such plugin; give a Python file, say one with OBJECTIVES['mine'] = Mine()")
        spec = importlib.util.spec_from_file_location(f"fedcondense_plugin_{path.stem}", path)
        if spec is None or spec.loader is None:
            raise SettingError(f"{path}: not a Python file; its name must end in .py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        _LOADED.add(str(spec.origin))
        if (folder := str(path.resolve().parent)) not in sys.path:
            sys.path.append(folder)
        try:
            spec.loader.exec_module(module)
        except FedcondenseError as error:
            raise SettingError(f"{path}: {error}") from error
        except (Exception, SystemExit) as error:
            if isinstance(error, SyntaxError):
                place = f", line {error.lineno}"
            else:
                lines = [
                    frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _LOADED
                ]
                place = f", line {lines[-1]}" if lines else ""
            why = f"{type(error).__name__}: {getattr(error, 'msg', None) or error}"
            raise SettingError(f"{path}{place}: {why}; mend the plugin, or leave --plugin out") from error


def fault_of_plugin(error: BaseException) -> str:
    """Say where in a plugin an error arose; nothing if none was at work."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename in _LOADED:
            why = " ".join(str(error).split())[:300]
            return f"plugin {frame.filename}, line {frame.lineno}, in {frame.name}: {type(error).__name__}: {why}"
    return ""
