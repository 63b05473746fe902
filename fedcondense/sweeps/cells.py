"""Cells, computed and kept: one JSON file each, written whole or not at all, and the sets beside them."""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.checksums import dump_json, load_json
from fedcondense.condensing.starts import STARTS
from fedcondense.errors import FedcondenseError
from fedcondense.files import hold, write_file
from fedcondense.identity import identity
from fedcondense.networks import NETWORKS
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.progress import reporting
from fedcondense.sets.selection import SELECTIONS
from fedcondense.sweeps.compute import LOCAL, Outcome, Site, compute
from fedcondense.sweeps.grids import (
    ALL_REAL,
    Cell,
    SetRecipe,
    TableRow,
    objective_and_recipe,
)
from fedcondense.sweeps.workers import Here, Workers

__all__ = ["SweepProgress", "cell_path", "digest", "finished", "meaning", "read_json", "run", "set_path", "stem"]


_LOG = logging.getLogger(__name__)


class SweepProgress(NamedTuple):
    """How far a sweep is, handed to the `progress` callback."""

    done: int  # cells that are there, with those found in the folder
    cells: int
    found: int  # of them, in the folder before it began
    last: Cell | None  # the last one that was computed


def run(
    lines: Iterable[TableRow],
    folder: Path,
    *,
    site: Site = LOCAL,
    workers: Workers | None = None,
    progress: Callable[[SweepProgress], None] | None = None,
) -> dict[Cell, Outcome]:
    """Compute the cells that the folder lacks and return all of them; what is done is kept at any moment.

    A cell that a `FedcondenseError` ends is kept with its message, and tried again by the next run.

    Args:
        lines: Whose cells are wanted; many lines may share one.
        folder: Gets ``cells/*.json`` and ``sets/*.safetensors``. Their names hold a hash of all settings, so that
            another configuration is another file.
        site: Where data lie, and the device.
        workers: Where cells are computed; None: here.
        progress: Called at the start and after each cell.

    Raises:
        OutputError: Another sweep is writing the folder, or it cannot be written.
    """
    with hold(folder, is_folder=True):
        return _run(lines, folder, site, workers or Here(), progress)


def _run(
    lines: Iterable[TableRow],
    folder: Path,
    site: Site,
    workers: Workers,
    progress: Callable[[SweepProgress], None] | None,
) -> dict[Cell, Outcome]:
    cells = list(dict.fromkeys(cell for line in lines for cell in line.cells))
    cells.sort(key=lambda cell: cell.making.seed)  # each row gets its first set before any gets its second
    outcomes = {cell: kept for cell in cells if (kept := _kept(folder, cell)) is not None}
    missing, found = [cell for cell in cells if cell not in outcomes], len(outcomes)
    if progress is not None:
        progress(SweepProgress(found, len(cells), found, None))
    with reporting("sweep", bar=progress is None) as report:
        for wave in _waves(missing):
            calls = [(cell, _held(folder, cell), site) for cell in wave]
            for number, (outcome, made) in workers.map(compute, calls):
                cell = wave[number]
                if made is not None:
                    write_file(set_path(folder, cell.making), made, overwrite=True)
                blob = dump_json(outcome)
                write_file(cell_path(folder, cell), blob, overwrite=True)
                outcomes[cell] = load_json(blob)  # as the next run will read it
                if progress is not None:
                    progress(SweepProgress(len(outcomes), len(cells), found, cell))
                report((len(outcomes) - found) / len(missing), f"{len(outcomes)} of {len(cells)} cells")
    return {cell: outcomes[cell] for cell in cells}


def _waves(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Yield cells such that none waits for a set that another of its wave makes: it takes it from the folder."""
    left = list(cells)
    while left:
        first = {cell.making: cell for cell in reversed(left)}
        yield [cell for cell in left if first[cell.making] is cell]
        left = [cell for cell in left if first[cell.making] is not cell]


def finished(lines: Iterable[TableRow], folder: Path) -> tuple[list[TableRow], dict[Cell, Outcome]]:
    """Return the lines with those of their cells alone that the folder has, failed ones included, and these cells."""
    lines = list(lines)
    cells = dict.fromkeys(cell for line in lines for cell in line.cells)
    outcomes = {cell: outcome for cell in cells if (outcome := read_json(cell_path(folder, cell)))}
    cut = [replace(line, cells=tuple(cell for cell in line.cells if cell in outcomes)) for line in lines]
    return [line for line in cut if line.cells], outcomes


def cell_path(folder: Path, cell: Cell) -> Path:
    """Return where a cell is kept."""
    hashed = digest(meaning(cell.making), asdict(cell.measuring), _networks(*cell.measuring.test_networks))
    return folder / "cells" / f"{stem(cell.making)}-{hashed}.json"


def set_path(folder: Path, making: SetRecipe) -> Path:
    """Return where the set of a cell is kept: cells that measure it in different ways share it."""
    return folder / "sets" / f"{stem(making)}-{digest(meaning(making))}.safetensors"


def stem(making: SetRecipe) -> str:
    """Return the readable start of a file's name."""
    named = (making.data, making.method, making.parametrization, making.network)
    text = "-".join(part for part in named if part)
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)}-ipc{making.ipc}-seed{making.seed}"


def meaning(making: SetRecipe) -> dict[str, Any]:
    """Return all that a set follows from: names, and what the toolkit and plugins mean by them today."""
    meant: dict[str, Any] = {}
    try:
        if making.method in SELECTIONS:
            meant = {"selection": identity(SELECTIONS[making.method])}
        elif making.method != ALL_REAL:
            objective, recipe = objective_and_recipe(making)
            meant = {
                "objective": identity(objective),
                "recipe": identity(recipe),
                "start": identity(STARTS.get(recipe.start)),
                "parametrization": identity(PARAMETRIZATIONS[making.parametrization]()),
                "network": _networks(making.network),
            }
    except (FedcondenseError, LookupError) as error:
        meant = {"error": str(error)}
    return {"making": asdict(making), **meant}


def _networks(*names: str) -> str:
    """Return what names of networks mean today."""
    return identity([NETWORKS.get(one) for name in names for one in name.split("+")])


def digest(*values: Any) -> str:
    """Return twelve hex digits of the hash of plain values."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_json(path: Path) -> Outcome | None:
    """Return what a file of a sweep holds, or None where there is none, or a damaged one, which is computed again."""
    try:
        return load_json(path.read_bytes())
    except OSError:
        return None
    except (ValueError, TypeError) as damaged:
        _LOG.warning("%s is of an older version, or damaged (%s); it is computed again", path, damaged)
        return None


def _kept(folder: Path, cell: Cell) -> Outcome | None:
    outcome = read_json(cell_path(folder, cell))
    return outcome if outcome and "error" not in outcome else None


def _held(folder: Path, cell: Cell) -> bytes | None:
    path = set_path(folder, cell.making)
    return path.read_bytes() if path.exists() else None
