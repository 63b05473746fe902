from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcondense.contract import Batch, Draw
from fedcondense.data.augment import Augmentation
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.stores import ThisRound
from fedcondense.flower.strategies.iterative import BothLayers, FedDM, MatchNear, within
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.networks import build
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
TINY = MatchNear(ipc=1, networks=2, steps=2, network=NETWORK)

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


def near(train: Data, **changes: Any) -> MatchNear:
    weights = Weights.of(build(NETWORK, train.spec.shape, 10, 0))
    return replace(TINY, **{"weights": weights, "classes": train.spec.classes, **changes})


def distance(one: Weights, other: Weights) -> float:
    steps = [(one.tensors[n] - v).double().square().sum() for n, v in other.tensors.items() if v.is_floating_point()]
    return float(torch.stack(steps).sum().sqrt())


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=Caps.none(), is_counted=False)


def run(strategy: FedDM, client: ClientApp, rounds: int, absent: int | None = None) -> FedDM:
    """Run rounds; from the second on, a node may be absent."""

    class Grid(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return [n for n in super().get_node_ids() if n - 100 != absent or not strategy.state.round]

    with task_identity():
        strategy.start(Grid(client, 3), num_rounds=rounds)
    return strategy


class TestMatchNear:
    def ask(self, ask: Ask, data: Data, task: MatchNear, **options: Any) -> Message:
        return ask(data, pack_question(task, 1), task="match_near", **{"caps": Caps.none(), **options})

    def set_of(self, message: Message) -> SyntheticSet:
        assert not message.has_error(), message.error.reason
        found: SyntheticSet = read_answer(message.content, SyntheticSet, ReplyLimits().limits).payload
        return found

    def test_other_weights_give_other_images(self, ask: Ask, train: Data) -> None:
        other = Weights.of(build(NETWORK, train.spec.shape, 10, 1))
        first, same, second = (
            self.set_of(self.ask(ask, train, task)).pixels().images
            for task in (near(train), near(train), near(train, weights=other))
        )
        assert torch.equal(first, same)
        assert not torch.equal(first, second)

    def test_the_next_round_starts_from_this_nodes_last_images(self, ask: Ask, train: Data, tmp_path: Path) -> None:
        """In no steps' time a set that starts from the last one is closer to it than one that starts anew."""
        first = self.set_of(self.ask(ask, train, near(train, steps=1), cache=tmp_path))
        content = pack_question(near(train, steps=1, seed=1, round=2), 2)
        options: dict[str, Any] = {"task": "match_near", "caps": Caps.none()}
        anew = self.set_of(ask(train, content, **options))
        on = self.set_of(ask(train, content, cache=tmp_path, **options))
        was = first.pixels().images
        assert float((on.pixels().images - was).abs().mean()) < 0.25 * float((anew.pixels().images - was).abs().mean())

    @pytest.mark.parametrize("changes", [{"seed": 1}, {"seed": 7, "round": 2}])
    def test_another_run_starts_anew(self, changes: dict[str, int], ask: Ask, train: Data, tmp_path: Path) -> None:
        self.ask(ask, train, near(train, steps=1), cache=tmp_path)
        question = near(train, steps=1, **changes)
        kept = self.set_of(self.ask(ask, train, question, cache=tmp_path))
        assert torch.equal(kept.pixels().images, self.set_of(self.ask(ask, train, question)).pixels().images)

    @pytest.mark.parametrize(
        ("changes", "needed"),
        [
            ({"weights": Weights({})}, "weights of other names than those of this node's network"),
            ({"network": "mlp"}, "weights of other names than those of this node's network"),
            ({"classes": ("0", "1")}, "client-0 has classes that the network lacks: 2, 3"),
            ({"ipc": 0}, "ipc = 0; needed"),
            ({"networks": 1001}, "networks = 1001; needed: a whole number from 1 to 1000"),
            ({"radius": float("nan")}, "radius = nan"),
            ({"radius": -1.0}, "radius = -1"),
            ({"steps": 0}, "steps = 0; needed"),
        ],
    )
    def test_what_it_cannot_do_is_refused(
        self, changes: dict[str, Any], needed: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        assert needed in reason_of(self.ask(ask, train, near(train, **changes)))

    def test_a_node_refuses_it_unless_it_allows_weights(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        caps = Caps(max_seconds=float("inf"), min_records=1)
        assert "has no allow-weights = true" in reason_of(self.ask(ask, train, near(train), caps=caps))
        self.set_of(self.ask(ask, train, near(train), caps=caps, node={"allow-weights": True}))

    @pytest.mark.parametrize(
        ("caps", "needed"),
        [
            ({"max_ipc": 1}, "ipc 2 asked for; this node condenses to 1 to 1"),
            ({"max_steps": 1}, "2 steps asked for; this node allows 1"),
            ({"networks": "lenet"}, f"networks {NETWORK}; this node allows lenet"),
        ],
    )
    def test_caps_hold(self, caps: dict[str, Any], needed: str, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        held = replace(Caps.none(), **caps)
        assert needed in reason_of(self.ask(ask, train, near(train, ipc=2), caps=held))

    def test_a_site_that_lacks_classes_matches_the_outputs_of_all(self, ask: Ask, train: Data) -> None:
        two = train.subset(torch.where(train.labels < 2)[0])
        few = Data(two.images, two.labels, replace(two.spec, classes=("0", "1")))
        assert self.set_of(self.ask(ask, few, near(train))).classes == ("0", "1")


class TestFedDM:
    def test_weights_go_down_and_sets_alone_come_up(self, train: Data, client: ClientApp) -> None:
        strategy = run(FedDM(train.spec, TINY, Fit(steps=3)), client, 2)
        assert strategy.state.round == 2
        assert all(isinstance(answer.payload, SyntheticSet) for answer in strategy.answers)
        weights = sum(v.nbytes for v in build(NETWORK, train.spec.shape, 10, 0).state_dict().values())
        assert strategy.spent["bytes-down"] > 2 * weights
        assert strategy.spent["bytes-up"] < 2 * 4000

    def test_an_absent_sites_last_set_stays_in_the_union(self, train: Data, client: ClientApp) -> None:
        strategy = run(FedDM(train.spec, TINY, Fit(steps=3), min_available_nodes=2), client, 1)
        before = strategy.state.sets["client-1"]
        run(strategy, client, 2, absent=1)
        assert [answer.site.name for answer in strategy.answers] == ["client-0", "client-2"]
        assert list(strategy.state.sets) == ["client-0", "client-1", "client-2"]
        assert strategy.state.sets["client-1"].to_bytes() == before.to_bytes()

    def test_another_store_forgets_it(self, train: Data, client: ClientApp) -> None:
        strategy = FedDM(train.spec, TINY, Fit(steps=3), store=ThisRound(), min_available_nodes=2)
        run(strategy, client, 1)
        run(strategy, client, 2, absent=1)
        assert list(strategy.state.sets) == ["client-0", "client-2"]

    def test_half_of_the_sites_a_round_and_a_network_with_batch_norm(self, train: Data, client: ClientApp) -> None:
        """Its state holds a count of batches, int64; one of three sites is asked in each round."""
        task = replace(TINY, network=f"{NETWORK}-batch")
        strategy = FedDM(train.spec, task, Fit(steps=3), fraction_train=0.5, min_train_nodes=1)
        asked: list[set[str]] = []
        for rounds in (1, 2, 3, 4):
            run(strategy, client, rounds)
            asked.append({answer.site.name for answer in strategy.answers})
        assert {len(names) for names in asked} == {1}
        assert set(strategy.state.sets) == set.union(*asked)
        assert len(strategy.state.sets) > 1
        assert strategy.state.weights is not None
        counts = [v for n, v in strategy.state.weights.tensors.items() if n.endswith("num_batches_tracked")]
        assert counts
        assert all(count.dtype == torch.int64 and int(count) == 4 * 3 for count in counts)

    def test_the_global_network_stays_within_its_ball(self, train: Data, client: ClientApp) -> None:
        free, held = (run(FedDM(train.spec, TINY, Fit(steps=3), stay=stay), client, 1) for stay in (1e9, 0.01))
        start = Weights.of(build(NETWORK, train.spec.shape, 10, 0))
        assert free.state.weights is not None
        assert held.state.weights is not None
        assert distance(free.state.weights, start) > 0.1
        assert distance(held.state.weights, start) == pytest.approx(0.01, rel=1e-3)


class TestWithin:
    def test_weights_inside_the_ball_stay_and_others_come_back_on_the_line(self) -> None:
        old = Weights({"a": torch.zeros(2), "b": torch.zeros(1)})
        new = Weights({"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([4.0])})
        assert within(new, old, 5.0) is new
        assert within(new, old, float("inf")) is new
        half = within(new, old, 2.5)
        assert half.tensors["a"].tolist() == [1.5, 0.0]
        assert half.tensors["b"].tolist() == [2.0]

    def test_whole_numbers_are_taken_as_they_are(self) -> None:
        old = Weights({"a": torch.zeros(1), "n": torch.tensor(3)})
        new = Weights({"a": torch.ones(1) * 10, "n": torch.tensor(7)})
        moved = within(new, old, 1.0)
        assert (moved.tensors["n"].item(), moved.tensors["n"].dtype) == (7, torch.int64)

    def test_a_ball_of_no_size_changes_nothing(self) -> None:
        old = Weights({"a": torch.tensor([1.0])})
        assert within(Weights({"a": torch.tensor([2.0])}), old, 0.0).tensors["a"].item() == 1.0
        assert within(old, old, 0.0) is old


def test_both_layers_stand_side_by_side(train: Data) -> None:
    network = build(NETWORK, train.spec.shape, 10, 0)
    draw = Draw(network, Augmentation.draw((), 10, torch.Generator()), 0)
    batch = Batch(*train.batch(torch.arange(6)))
    rows = BothLayers().rows(draw, batch)
    embedding = network.features(batch.images)  # type: ignore[operator]
    torch.testing.assert_close(rows[:, : embedding.shape[1]], embedding)
    torch.testing.assert_close(rows[:, embedding.shape[1] :], network(batch.images))
