"""The rows of a comparison: each knows its strategy, and how what that ends with is measured."""

from __future__ import annotations

import logging
import math
import statistics
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedcondense.errors import SettingError, unknown
from fedcondense.flower.caps import Caps
from fedcondense.flower.comparison.bench import Bench, traffic
from fedcondense.flower.comparison.local_only import LOCAL_ONLY, local_only
from fedcondense.flower.comparison.result import FederationProgress
from fedcondense.flower.history import accuracy_in
from fedcondense.flower.hosts.inprocess import log_from, run_in_process
from fedcondense.flower.rounds import AggregationError, Rounds
from fedcondense.flower.run_folder import plain
from fedcondense.flower.running import accuracy_of_scores, accuracy_of_weights, over_seen, run_strategy, scores_of
from fedcondense.flower.strategies import STRATEGIES, Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import InBytes, family_of
from fedcondense.flower.strategies.one_shot import Condense, OneShot
from fedcondense.flower.strategies.ridge import RIDGE, ridge_dims
from fedcondense.flower.wire import NO_DATA
from fedcondense.sets.codecs import CODECS, RAW, codec_named
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import Evaluation, evaluate, train_on

__all__ = ["ROWS", "Ran", "Row", "Runner", "row_of"]

ROWS = (
    "one-shot",
    "fedavg-1",
    "fedavg-5",
    "fedavg-20",
    "random-real",
    "half-resolution-real",
    "ridge",
    "ridge-equal-bytes",
    "feature-statistics",
)
"""What is run by default; any other name in `STRATEGIES`, ``local-only`` for each site alone (one training per site),
NAME-N for N rounds of those that start from weights, and NAME-CODEC for what sends images, as in
``random-real-webp-20``."""

_ALONE = "local-only"
_BESIDE = 480  # bytes that a reply takes beside sums
_EQUAL = "-equal-bytes"  # statistics of as many dimensions as fit into the bytes of a set


class Row(NamedTuple):
    """A row by name."""

    name: str
    entry: Entry
    strategy: str  # its name in STRATEGIES
    rounds: int = 1
    codec: str = ""  # that the row's own name says

    @property
    def about(self) -> dict[str, Any]:
        """What the row says of itself."""
        about = self.entry.about(self.rounds)
        if self.name.endswith(_EQUAL):
            travels = self.entry.travels.replace("sums of", "sums of few")
            about |= {"label": f"{self.entry.label}, equal bytes", "travels": travels}
        if self.codec:
            about |= {"label": f"{self.entry.label}, {self.codec}", "travels": f"{self.entry.travels} as {self.codec}"}
        return about


def row_of(name: str) -> Row:
    """Return a row by its name.

    Raises:
        SettingError: There is none.
    """
    if name == _ALONE:
        return Row(name, LOCAL_ONLY, name)
    statistics_of = name.removesuffix(_EQUAL)
    if name != statistics_of and statistics_of in RIDGE:
        return Row(name, STRATEGIES[statistics_of], statistics_of)
    if name in STRATEGIES:
        return Row(name, STRATEGIES[name], name, STRATEGIES[name].rounds)
    head, _, rounds = name.rpartition("-")
    if head in STRATEGIES and STRATEGIES[head].starts and rounds.isdecimal() and int(rounds):
        return Row(name, STRATEGIES[head], head, int(rounds))
    for strategy, entry in STRATEGIES.items():
        codec = name.removeprefix(f"{strategy}-")
        if isinstance(entry.settings, InBytes) and codec != name and family_of(codec) in (RAW, *CODECS):
            codec_named(codec)
            return Row(name, entry, strategy, entry.rounds, codec)
    known = {*STRATEGIES, *ROWS, _ALONE}
    told = "NAME-N are N rounds of what starts from weights, NAME-CODEC images in a codec"
    raise SettingError(f"{unknown('row', name, known)}; {told}")


class Ran(NamedTuple):
    """What running a row left."""

    row: dict[str, Any]
    strategy: Strategy | None  # None: no message travelled
    joined: SyntheticSet | None
    arrays: ArrayRecord


@dataclass(frozen=True)
class Runner:
    """Runs rows on a bench.

    Args:
        bench: What they share.
        asked: What sites are asked for; other strategies take the fields that they share with it.
        set_bytes: Mean bytes of a site's set, of a row that was run; 0: unknown.
    """

    bench: Bench
    asked: Condense
    set_bytes: int = 0

    def run(self, row: Row) -> Ran:
        """Run a row in one process and measure it."""
        if row.entry is LOCAL_ONLY:
            return Ran(local_only(self.bench, row.name), None, None, ArrayRecord())
        probe = row.entry.make(self._side(row, self.bench.seed))
        if isinstance(probe, OneShot):
            return self._sets(row)
        if hasattr(probe, "classify"):
            return self._per_seed(row)
        return self._weights(row)

    def _side(self, row: Row, seed: int) -> ServerSide:
        """Return what the row's strategy is made with: its settings take what they share with the question."""
        bench, own = self.bench, row.entry.settings
        shared = {f.name for f in fields(own)} & {f.name for f in fields(self.asked)}
        given = {name: getattr(self.asked, name) for name in shared}
        given |= {"seed": seed} if "seed" in shared else {}
        given |= {"network": bench.network} if "network" in shared else {}
        given |= {"steps": self.asked.steps or own.steps} if "steps" in shared else {}
        given |= {"codec": row.codec} if row.codec else {}
        if row.name.endswith(_EQUAL):
            most = max(1, self.asked.budget - _BESIDE) if self.asked.budget else self.set_bytes or self._pixels()
            given["dims"] = ridge_dims(most, len(bench.train.spec.classes), own.precision)
        spec = bench.test.spec
        return ServerSide(
            replace(own, **given),
            partial(train_on, like=bench.test, network=bench.network, recipe=bench.recipe, seed=seed),
            bench.asked,
            bench.limits,
            spec,
            bench.network,
            seed,
            bench.recipe,
            bench.test,
        )

    def _start(
        self, row: Row, side: ServerSide, strategy: Strategy, measure: Any = None
    ) -> tuple[Result, dict[str, float]]:
        """Run a strategy over all clients; return Flower's result and the mean bytes per client."""
        server, found = ServerApp(), list[Result]()

        @server.main()
        def main(grid: Grid, context: Context) -> None:
            found.append(run_strategy(row.entry, side, strategy, grid, row.rounds, 1e9, measure))

        with log_from(logging.WARNING):
            shares = {"share-with": "sites"}  # there are no others but whoever calls this
            grid = run_in_process(server, self.bench.client(row.name, "clients"), self.bench.names, node_config=shares)
        return found[0], traffic(grid.traffic, self.bench.everyone)

    def _sets(self, row: Row) -> Ran:
        """Run rounds of sets; several networks are trained on each union, of which the first is handed out."""
        bench, found = self.bench, list[Evaluation]()

        def trained(joined: SyntheticSet) -> nn.Module:
            networks: list[nn.Module] = []

            def trains(step: int, steps: int) -> None:
                detail = f"on {len(joined)} images, step {step} of {steps}"
                bench.progress(FederationProgress(row.name, detail, step / steps, "training"))

            measured: dict[str, Any] = {"network": bench.network, "recipe": bench.recipe, "seeds": bench.seeds}
            found.append(evaluate(joined, bench.test, **measured, progress=trains, trained=networks.append))
            return networks[0]

        side = self._side(row, bench.seed)._replace(fit=trained)
        strategy = row.entry.make(side)
        assert isinstance(strategy, OneShot)
        result, spent = self._start(row, side, strategy)
        evaluation = found[-1]  # one for each round
        joined = strategy.joined
        assert joined is not None
        strategy.history[-1] |= accuracy_in({"accuracy": evaluation.accuracy})
        measured = {
            "accuracy": evaluation.accuracy,
            "accuracy_std": evaluation.accuracy_std,
            "per_class": plain(evaluation.per_class),
            **spent,
            "clients": len(strategy.answers),
            "images": len(joined),
            "short": self._short(),
            "set_bytes": statistics.fmean(answer.payload.nbytes for answer in strategy.answers),
            "client_seconds": statistics.fmean(answer.seconds for answer in strategy.answers),
            "history": strategy.history,
        }
        if len(found) > 1:
            rounds = [{"round": k + 1, "accuracy": round(one.accuracy, 3)} for k, one in enumerate(found)]
            measured |= {"history": rounds}
        return Ran(measured, strategy, joined.with_evaluation(evaluation.to_dict()), result.arrays)

    def _per_seed(self, row: Row) -> Ran:
        """Run a strategy that ends in a classifier of its own once per seed, each with another random network."""
        bench, accuracies, per_class = self.bench, [], []
        for k, seed in enumerate(bench.seeds):
            bench.progress(FederationProgress(row.name, f"network {k + 1} of {len(bench.seeds)}", k / len(bench.seeds)))
            side = self._side(row, seed)
            strategy = row.entry.make(side)
            result, spent = self._start(row, side, strategy)
            self._all_or_none(row, strategy)
            scores = scores_of(strategy, bench.test)
            assert scores is not None
            percent, classes = accuracy_of_scores(scores, bench.test)
            accuracies.append(percent)
            per_class.append(classes)
        measured = {
            "accuracy": statistics.fmean(accuracies),
            "accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            "per_class": plain(torch.stack(per_class).mean(0).tolist()),
            **spent,
        }
        return Ran(measured, strategy, None, result.arrays)

    def _weights(self, row: Row) -> Ran:
        """Run a strategy that ends in a network's weights, and measure them after each round."""
        bench, history = self.bench, list[dict[str, float]]()
        side = self._side(row, bench.seed)
        strategy = row.entry.make(side)
        measured: dict[str, Any] = {}

        def measure(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if not server_round:
                return None
            percent, per_class = accuracy_of_weights(arrays, side, bench.test)
            metrics = {"accuracy": percent, **over_seen(strategy, per_class, bench.test)}
            history.append({"round": server_round, **accuracy_in(metrics)})
            measured.update(accuracy=percent, accuracy_std=None, per_class=plain(per_class.tolist()))
            return MetricRecord({**metrics})

        result, spent = self._start(row, side, strategy, measure)
        measured |= {**spent, "history": strategy.history if isinstance(strategy, Rounds) else history}
        joined = strategy.state.joined if isinstance(strategy, Rounds) else None
        if joined is not None and isinstance(strategy, Rounds):
            measured |= {"images": len(joined), "clients": len(strategy.answers)}
        return Ran(measured, strategy, joined, result.arrays)

    def _all_or_none(self, row: Row, strategy: Strategy) -> None:
        """Refuse sums without a client that has data: they are another baseline."""
        failed = [
            r for r in getattr(strategy, "refused", ()) if NO_DATA not in r.reason and "(min-records)" not in r.reason
        ]
        if failed:
            raise AggregationError(f"{row.name}: {failed[0].site.name} failed: {failed[0].reason}")

    def _short(self) -> int:
        """Return how many pairs of a client and a class had too few records for `ipc` images; 0 under a budget."""
        if self.asked.budget:
            return 0
        counts = torch.stack([torch.as_tensor(self._counts(k)) for k in range(self.bench.everyone)])
        held, share = counts >= max(1, self.bench.min_records), Caps.none(self.bench.min_records).share
        return int((held & ((counts * share).floor().clamp(min=1) < self.asked.ipc)).sum())

    def _counts(self, client: int) -> torch.Tensor:
        labels = self.bench.train.labels[torch.as_tensor(self.bench.partition[client])].cpu()
        return torch.bincount(labels, minlength=len(self.bench.train.spec.classes))

    def _pixels(self) -> int:
        """Return the mean bytes of a client's images where no set was made."""
        counts = torch.stack([self._counts(k) for k in range(self.bench.everyone)])
        share = Caps.none(self.bench.min_records).share
        images = (counts * share).ceil().clamp(max=self.asked.ipc).sum() / self.bench.everyone
        return int(images * math.prod(self.bench.train.spec.shape))
