"""Flower's own strategies on the same network, partition and seeds: what one-shot sets have to be compared with.

All rows of one strategy share its runs: a run leaves a checkpoint after each round, and is tested where a row asks.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from fedcondense.checksums import dump_tensors, load_tensors
from fedcondense.errors import ResumeError
from fedcondense.files import write_file
from fedcondense.flower.checked_grid import CheckedGrid, averageable, settled
from fedcondense.flower.comparison.bench import Bench
from fedcondense.flower.history import accuracy_in
from fedcondense.flower.hosts.inprocess import InProcessGrid, log_from, run_in_process
from fedcondense.flower.numbered import Numbered
from fedcondense.flower.optimizer_state import held, hold
from fedcondense.flower.run_folder import plain
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.averaging import LocalTraining, training_config
from fedcondense.identity import identity
from fedcondense.networks import build, network_kinds
from fedcondense.training.fit import accuracy

__all__ = ["FedAvgRow", "Kept", "fedavg", "fingerprint"]


class FedAvgRow(NamedTuple):
    """Where FedAvg stands after so many rounds."""

    rounds: int
    accuracy: float  # percent
    per_class: tuple[float, ...]  # percent; nan for a class that the test data lack
    bytes_up: float  # mean over clients, all rounds so far
    bytes_down: float
    seconds: float  # wall clock, clients one after another
    failed: int = 0  # answers that were left out so far because a client failed, diverged say
    history: tuple[dict[str, Any], ...] = ()  # of the rounds so far (`fedcondense.flower.history`)

    def to_dict(self, training: LocalTraining) -> dict[str, Any]:
        """Return the row of a comparison that this training makes."""
        return {
            "accuracy": self.accuracy,
            "accuracy_std": None,
            "per_class": plain(self.per_class),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "seconds": round(self.seconds, 2),
            "lr": training.lr,
            "local_epochs": training.epochs,
            "failed": self.failed,
            "history": list(self.history),
        }


class Kept(NamedTuple):
    """Where a run keeps its last round, and whether it goes on from there."""

    path: Path
    resume: bool = False


def fedavg(
    bench: Bench,
    rounds: int = 20,
    training: LocalTraining = LocalTraining(),
    *,
    strategy: str = "fedavg",
    evaluate_at: Sequence[int] = (1, 5, 20),
    kept: Kept | None = None,
    progress: Callable[[int, int], None] = lambda done, rounds: None,
) -> dict[int, FedAvgRow]:
    """Run one of Flower's strategies over all clients in one process, over its real serialisation.

    Args:
        bench: Data, partition and network; the network is initialised from its seed, the same for all clients.
        rounds: Communication rounds, every client in each.
        training: What a client does in a round.
        strategy: A name in `AVERAGING`.
        evaluate_at: The rounds to report; the last round is reported in any case.
        kept: A file that is replaced after each round, so that a killed run loses one round at most.
        progress: Called with (rounds done, rounds) after each.

    Returns:
        A row for each reported round.

    Raises:
        AggregationError: All clients failed in a round.
        ResumeError: The checkpoint is of other settings, or damaged.
    """
    train, test, network, everyone = bench.train, bench.test, bench.network, bench.everyone
    wanted = {r for r in evaluate_at if r <= rounds} | {rounds}
    settings = {
        "network": network,
        "training": asdict(training),
        "seed": bench.seed,
        "data": train.fingerprint,
        "partition": fingerprint(bench.partition),
        "min_records": bench.min_records,
        "strategy": strategy,
        "code": identity((train.spec, network_kinds(network), STRATEGIES[strategy])),
    }
    state = _State.load(kept.path, settings) if kept and kept.resume and kept.path.exists() else None
    if state is None or any(r <= state.done and r not in state.rows for r in wanted):  # rounds that nobody tested then
        state = _State(settings, {}, 0, {}, [], 0.0, 0.0, 0.0)
    if state.done >= rounds:
        return state.found(wanted)
    first, started = state.done, time.perf_counter() - state.seconds
    before = (state.bytes_up, state.bytes_down)
    start = build(network, train.spec.shape, len(train.spec.classes), bench.seed)
    entry = STRATEGIES[strategy]
    side = ServerSide(training, lambda _: start, bench.asked, bench.limits, train.spec, network, bench.seed)
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, InProcessGrid)
        own = build(network, train.spec.shape, len(train.spec.classes), 0)
        checked = CheckedGrid(grid, own, state.failed, entry.bits)
        numbered = Numbered(entry.make(side), bench.seed, first)
        hold(numbered, state.tensors)

        def after_round(number: int, arrays: ArrayRecord) -> MetricRecord | None:
            if number == 0:  # Flower evaluates the start too
                return None
            state.done, state.tensors = number, held(numbered)
            state.history.append(checked.entry(number))
            state.bytes_up = before[0] + sum(t.up for t in grid.traffic.values()) / everyone
            state.bytes_down = before[1] + sum(t.down for t in grid.traffic.values()) / everyone
            state.failed = checked.failed
            metrics = None
            if state.done in wanted:
                model = build(network, train.spec.shape, len(train.spec.classes), 0).to(test.device)
                settled(arrays, own).load_into(model)
                percent, per_class = accuracy(model, test)
                metrics = MetricRecord({"accuracy": percent})
                state.history[-1] |= accuracy_in(metrics)
                numbers = (state.bytes_up, state.bytes_down, time.perf_counter() - started, state.failed)
                state.rows[state.done] = FedAvgRow(state.done, percent, tuple(per_class.tolist()), *numbers)
            state.seconds = time.perf_counter() - started
            if kept:
                state.save(kept.path)
            progress(state.done, rounds)
            return metrics

        config = training_config(training, side, bits=entry.bits)
        arrays = averageable(start.state_dict())
        numbered.start(checked, arrays, rounds, train_config=config, evaluate_fn=after_round)

    with log_from(logging.ERROR):
        run_in_process(server, bench.client(strategy), bench.names)
    return state.found(wanted)


@dataclass
class _State:
    """What a resumed run needs: what its strategy keeps, rows and rounds so far, bytes and seconds spent."""

    settings: dict[str, Any]
    tensors: dict[str, Tensor]
    done: int
    rows: dict[int, FedAvgRow]
    history: list[dict[str, Any]]
    bytes_up: float
    bytes_down: float
    seconds: float
    failed: int = 0

    def save(self, path: Path) -> None:
        """Replace the checkpoint."""
        record = {k: v for k, v in vars(self).items() if k != "tensors"}
        write_file(path, dump_tensors(self.tensors, "fedavg", record), overwrite=True)

    def found(self, wanted: Collection[int]) -> dict[int, FedAvgRow]:
        """Return the rows of these rounds, each with the rounds that led to it."""
        rows = {r: row for r, row in self.rows.items() if r in wanted}
        return {r: row._replace(history=tuple(self.history[:r])) for r, row in rows.items()}

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> _State:
        """Read a checkpoint of the same settings."""
        try:
            tensors, record = load_tensors(path.read_bytes(), "fedavg")
            del record["checksum"]
            rows = {int(r): FedAvgRow(*values) for r, values in record.pop("rows").items()}
            rows = {r: row._replace(per_class=tuple(row.per_class)) for r, row in rows.items()}
            state = cls(tensors=tensors, rows=rows, **record)
        except (OSError, ValueError, TypeError, LookupError, AttributeError) as damaged:
            raise ResumeError(f"{path}: not a FedAvg checkpoint ({damaged}); delete it to start over") from damaged
        differ = sorted(k for k in settings if state.settings.get(k) != settings[k])
        if differ:
            raise ResumeError(f"{path}: of another run, {', '.join(differ)} differ; use another output folder")
        return state


def fingerprint(partition: Sequence[Tensor]) -> str:
    """Return sixteen hex digits: equal partitions, equal text."""
    digest = hashlib.sha256()
    for index in partition:
        digest.update(np.int64(len(index)).tobytes() + torch.as_tensor(index).to(torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
