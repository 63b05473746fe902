"""A site of a served run is forgotten: what is left is what a run leaves in which it was silent."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense.data.images import Data
from fedcondense.data.partitions import partition
from fedcondense.errors import ResumeError, SettingError
from fedcondense.flower import run_settings, served_run
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Site
from fedcondense.flower.forgetting import forget
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.inbox import Inbox, ReplyLimits
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.server import make_server_app
from fedcondense.flower.settings import keys_of
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.one_shot import OneShot
from fedcondense.networks.saved import load_network
from fedcondense.training.fit import Fit

TINY = {"ipc": 1, "objective": "dm", "steps": 2, "networks": 2, "polish-steps": 2, "lr": 0.1, "dims": 8}
NODES = 3


class Some(InProcessGrid):
    """Three nodes, of whom some are silent, or are not there before some round."""

    def __init__(self, client: ClientApp, silent: Iterable[int] = (), late: dict[int, int] | None = None) -> None:
        super().__init__(client, NODES)
        self.silent, self.late, self.round = {100 + node for node in silent}, late or {}, 1
        self.asked: list[tuple[int, int]] = []  # round, node

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if self.late.get(node - 100, 0) <= self.round]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        given = list(messages)
        self.asked += [(int(one.metadata.group_id or 1), one.metadata.dst_node_id - 100) for one in given]
        self.round = max([self.round, *(number + 1 for number, _ in self.asked)])
        found = list(super().push_messages(given))
        for message, name in zip(given, found, strict=True):
            if message.metadata.dst_node_id in self.silent:
                del self._replies[name]
        return found


@pytest.fixture(scope="module")
def few(train: Data) -> Data:
    return train.subset(torch.arange(240))


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterable[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module, function in ((served_run, "evaluate"), (run_settings, "train_on")):
            patch.setattr(module, function, partial(getattr(module, function), recipe=Fit(steps=5)))
        patch.setattr(run_settings, "ServerSide", partial(ServerSide, recipe=Fit(steps=5)))
        patch.setattr("fedcondense.flower.asking._POLL_S", 0)
        yield


@pytest.fixture(scope="module")
def client(few: Data) -> ClientApp:
    parts = [few.subset(index) for index in partition(few, NODES, "iid", seed=0)]
    return make_client_app(
        lambda context: parts[int(context.node_config["partition-id"])], caps=Caps.none(), is_counted=False
    )


def serve(grid: Some, name: str, output: Path, test: Data, rounds: int, **config: Any) -> Some:
    own = {key: value for key, value in TINY.items() if key in keys_of(type(STRATEGIES[name].settings))}
    asked: dict[str, Any] = {"strategy": name, "network": "convnet1-w16", "seed": 3, "num-rounds": rounds, **own}
    asked |= {"min-available-nodes": 2, "min-replies": 2, "grace": 0.0, "output": str(output), **config}
    with task_identity():
        make_server_app(test=test)(grid, Context(1, 0, {}, RecordDict(), asked))
    return grid


@pytest.fixture(scope="module")
def small(test: Data) -> Data:
    return test.subset(torch.arange(40))


def left(folder: Path) -> tuple[str, bytes, list[str], float]:
    result = RunFolder(folder).read_result()
    (row,) = result["rows"].values()
    assert "error" not in result
    network = folder / "weights.safetensors"
    return result["digest"], network.read_bytes() if network.exists() else b"", result["sites"], row["accuracy"]


Ran = Callable[..., Path]


@pytest.fixture(scope="module")
def once(client: ClientApp, small: Data, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Return a function that runs a strategy, once for the same arguments."""
    done: dict[tuple[Any, ...], Path] = {}

    def run(name: str, rounds: int, *silent: int) -> Path:
        if (name, *silent) not in done:
            folder = done[name, *silent] = tmp_path_factory.mktemp(name) / "run"
            serve(Some(client, silent), name, folder, small, rounds)
        return done[name, *silent]

    return run


@pytest.fixture
def ran(once: Ran, tmp_path: Path) -> Ran:
    """Return a function that returns a copy of a run of all three sites."""

    def copy(name: str, rounds: int = 1) -> Path:
        return Path(shutil.copytree(once(name, rounds), tmp_path / name))

    return copy


class TestServed:
    @pytest.mark.parametrize("name", ["one-shot", "ridge"])
    def test_a_round_ends_as_if_the_site_had_been_silent(self, name: str, once: Ran, ran: Ran, small: Data) -> None:
        whole, without = ran(name), once(name, 1, 1)
        assert left(whole) != left(without)
        done = forget(whole, "client-1", test=small)
        assert (done.rounds, done.round, done.left, done.went_down) == ((1,), 1, "", ())
        assert left(whole) == left(without)
        assert not (whole / "clients" / "client-1.safetensors").exists()
        result = RunFolder(whole).read_result()
        assert {key: result["forgotten"][0][key] for key in ("site", "key", "rounds")} == {
            "site": "client-1",
            "key": "101",
            "rounds": [1],
        }
        if name == "one-shot":
            assert load_network(whole).classes == small.spec.classes
        with pytest.raises(SettingError, match="client-1 is forgotten already"):
            forget(whole, "client-1", test=small)

    def test_only_sites_that_answered_are_offered(self, once: Ran, tmp_path: Path, small: Data) -> None:
        """Who was silent, refused or held an answer back has nothing in the run that could be forgotten."""
        whole = Path(shutil.copytree(once("one-shot", 1, 1), tmp_path / "run"))
        for site in ("client-1", "nobody"):
            with pytest.raises(SettingError, match=rf"no site that has answered is called '{site}'") as refused:
                forget(whole, site, test=small)
            assert str(refused.value).endswith("all of them: client-0, client-2")

    @pytest.mark.parametrize("name", ["iterative", "anchored"])
    def test_rounds_after_are_run_again_without_it(
        self, name: str, once: Ran, ran: Ran, client: ClientApp, small: Data
    ) -> None:
        whole, without = ran(name, 2), once(name, 2, 1)
        done = forget(whole, "client-1", test=small)
        assert (done.rounds, done.round, done.went_down) == ((1, 2), 1, (2,))
        assert "rounds from 2 to 2 are to be run again" in done.left
        assert [path.name for path in sorted((whole / "rounds").glob("*.state"))] == ["0001.state"]
        assert not (whole / "joined.safetensors").exists()
        (first,), wanted = RunFolder(whole).read_result()["rounds"], RunFolder(without).read_result()["rounds"][0]
        assert first["accuracy"] == wanted["accuracy"]
        grid = serve(Some(client), name, whole, small, 2, resume=True)
        assert sorted(grid.asked) == [(2, 0), (2, 2)]
        assert left(whole) == left(without)
        assert [one["site"] for one in RunFolder(whole).read_result()["forgotten"]] == ["client-1"]

    def test_of_a_site_that_came_late_the_rounds_before_stay_as_they_are(
        self, client: ClientApp, small: Data, tmp_path: Path
    ) -> None:
        folder = tmp_path / "run"
        serve(Some(client, late={2: 2}), "anchored", folder, small, 2)
        first = (folder / "rounds" / "0001.state").read_bytes()
        done = forget(folder, "client-2", test=small)
        assert (done.rounds, done.round, done.went_down) == ((2,), 1, ())
        assert [path.name for path in sorted((folder / "rounds").glob("*.state"))] == ["0001.state"]
        assert (folder / "rounds" / "0001.state").read_bytes() == first

    def test_what_was_interrupted_is_finished_first(
        self, once: Ran, ran: Ran, client: ClientApp, small: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder, other = ran("one-shot"), once("one-shot", 1, 1)

        def killed(self: RunFolder, server_round: int) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunFolder, "take_back", killed)
            with pytest.raises(KeyboardInterrupt):
                forget(folder, "client-1", test=small)
        with pytest.raises(ResumeError, match="finished run"):
            serve(Some(client), "one-shot", folder, small, 1, resume=True)
        with pytest.raises(SettingError, match="client-1 is half forgotten"):
            forget(folder, "client-0", test=small)
        forget(folder, "client-1", test=small)
        assert left(folder) == left(other)

    def test_where_nobody_is_left_nothing_of_the_site_is(self, client: ClientApp, small: Data, tmp_path: Path) -> None:
        folder = tmp_path / "run"
        serve(Some(client, silent=[0, 1]), "one-shot", folder, small, 1, **{"min-replies": 1})
        done = forget(folder, "client-2", test=small)
        assert "nothing is left to go on from" in done.left
        assert not list(folder.rglob("*.state"))
        assert "client-2 was forgotten" in RunFolder(folder).read_result()["error"]

    def test_without_the_data_that_it_tested_on_a_run_is_not_touched(self, ran: Ran) -> None:
        folder = ran("one-shot")
        before = RunFolder(folder).read_result()
        with pytest.raises(SettingError, match="give the data that the server tested on"):
            forget(folder, "client-0")
        assert RunFolder(folder).read_result() == before

    def test_weights_of_flowers_own_cannot_be_taken_apart(self, client: ClientApp, small: Data, tmp_path: Path) -> None:
        serve(Some(client), "fedavg", tmp_path / "run", small, 1, **{"min-replies": 1, "grace": -1.0})
        with pytest.raises(SettingError, match="one of Flower's own: client-0 is in the weights"):
            forget(tmp_path / "run", "client-0", test=small)

    def test_a_comparison_is_run_anew(self, tmp_path: Path) -> None:
        RunFolder(tmp_path).write_result({"partition": {}, "rows": {}})
        with pytest.raises(SettingError, match="run it anew without client-0"):
            forget(tmp_path, "client-0")


class Staged(OneShot):
    stages = ("keys", "sets")


def test_a_strategy_of_stages_refuses_in_one_line() -> None:
    with pytest.raises(SettingError, match=r"Staged asks in stages, .* run it anew without a in another folder"):
        Staged().without(Site("a", "1", 1), Inbox([], ReplyLimits()))
