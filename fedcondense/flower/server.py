"""The server app: settings from the run's config, any strategy by name, the result in a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy

from fedcondense.data import Data, load_data
from fedcondense.errors import SettingError, look_up
from fedcondense.flower.asking import Asked
from fedcondense.flower.checked_grid import CheckedGrid, settled
from fedcondense.flower.contract import State
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.run_folder import RunFolder, judged, plain, refusals
from fedcondense.flower.running import accuracy_of_scores, accuracy_of_weights, checked_grid, run_strategy, scores_of
from fedcondense.flower.screens import check_screens, screen_of
from fedcondense.flower.settings import number, read_all
from fedcondense.flower.strategies import STRATEGIES, Entry, ServerSide
from fedcondense.flower.strategies.one_shot import OneShot, train_network
from fedcondense.networks import build, default_network
from fedcondense.networks.saved import NetworkCard, save_network
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import evaluate, train_on

__all__ = ["ServerSettings", "app", "make_server_app"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


@dataclass(frozen=True)
class ServerSettings:
    """What every run may set, by these names in kebab-case; a strategy adds its own (`Entry.settings`).

    Args:
        strategy: A name in `STRATEGIES`.
        num_rounds: Rounds; 0: as many as the strategy has by itself.
        network: A name in `NETWORKS`, on nodes and server; empty: the one for the images' size.
        seed: All that is random follows from it.
        min_available_nodes: How many nodes must connect before any is asked.
        fraction_train: Share of them that is asked in a round.
        min_replies: How many usable answers a round needs.
        wait: Seconds to wait for the nodes to connect.
        timeout: Seconds that nodes have for their answer.
        grace: Seconds to wait for the others after `min_replies` answers; negative: until the timeout.
        data: The data set whose test split the server evaluates on; empty: it has none.
        data_root: Where that lies; empty: the variable FEDCONDENSE_DATA.
        output: An absolute folder for the result; empty: ``~/fedcondense-runs/RUN-ID``.
        partition_by: For nodes that divide a public data set among them; see `load_partition`.
        alpha: As `partition_by`.
        partition_seed: As `partition_by`.
        min_partition_size: As `partition_by`.
        screens: Names in `SCREENS` with commas between, or ``all``: what judges sets. Empty: nothing does.
    """

    strategy: str = "one-shot"
    num_rounds: int = number(0, 0)
    network: str = ""
    seed: int = number(0, 0)
    min_available_nodes: int = number(2, 1)
    fraction_train: float = number(1.0, 0, 1)
    min_replies: int = number(1, 1)
    wait: float = number(60.0, 0)
    timeout: float = number(3600.0, 1e-3)
    grace: float = -1.0
    data: str = ""
    data_root: str = ""
    output: str = ""
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)
    screens: str = ""

    @property
    def asked(self) -> Asked:
        """Who is asked, and how long the server waits."""
        return Asked(
            fraction_train=self.fraction_train,
            min_train_nodes=min(self.min_available_nodes, 2),
            min_available_nodes=self.min_available_nodes,
            min_replies=self.min_replies,
            wait=self.wait,
            grace=None if self.grace < 0 else self.grace,
            seed=self.seed,
        )


def read_settings(config: Mapping[str, Any]) -> tuple[ServerSettings, Any, Entry]:
    """Read a run's config: common settings, the strategy's own, and its entry.

    Flower does not check types, and turns ``timeout=150`` into an int.

    Raises:
        SettingError: It says all that is wrong.
    """
    name = config.get("strategy", ServerSettings.strategy)
    entry = look_up("strategy", name if isinstance(name, str) else str(name), STRATEGIES)
    wrong, output = [], config.get("output")
    if config.get("fraction-train") == 0:
        wrong.append("fraction-train = 0; needed: above 0, up to 1")
    if isinstance(output, str) and output and not Path(output).is_absolute():
        wrong.append(f"output = {output!r:.60}; needed: an absolute path, the SuperLink runs elsewhere")
    try:
        common, own = read_all((ServerSettings(), entry.settings), config, "the run's config")
    except SettingError as others:
        wrong.insert(0, str(others))
    if wrong:
        raise SettingError("; ".join(wrong))
    return common, own, entry


def make_server_app(
    config: Mapping[str, Any] | None = None,
    *,
    test: Data | None = None,
    sink: Callable[[Any, Result], None] | None = None,
) -> ServerApp:
    """Return a ServerApp that runs a strategy by name, one-shot by default, and leaves the result in a folder.

    The folder is that of `federate` (`fedcondense.flower.run_folder`): ``fedcondense report`` and ``show`` read it.
    ``flwr run`` exits with 0 even if the app failed: ``result.json`` then has an ``error``, and who was refused; what
    earlier rounds left stays.

    Args:
        config: Settings by `ServerSettings`' names and the strategy's own, in kebab-case; the run's own config goes
            before them.
        test: What the server evaluates on, instead of the data set that the settings name.
        sink: Called with the strategy and Flower's Result at the end, for callers in the same process.
    """
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        asked = {**(config or {}), **context.run_config}
        folder = RunFolder(_output(asked, context.run_id))
        folder.check_free()
        run = _Run(folder, asked)
        try:
            result = run(grid, test)
        except Exception as failed:
            folder.write_result({**run.record(), "error": str(failed) or type(failed).__name__})
            raise
        if sink is not None:
            sink(run.strategy, result)

    return server


class _Run:
    """One run: what was asked, and what there is to say of it so far."""

    def __init__(self, folder: RunFolder, asked: Mapping[str, Any]) -> None:
        self.folder, self.asked = folder, asked
        self.name, self.row, self.history = str(asked.get("strategy", "one-shot")), dict[str, Any](), list[Any]()
        self.classes: tuple[str, ...] = ()
        self.strategy: Strategy | None = None
        self.evaluation: dict[str, Any] | None = None  # of the union of one-shot sets

    def __call__(self, grid: Grid, test: Data | None) -> Result:
        settings, own, entry = read_settings(self.asked)
        if test is None and settings.data:
            test = load_data(settings.data, settings.data_root or None).test
        side = _side(settings, own, test)
        self.strategy = entry.make(side)
        check_screens(settings.screens, self.strategy)
        rounds = settings.num_rounds or entry.rounds
        self.row = {"about": entry.about(rounds)}
        self.classes = () if test is None else test.spec.classes
        if isinstance(self.strategy, Rounds):
            self.strategy.keep = self._keep
        elif entry.starts:
            grid = checked_grid(entry, side, grid)

        def after(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if not server_round:
                return None
            metrics = None if test is None else self._measure(server_round, arrays, side, test)
            if isinstance(grid, CheckedGrid):
                self._keep_weights(server_round, settled(arrays, grid.network), grid)
            return metrics

        result = run_strategy(entry, side, self.strategy, grid, rounds, settings.timeout, after)
        if test is not None and (scores := scores_of(self.strategy, test)) is not None:
            percent, per_class = accuracy_of_scores(scores, test)
            self.row |= {"accuracy": percent, "accuracy_std": None, "per_class": plain(per_class.tolist())}
        self._write(settings, side, result)
        return result

    def _measure(self, server_round: int, arrays: ArrayRecord, side: ServerSide, test: Data) -> MetricRecord:
        """Measure a round: of one-shot sets what several networks make of them, else the weights."""
        if isinstance(self.strategy, OneShot) and self.strategy.joined is not None:
            found = evaluate(self.strategy.joined, test, network=side.network or None)
            self.evaluation = found.to_dict()
            self.row |= {"accuracy": found.accuracy, "accuracy_std": found.accuracy_std}
            self.row["per_class"] = plain(found.per_class)
        else:
            percent, per_class = accuracy_of_weights(arrays, side, test)
            self.row |= {"accuracy": percent, "accuracy_std": None, "per_class": plain(per_class.tolist())}
        self.history.append({"round": server_round, "accuracy": round(self.row["accuracy"], 3)})
        return MetricRecord({"accuracy": self.row["accuracy"]})

    def _keep(self, strategy: Rounds) -> None:
        """Leave a round in the folder before the next begins."""
        self.folder.write_state(strategy.state)
        self.folder.write_refused(strategy.cut)
        self.row |= {name.replace("-", "_"): value for name, value in strategy.spent.items()}
        self.row |= {"clients": len(strategy.answers), "seen_rounds": strategy.state.round}
        if strategy.state.joined is not None:
            self.row["images"] = len(strategy.state.joined)
        self.folder.write_result(self.record())

    def _keep_weights(self, server_round: int, weights: Weights, grid: CheckedGrid) -> None:
        """Leave a round of one of Flower's own strategies."""
        self.folder.write_state(State(server_round, weights))
        self.row |= {name.replace("-", "_"): value for name, value in grid.spent.items()}
        self.row |= {"clients": len(grid.nodes), "failed": grid.failed, "seen_rounds": server_round}
        self.folder.write_result(self.record())

    def record(self) -> dict[str, Any]:
        """Return what ``result.json`` says so far."""
        rounds = self.strategy if isinstance(self.strategy, Rounds) else None
        joined = None if rounds is None else rounds.state.joined
        return {
            "rows": {self.name: self.row} if "bytes_up" in self.row or "accuracy" in self.row else {},
            "rounds": self.history,
            "settings": dict(self.asked),
            "refused": [] if rounds is None else refusals(rounds.left_out, self.name),
            "screened": [] if rounds is None else judged(rounds.screened),
            "classes": list(self.classes or (() if joined is None else joined.classes)),
            "coverage": _coverage(joined),
            "sites": [] if rounds is None else list(rounds.state.sets),
        }

    def _write(self, settings: ServerSettings, side: ServerSide, result: Result) -> None:
        """Write the sets, the network and what was measured."""
        state = self.strategy.state if isinstance(self.strategy, Rounds) else State()
        joined = state.joined
        if joined is not None:
            self.folder.write_sets(
                state.sets, joined if self.evaluation is None else joined.with_evaluation(self.evaluation)
            )
        if result.arrays:
            self._write_network(side, joined, result.arrays)
        named = settings.data or (joined.name if joined is not None else "")
        self.folder.write_result({**self.record(), "settings": {**asdict(settings), **_values(side), "data": named}})
        _LOG.info("wrote %s", self.folder.path)

    def _write_network(self, side: ServerSide, joined: SyntheticSet | None, arrays: ArrayRecord) -> None:
        """Write the weights with what they are of: the data that the server tests on, else the union of the sets."""
        like = side.spec if side.spec is not None else None if joined is None else joined.record
        assert like is not None  # weights come of sets, or of a network for data that the server knows
        classes = joined.classes if side.spec is None and joined is not None else like.classes
        name = side.network or default_network(like.shape)
        mean, std = (like.mean, like.std) if joined is None else (joined.record.mean, joined.record.std)
        card = NetworkCard(name, classes, like.shape, mean, std, self.name)
        weights = settled(arrays, build(name, like.shape, len(classes), 0))
        save_network(self.folder.path / "weights.safetensors", dict(weights.tensors), card, overwrite=True)


def _side(settings: ServerSettings, own: Any, test: Data | None) -> ServerSide:
    def trained(joined: SyntheticSet) -> Any:
        if test is None:
            return train_network(joined, settings.network, seed=settings.seed)
        return train_on(joined, test, network=settings.network or None, seed=settings.seed)

    spec = None if test is None else test.spec
    limits = ReplyLimits() if spec is None else ReplyLimits.of(spec)
    side = ServerSide(own, trained, settings.asked, limits, spec, settings.network, settings.seed, test=test)
    return side._replace(screen=screen_of(settings.screens))


def _values(side: ServerSide) -> dict[str, Any]:
    """Return a strategy's own settings that are plain values."""
    kinds = (int, float, str, bool, tuple)
    return {name: value for name, value in vars(side.settings).items() if isinstance(value, kinds)}


def _coverage(joined: SyntheticSet | None) -> dict[str, int]:
    """Return how many synthetic images of each class arrived."""
    return {} if joined is None else dict(zip(joined.classes, joined.counts().tolist(), strict=True))


def _output(asked: Mapping[str, Any], run: int) -> Path:
    """Return the folder that is asked for; where that is none, one that failures can be written to all the same."""
    named = asked.get("output")
    if isinstance(named, str) and Path(named).is_absolute():
        return Path(named)
    return Path.home() / "fedcondense-runs" / str(run)


app = make_server_app()
