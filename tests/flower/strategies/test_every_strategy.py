"""What holds for each strategy by name: a new line in `STRATEGIES` is a new row here."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import Context
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Result, Strategy
from torch import nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import partition
from fedcondense.flower import run_settings
from fedcondense.flower import served_run as server
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import run_in_process
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.run_folder import RunFolder
from fedcondense.flower.server import make_server_app, read_settings
from fedcondense.flower.settings import keys_of
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.strategies import STRATEGIES, ServerSide
from fedcondense.networks.saved import load_network
from fedcondense.report.page import write_report
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
TINY = {
    "ipc": 1,
    "objective": "dm",
    "steps": 2,
    "networks": 2,
    "lr": 0.1,
    "dims": 8,
    "after": 1,
    "window": 1,
    "trained": 0,
}


class Ran(NamedTuple):
    """A run that is over."""

    folder: RunFolder
    row: dict[str, Any]
    result: dict[str, Any]
    strategy: Strategy
    returned: Result


def four_nodes(train: Data) -> ClientApp:
    """Return four nodes of 160 records, who remember nothing of another run."""
    few = train.subset(torch.arange(640))
    parts = [few.subset(index) for index in partition(few, 4, "iid", seed=0)]

    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, caps=Caps.none(), is_counted=False)


def config(name: str) -> dict[str, Any]:
    """Return a small run's config."""
    own = set(keys_of(type(STRATEGIES[name].settings)))
    return {"strategy": name, "network": NETWORK, "seed": 3} | {k: v for k, v in TINY.items() if k in own}


def rounds_of(name: str) -> int:
    return 2 if STRATEGIES[name].rounds > 1 else 1


@pytest.fixture(scope="module", params=list(STRATEGIES))
def ran(request: pytest.FixtureRequest, train: Data, test: Data, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    name: str = request.param
    folder = tmp_path_factory.mktemp(name) / "run"
    kept: list[Any] = []
    app = make_server_app(test=test, sink=lambda *told: kept.extend(told))
    given = {**config(name), "num-rounds": rounds_of(name), "output": str(folder), "min-available-nodes": 4}
    with pytest.MonkeyPatch.context() as patch:  # few steps, as no setting can say
        for module, function in ((server, "evaluate"), (run_settings, "train_on")):
            patch.setattr(module, function, partial(getattr(module, function), recipe=Fit(steps=20)))
        run_in_process(app, four_nodes(train), 4, run_config=given)
    result = RunFolder(folder).read_result()
    return Ran(RunFolder(folder), result["rows"][name], result, *kept)


def name_of(ran: Ran) -> str:
    (name,) = ran.result["rows"]
    return str(name)


class TestEveryStrategy:
    def test_its_row_says_what_it_is(self, ran: Ran) -> None:
        entry = STRATEGIES[name_of(ran)]
        about = ran.row["about"]
        assert about | {"seen": entry.seen} == entry.about(rounds_of(name_of(ran)))
        unshared = {
            "anchored": "no site sees another's images",
            "growing": "sites that share theirs, 0 of 4 at the end",
        }
        assert about["seen"].endswith(unshared.get(name_of(ran), entry.seen))
        assert all(isinstance(about[key], str) and about[key] for key in ("label", "travels", "seen"))
        assert about["rounds"] == rounds_of(name_of(ran))

    def test_it_is_measured_in_the_order_of_the_classes(self, ran: Ran, test: Data) -> None:
        assert ran.result["classes"] == list(test.spec.classes)
        assert 0 <= ran.row["accuracy"] <= 100
        counts = test.counts.tolist()
        mean = sum(n * value for n, value in zip(counts, ran.row["per_class"], strict=True)) / len(test)
        assert mean == pytest.approx(ran.row["accuracy"], abs=0.01)

    def test_the_folder_is_read_and_reported(self, ran: Ran) -> None:
        assert write_report(ran.folder.path).exists()
        assert ran.result["settings"]["strategy"] == name_of(ran)
        assert json.loads(json.dumps(ran.result)) == ran.result
        if isinstance(ran.strategy, Rounds):
            state = ran.folder.read_state()
            assert state.round == rounds_of(name_of(ran)) == ran.row["seen_rounds"]
            assert dump_state(state) == dump_state(ran.strategy.state)
            assert ran.row["clients"] == 4
            assert min(ran.row["bytes_up"], ran.row["bytes_down"]) > 100

    def test_where_it_ends_in_weights_the_network_is_one_to_use(self, ran: Ran, test: Data) -> None:
        if not ran.returned.arrays:
            assert not (ran.folder.path / "weights.safetensors").exists()
            return
        network = load_network(ran.folder.path)
        assert (network.card.network, network.card.strategy) == (NETWORK, name_of(ran))
        percent = 100 * float((network.predict(test.images) == test.labels).float().mean())
        if "evaluation" in ran.row or ran.row["accuracy_std"] is not None:  # a mean of several networks
            assert percent == pytest.approx(ran.row["accuracy"], abs=25)
        else:
            assert percent == pytest.approx(ran.row["accuracy"], abs=1e-3)

    def test_sets_are_kept_as_they_travelled(self, ran: Ran) -> None:
        sets = ran.strategy.state.sets if isinstance(ran.strategy, Rounds) else {}
        files = {path.stem for path in (ran.folder.path / "clients").glob("*")}
        assert files == set(sets) == set(ran.result["sites"])
        assert sum(ran.result["coverage"].values()) == sum(len(one) for one in sets.values())

    def test_rebuilt_from_its_state_after_a_round_it_ends_equal(self, ran: Ran, train: Data, test: Data) -> None:
        name, client = name_of(ran), four_nodes(train)
        if not isinstance(ran.strategy, Rounds) or rounds_of(name) == 1:
            return
        first, second = (self.made(name, test) for _ in range(2))
        self.start(first, client, 1)
        second.state = load_state(dump_state(first.state), "here")
        self.start(second, client, 2)
        assert second.state.round == 2
        assert set(second.state.sets) == set(ran.strategy.state.sets)
        for site, synthetic in ran.strategy.state.sets.items():
            images = second.state.sets[site].pixels().images
            torch.testing.assert_close(images, synthetic.pixels().images, rtol=0, atol=0)
        assert ran.strategy.state.weights is not None
        assert second.state.weights is not None
        for key, value in ran.strategy.state.weights.tensors.items():
            torch.testing.assert_close(second.state.weights.tensors[key], value, rtol=0, atol=0)

    @staticmethod
    def made(name: str, test: Data) -> Rounds:
        settings, own, entry = read_settings({**config(name), "min-available-nodes": 4})
        limits = ReplyLimits.of(test.spec)

        def fit(joined: SyntheticSet) -> nn.Module:  # as the server does in `ran`
            return train_on(joined, test, network=NETWORK, recipe=Fit(steps=20), seed=settings.seed)

        side = ServerSide(own, fit, settings.asked, limits, test.spec, NETWORK, settings.seed, test=test)
        strategy = entry.make(side)
        assert isinstance(strategy, Rounds)
        return strategy

    @staticmethod
    def start(strategy: Rounds, client: ClientApp, rounds: int) -> None:
        app = ServerApp()

        @app.main()
        def main(grid: Grid, context: Context) -> None:
            strategy.start(grid, num_rounds=rounds)

        run_in_process(app, client, 4)
