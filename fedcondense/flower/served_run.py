"""A run of the server app: its strategy, what each round leaves in the folder, and how a killed one goes on."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedcondense.ambient import in_own_state
from fedcondense.data import Data
from fedcondense.data.loading import load_test
from fedcondense.errors import ResumeError
from fedcondense.flower.arrivals import KeepingGrid
from fedcondense.flower.books import ages, by_site
from fedcondense.flower.checked_grid import CheckedGrid, settled
from fedcondense.flower.contract import State
from fedcondense.flower.history import accuracy_in, tell
from fedcondense.flower.numbered import Numbered
from fedcondense.flower.optimizer_state import held, hold
from fedcondense.flower.payloads import Weights
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.run_folder import RunFolder, coverage, judged, plain, records_by_site, refusals
from fedcondense.flower.run_settings import code_of, comparable, differences, side_of, values_of
from fedcondense.flower.running import (
    accuracy_of_scores,
    accuracy_of_weights,
    checked_grid,
    over_seen,
    run_strategy,
    scores_of,
)
from fedcondense.flower.screens import check_screens
from fedcondense.flower.site_metrics import Evaluated
from fedcondense.flower.state_file import digest_of
from fedcondense.flower.strategies import Entry, ServerSide
from fedcondense.flower.strategies.one_shot import OneShot
from fedcondense.networks import build, default_network
from fedcondense.networks.saved import NetworkCard, load_network, save_network
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate
from fedcondense.training.scores import score

if TYPE_CHECKING:
    from fedcondense.flower.server import ServerSettings

__all__ = ["ServedRun"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_UNFINISHED = "not finished: killed, or still running; resume = true, or this folder, goes on with it"


class ServedRun:
    """One run: what was asked, and what there is to say of it so far.

    Args:
        folder: Where it is left.
        asked: The run's config.
        before: What ``result.json`` holds of the run to go on with; None: it begins.
    """

    def __init__(self, folder: RunFolder, asked: Mapping[str, Any], before: Mapping[str, Any] | None) -> None:
        self.folder, self.asked, self.before = folder, asked, before
        self.code = ""  # of the strategy and of what its settings name
        self.name, self.row, self.rounds = str(asked.get("strategy", "one-shot")), dict[str, Any](), list[Any]()
        self.earlier: dict[str, list[Any]] = {"refused": [], "screened": []}  # of the rounds of a run that was killed
        self.classes: tuple[str, ...] = ()
        self.strategy: Strategy | None = None
        self.numbered: Numbered | None = None  # around one of Flower's own
        self.grid: Grid | None = None
        self.evaluation: dict[str, Any] | None = None  # of the union of one-shot sets
        self.sites_evaluated: dict[str, Any] = {}  # what sites say of the weights of the last round
        self.forgotten = list((before or {}).get("forgotten", []))  # who is not asked any more

    @in_own_state
    def __call__(
        self, kept: KeepingGrid, test: Data | None, settings: ServerSettings, own: Any, entry: Entry
    ) -> Result:
        """Run the strategy, or what is left of it, and write what it ends with.

        Raises:
            ResumeError: The folder holds another run, or one that cannot go on.
        """
        if test is None and settings.data:
            where, size = settings.data_root or None, settings.size or None
            test = load_test(settings.data, where, size)  # of a folder without parts, a fifth
            _LOG.info("the server tests on %d images of %s", len(test), test.spec.name)
        side = side_of(settings, own, test)
        self.strategy = entry.make(side)
        if isinstance(self.strategy, Rounds):
            self.strategy.network = side.network
        check_screens(settings.screens, self.strategy)
        rounds = settings.num_rounds or entry.rounds
        self.row, self.saw = {"about": entry.about(rounds)}, entry.saw
        self.classes = () if test is None else test.spec.classes
        self.code = code_of(settings, own, entry, test)
        grid: Grid = kept
        if isinstance(self.strategy, Rounds):
            self.strategy.keep = partial(self._keep, kept)
        else:
            self.numbered = Numbered(self.strategy, settings.seed)
            grid = checked_grid(entry, side, kept) if entry.starts else kept
        self.grid = grid
        if self.before is not None:
            self._go_on(self.before)
        self.folder.write_result(self.so_far())

        def after(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if not server_round:
                return None
            if self.numbered is not None:
                self.rounds.append(
                    grid.entry(server_round) if isinstance(grid, CheckedGrid) else {"round": server_round}
                )
            metrics = None if test is None else self._measure(arrays, side, test)
            if self.numbered is not None:
                self.rounds[-1] |= accuracy_in(metrics)
                if isinstance(grid, CheckedGrid):
                    tell(self.rounds)
                self._keep_weights(server_round, arrays, self.numbered)
                kept.forget()
            return metrics

        strategy = self.numbered or self.strategy
        try:
            result = run_strategy(entry, side, strategy, grid, rounds, settings.timeout, after)
        finally:
            if isinstance(self.strategy, Rounds):
                kept.forget({refusal.site.node for refusal in self.strategy.refused})  # a resumed run asks them again
        if isinstance(self.strategy, Rounds) and not result.arrays and self.strategy.state.weights is not None:
            result.arrays = ArrayRecord(dict(self.strategy.state.weights.tensors))  # all rounds were done before
            if test is not None:
                self.rounds[-1] |= accuracy_in(self._measure(result.arrays, side, test))
        if test is not None and (scores := scores_of(self.strategy, test)) is not None:
            percent, per_class = accuracy_of_scores(scores, test)
            self._measured(percent, None, per_class.tolist())
            self.rounds[-1] |= accuracy_in(self.row)
        self._write(settings, side, result, test)
        return result

    def _go_on(self, before: Mapping[str, Any]) -> None:
        """Take up what a run left that failed or was killed.

        Raises:
            ResumeError: It was another run, or one that cannot go on.
        """
        if found := before.get("forgetting"):
            again = f"fedcondense forget {found['site']} {self.folder.path}"
            raise ResumeError(f"{self.folder.path}: a site is being forgotten; finish that first: {again}")
        now = {**comparable(self.asked), "code": self.code}
        then = {**comparable(before.get("settings", {})), "code": before.get("code", self.code)}
        if told := differences(then, now, ["code"]):
            raise ResumeError(
                f"{self.folder.path} is of another run: {told}; resume with the settings it had, or give another output"
            )
        state = self.folder.read_state()
        self.rounds = [one for one in before.get("rounds", []) if one["round"] <= state.round]
        for name in self.earlier:
            self.earlier[name] = [one for one in before.get(name, []) if one.get("round", 0) <= state.round]
        if isinstance(self.strategy, Rounds):
            self.strategy.state, self.strategy.history = state, self.rounds
            self.strategy.barred = frozenset(str(one["key"]) for one in self.forgotten)
        elif self.numbered is not None:
            self.numbered.rounds_before = state.round
            hold(self.numbered, state.tensors)
            if isinstance(self.grid, CheckedGrid):
                self.grid.go_on(state)
        if state.round:
            row = before.get("rows", {}).get(self.name, {})
            seen = row.get("about", {}).get("seen", self.row["about"]["seen"])
            self.row = {**row, "about": {**self.row["about"], "seen": seen}}
            self.sites_evaluated = before.get("sites_evaluated", {})
        _LOG.info("going on with %s after round %d", self.folder.path, state.round)

    def _measure(self, arrays: ArrayRecord, side: ServerSide, test: Data) -> MetricRecord:
        """Measure a round: of one-shot sets what several networks make of them, else the weights."""
        seen: dict[str, float] = {}
        if isinstance(self.strategy, OneShot) and self.strategy.joined is not None:
            found = evaluate(self.strategy.joined, test, network=side.network or None)
            self.evaluation = found.to_dict()
            self._measured(found.accuracy, found.accuracy_std, found.per_class)
        else:
            percent, per_class = accuracy_of_weights(arrays, side, test)
            self._measured(percent, None, per_class.tolist())
            seen = over_seen(self.strategy, per_class, test)
        return MetricRecord({"accuracy": self.row["accuracy"], **seen})

    def _measured(self, accuracy: float, spread: float | None, per_class: Sequence[float]) -> None:
        self.row |= {"accuracy": accuracy, "accuracy_std": spread, "per_class": plain(per_class)}

    def _keep(self, kept: KeepingGrid, strategy: Rounds) -> None:
        """Leave a round in the folder before the next begins."""
        self.rounds = strategy.history
        self.row |= {name.replace("-", "_"): value for name, value in strategy.spent.items()}
        self.row |= {"clients": len(strategy.answers), "seen_rounds": strategy.state.round}
        self.row["about"] |= {"seen": self.saw(strategy) or self.row["about"]["seen"]}
        if strategy.state.joined is not None:
            self.row["images"] = len(strategy.state.joined)
        if (found := strategy.evaluated.get(strategy.state.round)) is not None:
            self._hear(found, strategy.state.round)
        if strategy.state.round == 1:
            self.folder.rounds.write_answers(1, strategy.inboxes[strategy.stages[0]])
        strategy.inboxes = {}
        self.folder.write_refused(strategy.cut)
        self.folder.write_result(self.so_far())  # before the state: of rounds that are done it lacks nothing
        self.folder.write_state(strategy.state)
        kept.forget()

    def _keep_weights(self, server_round: int, arrays: ArrayRecord, numbered: Numbered) -> None:
        """Leave a round of one of Flower's own strategies, and what the strategy keeps on itself."""
        state = State(server_round, Weights(arrays.to_torch_state_dict()), tensors=held(numbered))
        if isinstance(self.grid, CheckedGrid):
            grid = self.grid
            self.row |= {name.replace("-", "_"): value for name, value in grid.spent.items()}
            self.row |= {"clients": len(grid.nodes), "failed": grid.failed}
            state = state.but(weights=settled(arrays, grid.network), **grid.stood())
            if grid.said:
                self._hear(Evaluated.of_nodes(grid.said, grid.get_nodes()), server_round)
        self.row["seen_rounds"] = server_round
        self.folder.write_result(self.so_far())
        self.folder.write_state(state)

    def _hear(self, found: Evaluated, server_round: int) -> None:
        """Take what sites say of a round's weights."""
        self.sites_evaluated = found.to_dict(server_round)
        if found.sites:
            self.rounds[-1]["sites_accuracy"] = self.sites_evaluated["accuracy"]

    def so_far(self) -> dict[str, Any]:
        """Return what ``result.json`` says until the run is done: what stands there if it is killed."""
        return {**self.record(), "error": _UNFINISHED}

    def record(self) -> dict[str, Any]:
        """Return what ``result.json`` says so far."""
        rounds = self.strategy if isinstance(self.strategy, Rounds) else None
        joined = None if rounds is None else rounds.state.joined
        classes = list(self.classes or (() if joined is None else joined.classes))
        return {
            "rows": {self.name: self.row} if "bytes_up" in self.row or "accuracy" in self.row else {},
            "rounds": self.rounds,
            "settings": dict(self.asked),
            "refused": self.earlier["refused"] + ([] if rounds is None else refusals(rounds.left_out, self.name)),
            "screened": self.earlier["screened"] + ([] if rounds is None else judged(rounds.screened)),
            "classes": classes,
            "coverage": coverage(joined),
            "held": {} if rounds is None else records_by_site(rounds.state.sets, classes),
            "sites": [] if rounds is None else list(rounds.state.sets),
            "sites_evaluated": self.sites_evaluated,
            "ages": {} if rounds is None else ages(rounds.state),
            "by_site": [] if rounds is None else by_site(rounds.state, rounds.answers),
            "forgotten": self.forgotten,
            "code": self.code,
        }

    def _write(self, settings: ServerSettings, side: ServerSide, result: Result, test: Data | None) -> None:
        """Write the sets, the network and what was measured."""
        state = self.strategy.state if isinstance(self.strategy, Rounds) else State()
        joined = state.joined
        if joined is not None:
            self.folder.write_sets(
                state.sets, joined if self.evaluation is None else joined.with_evaluation(self.evaluation)
            )
        if result.arrays:
            self._write_network(side, joined, result.arrays)
            if test is not None:
                self.row["scores"] = score(load_network(self.folder.path).to(test.device), test).to_dict()
        named = settings.data or ("" if joined is None else _title(joined, list(state.sets)))
        final = {"settings": {**asdict(settings), **values_of(side), "data": named}, "digest": self._digest()}
        final["asked"] = dict(self.asked)
        self.folder.write_result({**self.record(), **final})
        _LOG.info("wrote %s", self.folder.path)

    def _digest(self) -> str:
        """Return what runs share that learned the same (`digest_of`)."""
        return digest_of(self.strategy.state if isinstance(self.strategy, Rounds) else self.folder.read_state())

    def _write_network(self, side: ServerSide, joined: SyntheticSet | None, arrays: ArrayRecord) -> None:
        """Write the weights with what they are of: the data that the server tests on, else the union of the sets."""
        like = side.spec if side.spec is not None else None if joined is None else joined.record
        assert like is not None  # weights come of sets, or of a network for data that the server knows
        own = getattr(self.strategy, "classes", ())  # of a strategy whose network does not follow the union
        classes = own or (joined.classes if side.spec is None and joined is not None else like.classes)
        name = side.network or default_network(like.shape)
        mean, std = (like.mean, like.std) if joined is None else (joined.record.mean, joined.record.std)
        card = NetworkCard(name, classes, like.shape, mean, std, self.name)
        weights = settled(arrays, build(name, like.shape, len(classes), 0))
        save_network(self.folder.path / "weights.safetensors", dict(weights.tensors), card, overwrite=True)


def _title(joined: SyntheticSet, sites: Sequence[str]) -> str:
    """Return what the data of all sites are called: by their own name if they share it, else by the sites'."""
    names = {part.record.data for part in joined.parts}
    return names.pop() if len(names) == 1 else ", ".join(sites)[:100]
