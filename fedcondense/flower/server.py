"""The server app: settings from the run's config, any strategy by name, the result in a folder."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result

from fedcondense.data import Data
from fedcondense.data.layouts import SIDES
from fedcondense.errors import ResumeError, SettingError, look_up
from fedcondense.files import hold
from fedcondense.flower.arrivals import KeepingGrid
from fedcondense.flower.asking import Asked
from fedcondense.flower.refusing import tell_in_one_line
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.served_run import ServedRun
from fedcondense.flower.settings import number, place, read_all
from fedcondense.flower.strategies import STRATEGIES, Entry
from fedcondense.loggers import logged
from fedcondense.progress import reporting

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
        size: Pixels a side that images are brought to, here and at nodes whose config says nothing of it; 0: none.
        output: An absolute folder for the result; empty: ``~/fedcondense-runs/RUN-ID``.
        resume: Go on with the run that failed or was killed: finished rounds are not run again, and sites whose answers
            had arrived are not asked again. Its folder, or true with the folder as `output`; the other settings must be
            those that the run had.
        partition_by: For nodes that divide a public data set among them; see `load_partition`.
        alpha: As `partition_by`.
        partition_seed: As `partition_by`.
        min_partition_size: As `partition_by`.
        screens: Names in `SCREENS` with commas between, or ``all``: what judges sets. Empty: nothing does.
        fraction_evaluate: Share of the nodes that is asked after each round how good the weights are on records that
            they keep apart; negative: all where the server has no data, else none.
        min_evaluate_nodes: How many of them are asked at least.
        keep_apart: Share of each class that nodes which hold public data keep apart; others say so themselves.
        log: Where each round's numbers go, such as ``tensorboard:/DIR`` (`fedcondense.loggers`); empty: nowhere.
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
    data: str = place()
    data_root: str = place()
    size: int = number(0, 0, SIDES[1])
    output: str = place()
    resume: bool | str = False
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)
    screens: str = ""
    fraction_evaluate: float = number(-1.0, -1, 1)
    min_evaluate_nodes: int = number(2, 0)
    keep_apart: float = number(0.0, 0, 1)
    log: str = ""

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
            fraction_evaluate=max(0.0, self.fraction_evaluate),
            min_evaluate_nodes=self.min_evaluate_nodes,
        )


def read_settings(config: Mapping[str, Any]) -> tuple[ServerSettings, Any, Entry]:
    """Read a run's config: common settings, the strategy's own, and its entry.

    Flower does not check types, and turns ``timeout=150`` into an int.

    Raises:
        SettingError: It says all that is wrong.
    """
    config = _with_folder(config)
    name = config.get("strategy", ServerSettings.strategy)
    entry = look_up("strategy", name if isinstance(name, str) else str(name), STRATEGIES)
    wrong, output = [], config.get("output")
    if config.get("fraction-train") == 0:
        wrong.append("fraction-train = 0; needed: above 0, up to 1")
    if config.get("resume") is True and not output:
        wrong.append("resume = true; needed: output = the folder of the run to go on with")
    if isinstance(folder := config.get("resume"), str) and folder:
        wrong.append(f"resume = {folder!r:.60}; needed: an absolute path, the same as output if both are given")
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
        tell_in_one_line()
        asked = {**(config or {}), **context.run_config}
        named = isinstance(asked.get("resume"), str | Path)
        asked = _with_folder({key: str(value) if isinstance(value, Path) else value for key, value in asked.items()})
        folder = RunFolder(_output(asked, context.run_id))
        with hold(folder.path, is_folder=True):
            resumed = asked.get("resume") is True
            before = folder.read_unfinished() if resumed and folder.holds_run() else None
            if before is None:
                folder.check_free()
                if resumed and named:
                    raise ResumeError(
                        f"{folder.path} holds no run to go on with; give a run's folder, or output for a new one"
                    )
                if resumed:
                    _LOG.info("%s holds no run yet: it begins", folder.path)
            run = ServedRun(folder, asked, before)
            try:
                with reporting(run.name, bar=False, log=_LOG), logged(str(asked.get("log", ""))):
                    result = run(KeepingGrid(grid, folder.arrived), test, *read_settings(asked))
            except ResumeError:
                raise  # what is there stays as it is
            except Exception as failed:
                folder.write_result({**run.record(), "error": str(failed) or type(failed).__name__})
                raise
        if sink is not None:
            sink(run.strategy, result)

    return server


def _with_folder(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config whose ``resume = FOLDER`` is spelled as ``output = FOLDER`` and ``resume = true``."""
    folder, output = asked.get("resume"), asked.get("output") or ""
    if folder == "":
        return {**asked, "resume": False}
    if not isinstance(folder, str) or not Path(folder).is_absolute() or output not in ("", folder):
        return dict(asked)  # `read_settings` says what is wrong
    return {**asked, "resume": True, "output": folder}


def _output(asked: Mapping[str, Any], run: int) -> Path:
    """Return the folder that is asked for; where that is none, one that failures can be written to all the same."""
    named = asked.get("output")
    if isinstance(named, str) and Path(named).is_absolute():
        return Path(named)
    return Path.home() / "fedcondense-runs" / str(run)


app = make_server_app()
