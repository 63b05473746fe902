from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message
from flwr.clientapp import ClientApp

from fedcondense.condensing import condense
from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Site, State
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.ledger import Allowance, Ledger
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.strategies.anchors import Shared
from fedcondense.flower.strategies.growing import Complete, Growing
from fedcondense.flower.strategies.one_shot import Condense, train_network
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit

NETWORK = "convnet1-w16"
FIRST = Condense(ipc=1, objective="dm", steps=2, network=NETWORK)
THEN = Complete(ipc=1, steps=2, network=NETWORK, trained=0)

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


def growing(**changes: Any) -> Growing:
    given: dict[str, Any] = {"task": FIRST, "then": THEN, "min_available_nodes": 1, **changes}
    return Growing(lambda joined: train_network(joined, NETWORK, Fit(steps=3)), **given)


class Watched(InProcessGrid):
    """Nodes of which some may be absent, and whose messages are kept."""

    def __init__(self, client: ClientApp, shares: str = "sites", absent: tuple[int, ...] = ()) -> None:
        super().__init__(client, 3, node_config={"share-with": shares})
        self.absent, self.asked = absent, list[Message]()
        self.answers = list[Message]()

    def get_node_ids(self) -> list[int]:
        return [node for node in super().get_node_ids() if node - 100 not in self.absent]

    def push_messages(self, messages: Any) -> Any:
        messages = list(messages)
        self.asked += messages
        return super().push_messages(messages)

    def pull_messages(self, message_ids: Any) -> Any:
        found = list(super().pull_messages(message_ids))
        self.answers += found
        return found

    def kinds(self) -> list[str]:
        return [message.metadata.message_type for message in self.asked]


def start(strategy: Rounds, grid: InProcessGrid, rounds: int) -> None:
    with task_identity():
        strategy.start(grid, num_rounds=rounds)


def images(synthetic: SyntheticSet) -> torch.Tensor:
    return synthetic.pixels().images


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    def load(context: Context) -> Data:
        return train.subset(held[int(context.node_config["partition-id"])])

    return make_client_app(load, caps=Caps.none(), is_counted=False)


@pytest.fixture(scope="module")
def union(train: Data) -> SyntheticSet:
    return condense(train, 1, "dm", "pixels", network=NETWORK, steps=2)


class TestComplete:
    def set_of(self, message: Message) -> SyntheticSet:
        assert not message.has_error(), message.error.reason
        found: SyntheticSet = read_answer(message.content, SyntheticSet, ReplyLimits().limits).payload
        return found

    def asked(self, ask: Ask, data: Data, task: Complete, **options: Any) -> Message:
        return ask(data, pack_question(task, 2), task="complete", **{"caps": Caps.none(), **options})

    def test_another_union_gives_other_images(self, ask: Ask, train: Data, union: SyntheticSet) -> None:
        half = union.restrict(union.classes[:5])
        assert half is not None
        whole, same, less, none = (
            images(self.set_of(self.asked(ask, train, replace(THEN, union=one)))) for one in (union, union, half, None)
        )
        assert torch.equal(whole, same)
        assert not torch.equal(whole, less)
        assert not torch.equal(whole, none)

    def test_networks_that_are_trained_on_the_union_give_other_images(
        self, ask: Ask, train: Data, union: SyntheticSet
    ) -> None:
        few = union.restrict(union.classes[:2])
        untrained, one, same, none = (
            images(self.set_of(self.asked(ask, train, replace(THEN, union=given, trained=trained))))
            for given, trained in ((few, 0), (few, 1), (few, 1), (None, 1))
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, untrained)
        assert not torch.equal(one, none)

    def test_a_site_that_lacks_nothing_new_sends_images_of_its_own_classes_alone(
        self, ask: Ask, train: Data, union: SyntheticSet
    ) -> None:
        two = train.subset(torch.where(train.labels < 2)[0])
        few = Data(two.images, two.labels, replace(two.spec, classes=("0", "1")))
        made = self.set_of(self.asked(ask, few, replace(THEN, union=union)))
        assert (made.classes, len(made)) == (("0", "1"), 2)

    def test_classes_are_matched_by_name_whatever_their_order(self, ask: Ask, train: Data, union: SyntheticSet) -> None:
        """A union whose parts name their classes in another order is the same union."""
        back = [union.restrict([name]) for name in reversed(union.classes)]
        turned = SyntheticSet.join([one for one in back if one is not None])
        assert turned.classes != union.classes
        made, other = (images(self.set_of(self.asked(ask, train, replace(THEN, union=u)))) for u in (union, turned))
        torch.testing.assert_close(made, other, rtol=0, atol=0.05)

    def test_only_a_late_site_says_how_many_records_it_stands_for(
        self, ask: Ask, train: Data, union: SyntheticSet
    ) -> None:
        usual = self.set_of(self.asked(ask, train, replace(THEN, union=union)))
        late = self.set_of(self.asked(ask, train, replace(THEN, union=union, late=True)))
        assert usual.record.counts == ()
        assert late.record.counts == tuple(train.counts.tolist())

    def test_it_keeps_to_a_budget_in_bytes(self, ask: Ask, train: Data, union: SyntheticSet) -> None:
        task = replace(THEN, union=union, budget=1500, codecs=("bits",))
        reply = self.asked(ask, train, task)
        assert self.set_of(reply).codec.startswith("bits")
        assert self.set_of(reply).nbytes < 1500

    @pytest.mark.parametrize(
        ("caps", "needed"),
        [
            ({"max_memory": 3000}, "a union of 10 images takes 3760 bytes of working memory; this node allows 3000"),
            ({"max_steps": 1}, "2 steps asked for; this node allows 1"),
            ({"max_ipc": 1}, "ipc 2 asked for; this node condenses to 1 to 1"),
        ],
    )
    def test_caps_hold(
        self, caps: dict[str, int], needed: str, ask: Ask, train: Data, union: SyntheticSet, reason_of: ReasonOf
    ) -> None:
        held = replace(Caps.none(), **caps)  # type: ignore[arg-type]
        assert needed in reason_of(self.asked(ask, train, replace(THEN, union=union, ipc=2), caps=held))

    def test_a_union_of_other_images_is_refused(
        self, ask: Ask, train: Data, union: SyntheticSet, reason_of: ReasonOf
    ) -> None:
        small = Data(train.images[:, :, :4, :4], train.labels, replace(train.spec, shape=(1, 4, 4)))
        needed = "a union of images of shape (1, 8, 8); client-0 has (1, 4, 4)"
        assert needed in reason_of(self.asked(ask, small, replace(THEN, union=union)))

    def test_a_start_from_records_is_for_the_node_to_allow(
        self, ask: Ask, train: Data, union: SyntheticSet, reason_of: ReasonOf
    ) -> None:
        caps = replace(Caps.none(), allow_real=False)
        task = replace(THEN, union=union, start="real")
        assert "has no allow-real = true" in reason_of(self.asked(ask, train, task, caps=caps))


class TestGrowing:
    def test_the_union_goes_down_once_per_round_to_each_and_sets_alone_come_up(self, client: ClientApp) -> None:
        strategy, grid = growing(), Watched(client)
        start(strategy, grid, 3)
        assert grid.kinds() == ["query.condense"] * 3 + ["query.complete"] * 6
        assert [("union" in message.content) for message in grid.asked] == [False] * 3 + [True] * 6
        assert list(strategy.state.sets) == [f"client-{k}{late}" for k in range(3) for late in ("", "+2", "+3")]
        assert strategy.joined is not None
        assert len(strategy.joined.parts) == 9

    def test_what_was_there_stays_as_it_was(self, client: ClientApp) -> None:
        strategy = growing()
        start(strategy, Watched(client), 1)
        before = {name: one.to_bytes() for name, one in strategy.state.sets.items()}
        start(strategy, Watched(client), 2)
        assert before == {name: strategy.state.sets[name].to_bytes() for name in before}

    def test_sites_that_do_not_share_get_their_own_set_back_and_nobody_elses(self, client: ClientApp) -> None:
        strategy, grid = growing(), Watched(client, shares="server")
        start(strategy, grid, 2)
        assert strategy.shared(strategy.state) == frozenset()
        sites = [Site(f"client-{k}", str(100 + k), 100 + k) for k in range(3)]
        first = State(1, sets={name: one for name, one in strategy.state.sets.items() if "+" not in name})
        for site, task in strategy.ask(2, "answer", first, sites).items():
            assert isinstance(task, Complete)
            assert task.union is not None
            assert task.union.to_bytes() == first.sets[site.name].to_bytes()

    def test_a_site_that_shares_no_more_is_left_out_of_what_goes_down(self, client: ClientApp) -> None:
        strategy = growing()
        start(strategy, Watched(client), 1)
        assert len(strategy.shared(strategy.state)) == 3
        start(strategy, Watched(client, shares="server", absent=(1,)), 2)
        assert strategy.shared(strategy.state) == {"client-1"}

    def test_an_absent_sites_sets_stay_and_a_late_one_is_sent_the_union_at_once(self, client: ClientApp) -> None:
        strategy = growing()
        start(strategy, Watched(client, absent=(2,)), 1)
        grid = Watched(client, absent=(1,))
        start(strategy, grid, 2)
        assert list(strategy.state.sets) == ["client-0", "client-0+2", "client-1", "client-2+2"]
        assert [m.content.config_records["config"]["late"] for m in grid.asked] == [False, True]

    def test_what_goes_down_is_capped(self, client: ClientApp) -> None:
        strategy, grid = growing(union=Shared(1600)), Watched(client)
        start(strategy, grid, 2)
        sizes = [m.content.array_records["union"]["file"].numpy().size for m in grid.asked[3:]]
        assert 0 < max(sizes) <= 1600
        free, wide = growing(), Watched(client)
        start(free, wide, 2)
        assert wide.asked[3].content.array_records["union"]["file"].numpy().size > 1600

    def test_rebuilt_from_its_state_between_rounds_it_ends_equal(self, client: ClientApp) -> None:
        first, second = growing(), growing()
        start(first, Watched(client), 1)
        second.state = load_state(dump_state(first.state), "here")
        for strategy in (first, second):
            start(strategy, Watched(client), 2)
        for name, one in first.state.sets.items():
            assert torch.equal(images(one), images(second.state.sets[name]))
        assert first.state.weights is not None
        assert second.state.weights is not None
        for name, value in first.state.weights.tensors.items():
            assert torch.equal(value, second.state.weights.tensors[name])

    def test_a_set_from_another_round_is_passed_over(self, client: ClientApp) -> None:
        strategy, grid = growing(min_replies=1), Watched(client)
        start(strategy, grid, 1)
        old = grid.answers[:3]
        with task_identity():
            list(strategy.configure_train(2, ArrayRecord(), ConfigRecord(), grid))
            with pytest.raises(Exception, match="0 usable answers of 3"):
                strategy.aggregate_train(2, old)
        assert strategy.state.round == 1
        assert len(strategy.state.sets) == 3

    def test_the_ledger_counts_the_images_of_both_rounds(self, train: Data, tmp_path: Path) -> None:
        few = train.subset(torch.arange(300))
        caps = Caps(max_seconds=float("inf"), min_records=1)
        counted = make_client_app(lambda context: few, caps=caps)
        path = tmp_path / "ledger.jsonl"

        class One(InProcessGrid):
            def __init__(self) -> None:
                super().__init__(counted, 1, node_config={"share-with": "sites", "ledger": str(path)})

        strategy = growing(min_train_nodes=1)
        start(strategy, One(), 2)
        spent = Ledger.open(path, Allowance()).spent()
        assert spent.questions == 2
        assert set(spent.images.values()) == {2}
