from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import nn

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Weights
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.strategies.anchored import ANCHORED, Anchored
from fedcondense.flower.strategies.anchors import Nothing
from fedcondense.flower.strategies.averages import AVERAGES
from fedcondense.flower.strategies.closed_head import Head
from fedcondense.flower.strategies.continuing import Continue
from fedcondense.flower.strategies.one_shot import Condense
from fedcondense.networks import NETWORKS, build
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit, accuracy

NETWORK = "convnet1-w16"
FIRST = Condense(ipc=1, objective="dm", steps=2, network=NETWORK)
SHARING = {"share-with": "sites"}


def client_of(train: Data, held: Partition, caps: Caps = Caps.none()) -> ClientApp:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=caps, is_counted=False)


def anchored(train: Data, **changes: Any) -> Anchored:
    usual: dict[str, Any] = {"fit": Fit(steps=20), "first": FIRST, "task": Continue(network=NETWORK)}
    usual |= {"polish": Fit(steps=2), "min_available_nodes": 1, "min_train_nodes": 1}
    return Anchored(train.spec, **{**usual, **changes})


class Watched(InProcessGrid):
    """Notes what is asked; nodes may be absent in rounds of a test's choice."""

    def __init__(self, client: ClientApp, sharing: Mapping[str, Any] = SHARING, **absent: tuple[int, ...]) -> None:
        super().__init__(client, 3, node_config=sharing)
        self.absent, self.round = {int(name[5:]): nodes for name, nodes in absent.items()}, 1
        self.asked: list[tuple[int, int, str, bool]] = []  # round, node, task, whether anchors go along

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node - 100 not in self.absent.get(self.round, ())]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            self.round = int(message.metadata.group_id)
            about = message.metadata
            self.asked.append(
                (self.round, about.dst_node_id - 100, about.message_type, "anchors" in message.content.array_records)
            )
        return super().push_messages(messages)

    def of(self, server_round: int) -> dict[int, tuple[str, bool]]:
        """Return the last question of each node in a round."""
        return {node: (kind, anchors) for number, node, kind, anchors in self.asked if number == server_round}


def run(strategy: Anchored, grid: Watched, rounds: int) -> Anchored:
    with task_identity():
        for number in range(strategy.state.round + 1, rounds + 1):
            grid.round = number
            strategy.start(grid, num_rounds=number)
    return strategy


def equal(one: State, other: State) -> bool:
    return dump_state(one) == dump_state(other)


class TestAnchored:
    def test_the_union_goes_down_once_and_weights_every_round(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held))
        strategy = run(anchored(train), grid, 4)
        assert set(grid.of(1).values()) == {("query.condense", False)}
        assert set(grid.of(2).values()) == {("query.continue", True)}
        assert set(grid.of(3).values()) == set(grid.of(4).values()) == {("query.continue", False)}
        kept = SyntheticSet.from_bytes(strategy.state.tensors["anchors"].numpy().tobytes())
        assert strategy.state.joined is not None
        assert (len(kept), kept.nbytes) == (len(strategy.state.joined), strategy.state.joined.nbytes)
        assert ANCHORED.saw(strategy).endswith("sites see images of sites that share theirs, 3 of 3 at the end")

    def test_a_site_that_shares_with_the_server_alone_is_in_no_anchors(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held), {})
        strategy = run(anchored(train), grid, 2)
        assert "anchors" not in strategy.state.tensors
        assert set(grid.of(2).values()) == {("query.continue", False)}
        assert strategy.state.joined is not None  # the server trains on all of them
        assert ANCHORED.saw(strategy).endswith("weights; no site sees another's images")

    def test_a_late_site_sends_its_set_first_and_trains_from_the_next_round_on(
        self, train: Data, held: Partition
    ) -> None:
        grid = Watched(client_of(train, held), round1=(2,))
        strategy = run(anchored(train), grid, 3)
        assert grid.of(2)[2] == ("query.condense", False)
        assert grid.of(3) == {0: ("query.continue", False), 1: ("query.continue", False), 2: ("query.continue", True)}
        assert list(strategy.state.sets) == ["client-0", "client-1", "client-2"]

    def test_the_last_layer_is_solved_for_in_the_last_round(self, train: Data, test: Data, held: Partition) -> None:
        grid, measured = Watched(client_of(train, held)), list[float]()
        strategy = anchored(train, polish=Fit(steps=0), anchors=Nothing(), head_bytes=0)

        def measure(number: int, arrays: ArrayRecord) -> None:
            model = build(NETWORK, train.spec.shape, 10, 0)
            model.load_state_dict(arrays.to_torch_state_dict())
            measured.append(accuracy(model, test)[0])

        with task_identity():
            strategy.start(grid, num_rounds=3, evaluate_fn=measure)
        assert [set(grid.of(n).values()) for n in (1, 2, 3)] == [
            {(f"query.{task}", False)} for task in ("condense", "continue", "head")
        ]
        assert measured[2] > measured[1] + 5

    def test_a_run_that_goes_on_averages_from_the_layer_that_was_solved_for(self, train: Data, held: Partition) -> None:
        grid, strategy = Watched(client_of(train, held)), anchored(train, polish=Fit(steps=0), head_bytes=400)
        with task_identity():
            for rounds in (1, 2, 4):
                strategy.start(grid, num_rounds=rounds)
        asked = [{kind for kind, _ in grid.of(n).values()} for n in (1, 2, 3, 4)]
        assert asked == [{f"query.{task}"} for task in ("condense", "head", "continue", "head")]

    def test_a_network_that_cannot_be_solved_for_is_refused_before_a_round(
        self, train: Data, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def all_convolutions(shape: tuple[int, int, int], classes: int) -> nn.Module:
            return nn.Sequential(nn.Conv2d(shape[0], classes, shape[1]), nn.Flatten())

        monkeypatch.setitem(NETWORKS, "all-convolutions", all_convolutions)
        task = Continue(network="all-convolutions")
        with pytest.raises(SettingError, match=r"has no last nn\.Linear with a bias.* set head = averaged"):
            anchored(train, task=task, head_bytes=0)
        assert anchored(train, task=task).head_bytes is None

    def test_classes_are_weighed_where_most_who_are_asked_are_known(self, train: Data, held: Partition) -> None:
        strategy = run(anchored(train, polish=Fit(steps=0), head_bytes=0), Watched(client_of(train, held)), 1)
        everybody = [Site(f"client-{k}", str(k)) for k in range(3)]
        strategy.last_round = 2
        for sites, is_known in ((everybody, True), (everybody + [Site("", str(k)) for k in range(3, 9)], False)):
            asked = strategy.ask(2, "answer", strategy.state, sites)
            assert isinstance(asked, Mapping)
            question = asked[sites[0]]
            assert isinstance(question, Head)
            assert bool(question.balance) == is_known

    def test_too_few_sites_leave_the_last_layer(
        self, train: Data, held: Partition, caplog: pytest.LogCaptureFixture
    ) -> None:
        grid = Watched(client_of(train, held), round3=(1, 2))
        strategy = anchored(train, polish=Fit(steps=0), head_bytes=0)
        with task_identity(), caplog.at_level("WARNING", "flwr"):
            strategy.start(grid, num_rounds=1)
            before, grid.round = dict(strategy.state.but().weights.tensors), 3  # type: ignore[union-attr]
            strategy.start(grid, num_rounds=2)
        assert strategy.state.weights is not None
        assert all(torch.equal(value, before[name]) for name, value in strategy.state.weights.tensors.items())
        assert (
            "round 2: those who answered hold 455 of 1433 records, and two thirds are needed; the last" in caplog.text
        )
        assert {(n, one.site.name) for n, one in strategy.left_out} == {(2, "client-0")}  # whose sums came for nothing

    def test_the_last_round_asks_all_whatever_share_the_others_ask(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held))
        strategy = anchored(train, polish=Fit(steps=0), head_bytes=0, fraction_train=0.34)
        with task_identity():
            strategy.start(grid, num_rounds=3)
        assert [len(grid.of(number)) for number in (1, 2, 3)] == [1, 1, 3]

    def test_a_late_site_trains_at_once_where_nobody_would_train_on_its_set(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held), round1=(2,))
        strategy = run(anchored(train, polish=Fit(steps=0)), grid, 2)
        assert {kind for kind, _ in grid.of(2).values()} == {"query.continue"}
        assert list(strategy.state.sets) == ["client-0", "client-1"]

    def test_an_absent_site_stays_in_by_its_set(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held), round2=(0,), round3=(0,))
        strategy = run(anchored(train), grid, 3)
        assert "client-0" in strategy.state.sets
        assert set(grid.of(3)) == {1, 2}

    def test_nodes_that_lost_the_anchors_get_them_again_in_the_same_round(self, train: Data, held: Partition) -> None:
        """A resumed run is another run of Flower: its nodes begin anew, unless they keep a folder."""
        strategy = run(anchored(train), Watched(client_of(train, held)), 2)
        grid = Watched(client_of(train, held))  # another process
        run(strategy, grid, 3)
        assert [(kind, anchors) for *_, kind, anchors in grid.asked] == [("query.continue", False)] * 3 + [
            ("query.continue", True)
        ] * 3
        assert not strategy.refused

    def test_stopped_after_any_round_it_ends_equal(self, train: Data, held: Partition) -> None:
        client = client_of(train, held)
        whole = run(anchored(train, average=AVERAGES["fedadam"]()), Watched(client), 4)
        for stop in (1, 2, 3):
            grid, second = Watched(client), anchored(train, average=AVERAGES["fedadam"]())
            second.state = load_state(
                dump_state(run(anchored(train, average=AVERAGES["fedadam"]()), grid, stop).state), ""
            )
            run(second, grid, 4)
            assert whole.state.weights is not None
            assert second.state.weights is not None
            for name, value in whole.state.weights.tensors.items():
                assert torch.equal(second.state.weights.tensors[name], value), (stop, name)

    @pytest.mark.parametrize("name", AVERAGES)
    def test_flowers_strategies_average(self, name: str, train: Data) -> None:
        """Two sites whose changes are equal, of any weights, move the network by what the optimizer makes of them."""
        strategy = anchored(train, average=AVERAGES[name](), polish=Fit(steps=0))
        model = build(NETWORK, train.spec.shape, 10, 0)
        weights = Weights.of(model)
        change = {n: 0.01 * torch.ones_like(v) for n, v in model.named_parameters()}
        state = State(1, weights, sets={})
        with task_identity():
            answers = [
                Answer(Site(f"s{k}", f"k{k}", k), Packed.of({**weights.tensors, **change}, model), n)
                for k, n in enumerate((10, 30))
            ]
            moved = strategy.combine(2, "answer", state, answers).weights
        assert moved is not None
        parameter = next(iter(change))
        step = moved.tensors[parameter] - weights.tensors[parameter]
        assert bool((step > 0).all())
        if name == "fedavg":
            torch.testing.assert_close(step, change[parameter], rtol=0, atol=1e-4)

    def test_weights_of_another_network_leave_their_site_out(self, train: Data) -> None:
        strategy = anchored(train)
        other = build("convnet1-w32", train.spec.shape, 10, 0)
        answer = Answer(Site("a", "a", 1), Packed.of(other.state_dict(), other), 5)
        with pytest.raises(ValueError, match=r"weights of \d+ bytes; this network has \d+"):
            strategy.examine("answer", answer)
        model = build(NETWORK, train.spec.shape, 10, 0)
        own = Packed.of(model.state_dict(), model)
        with pytest.raises(ValueError, match="by 0 records; needed: 1 or more"):
            strategy.examine("answer", Answer(Site("a", "a", 1), own, 0))

    def test_the_server_can_go_without_anchors_and_without_training(self, train: Data, held: Partition) -> None:
        strategy = run(anchored(train, anchors=Nothing(), polish=Fit(steps=0)), Watched(client_of(train, held)), 2)
        assert "anchors" not in strategy.state.tensors

    def test_a_node_that_allows_no_weights_sends_its_set_and_says_what_is_missing(
        self, train: Data, held: Partition
    ) -> None:
        caps = replace(Caps.none(), allow_weights=False)
        strategy = run(anchored(train), Watched(client_of(train, held, caps)), 1)
        assert len(strategy.state.sets) == 3
        with task_identity(), pytest.raises(Exception, match="has no allow-weights = true"):
            strategy.start(Watched(client_of(train, held, caps)), num_rounds=2)
        assert strategy.state.round == 1  # what round 1 left is there

    @pytest.mark.parametrize("rounds", [0, -1])
    def test_no_rounds_are_refused(self, rounds: int, train: Data, held: Partition) -> None:
        with pytest.raises(SettingError, match=f"num_rounds {rounds}; needed: 1 or more"):
            anchored(train).start(Watched(client_of(train, held)), num_rounds=rounds)

    def test_the_anchors_digest_is_that_of_their_file(self, train: Data, held: Partition) -> None:
        strategy = run(anchored(train), Watched(client_of(train, held)), 1)
        asked = strategy.ask(2, "answer", strategy.state, [Site("client-0", "100", 100)])
        (question,) = asked.values()
        assert isinstance(question, Continue)
        assert isinstance(question.anchors, SyntheticSet)
        assert hashlib.sha256(question.anchors.to_bytes()).hexdigest() == question.anchored

    def test_a_server_without_data_learns_classes_from_the_first_round(self, train: Data, held: Partition) -> None:
        grid = Watched(client_of(train, held), round1=(2,))
        strategy = Anchored(None, Fit(steps=20), first=FIRST, task=Continue(network=NETWORK), polish=Fit(steps=2))
        run(strategy, grid, 3)
        assert strategy.classes == train.spec.classes
        assert strategy.state.joined is not None
        assert set(strategy.state.joined.classes) == set(train.spec.classes)
        again = Anchored(None, task=Continue(network=NETWORK))
        again.state = load_state(dump_state(strategy.state), "here")
        assert again.classes == strategy.classes

    def test_without_sets_averaging_begins_at_once_from_an_untrained_network(
        self, train: Data, held: Partition
    ) -> None:
        strategy = run(anchored(train, first=None), Watched(client_of(train, held)), 1)
        assert not strategy.state.sets
        assert strategy.state.weights is not None
        with pytest.raises(SettingError, match="no sets are asked for, and no spec"):
            Anchored(None, first=None)
