"""One cell: its set is made or taken from the folder, and measured."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from fedcondense.ambient import in_own_state
from fedcondense.condensing import condense
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.loading import load_data
from fedcondense.errors import DivergenceError, FedcondenseError, OutputError, UntrustedSetError
from fedcondense.networks import build
from fedcondense.networks.passes import repeatable
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.plugins import fault_of_plugin
from fedcondense.randomness import child_seed
from fedcondense.sets.selection import SELECTIONS, select
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sweeps.costs import code_version, peak_memory
from fedcondense.sweeps.grids import ALL_REAL, Cell, EvaluationPlan, SetRecipe, objective_and_recipe
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit, accuracy, fit

__all__ = ["LOCAL", "Outcome", "Site", "autocast_of", "compute", "data_of"]

Outcome = dict[str, Any]
"""What a cell's file holds: its settings, and either `error` and `kind`, or what was measured."""

_EPOCHS = 5  # over all real data, at least: in the steps that a small set is given a network may not see them once


class Site(NamedTuple):
    """Where data lie and torch computes; of a cell's settings it changes the data's fingerprint alone, by `size`."""

    data_root: str | None = None
    device: str = "cpu"
    size: int | None = None  # pixels a side that images are brought to


LOCAL = Site()


@in_own_state
def compute(cell: Cell, held: bytes | None, site: Site = LOCAL) -> tuple[Outcome, bytes | None]:
    """Make a cell's set, or take the one that is held, and measure it; return the outcome and the new set's bytes."""
    settings = {"making": asdict(cell.making), "measuring": asdict(cell.measuring), "device": site.device}
    settings["version"] = code_version()
    made: bytes | None = None
    try:
        train, test = data_of(cell.making.data, site)
        with autocast_of(cell.making, site):
            if cell.making.method == ALL_REAL:
                return {"settings": settings, **_all_real(train, test, cell.measuring)}, None
            synthetic, peak = _opened(held), None
            if synthetic is None:
                _start_up(site.device)
                with peak_memory(site.device) as at_peak:
                    synthetic = _make(cell.making, train)
                    peak = at_peak()
                made = synthetic.to_bytes()
            stored_as = type(synthetic.parts[0].parametrization)
            known = next((name for name, kind in PARAMETRIZATIONS.items() if kind is stored_as), stored_as.__name__)
            outcome = {
                "nbytes": synthetic.with_record(seconds=0.0).nbytes,  # else a slow minute would cost eight bytes
                "images": len(synthetic),
                "parametrization": cell.making.parametrization or known,
                "steps": synthetic.record.steps,
                "cpu_seconds": synthetic.record.seconds,
                "peak_bytes": peak,  # of whoever made it: a set that is held does not tell
                "measured": _measure(synthetic, test, cell.measuring, cell.making.seed),
            }
    except OutputError:
        raise  # of the machine, not of the cell
    except FedcondenseError as error:
        kind = "divergence" if isinstance(error, DivergenceError) else "error"
        return {"settings": settings, "error": str(error), "kind": kind}, made
    except Exception as error:
        if not (fault := fault_of_plugin(error)):
            raise
        return {"settings": settings, "error": fault, "kind": "error"}, made
    return {"settings": settings, **outcome}, made


@lru_cache(maxsize=2)
def data_of(name: str, site: Site) -> DataSet:
    """Load data onto the device; the last two are kept."""
    train, test = load_data(name, site.data_root, site.size)
    return DataSet(train.to(site.device), test.to(site.device))


@lru_cache(maxsize=1)
def _start_up(device: str) -> None:
    """Condense two blank images, once per process: what torch takes to start up is no cost of a set."""
    spec = Spec("blank", (1, 8, 8), ("a", "b"), (0.5,), (0.5,))
    blank = Data(torch.zeros(4, *spec.shape, dtype=torch.uint8), torch.arange(4) % 2, spec).to(device)
    condense(blank, 1, DistributionMatching(), steps=2)


def autocast_of(making: SetRecipe, site: Site) -> torch.autocast:
    """Return the context in which a set is made and measured at the precision that its recipe names."""
    kind, low = torch.device(site.device).type, making.precision != "float32"
    return torch.autocast(kind, torch.bfloat16, enabled=low, cache_enabled=False)


def _opened(held: bytes | None) -> SyntheticSet | None:
    try:
        return None if held is None else SyntheticSet.from_bytes(held)
    except UntrustedSetError:  # damaged: it is made again
        return None


def _make(making: SetRecipe, train: Data) -> SyntheticSet:
    """Return the set; the seconds in its record are CPU seconds, which do not depend on who else is computing."""
    began = time.process_time()
    if making.method in SELECTIONS:
        synthetic = select(train, making.ipc, making.method, seed=making.seed)
    else:
        objective, recipe = objective_and_recipe(making)
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


def _measure(synthetic: SyntheticSet, test: Data, measuring: EvaluationPlan, seed: int) -> dict[str, Any]:
    """Return percent by test network, a number a trained network: test images, the set's own, and for the scores.

    Of a network that cannot take the images `error` says why.
    """
    seeds = [seed * measuring.networks + k for k in range(measuring.networks)]  # no two sets share networks
    plain = replace(measuring.fit, augment=False, cutmix=0.0)
    hard = _hard(synthetic)
    measured: dict[str, Any] = {}
    for network in measuring.test_networks:
        with _alone(network, measured, measuring):
            on_test, on_set = _trained(synthetic, test, network, measuring.fit, seeds)
            found = {"accuracies": on_test, "on_set": on_set}
            if measuring.scores:
                found["hard"] = on_test if hard is synthetic else _trained(hard, test, network, measuring.fit, seeds)[0]
                found["plain"] = _trained(synthetic, test, network, plain, seeds)[0]
            measured[network] = found
    return measured


@contextmanager
def _alone(network: str, measured: dict[str, Any], measuring: EvaluationPlan) -> Iterator[None]:
    """Let a test network that cannot take the images fail alone, unless it is the only one."""
    try:
        yield
    except FedcondenseError as error:
        if len(measuring.test_networks) == 1:
            raise
        measured[network] = {"error": str(error)}


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
    pieces = []
    for k, piece in enumerate(images.split(1000)):
        with repeatable(module, 0, k):
            pieces.append(module(piece).argmax(1))
    found = torch.cat(pieces)
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


def _all_real(train: Data, test: Data, measuring: EvaluationPlan) -> Outcome:
    """Train on all real data with their labels: as many steps as on a set, or five epochs if that is more.

    Takes four bytes for each byte of the images.
    """
    spec = train.spec
    mean, std = (torch.tensor(value, device=train.device).view(1, -1, 1, 1) for value in (spec.mean, spec.std))
    images = train.images.float().div_(255).sub_(mean).div_(std)  # in place: they may be gigabytes
    targets = torch.nn.functional.one_hot(train.labels, len(spec.classes)).float()
    steps = max(measuring.fit.steps, _EPOCHS * -(-len(train) // measuring.fit.batch))
    began, measured = time.process_time(), dict[str, Any]()
    for network in measuring.test_networks:
        with _alone(network, measured, measuring):
            on_test = []
            for seed in range(measuring.networks):
                module = build(network, spec.shape, len(spec.classes), child_seed(seed, "network")).to(train.device)
                recipe = replace(measuring.fit, steps=steps, epochs=0)
                fit(module, images, targets, recipe, seed=seed, operations=spec.operations)
                on_test.append(round(accuracy(module, test)[0], 3))
            measured[network] = {"accuracies": on_test}
    cpu = (time.process_time() - began) / (len(measuring.test_networks) * measuring.networks)
    size = train.images.numel() + len(train)  # one byte per label
    return {"nbytes": size, "images": len(train), "steps": steps, "cpu_seconds": round(cpu, 2), "measured": measured}
