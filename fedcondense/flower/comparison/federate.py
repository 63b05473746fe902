"""A whole federation in one call: any strategies as rows on one network and division, beside the controls."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

from fedcondense.ambient import in_own_state
from fedcondense.condensing import Own, precision_of
from fedcondense.condensing.meaning import meaning
from fedcondense.data import Data
from fedcondense.data.partition import Partition
from fedcondense.errors import OutputError, ResumeError, SettingError
from fedcondense.files import hold
from fedcondense.flower.books import by_site
from fedcondense.flower.caps import Caps
from fedcondense.flower.comparison.averaging import FedAvgRow, Kept, fedavg, fingerprint
from fedcondense.flower.comparison.bench import Bench
from fedcondense.flower.comparison.local_only import LOCAL_ONLY
from fedcondense.flower.comparison.result import FederationProgress, FederationResult, Output
from fedcondense.flower.comparison.rows import ROWS, Ran, Row, Runner, row_of
from fedcondense.flower.contract import Node
from fedcondense.flower.hosts.inprocess import log_from
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.run_folder import RunFolder, refusals
from fedcondense.flower.run_settings import differences
from fedcondense.flower.settings import check, said
from fedcondense.flower.strategies.averaging import LocalTraining
from fedcondense.flower.strategies.in_bytes import asked_in_bytes
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.identity import identity
from fedcondense.loggers import log_numbers
from fedcondense.networks import default_network, network_kinds
from fedcondense.networks.saved import FILE, NetworkCard, load_network, save_network
from fedcondense.progress import reporting
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit
from fedcondense.training.scores import score

__all__ = ["FEDAVG_GRID", "Measured", "federate"]

_LOG = logging.getLogger(__name__)
_DERIVED = ("code of the methods", "description of the data", "fingerprint", "indices", "partition", "test")

FEDAVG_GRID = (LocalTraining(0.02), LocalTraining(0.05), LocalTraining(0.1), LocalTraining(0.05, epochs=5))
"""What averaging strategies are tuned over; each row takes the best of the grid for its rounds, on the test data."""


@dataclass(frozen=True)
class Measured:
    """How rows are measured.

    Args:
        recipe: How networks are trained on a set.
        seeds: One network is trained and tested for each.
        fedavg_grid: What averaging strategies are tuned over.
    """

    recipe: Fit = Fit()
    seeds: tuple[int, ...] = (0, 1, 2)
    fedavg_grid: tuple[LocalTraining, ...] = FEDAVG_GRID


@in_own_state
def federate(
    train: Data,
    test: Data,
    partition: Partition,
    *,
    asked: Condense = Condense(),
    rows: Sequence[str] = ROWS,
    measured: Measured = Measured(),
    min_records: int = Caps.min_records,
    output: Output | None = None,
    progress: Callable[[FederationProgress], None] | None = None,
) -> FederationResult:
    """Run a federation in one process, over Flower's real serialisation, and the rows it has to be compared with.

    Every client condenses with a seed of its own, to at most one image for each `min_records` records of a class; the
    server trains on the union. The bytes are those of Flower's messages.

    Args:
        train: All clients' data, on the device that they compute on.
        test: What the server tests on; nothing but FedAvg's settings is selected on it.
        partition: Who holds what.
        asked: What clients are asked for; its network also evaluates, and its seed is everybody's root. Its budget and
            codec are also those of real-image controls.
        rows: Which rows to run, as in `ROWS`.
        measured: How they are measured.
        min_records: How many records a stored image stands for at least (`Caps`), in every row; classes of fewer are
            left out by every client.
        output: Where the result is written; None keeps nothing.
        progress: Told where it is, a few times per second at most; without it a bar is drawn on a terminal.

    Raises:
        SettingError: A name is unknown, or a number or combination cannot work.
        OutputError: The folder holds a result that is not to be replaced, or another run is writing it.
        ResumeError: The folder holds the result of other settings.
    """
    asked = replace(asked, network=asked.network or default_network(train.spec.shape))
    chosen = _checked(asked, rows, min_records)
    most = train.subset(max(partition, key=len))
    with log_from(logging.WARNING):
        asked_in_bytes(asked).prepare(Own(most), Node("the client with the most data", Caps.none(min_records)))
    folder = None if output is None else RunFolder(output.path)
    work = None if folder is None else folder.path / "work"
    with nullcontext() if output is None else hold(output.path, is_folder=True):
        if folder is not None and output is not None and output.overwrite and not output.resume and folder.holds_run():
            folder.clear()
        with reporting("federation", bar=progress is None, parts=True) as report:

            def told(now: FederationProgress) -> None:
                if progress is not None:
                    progress(now)
                report(now.done, now.detail, now.label)

            shared = (asked.network, asked.seed, measured.seeds, measured.recipe, min_records, work, told)
            bench = Bench(train, test, partition, *shared)
            run = _Comparison(bench, asked, chosen, measured, folder, output is not None and output.resume)
            run.result.partition = {**partition.to_dict(), "alpha": partition.to_dict()["settings"].get("alpha")}
            return run.all()


def _checked(asked: Condense, rows: Sequence[str], min_records: int) -> list[Row]:
    """Refuse what cannot work, before a run is deleted or begun."""
    check(asked, "federate")
    if len(network_kinds(asked.network)) > 1:
        raise SettingError(f"network {asked.network!r}; the clients and the server of a federation share one: name one")
    if not rows:
        raise SettingError(f"no rows; name some of {', '.join(ROWS)}")
    if type(min_records) is not int or min_records < 1:
        raise SettingError(f"min_records {min_records!r}; needed: a whole number, 1 or more")
    return [row_of(name) for name in rows]


class _Comparison:
    """One call of `federate`: its settings, and what it has so far."""

    def __init__(
        self, bench: Bench, asked: Condense, rows: list[Row], measured: Measured, folder: RunFolder | None, resume: bool
    ) -> None:
        self.bench, self.asked, self.rows, self.folder, self.resume = bench, asked, rows, folder, resume
        self.grid = measured.fedavg_grid
        self.result = FederationResult(classes=list(bench.test.spec.classes), broken=list(bench.train.broken))
        self.result.tested = len(bench.test)
        self.averaged: dict[tuple[str, int], dict[int, FedAvgRow]] = {}  # by strategy and place in the grid
        self.main = next((row.name for row in rows if "image" in row.entry.travels), "")

    def all(self) -> FederationResult:
        """Run what is not done, row by row, and write the result after each."""
        bench, result = self.bench, self.result
        result.settings = {
            "data": bench.train.spec.name,
            "fingerprint": bench.train.fingerprint,
            "shape": list(bench.train.spec.shape),
            "test": bench.test.fingerprint,
            "indices": fingerprint(bench.partition),
            "precision": precision_of(bench.train.device.type),
            "clients": bench.everyone,
            **said(self.asked),
            "min_records": bench.min_records,
            "recipe": asdict(bench.recipe),
            "evaluation_seeds": list(bench.seeds),
            "fedavg_grid": [asdict(training) for training in self.grid],
            "description of the data": identity((bench.train.spec, bench.test.spec)),
            "code of the methods": meaning(self.asked),
        }
        self._read_folder()
        if any(row.entry is LOCAL_ONLY and row.name not in result.rows for row in self.rows):
            told = "local-only: %d trainings, one per client, each as long as a training of another row"
            _LOG.warning(told, bench.everyone)
        for row in self.rows:
            if row.name not in result.rows:
                bench.progress(FederationProgress(row.name, "starting", 0.0))
                began = time.perf_counter()
                averages = isinstance(row.entry.settings, LocalTraining) and row.entry.handlers == ("train",)
                found = self._averaged(row) if averages else self._ran(row)
                seconds = round(time.perf_counter() - began, 2)
                result.rows[row.name] = {"seconds": seconds, "about": row.about, **found, "code": identity(row.entry)}
                bench.progress(FederationProgress(row.name, "done", 1.0))
                log_numbers(row.rounds, result.rows[row.name])
                self._write_result()
        names = dict.fromkeys([*(row.name for row in self.rows), *result.rows])
        result.rows = {name: result.rows[name] for name in names}
        self._write_result()
        return result

    def _ran(self, row: Row) -> dict[str, Any]:
        """Run a row; the first of sets is kept with its network, and who was refused."""
        set_bytes = int(self.result.rows.get(self.main, {}).get("set_bytes", 0))
        ran = Runner(self.bench, self.asked, set_bytes).run(row)
        if isinstance(ran.strategy, Rounds):
            ran.row["about"] = row.about | {"seen": row.entry.saw(ran.strategy) or row.entry.seen}
            self.result.refused += refusals(ran.strategy.left_out, row.name)
            if row.name == self.main:
                self._keep(row, ran, ran.strategy)
        return ran.row

    def _keep(self, row: Row, ran: Ran, strategy: Rounds) -> None:
        if (joined := ran.joined) is None:
            return
        sets, spec = strategy.state.sets, self.bench.test.spec
        self.result.joined, self.result.sites, self.result.by_site = joined, list(sets), by_site(strategy.state)
        self.result.coverage = dict(zip(joined.classes, joined.counts().tolist(), strict=True))
        if self.folder is None:
            return
        self.result.paths += self.folder.write_sets(sets, joined)
        card = NetworkCard(self.bench.network, spec.classes, spec.shape, spec.mean, spec.std, row.strategy)
        state = dict(ran.arrays.to_torch_state_dict())
        self.result.paths.append(save_network(self.folder.path / FILE, state, card, overwrite=True))
        ran.row["scores"] = score(load_network(self.folder.path).to(self.bench.test.device), self.bench.test).to_dict()

    def _averaged(self, row: Row) -> dict[str, Any]:
        """Take the best of the grid after so many rounds; all rows of a strategy share its runs."""
        best: dict[str, Any] = {"accuracy": -1.0}
        wanted = sorted({r.rounds for r in self.rows if r.strategy == row.strategy})
        diverged: AggregationError | None = None
        for k, training in enumerate(self.grid):

            def done(number: int, total: int, k: int = k, training: LocalTraining = training) -> None:
                where = f"lr {training.lr:g}, {training.epochs} local epochs, round {number} of {total}"
                share = (k + number / total) / len(self.grid)
                self.bench.progress(FederationProgress(f"{row.strategy}-{wanted[-1]}", where, share))

            if (row.strategy, k) not in self.averaged:
                work = self.bench.work
                kept = None if work is None else Kept(work / f"{row.strategy}-{k}.safetensors", self.resume)
                try:
                    self.averaged[row.strategy, k] = fedavg(
                        self.bench,
                        wanted[-1],
                        training,
                        strategy=row.strategy,
                        evaluate_at=range(1, wanted[-1] + 1),  # some percent of the time; curves are drawn
                        kept=kept,
                        progress=done,
                    )
                except AggregationError as error:  # others of the grid may work
                    self.averaged[row.strategy, k], diverged = {}, error
            found = self.averaged[row.strategy, k].get(row.rounds)
            if found is not None and found.accuracy > best["accuracy"]:
                best = found.to_dict(training)
        if diverged is not None and best["accuracy"] < 0:
            raise diverged
        return best

    def _read_folder(self) -> None:
        """Take what the folder holds of the same settings, or refuse it."""
        if self.folder is None:
            return
        if not self.folder.holds_run():
            self._write_result()
            return
        path = self.folder.result
        if not self.resume:
            raise OutputError(f"{path} exists; choose another output folder, or resume (--resume)")
        before = self.folder.read_result()
        if "partition" not in before:
            raise ResumeError(f"{path} is of a run that `federate` did not make, nor goes on with: use another folder")
        if before.get("format", 1) == 1:
            raise ResumeError(f"{path} is of an older version, which cannot go on: use another output folder")
        try:
            given = {**self.result.settings, "partition": self.result.partition["hash"]}
            held = {**before["settings"], "partition": before["partition"]["hash"]}
            rows, refused, coverage = dict(before["rows"]), list(before["refused"]), dict(before["coverage"])
        except (KeyError, TypeError) as error:
            raise ResumeError(f"{path} is damaged ({error}); delete it to start over") from None
        if told := differences(held, given, _DERIVED):
            raise ResumeError(f"{path} is of another run: {told}; give what it was made with, or another output folder")
        self.result.rows, self.result.refused, self.result.coverage = rows, refused, coverage
        self.result.sites, self.result.by_site = list(before.get("sites", [])), list(before.get("by_site", []))
        for row in self.rows:
            if row.name in rows and rows[row.name].get("code") != identity(row.entry):
                _LOG.warning("%s: the code of row %s is another than it was; the row is run again", path, row.name)
                del rows[row.name]
        if self.main in rows and (fault := self.folder.fault(self.result.sites)):
            _LOG.warning("%s; its row is run again", fault)  # from the answers that are kept
            del rows[self.main]
        if self.main in rows:
            self.result.joined = SyntheticSet.load(joined := self.folder.path / "joined.safetensors")
            sets = [self.folder.path / "clients" / f"{name}.safetensors" for name in self.result.sites]
            self.result.paths = [*sets, joined, self.folder.path / "weights.safetensors"]

    def _write_result(self) -> None:
        if self.folder is not None:
            path = self.folder.write_result(self.result.to_dict())
            self.result.paths = list(dict.fromkeys([*self.result.paths, path]))
