"""A server that is killed anywhere in a round, and a run with other workers and arrivals, end with the same state."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense import files
from fedcondense.data.images import Data
from fedcondense.data.partitions import partition
from fedcondense.errors import ResumeError
from fedcondense.flower import run_settings, served_run
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.server import make_server_app
from fedcondense.flower.settings import keys_of
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.averaging import AVERAGING
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
TINY = {"ipc": 1, "objective": "dm", "steps": 2, "networks": 2, "lr": 0.1, "dims": 8}
NODES, SHARING = 4, {"share-with": "sites"}
TIMES = {"seconds", "server_seconds", "client_seconds", "client_seconds_max", "memory"}
TIMES |= {"bytes_up", "total_up"}  # a site writes its seconds into its answer, digit by digit


class Killed(BaseException):
    """What no code of ours expects."""


class Shuffled(InProcessGrid):
    """Nodes of whom two work at once, and whose replies arrive in an order of chance, one per look.

    Args:
        lives: The server dies when it looks for one more reply than this.
    """

    def __init__(self, client: ClientApp, lives: float = float("inf"), seed: int = 0) -> None:
        super().__init__(client, NODES, node_config=SHARING)
        self.lives, self.asked, self.chance = lives, 0, random.Random(seed)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        given = list(messages)
        self.asked += len(given)
        with ThreadPoolExecutor(2) as workers:
            sent = workers.map(lambda message: next(iter(InProcessGrid.push_messages(self, [message]))), given)
            return list(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        there = [one for one in sorted(message_ids) if one in self._replies]
        if self.lives < 1:
            raise Killed
        self.lives -= 1
        return super().pull_messages([self.chance.choice(there)] if there else [])


@pytest.fixture(scope="module")
def client(train: Data) -> ClientApp:
    few = train.subset(torch.arange(240))
    parts = [few.subset(index) for index in partition(few, NODES, "iid", seed=0)]
    return make_client_app(
        lambda context: parts[int(context.node_config["partition-id"])], caps=Caps.none(), is_counted=False
    )


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:  # few steps, as no setting can say
        for module, function in ((served_run, "evaluate"), (run_settings, "train_on")):
            patch.setattr(module, function, partial(getattr(module, function), recipe=Fit(steps=5)))
        patch.setattr(run_settings, "ServerSide", partial(ServerSide, recipe=Fit(steps=5)))
        patch.setattr("gc.collect", lambda *_: 0)  # which Flower calls at every array it reads
        patch.setattr("os.fsync", lambda file: None)
        patch.setattr("fedcondense.flower.arrivals._POLL_S", 0)
        patch.setattr("fedcondense.flower.asking._POLL_S", 0)
        yield


def serve(client: ClientApp, name: str, output: Path | str, test: Data, grid: Any = None, **config: Any) -> Any:
    """Run the server app; return the grid, dead or alive."""
    own = {key: value for key, value in TINY.items() if key in keys_of(type(STRATEGIES[name].settings))}
    asked: dict[str, Any] = {"strategy": name, "network": NETWORK, "seed": 3, "num-rounds": rounds_of(name), **own}
    asked |= {"min-available-nodes": NODES, "output": str(output), **config}
    with task_identity():
        grid = grid or InProcessGrid(client, NODES, node_config=SHARING)
        with suppress(Killed):
            make_server_app(test=test.subset(torch.arange(40)))(grid, Context(1, 0, {}, RecordDict(), asked))
    return grid


def rounds_of(name: str) -> int:
    return 2 if STRATEGIES[name].rounds > 1 else 1


def left(output: Path) -> dict[str, Any]:
    """Return what a run ends with, without what the hour and the machine decide."""
    result = RunFolder(output).read_result()
    assert "error" not in result
    rounds = [{key: value for key, value in one.items() if key not in TIMES} for one in result["rounds"]]
    network = output / "weights.safetensors"
    (row,) = result["rows"].values()
    return {
        "digest": result["digest"],
        "rounds": rounds,
        "network": network.read_bytes() if network.exists() else b"",
        "row": {key: value for key, value in row.items() if key not in TIMES},
        "refused": result["refused"],
    }


@pytest.fixture(scope="module")
def whole(client: ClientApp, test: Data, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """Return what a run of a strategy ends with that nobody disturbs; each is run once."""
    ended: dict[str, dict[str, Any]] = {}

    def of(name: str) -> dict[str, Any]:
        if name not in ended:
            output = tmp_path_factory.mktemp(name) / "run"
            serve(client, name, output, test)
            ended[name] = left(output)
        return ended[name]

    return of


def die(*_: Any, **__: Any) -> None:
    raise Killed


def die_at(number: int, function: Any) -> Any:
    """Return a function that does its work, but for the call of that number, in whose place the server dies."""
    calls = iter(range(1, 99))

    def call(*given: Any, **more: Any) -> Any:
        return die() if next(calls) == number else function(*given, **more)

    return call


def in_half(path: Path, function: Any) -> Any:
    """Return `write_file` for a server that dies while a state is on its way to the disk, in the last round."""

    def write(to: Path, blob: bytes, **more: Any) -> Path:
        if Path(to) == path:
            to.parent.mkdir(exist_ok=True)
            to.with_name(f".{to.name}.part").write_bytes(blob[: len(blob) // 2])
            raise Killed
        return Path(function(to, blob, **more))

    return write


KILLS = ("after it asked", "after half the answers", "after it combined", "while the state is written", "at the end")


CASES = [(name, kill) for name in ("one-shot", "anchored") for kill in KILLS]
CASES += [("iterative", kill) for kill in KILLS[:2]] + [("fedadam", kill) for kill in KILLS[1:4]]


@pytest.mark.parametrize(("name", "kill"), CASES)
def test_a_run_that_is_killed_and_resumed_ends_as_one_that_was_not(
    name: str, kill: str, client: ClientApp, test: Data, whole: Any, tmp_path: Path
) -> None:
    output, last = tmp_path / "run", rounds_of(name)
    before = NODES * (last - 1)  # replies of the rounds before the last
    with pytest.MonkeyPatch.context() as patch:
        lives = {"after it asked": before, "after half the answers": before + NODES // 2}.get(kill, float("inf"))
        if kill == "after it combined":
            for method in ("_keep", "_keep_weights"):
                patch.setattr(served_run.ServedRun, method, die_at(last, getattr(served_run.ServedRun, method)))
        if kill == "while the state is written":
            path = output / "rounds" / f"{last:04d}.state"
            patch.setattr("fedcondense.flower.round_files.write_file", in_half(path, files.write_file))
        if kill == "at the end":
            patch.setattr(served_run.ServedRun, "_write", die)
        serve(client, name, output, test, Shuffled(client, lives))
    assert "not finished: killed" in RunFolder(output).read_result()["error"]
    asked = serve(client, name, "", test, Shuffled(client, seed=1), resume=str(output)).asked
    assert asked == {"after it asked": NODES, "after half the answers": NODES // 2}.get(kill, 0)
    assert left(output) == whole(name)


def test_a_folder_without_a_run_to_go_on_with_is_refused_before_anybody_is_asked(
    client: ClientApp, test: Data, tmp_path: Path
) -> None:
    grid = Shuffled(client)
    with pytest.raises(ResumeError, match="holds no run to go on with; give a run's folder, or output for a new one"):
        serve(client, "one-shot", "", test, grid, resume=str(tmp_path / "typo"))
    assert not grid.asked
    assert serve(
        client, "one-shot", tmp_path / "new", test, grid, resume=True
    ).asked  # one command, begun or gone on with


@pytest.mark.parametrize("name", AVERAGING)
def test_flowers_own_go_on_with_all_that_they_keep_on_themselves(
    name: str, client: ClientApp, test: Data, whole: Any, tmp_path: Path
) -> None:
    """The new process has a new strategy, whose first round is the second of the run."""
    output = tmp_path / "run"
    serve(client, name, output, test, Shuffled(client, NODES))
    assert RunFolder(output).read_state().round == 1
    assert serve(client, name, output, test, resume=True).traffic
    assert left(output) == whole(name)


@pytest.mark.parametrize("name", [name for name, entry in STRATEGIES.items() if name not in AVERAGING])
def test_workers_and_the_order_of_arrivals_change_nothing(
    name: str, client: ClientApp, test: Data, whole: Any, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    serve(client, name, output, test, Shuffled(client, seed=2))
    assert left(output) == whole(name)


def test_a_sample_of_nodes_is_drawn_by_the_seed_and_the_round(client: ClientApp, test: Data, tmp_path: Path) -> None:
    """Flower draws by a generator of the process, which a new process has not."""
    config = {"fraction-train": 0.5, "min-available-nodes": 2}
    for name in ("one", "two"):
        random.seed(name)
        serve(client, "fedavg", tmp_path / name, test, **config)
    assert left(tmp_path / "one") == left(tmp_path / "two")
    random.seed("three")
    state = random.getstate()
    serve(client, "fedavg", tmp_path / "three", test, Shuffled(client, 2), **config)
    assert random.getstate() == state
    serve(client, "fedavg", tmp_path / "three", test, resume=True, **config)
    assert left(tmp_path / "three") == left(tmp_path / "one")


def test_a_run_that_goes_on_for_more_rounds_is_called_by_all_of_them(
    client: ClientApp, test: Data, tmp_path: Path
) -> None:
    serve(client, "fedavg", tmp_path / "run", test, Shuffled(client, NODES))  # dies in its second round
    serve(client, "fedavg", tmp_path / "run", test, resume=True, **{"num-rounds": 3})
    about = RunFolder(tmp_path / "run").read_result()["rows"]["fedavg"]["about"]
    assert about["rounds"] == 3
    assert about["label"].endswith("3 rounds")
