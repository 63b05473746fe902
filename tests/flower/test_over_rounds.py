"""What a strategy knows of sites over its rounds, and how it ends before the last one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps, Cost
from fedcondense.flower.client import app as installed_app
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Job, Node, Question, Site, State, Task
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.state_file import dump_state, load_state


@dataclass(frozen=True)
class Say(Task[Metrics]):
    """Say a number; the node of that place refuses."""

    refuses: int = -1

    name: ClassVar[str] = "say"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        if node.place == self.refuses:
            raise SettingError("not today")
        return Job(Cost(), lambda: Metrics({"place": float(node.place)}))


class Fewer(Rounds):
    """Asks all, then all but one, and so on, until nobody is left."""

    rounds = 9

    def __init__(self, **asked: Any) -> None:
        super().__init__(**asked)
        self.seen: list[list[str]] = []

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Mapping[Site, Question]:
        self.seen.append([site.name for site in sites])
        return {site: Say(2 if server_round == 1 else -1) for site in sites[: len(sites) + 1 - server_round]}

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        return state


class Nameless(InProcessGrid):
    """Nodes that are not registered by a name, as Ray's are."""

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [NodeInfo(node_id=node) for node in self.traffic]


@pytest.fixture
def client(train: Data) -> ClientApp:
    few = train.subset(torch.arange(50))
    return make_client_app(lambda context: few, tasks=[Say], caps=Caps.none(), is_counted=False)


@pytest.fixture
def ran(client: ClientApp) -> tuple[Fewer, Nameless]:
    strategy = Fewer()
    with task_identity():
        grid = Nameless(client, 3)
        strategy.start(grid)
    return strategy, grid


def test_an_empty_mapping_ends_the_run_with_what_the_rounds_before_left(ran: tuple[Fewer, Nameless]) -> None:
    strategy, _ = ran
    assert strategy.state.round == 3
    assert len(strategy.seen) == 4


def test_a_site_keeps_the_name_that_it_said_for_itself(ran: tuple[Fewer, Nameless]) -> None:
    """The third refused before it had said its name, and was not asked again."""
    strategy, _ = ran
    assert strategy.seen[:2] == [["", "", ""], ["client-0", "client-1", ""]]
    assert strategy.state.sites == {"100": "client-0", "101": "client-1", "102": ""}
    assert load_state(dump_state(strategy.state), "there").sites == strategy.state.sites


def test_who_was_left_out_in_any_round_is_known_at_the_end(ran: tuple[Fewer, Nameless]) -> None:
    strategy, _ = ran
    assert strategy.refused == ()
    assert [(server_round, refusal.site.node) for server_round, refusal in strategy.left_out] == [(1, 102)]


def test_bytes_are_per_site_that_was_ever_asked_as_the_grid_counts_them(ran: tuple[Fewer, Nameless]) -> None:
    strategy, grid = ran
    answered = [grid.traffic[node].up for node in (100, 101)]
    refusal = grid.traffic[102].up  # an error is no answer
    assert refusal > 0
    assert strategy.spent["bytes-up"] == pytest.approx(sum(answered) / 3, rel=0.02)
    assert strategy.spent["bytes-down"] == pytest.approx(sum(t.down for t in grid.traffic.values()) / 3, rel=0.02)


def test_a_history_says_what_each_round_took(ran: tuple[Fewer, Nameless]) -> None:
    strategy, _ = ran
    said = [(one["round"], one["asked"], one["answered"], one["refused"], one["sites"]) for one in strategy.history]
    assert said == [(1, 3, 2, 1, 3), (2, 2, 2, 0, 3), (3, 1, 1, 0, 3)]
    assert sum(one["total_up"] for one in strategy.history) == pytest.approx(3 * strategy.spent["bytes-up"])
    assert sum(one["total_down"] for one in strategy.history) == pytest.approx(3 * strategy.spent["bytes-down"])
    assert all(0 <= one["server_seconds"] <= one["seconds"] for one in strategy.history)
    assert all(one["client_seconds"] <= one["client_seconds_max"] for one in strategy.history)


def test_an_app_travels_to_the_workers_of_a_simulation() -> None:
    pickles = pytest.importorskip("cloudpickle")
    assert isinstance(pickles.loads(pickles.dumps(installed_app)), ClientApp)
