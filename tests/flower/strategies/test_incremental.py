from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedcondense.data.images import Data
from fedcondense.data.partitions import Partition
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.client import make_client_app
from fedcondense.flower.contract import Site
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import AggregationError
from fedcondense.flower.state_file import dump_state, load_state
from fedcondense.flower.stores import ThisRound
from fedcondense.flower.strategies.condense_classes import CondenseClasses
from fedcondense.flower.strategies.incremental import Incremental, tasks_of
from fedcondense.flower.wire import pack_question, read_answer
from fedcondense.networks import build
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit, accuracy

NETWORK = "convnet1-w16"
TINY = CondenseClasses(ipc=1, objective="dm", steps=2, network=NETWORK)

Ask = Callable[..., Message]
ReasonOf = Callable[[Message], str]


def strategy(train: Data, task: CondenseClasses = TINY, **changes: Any) -> Incremental:
    """Return five tasks of two digits for three sites."""
    usual: dict[str, Any] = {"tasks": tasks_of(train.spec.classes, 2), "fit": Fit(steps=2), "min_train_nodes": 2}
    return Incremental(train.spec, task=task, network=NETWORK, **{**usual, **changes})


def nodes(train: Data, held: Iterable[torch.Tensor]) -> ClientApp:
    parts = [train.subset(index) for index in held]

    def load(context: Context) -> Data:
        return parts[int(context.node_config["partition-id"])]

    return make_client_app(load, caps=Caps.none(), is_counted=False)


@pytest.fixture(scope="module")
def client(train: Data, held: Partition) -> ClientApp:
    return nodes(train, held)


def run(made: Incremental, client: ClientApp, rounds: int | None = None, away: dict[int, int] | None = None) -> None:
    """Run rounds; in a round of `away`, by its number, a node is not there."""

    class Grid(InProcessGrid):
        def get_node_ids(self) -> list[int]:
            return [n for n in super().get_node_ids() if n - 100 != (away or {}).get(made.state.round + 1)]

    with task_identity():
        made.start(Grid(client, 3), num_rounds=rounds)


def held_by(one: SyntheticSet) -> dict[str, int]:
    return {name: n for name, n in zip(one.classes, one.counts().tolist(), strict=True) if n}


def images(made: Incremental) -> torch.Tensor:
    assert made.state.joined is not None
    return made.state.joined.pixels().images


@pytest.fixture(scope="module")
def ran(train: Data, client: ClientApp) -> Incremental:
    made = strategy(train, fit=Fit(steps=40))
    run(made, client)
    return made


class TestTasks:
    def test_each_class_comes_once(self) -> None:
        names = tuple("abcdefg")
        for order in (0, 1, 2):
            tasks = tasks_of(names, 3, order)
            assert [len(task) for task in tasks] == [3, 3, 1]
            assert sorted(sum(tasks, ())) == list(names)
        assert tasks_of(names, 3) == (("a", "b", "c"), ("d", "e", "f"), ("g",))
        assert tasks_of(names, 3, 1) == tasks_of(names, 3, 1) != tasks_of(names, 3, 2)
        assert tasks_of(names, 0) == ()

    @pytest.mark.parametrize(
        ("tasks", "needed"),
        [
            ((("0", "1"), ("cat",)), "task 2 of 2: class 'cat' is unknown or came before; needed: classes of digits"),
            ((("0", "1"), ("1",)), "task 2 of 2: class '1' is unknown or came before"),
            ((("0", "1"), ()), "task 2 of 2: names no class"),
        ],
    )
    def test_tasks_that_cannot_be_are_refused_when_it_is_made(self, tasks: Any, needed: str, train: Data) -> None:
        with pytest.raises(SettingError, match=needed):
            strategy(train, tasks=tasks)


class TestIncremental:
    def test_old_classes_stay_as_they_were_sent(self, ran: Incremental, train: Data, client: ClientApp) -> None:
        first = strategy(train)
        run(first, client, 1)
        assert first.seen == ("0", "1")
        assert ran.seen == train.spec.classes
        for site, early in first.state.sets.items():
            late = ran.state.sets[site].restrict(("0", "1"))
            assert late is not None
            torch.testing.assert_close(late.pixels().images, early.pixels().images, rtol=0, atol=0)

    def test_it_knows_the_classes_of_all_tasks_and_without_a_memory_those_of_the_last(
        self, ran: Incremental, train: Data, test: Data, client: ClientApp
    ) -> None:
        forgets = strategy(train, fit=Fit(steps=40), store=ThisRound(), anew=False)
        run(forgets, client)
        network = build(NETWORK, train.spec.shape, 10, 0)
        assert ran.state.weights is not None
        assert forgets.state.weights is not None
        _, kept = accuracy(ran.state.weights.load_into(network), test)
        _, lost = accuracy(forgets.state.weights.load_into(network), test)
        assert float(kept[:8].mean()) > 50 > 20 > float(lost[:8].mean())
        assert float(lost[8:].mean()) >= 50  # it knows the last task alone

    def test_rebuilt_from_its_state_between_tasks_it_ends_equal(
        self, ran: Incremental, train: Data, client: ClientApp
    ) -> None:
        first, second = (strategy(train, fit=Fit(steps=40)) for _ in range(2))
        run(first, client, 3)
        second.state = load_state(dump_state(first.state), "here")
        run(second, client)
        torch.testing.assert_close(images(second), images(ran), rtol=0, atol=0)
        assert second.state.weights is not None
        assert ran.state.weights is not None
        for name, value in ran.state.weights.tensors.items():
            torch.testing.assert_close(second.state.weights.tensors[name], value, rtol=0, atol=0)

    def test_after_the_last_task_nobody_is_asked(self, ran: Incremental, train: Data, client: ClientApp) -> None:
        more = strategy(train)
        run(more, client, 7)
        assert more.state.round == 5

    def test_a_second_round_of_a_task_takes_the_place_of_the_first(self, train: Data, client: ClientApp) -> None:
        made = strategy(train, rounds_per_task=2)
        run(made, client, 3)
        assert made.seen == ("0", "1", "2", "3")
        before = made.state.joined
        run(made, client, 4)
        assert before is not None
        assert made.state.joined is not None
        assert held_by(made.state.joined) == held_by(before)
        assert made.state.joined.to_bytes() != before.to_bytes()

    def test_a_site_that_was_away_is_asked_for_what_it_missed(
        self, ran: Incremental, train: Data, client: ClientApp
    ) -> None:
        made = strategy(train)
        run(made, client, 2, away={1: 2})
        without = held_by(ran.state.sets["client-2"])
        assert held_by(made.state.sets["client-2"]) == {name: without[name] for name in "0123" if name in without}

    def test_a_task_of_classes_that_no_site_holds_ends_the_run_in_one_line_and_keeps_what_was(
        self, train: Data, held: Partition
    ) -> None:
        few = nodes(train, [index[train.labels[index] < 2] for index in held])
        made = strategy(train)
        with pytest.raises(AggregationError) as ended:
            run(made, few)
        assert "round 2: 0 usable answers of 3" in str(ended.value)
        assert "of the classes of this task, '2', '3', client-0 has no data" in str(ended.value)
        assert "\n" not in str(ended.value)
        assert (made.state.round, made.seen) == (1, ("0", "1"))

    def test_sites_may_be_at_different_tasks(self, train: Data, held: Partition) -> None:
        """Questions name no class: each site begins elsewhere, and the last a round late."""
        made = strategy(train, tasks=())

        def load(context: Context) -> Data:
            site, at = int(context.node_config["partition-id"]), made.state.round
            data = train.subset(held[site])
            place = at if site == 0 else (at + 2) % 5 if site == 1 else at - 1
            return data.subset((data.labels >= 2 * place) & (data.labels < 2 * place + 2))

        app = make_client_app(load, caps=Caps.none(), is_counted=False)
        run(made, app, 1)
        assert set(made.seen) == {"0", "4", "5"}  # of task 1, the first has no digit 1
        assert [(refusal.site.name, refusal.reason) for refusal in made.refused] == [
            ("client-2", "partition 2: has no data")
        ]
        run(made, app, 6)
        assert made.seen == train.spec.classes
        for site, index in enumerate(held):
            classes = {train.spec.classes[c] for c in train.labels[index].unique().tolist()}
            assert set(held_by(made.state.sets[f"client-{site}"])) == classes

    def test_a_memory_is_shared_and_never_passed(self, train: Data, client: ClientApp) -> None:
        made = strategy(train, memory=14_000)
        asked = made.ask(1, "answer", made.state, [Site("a"), Site("b")])
        assert [task.budget for task in asked.values()] == [1400, 1400]  # type: ignore[union-attr]
        run(made, client)
        assert made.state.joined is not None
        assert 12_000 < made.state.joined.nbytes <= 14_000
        assert made.seen == train.spec.classes

    def test_where_budgets_ask_for_more_than_the_memory_holds_classes_are_cut_alike(
        self, train: Data, client: ClientApp
    ) -> None:
        made = strategy(train, replace(TINY, budget=1000, parametrization=""), memory=5000)
        run(made, client)
        assert made.state.joined is not None
        assert made.state.joined.nbytes <= 5000
        counts = held_by(made.state.joined).values()
        assert len(counts) == 10
        assert max(counts) - min(counts) <= 1


class TestCondenseClasses:
    def ask(self, ask: Ask, data: Data, task: CondenseClasses, **options: Any) -> Message:
        return ask(data, pack_question(task, 1), task="condense_classes", **{"caps": Caps.none(), **options})

    def set_of(self, message: Message) -> SyntheticSet:
        assert not message.has_error(), message.error.reason
        found: SyntheticSet = read_answer(message.content, SyntheticSet, ReplyLimits().limits).payload
        return found

    def test_it_answers_with_the_classes_that_are_asked_for(self, ask: Ask, train: Data) -> None:
        assert set(held_by(self.set_of(self.ask(ask, train, replace(TINY, classes=("7", "3")))))) == {"3", "7"}
        assert len(held_by(self.set_of(self.ask(ask, train, TINY)))) == 10

    @pytest.mark.parametrize(("share", "methods"), [(0.5, ["random", "dm"]), (1.0, ["random"]), (0.0, ["dm"])])
    def test_a_part_of_the_bytes_is_real_and_the_whole_keeps_to_the_budget(
        self, share: float, methods: list[str], ask: Ask, train: Data
    ) -> None:
        task = replace(TINY, classes=("0", "1"), budget=2000, real_fraction=share, codecs=("bits", "webp"))
        reply = self.ask(ask, train, task)
        found = self.set_of(reply)
        assert [part.record.method for part in found.parts] == methods
        assert len(reply.content.config_records["answer"]["file"]) < 2000  # type: ignore[arg-type]

    def test_a_budget_in_the_union_is_what_the_set_adds_to_its_file(self, ask: Ask, train: Data) -> None:
        usual = replace(TINY, classes=("0", "1"), budget=2000, codecs=("bits", "webp"), parametrization="")
        for share in (0.0, 0.5):
            task = replace(usual, in_union=True, real_fraction=share)
            first, second = (self.set_of(self.ask(ask, train, replace(task, seed=seed))) for seed in (1, 2))
            added = SyntheticSet.join([first, second]).nbytes - first.nbytes
            assert 1400 < added <= 2000

    def test_both_kinds_together_are_an_image_for_so_many_records(self, ask: Ask, train: Data) -> None:
        few = train.subset(torch.cat([torch.where(train.labels == 0)[0][:60], torch.where(train.labels == 1)[0][:15]]))
        task = replace(TINY, budget=8000, real_fraction=0.5, codecs=("bits", "webp"), parametrization="pixels")
        found = self.set_of(self.ask(ask, few, task, caps=Caps.none(10)))
        stored = dict.fromkeys(("0", "1"), 0)
        for part in found.parts:
            for label in part.labels().tolist():
                stored[part.record.classes[label]] += 1
        assert stored == {"0": 6, "1": 1}

    @pytest.mark.parametrize(
        ("changes", "needed"),
        [
            ({"classes": ("cat",)}, "of the classes of this task, 'cat', client-0 has no data"),
            ({"real_fraction": 0.5}, "real-fraction 0.5 of no budget; give one in bytes: budget = 4000"),
            ({"real_fraction": 1.5, "budget": 2000}, "real-fraction = 1.5; needed: a number from 0 to 1"),
            ({"real_fraction": 1.0, "budget": 2000, "real_codec": "gif"}, "codec"),
        ],
    )
    def test_what_it_cannot_do_is_refused(
        self, changes: dict[str, Any], needed: str, ask: Ask, train: Data, reason_of: ReasonOf
    ) -> None:
        assert needed in reason_of(self.ask(ask, train, replace(TINY, **changes)))

    def test_real_images_leave_only_where_the_node_allows_it(self, ask: Ask, train: Data, reason_of: ReasonOf) -> None:
        task = replace(TINY, budget=2000, real_fraction=0.5, codecs=("bits", "webp"))
        caps = replace(Caps.none(), allow_real=False)
        assert "has no allow-real = true" in reason_of(self.ask(ask, train, task, caps=caps))
