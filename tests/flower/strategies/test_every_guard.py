"""A node's caps and ledger and a server's screens hold over each strategy by name, whatever it asks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp

from fedcondense.data.images import Data
from fedcondense.data.partitions import partition
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.ledger import Allowance, Ledger
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.screens import SCREENS, check_screens
from fedcondense.flower.server import make_server_app, read_settings
from fedcondense.flower.settings import keys_of
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.flower.strategies.one_shot import train_network
from fedcondense.flower.strategies.selections import Select

NETWORK = "convnet1-w16"
TINY = {"ipc": 1, "objective": "dm", "steps": 2, "networks": 2, "lr": 0.1, "dims": 8}


def config(name: str, **more: Any) -> dict[str, Any]:
    own = set(keys_of(type(STRATEGIES[name].settings)))
    usual = {"strategy": name, "network": NETWORK, "num-rounds": 1, "min-available-nodes": 2}
    return usual | {k: v for k, v in TINY.items() if k in own} | more


def two_nodes(train: Data) -> ClientApp:
    few = train.subset(torch.arange(240))
    parts = [few.subset(index) for index in partition(few, 2, "iid", seed=0)]

    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, caps=Caps.none())


def failed(name: str, train: Data, test: Data, tmp_path: Path, **node: Any) -> str:
    """Run a strategy whose nodes refuse all; return why it ended, of the run's own folder."""
    given = config(name, output=str(tmp_path / "run"))
    with pytest.raises(AggregationError) as stopped:
        run_in_process(make_server_app(test=test), two_nodes(train), 2, run_config=given, node_config=node)
    said = str(RunFolder(tmp_path / "run").read_result()["error"])
    assert said == str(stopped.value)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", STRATEGIES)
class TestEveryGuard:
    def test_a_ledger_that_is_spent_answers_nothing(self, name: str, train: Data, test: Data, tmp_path: Path) -> None:
        ledger = tmp_path / "ledger.jsonl"
        reason = failed(name, train, test, tmp_path, **{"ledger": str(ledger), "life-questions": 0})
        assert "more than this node gives away in its life: questions 0 + 1, allowed 0" in reason
        assert Ledger.open(ledger, Allowance()).spent().questions == 0

    def test_a_cap_that_is_in_the_way_is_named(self, name: str, train: Data, test: Data, tmp_path: Path) -> None:
        if isinstance(STRATEGIES[name].settings, Select):  # records themselves
            assert "has no allow-real = true" in failed(name, train, test, tmp_path, **{"allow-real": False})
        else:
            assert "this node allows vgg11" in failed(name, train, test, tmp_path, networks="vgg11")

    def test_screens_are_heeded_or_refused_in_words(self, name: str, test: Data) -> None:
        settings, own, entry = read_settings(config(name))
        side = ServerSide(own, train_network, settings.asked, spec=test.spec, network=NETWORK, test=test)
        screen = SCREENS["agreement"]
        strategy = entry.make(side._replace(screen=screen))
        if getattr(strategy, "screen", None) is screen:
            check_screens("agreement", strategy)
            return
        with pytest.raises(SettingError, match=r"screens = 'agreement'; .* combines no synthetic sets"):
            check_screens("agreement", strategy)
