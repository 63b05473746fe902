from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asking, collect, connected
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.replies import Mailbox, ReplyLimits, Sent
from fedcondense.flower.settings import check
from fedcondense.flower.sites import unnamed
from fedcondense.flower.wire import WIRE, About, pack_answer


class LateGrid(InProcessGrid):
    """Keeps the replies of some nodes back for good, and gives the others one pull after another."""

    silent: tuple[int, ...] = ()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = [i for i in message_ids if i in self._replies]
        ready = [i for i in wanted if self._replies[i].metadata.src_node_id not in self.silent]
        replies: Iterable[Message] = super().pull_messages(ready[:1])
        return replies


def asked(silent: tuple[int, ...], timeout: float, asking: Asking, broken: tuple[int, ...] = ()) -> Mailbox:
    """Ask three nodes, of which some never answer and some answer junk."""
    client = ClientApp()

    @client.query("count")
    def answer(message: Message, context: Context) -> Message:
        if context.node_id in broken:
            return Message(RecordDict({}), reply_to=message)
        return Message(pack_answer(Metrics({}), About(WIRE), ("", 0), 1, 0.0), reply_to=message)

    with task_identity():
        grid = LateGrid(client, 3)
        grid.silent = silent
        sent = [Sent(Message(RecordDict(), node, "query.count"), unnamed(node), Metrics) for node in (100, 101, 102)]
        mailbox = Mailbox(sent, ReplyLimits())
        collect(grid, mailbox, timeout, asking)
    return mailbox


@pytest.mark.parametrize(
    ("given", "least", "there"),
    [({"min_available_nodes": 5}, 5, 5), ({"min_available_nodes": 5, "fraction_train": 0.5}, 2, 5), ({}, 2, 2)],
)
def test_the_log_says_how_many_are_asked_at_least(
    given: dict[str, Any], least: int, there: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "flwr")
    asking = Asking(**given)
    asking.log()
    assert f"at least {least}" in caplog.text
    assert f"for {there} nodes to connect" in caplog.text
    assert len(asking.sample(range(there), 1)) == least  # of as few as there may be


class TestCollect:
    def test_polls_that_bring_nothing_take_a_fifth_of_the_time_at_most(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A poll names all questions that are open: with thousands of them it is work for the SuperLink, too."""
        clock, slept = [0.0], list[float]()

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            clock[0] += seconds

        def poll(grid: LateGrid, message_ids: Iterable[str]) -> Iterable[Message]:
            clock[0] += 0.5
            return []

        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(time, "sleep", sleep)
        monkeypatch.setattr(LateGrid, "pull_messages", poll)
        asked((), 100.0, Asking())
        assert set(slept[:-1]) == {2.0}

    def test_all_are_read_and_nobody_waits_longer(self) -> None:
        mailbox = asked((), 600.0, Asking(grace=None))
        assert sorted(mailbox.answers) == [100, 101, 102]

    def test_what_is_there_at_the_deadline_is_read(self) -> None:
        mailbox = asked((100, 101), 0.5, Asking())
        assert sorted(mailbox.answers) == [102]
        assert [site.node for site in mailbox.silent()] == [100, 101]

    def test_silence_ends_with_the_grace_period(self) -> None:
        mailbox = asked((101,), 600.0, Asking(min_replies=2, grace=0.1))
        assert sorted(mailbox.answers) == [100, 102]

    def test_fewer_usable_answers_than_needed_start_no_grace_period(self) -> None:
        began = time.monotonic()
        mailbox = asked((100,), 1.0, Asking(min_replies=3, grace=0.0))
        assert time.monotonic() - began >= 1.0
        assert sorted(mailbox.answers) == [101, 102]

    def test_broken_replies_start_no_grace_period(self) -> None:
        began = time.monotonic()
        mailbox = asked((102,), 1.0, Asking(min_replies=2, grace=0.0), broken=(100,))
        assert time.monotonic() - began >= 1.0
        assert (sorted(mailbox.answers), sorted(mailbox.refused)) == ([101], [100])

    def test_the_log_counts_answers_and_refusals_apart_and_says_who_is_waited_for(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "flwr")
        self.tick(monkeypatch)
        asked((102,), 100.0, Asking(min_replies=2), broken=(101,))
        assert said(caplog) == [
            f"{t} s: 1 answered, 1 refused; missing: node 102; min-replies = 2, for which there are "
            f"{100 - t} s (timeout); a node that stopped is named after a minute"
            for t in (10, 20, 40, 80)
        ]

    def test_where_enough_have_answered_it_says_how_to_wait_less(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("INFO", "flwr")
        self.tick(monkeypatch)
        asked((102,), 15.0, Asking())
        asked((102,), 100.0, Asking(grace=15.0))
        timeout, grace = said(caplog)
        assert timeout == (
            "10 s: 2 answered, 0 refused; missing: node 102; min-replies = 1 is reached, the others have 5 s "
            "(timeout); a run with grace = 60 waits a minute for them"
        )
        assert grace == "10 s: 2 answered, 0 refused; missing: node 102; the others have 5 s (grace)"

    @staticmethod
    def tick(monkeypatch: pytest.MonkeyPatch) -> None:
        """Let each look take a second, and nobody wait."""
        clock = [0.0]
        monkeypatch.setattr(time, "monotonic", lambda: clock[0])
        monkeypatch.setattr(time, "sleep", lambda _: clock.append(clock.pop() + 1))


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


class TestConnected:
    def test_too_few_nodes_end_the_wait_at_its_deadline(self) -> None:
        with (
            task_identity(),
            pytest.raises(TimeoutError, match=r"1 of 2 nodes connected within 0 s; start the others, or lower"),
        ):
            connected(InProcessGrid(ClientApp(), 1), Asking(wait=0.0))

    def test_as_many_are_waited_for_as_are_to_be_asked(self) -> None:
        with task_identity(), pytest.raises(TimeoutError, match="3 of 4 nodes"):
            connected(InProcessGrid(ClientApp(), 3), Asking(wait=0.0, min_train_nodes=4))

    def test_nodes_that_come_late_are_waited_for(self) -> None:
        class Filling(InProcessGrid):
            looks = 0

            def get_node_ids(self) -> Iterable[int]:
                self.looks += 1
                return list(self.traffic)[: self.looks]

        with task_identity():
            assert connected(Filling(ClientApp(), 3), Asking(min_available_nodes=3)) == [100, 101, 102]

    def test_the_log_says_who_of_the_known_sites_is_not_there(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Known are those of earlier rounds; who is forgotten or has no name yet is not named."""
        caplog.set_level("INFO", "flwr")
        TestCollect.tick(monkeypatch)
        known = {"100": "client-0", "7": "south", "8": "gone", "9": ""}
        with (
            task_identity(),
            pytest.raises(TimeoutError, match=r"1 of 2 nodes .* 25 s; missing: south; start the others"),
        ):
            connected(InProcessGrid(ClientApp(), 1), Asking(wait=25.0), known, {"8"})
        assert said(caplog) == [
            f"{t} s: 1 of 2 nodes connected, {25 - t} s left (wait); missing: south; start the others, or resume the "
            "run with a lower min-available-nodes"
            for t in (10, 20)
        ]


class TestSample:
    @pytest.mark.parametrize("seed", [0, 1, 7])
    def test_the_first_round_draws_as_runs_of_one_round_did(self, seed: int) -> None:
        """Version 0.1 had one round, and drew by the seed itself."""
        nodes = list(range(100, 110))
        wanted = sorted(random.Random(seed).sample(nodes, 4))
        assert Asking(fraction_train=0.4, seed=seed).sample(nodes, 1) == wanted

    def test_the_same_round_draws_the_same_in_any_order_of_nodes(self) -> None:
        nodes, asking = list(range(20)), Asking(fraction_train=0.3)
        assert asking.sample(nodes, 2) == asking.sample(nodes[::-1], 2)

    def test_rounds_draw_others(self) -> None:
        draws = [tuple(Asking(fraction_train=0.2).sample(range(50), k)) for k in range(1, 6)]
        assert all(one != other for one, other in pairwise(draws))
        assert draws[1] == tuple(Asking(fraction_train=0.2, seed=1).sample(range(50), 1))

    @pytest.mark.parametrize(
        ("fields", "count"),
        [
            ({}, 10),
            ({"fraction_train": 0.5}, 5),
            ({"fraction_train": 0.59}, 5),
            ({"fraction_train": 0.0}, 2),
            ({"fraction_train": 0.1, "min_train_nodes": 3}, 3),
            ({"fraction_train": 0.1, "min_train_nodes": 30}, 10),
        ],
    )
    def test_how_many_are_asked(self, fields: dict[str, Any], count: int) -> None:
        assert len(Asking(**fields).sample(range(10), 1)) == count

    @pytest.mark.parametrize(
        ("fields", "count"),
        [
            ({}, 0),
            ({"min_evaluate_nodes": 5}, 0),
            ({"fraction_evaluate": 0.5}, 5),
            ({"fraction_evaluate": 0.1}, 2),
            ({"fraction_evaluate": 0.1, "min_evaluate_nodes": 0}, 1),
            ({"fraction_evaluate": 0.01, "min_evaluate_nodes": 0}, 0),
            ({"fraction_evaluate": 0.5, "min_evaluate_nodes": 20}, 10),
        ],
    )
    def test_those_who_evaluate_are_a_share_of_their_own(self, fields: dict[str, Any], count: int) -> None:
        asking = Asking(**fields)
        draws = [asking.sample_to_evaluate(range(10), k) for k in range(1, 9)]
        assert {len(drawn) for drawn in draws} == {count}
        assert draws == [asking.sample_to_evaluate(range(10), k) for k in range(1, 9)]
        assert count in (0, 10) or len({tuple(drawn) for drawn in draws}) > 1


@pytest.mark.parametrize(
    ("wrong", "needed"),
    [
        (lambda: Asking(fraction_train=1.5), "fraction-train = 1.5; needed: a number from 0 to 1"),
        (lambda: Asking(min_replies=0), "min-replies = 0; needed: a whole number from 1"),
        (lambda: Asking(grace=-1.0), "grace = -1.0; needed: a number from 0 or nothing"),
        (lambda: Asking(wait="soon"), "wait = 'soon'; needed: a number from 0"),  # type: ignore[arg-type]
    ],
)
def test_numbers_that_cannot_work_are_refused(wrong: Callable[[], Asking], needed: str) -> None:
    with pytest.raises(SettingError, match=needed):
        check(wrong(), "OneShot")
