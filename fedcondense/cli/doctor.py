"""`fedcondense doctor`: what is installed, on which devices it runs, where data lie, and what is missing."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import typer

from fedcondense.cli.terminal import DataRoot, Format, Output, columns, command, emit, own_version
from fedcondense.cli.usage import Command

NEEDED = ("torch", "torchvision", "numpy", "safetensors", "typer", "rich", "matplotlib", "jinja2", "scikit-learn")
EXTRAS = {
    "flower": ("flwr",),
    "simulation": ("ray",),
    "avalanche": ("avalanche-lib",),
    "export": ("onnx", "onnxscript", "onnxruntime"),
    "dicom": ("pydicom",),
    "tensorboard": ("tensorboard",),
}
"""What each extra brings, by the packages' names."""


def add_to(app: typer.Typer) -> None:
    """Add this command to the command line."""
    app.command(cls=Command, epilog="Example: fedcondense doctor")(doctor)


@command
def doctor(data_root: DataRoot = None, form: Output = Format.text) -> None:
    """Print versions, devices, extras and the data root, and what to install where something is missing.

    JSON keys: `fedcondense`, `python`, `platform`, `packages` (version by name, or null), `extras` (by name, what
    each lacks), `devices`, `threads`, `memory` (bytes, null: unknown), `data_root`, `data` (data sets that are
    there), `writable` (whether the home folder is, where nodes keep their ledgers), `missing` (texts).
    """
    import torch

    from fedcondense.data.listing import available
    from fedcondense.data.loading import data_root as find_root
    from fedcondense.report.units import human_bytes

    packages = {name: _version(name) for names in (NEEDED, *EXTRAS.values()) for name in names}
    extras = {extra: [name for name in names if packages[name] is None] for extra, names in EXTRAS.items()}
    devices = ["cpu", *(f"cuda:{k} ({torch.cuda.get_device_name(k)})" for k in range(torch.cuda.device_count()))]
    root = find_root(data_root)
    there = [one.name for one in available(data_root) if one.where is not None]
    home = os.access(os.path.expanduser("~"), os.W_OK)
    missing = [f"{', '.join(lacks)}: pip install 'fedcondense[{extra}]'" for extra, lacks in extras.items() if lacks]
    missing += [f"{name}: pip install {name}" for name in NEEDED if packages[name] is None]
    missing += [] if home else ["a home folder that can be written: set HOME, or ledger and log in a node's config"]
    memory = _memory()
    result: dict[str, Any] = {"fedcondense": own_version(), "python": platform.python_version()}
    result |= {"platform": platform.platform(), "packages": packages, "extras": extras, "devices": devices}
    result |= {"threads": torch.get_num_threads(), "memory": memory, "data_root": root, "data": there}
    result |= {"writable": home, "missing": missing}
    lines: list[tuple[object, ...]] = [("fedcondense", own_version()), ("python", platform.python_version())]
    lines += [("platform", platform.platform())]
    lines += [(name, found or "not installed") for name, found in packages.items()]
    lines += [("devices", ", ".join(devices)), ("threads", torch.get_num_threads())]
    lines += [("memory", human_bytes(memory) if memory else "unknown")]
    lines += [("data root", root), ("data there", ", ".join(there) or "none")]
    lines += [("missing", text) for text in missing] or [("missing", "nothing")]
    emit(result, columns(lines), form)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (OSError, ValueError, AttributeError):
        return None
