"""Cells, computed and kept: one JSON file each, written whole or not at all, and the sets beside them."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from fedcondense.condensing import condense
from fedcondense.data.images import Data, DataSet
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, FedcondenseError, OutputError, UntrustedSetError
from fedcondense.files import write_file
from fedcondense.networks import build
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import child_seed
from fedcondense.sets.selection import SELECTIONS, select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps.grids import ALL_REAL, Cell, Line, Making, Measuring, resolve, told
from fedcondense.sweeps.workers import Here, Workers
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit, accuracy, fit

__all__ = ["Done", "Outcome", "Place", "cell_path", "compute", "finished", "run", "set_path"]

Outcome = dict[str, Any]
"""What a cell's file holds: its settings, and either `error` and `kind`, or what was measured."""

_EPOCHS = 5  # over all real data, at least: in the steps that a small set is given a network may not see them once


class Place(NamedTuple):
    """Where data lie and torch computes; it changes no setting of a cell."""

    data_root: str | None = None
    device: str = "cpu"


HERE = Place()


class Done(NamedTuple):
    """How far a sweep is, handed to the `progress` callback."""

    done: int  # cells that are there, with those found in the folder
    cells: int
    found: int  # of them, in the folder before it began
    last: Cell | None  # the last one that was computed


def run(
    lines: Iterable[Line],
    folder: Path,
    *,
    place: Place = HERE,
    workers: Workers | None = None,
    progress: Callable[[Done], None] | None = None,
) -> dict[Cell, Outcome]:
    """Compute the cells that the folder lacks and return all of them; what is done is kept at any moment.

    A cell that a `FedcondenseError` ends is kept with its message, and tried again by the next run.

    Args:
        lines: Whose cells are wanted; many lines may share one.
        folder: Gets ``cells/*.json`` and ``sets/*.safetensors``. Their names hold a hash of all settings, so that
            another configuration is another file.
        place: Where data lie, and the device.
        workers: Where cells are computed; None: here.
        progress: Called at the start and after each cell.
    """
    cells = list(dict.fromkeys(cell for line in lines for cell in line.cells))
    cells.sort(key=lambda cell: cell.making.seed)  # each row gets its first set before any gets its second
    outcomes = {cell: kept for cell in cells if (kept := _kept(folder, cell)) is not None}
    missing, found = [cell for cell in cells if cell not in outcomes], len(outcomes)
    if progress is not None:
        progress(Done(found, len(cells), found, None))
    calls = [(cell, _held(folder, cell), place) for cell in missing]
    for number, (outcome, made) in (workers or Here()).map(compute, calls):
        cell = missing[number]
        if made is not None:
            write_file(set_path(folder, cell.making), made, overwrite=True)
        text = json.dumps(outcome, indent=1)
        write_file(cell_path(folder, cell), text.encode(), overwrite=True)
        outcomes[cell] = json.loads(text)  # as the next run will read it
        if progress is not None:
            progress(Done(len(outcomes), len(cells), found, cell))
    return {cell: outcomes[cell] for cell in cells}


def finished(lines: Iterable[Line], folder: Path) -> tuple[list[Line], dict[Cell, Outcome]]:
    """Return the lines with those of their cells alone that the folder has, failed ones included, and these cells."""
    lines = list(lines)
    cells = dict.fromkeys(cell for line in lines for cell in line.cells)
    outcomes = {cell: outcome for cell in cells if (outcome := read_json(cell_path(folder, cell)))}
    cut = [replace(line, cells=tuple(cell for cell in line.cells if cell in outcomes)) for line in lines]
    return [line for line in cut if line.cells], outcomes


def cell_path(folder: Path, cell: Cell) -> Path:
    """Return where a cell is kept."""
    return folder / "cells" / f"{stem(cell.making)}-{digest(identity(cell.making), _settings(cell.measuring))}.json"


def set_path(folder: Path, making: Making) -> Path:
    """Return where the set of a cell is kept: cells that measure it in different ways share it."""
    return folder / "sets" / f"{stem(making)}-{digest(identity(making))}.safetensors"


def stem(making: Making) -> str:
    named = (making.data, making.method, making.parametrization, making.network)
    text = "-".join(part for part in named if part)
    return f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)}-ipc{making.ipc}-seed{making.seed}"


def identity(making: Making) -> dict[str, Any]:
    """Return all that a set follows from: names, and what the toolkit and plugins mean by them today."""
    meant: dict[str, Any] = {}
    try:
        if making.method not in (*SELECTIONS, ALL_REAL):
            objective, recipe = resolve(making)
            meant = {"objective": repr(objective), "recipe": told(recipe)}
            meant["parametrization"] = repr(PARAMETRIZATIONS[making.parametrization]())
    except (FedcondenseError, LookupError) as error:
        meant = {"error": str(error)}
    settings = asdict(making)
    del settings["tuning"]["pool"]  # the recipe tells it, and folders from before there was one stay valid
    return {"making": settings, **meant}


def _settings(measuring: Measuring) -> dict[str, Any]:
    settings = asdict(measuring)
    if not measuring.fit.cutmix:
        del settings["fit"]["cutmix"]  # folders from before there was one stay valid
    return settings


def digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def read_json(path: Path) -> Outcome | None:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):  # not there, or no file of ours: it is computed again
        return None


def _kept(folder: Path, cell: Cell) -> Outcome | None:
    outcome = read_json(cell_path(folder, cell))
    return outcome if outcome and "error" not in outcome else None


def _held(folder: Path, cell: Cell) -> bytes | None:
    path = set_path(folder, cell.making)
    return path.read_bytes() if path.exists() else None


def compute(cell: Cell, held: bytes | None, place: Place = HERE) -> tuple[Outcome, bytes | None]:
    """Make a cell's set, or take the one that is held, and measure it; return the outcome and the new set's bytes."""
    settings = {"making": asdict(cell.making), "measuring": asdict(cell.measuring), "device": place.device}
    made: bytes | None = None
    try:
        train, test = data_of(cell.making.data, place)
        with features(cell.making, place):
            if cell.making.method == ALL_REAL:
                return {"settings": settings, **_all_real(train, test, cell.measuring)}, None
            synthetic = _opened(held)
            if synthetic is None:
                synthetic = _make(cell.making, train)
                made = synthetic.to_bytes()
            stored_as = type(synthetic.parts[0].parametrization)
            known = next((name for name, kind in PARAMETRIZATIONS.items() if kind is stored_as), stored_as.__name__)
            outcome = {
                "nbytes": synthetic.with_record(seconds=0.0).nbytes,  # else a slow minute would cost eight bytes
                "images": len(synthetic),
                "parametrization": cell.making.parametrization or known,
                "steps": synthetic.record.steps,
                "cpu_seconds": synthetic.record.seconds,
                "measured": _measure(synthetic, test, cell.measuring, cell.making.seed),
            }
    except OutputError:
        raise  # of the machine, not of the cell
    except FedcondenseError as error:
        kind = "divergence" if isinstance(error, DivergenceError) else "error"
        return {"settings": settings, "error": str(error), "kind": kind}, made
    return {"settings": settings, **outcome}, made


@lru_cache(maxsize=2)
def data_of(name: str, place: Place) -> DataSet:
    train, test = load_data(name, place.data_root)
    return DataSet(train.to(place.device), test.to(place.device))


def features(making: Making, place: Place) -> torch.autocast:
    kind, low = torch.device(place.device).type, making.precision != "float32"
    return torch.autocast(kind, torch.bfloat16, enabled=low, cache_enabled=False)


def _opened(held: bytes | None) -> SyntheticSet | None:
    try:
        return None if held is None else SyntheticSet.from_bytes(held)
    except UntrustedSetError:  # damaged: it is made again
        return None


def _make(making: Making, train: Data) -> SyntheticSet:
    """Return the set; the seconds in its record are CPU seconds, which do not depend on who else is computing."""
    began = time.process_time()
    if making.method in SELECTIONS:
        synthetic = select(train, making.ipc, making.method, seed=making.seed)
    else:
        objective, recipe = resolve(making)
        synthetic = condense(
            train,
            making.ipc,
            objective,
            making.parametrization,
            network=making.network or None,
            seed=making.seed,
            recipe=recipe,
        )
    return synthetic.with_record(seconds=round(time.process_time() - began, 2))


def _measure(synthetic: SyntheticSet, test: Data, measuring: Measuring, seed: int) -> dict[str, dict[str, list[float]]]:
    """Return percent by test network, a number a trained network: test images, the set's own, and for the scores."""
    seeds = [seed * measuring.networks + k for k in range(measuring.networks)]  # no two sets share networks
    plain = replace(measuring.fit, augment=False, cutmix=0.0)
    hard = _hard(synthetic)
    measured = {}
    for network in measuring.test_networks:
        on_test, on_set = _trained(synthetic, test, network, measuring.fit, seeds)
        measured[network] = {"accuracies": on_test, "on_set": on_set}
        if measuring.scores:
            measured[network]["hard"] = (
                on_test if hard is synthetic else _trained(hard, test, network, measuring.fit, seeds)[0]
            )
            measured[network]["plain"] = _trained(synthetic, test, network, plain, seeds)[0]
    return measured


def _trained(
    synthetic: SyntheticSet, test: Data, network: str, recipe: Fit, seeds: Sequence[int]
) -> tuple[list[float], list[float]]:
    on_test, on_set = [], []
    for seed in seeds:
        module = train_on(synthetic, test, network=network, recipe=recipe, seed=seed)
        on_test.append(round(accuracy(module, test)[0], 3))
        on_set.append(round(_accuracy_on(synthetic, module.eval(), test), 3))
    return on_test, on_set


@torch.no_grad()
def _accuracy_on(synthetic: SyntheticSet, module: torch.nn.Module, test: Data) -> float:
    """Return the percent of the set's own images whose most likely class a network finds."""
    images, targets = synthetic.decode(test.device)
    found = torch.cat([module(piece).argmax(1) for piece in images.split(1000)])
    columns = torch.tensor([test.spec.classes.index(name) for name in synthetic.classes], device=test.device)
    return float(100 * (found == columns[targets.argmax(1)]).float().mean())


def _hard(synthetic: SyntheticSet) -> SyntheticSet:
    """Return the set with each image's most likely label alone; itself if it has no others."""
    if all(part.targets.ndim == 1 for part in synthetic.parts):
        return synthetic
    parts = [
        part if part.targets.ndim == 1 else replace(part, targets=part.targets.argmax(1).to(torch.int16))
        for part in synthetic.parts
    ]
    return SyntheticSet(parts)


def _all_real(train: Data, test: Data, measuring: Measuring) -> Outcome:
    """Train on all real data with their labels: as many steps as on a set, or five epochs if that is more.

    Takes four bytes for each byte of the images.
    """
    spec = train.spec
    mean, std = (torch.tensor(value, device=train.device).view(1, -1, 1, 1) for value in (spec.mean, spec.std))
    images = train.images.float().div_(255).sub_(mean).div_(std)  # in place: they may be gigabytes
    targets = torch.nn.functional.one_hot(train.labels, len(spec.classes)).float()
    steps = max(measuring.fit.steps, _EPOCHS * -(-len(train) // measuring.fit.batch))
    began, measured = time.process_time(), {}
    for network in measuring.test_networks:
        on_test = []
        for seed in range(measuring.networks):
            module = build(network, spec.shape, len(spec.classes), child_seed(seed, "network")).to(train.device)
            recipe = replace(measuring.fit, steps=steps)
            fit(module, images, targets, recipe, seed=seed, operations=spec.operations)
            on_test.append(round(accuracy(module, test)[0], 3))
        measured[network] = {"accuracies": on_test}
    cpu = (time.process_time() - began) / (len(measuring.test_networks) * measuring.networks)
    size = train.images.numel() + len(train)  # a byte a label
    return {"nbytes": size, "images": len(train), "steps": steps, "cpu_seconds": round(cpu, 2), "measured": measured}
