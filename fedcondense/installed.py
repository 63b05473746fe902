"""Which code is installed, and so goes by its name, and which is a user's, and so goes by what it says."""

from __future__ import annotations

import hashlib
import importlib.util
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path

__all__ = ["is_installed", "is_installed_class", "is_standard", "lies_with_installed", "source", "source_of"]

_MADE_BY_PYTHON = 1 << 9  # the flag of a class


@cache
def _roots() -> tuple[str, ...]:
    """Return the folders of what is installed, this package among them."""
    paths = sysconfig.get_paths()
    roots: set[str] = {
        paths["stdlib"],
        paths["platstdlib"],
        paths["purelib"],
        paths["platlib"],
        *site.getsitepackages(),
    }
    layered = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]  # by a .pth, say
    own = (site.getusersitepackages(), str(Path(__file__).parent))
    return tuple(f"{Path(root)}/" for root in (*roots, *layered, *own))


def lies_with_installed(file: str) -> bool:
    """Say whether a file of code is part of what is installed."""
    return file.startswith(("<frozen ", "<__array_function__", *_roots()))


def is_installed(module: str) -> bool:
    """Say whether a module's code goes by its name."""
    if module == "__main__":
        return False
    file = getattr(sys.modules.get(module), "__file__", None)
    return is_standard(module) if file is None else lies_with_installed(file)


def is_installed_class(kind: type) -> bool:
    """Say whether a class is found under its name in what is installed: those made by a call may say they are."""
    if not is_installed(str(kind.__module__)):
        return False
    if not kind.__flags__ & _MADE_BY_PYTHON or "<locals>" in kind.__qualname__:
        return True
    found: object = sys.modules.get(kind.__module__)
    for name in kind.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is kind


def is_standard(module: str) -> bool:
    """Say whether a module is of the standard library."""
    return module.partition(".")[0] in sys.stdlib_module_names or module == "builtins"


def source_of(module: str) -> str:
    """Return a hash of the source of a module that a function imports when it is called."""
    try:
        found = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        return module
    return module if found is None else source(found.origin)


def source(file: str | None) -> str:
    """Return a hash of a file of source; its name where it cannot be read."""
    try:
        return hashlib.sha256(Path(file or "").read_bytes()).hexdigest()[:12]
    except OSError:
        return str(file)
