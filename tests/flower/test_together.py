"""Bad replies of drawn kinds, in any order and any number below that of honest sites, change nothing for these."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from flwr.app import Error, Message, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.data.images import Data
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.contract import Site
from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.replies import Mailbox, ReplyLimits, Sent, by_name
from fedcondense.flower.together import Held, in_common, normalised, over_limits
from fedcondense.flower.wire import WIRE, About, pack_answer
from fedcondense.parametrizations import MultiFormation, Pixels
from fedcondense.sets.format import Limits
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet

HONEST = 5
LIMITS = ReplyLimits(together=Limits(nbytes=1 << 20, decoded=1000, decoded_bytes=1 << 20, classes=100, parts=40))


def made(
    classes: Sequence[str],
    images: int = 1,
    shape: tuple[int, int, int] = (1, 8, 8),
    factor: int = 1,
    parts: int = 1,
    **record: Any,
) -> SyntheticSet:
    """Return a well-formed set of grey images."""
    scale = {"mean": (0.5,) * shape[0], "std": (0.25,) * shape[0], **record}
    kind = Pixels() if factor == 1 else MultiFormation(factor)
    codes = {"images": torch.full((images, *shape), 99, dtype=torch.uint8)}
    targets = torch.zeros(images, dtype=torch.uint8 if len(classes) <= 256 else torch.int16)
    one = Part(codes, targets, kind, Record("made", shape, tuple(classes), **scale))
    return SyntheticSet([one] * parts)


class Blob(NamedTuple):
    """Bytes that no set of ours has, as an answer's payload."""

    blob: bytes

    def to_bytes(self) -> bytes:
        return self.blob

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits = Limits()) -> Blob:
        return cls(bytes(blob))


class Bad(NamedTuple):
    """What a bad site sends, as whom."""

    content: Any
    claims: str = "bad"
    from_node: int | None = None


def names(count: int, first: int = 0) -> tuple[str, ...]:
    return tuple(f"name {k}" for k in range(first, first + count))


ANY: dict[str, Callable[[int], Bad]] = {  # by a number that varies the kind; alone, some of them would be accepted
    "names of its own": lambda n: Bad(made(names(101 + n % 900, 1000 * n))),
    "names that it shares with others of its kind": lambda n: Bad(made(names(101 + n % 5))),
    "many images": lambda n: Bad(made("01", 600 + n)),
    "images that few bytes decode to": lambda n: Bad(made("01", 20 + n % 20, factor=(8, 8, 4)[n % 3])),
    "images, where others send names": lambda n: Bad(made("01", 900)),
    "names, where others send images": lambda n: Bad(made(names(90, 100 * n))),
    "many parts": lambda n: Bad(made("01", parts=39 + n % 9)),
    "images of one pixel": lambda n: Bad(made("01", shape=(1, 1, 1))),
    "images of another shape": lambda n: Bad(made("01", shape=(1 + 2 * (n % 2), 9 + n % 7, 8))),
    "a tiny deviation": lambda n: Bad(made("01", std=(10.0 ** -(1 + n % 5),))),
    "a mean at the end": lambda n: Bad(made("01", mean=(float(n % 2),))),
    "half a character for a name": lambda n: Bad(Blob(made(("ab", "1")).to_bytes().replace(b"ab", b"\xed\xa0"))),
    "another's name": lambda n: Bad(made("01"), claims=f"site-{n % HONEST}"),
    "another's name, and too much": lambda n: Bad(made("01", 2000), claims=f"site-{n % HONEST}"),
    "an answer to another's question": lambda n: Bad(made("01"), from_node=n % HONEST),
    "an error to another's question": lambda n: Bad(Error(2, "gone"), from_node=n % HONEST),
    "an error": lambda n: Bad(Error(2, "Traceback\n<b>no</b>")),
    "nothing": lambda n: Bad(RecordDict()),
}
NEVER = ("images of one pixel", "images of another shape", "another's name, and too much", "an error", "nothing")
"""Kinds that are left out however many there are, as long as they are fewer than the honest."""


@pytest.fixture(scope="module")
def honest(train: Data) -> list[SyntheticSet]:
    """Sites of two to four classes and a few images each."""
    sets = []
    for k in range(HONEST):
        held = torch.isin(train.labels, torch.tensor([0, k + 1, k + 2]))
        sets.append(select(train.subset(held), 2, "random", seed=k).restrict({"0", str(k + 1), str(k + 2)}))
    return [one for one in sets if one is not None]


def question(node: int) -> Sent:
    """Return a question as it is once a grid has sent it."""
    with task_identity():
        message = Message(RecordDict(), node, "query.condense")
    message.metadata.__dict__["_message_id"] = f"question {node}"
    return Sent(message, Site("", str(node), node), SyntheticSet)


def answered(honest: Sequence[SyntheticSet], bad: Sequence[Bad], order: Sequence[int]) -> Mailbox:
    """Return a mailbox that got all replies in an order; honest sites are nodes from 100, the others from 10."""
    nodes = [*range(100, 100 + len(honest)), *range(10, 10 + len(bad))]
    asked = [question(node) for node in nodes]
    mailbox, replies = Mailbox(asked, LIMITS), list[Message]()
    for k, one in enumerate([*(Bad(one, f"site-{k}") for k, one in enumerate(honest)), *bad]):
        sent = asked[k] if one.from_node is None else asked[one.from_node]
        content = one.content
        if isinstance(content, SyntheticSet | Blob):
            content = pack_answer(content, About(WIRE), (one.claims, 0), 10, 1.0)
        with task_identity():
            reply = Message(content, reply_to=sent.message)
        reply.metadata.__dict__["_src_node_id"] = nodes[k]
        replies.append(reply)
    for k in order:
        mailbox.take(replies[k])
    return mailbox


def payloads(mailbox: Mailbox, least: int = 100) -> dict[int, bytes]:
    return {a.site.node: a.payload.to_bytes() for a in mailbox.sorted()[0] if a.site.node >= least}


@st.composite
def attacks(draw: st.DrawFn, kinds: Sequence[str], most: int = HONEST - 1) -> tuple[list[Bad], list[int], list[int]]:
    """Draw up to `most` bad replies, and two orders in which all arrive."""
    drawn = draw(st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 99)), min_size=1, max_size=most))
    places = list(range(HONEST + len(drawn)))
    return [ANY[kind](n) for kind, n in drawn], draw(st.permutations(places)), draw(st.permutations(places))


class TestMailbox:
    @settings(max_examples=40)
    @given(attacks(list(ANY)))
    def test_all_honest_answers_stay_as_they_are_alone_in_any_order(
        self, honest: list[SyntheticSet], attack: tuple[list[Bad], list[int], list[int]]
    ) -> None:
        bad, *orders = attack
        alone = payloads(answered(honest, [], range(HONEST)))
        assert len(alone) == HONEST
        first, second = (answered(honest, bad, order) for order in orders)
        assert payloads(first) == payloads(second) == alone
        assert first.sorted()[1] == second.sorted()[1]
        assert payloads(first, 0) == payloads(second, 0)
        assert first.usable() == second.usable() == len(first.sorted()[0])

    @settings(max_examples=20)
    @given(attacks(NEVER))
    def test_where_all_bad_ones_are_left_out_the_union_is_that_of_the_honest_alone(
        self, honest: list[SyntheticSet], attack: tuple[list[Bad], list[int], list[int]]
    ) -> None:
        bad, order, _ = attack
        answers, refused = answered(honest, bad, order).sorted()
        alone, _ = answered(honest, [], range(HONEST)).sorted()
        union, theirs = (SyntheticSet.join(by_name(some).values()) for some in (answers, alone))
        assert union.to_bytes() == theirs.to_bytes()
        assert {refusal.site.node for refusal in refused} == set(range(10, 10 + len(bad)))
        assert all(refusal.reason.isprintable() and 0 < len(refusal.reason) <= 300 for refusal in refused)

    def test_another_nodes_answer_leaves_the_question_open(self, honest: list[SyntheticSet]) -> None:
        mailbox = answered(honest[:2], [Bad(honest[2], from_node=0)], [2, 1])
        assert mailbox.open() == {"question 100", "question 10"}

    def test_sets_of_earlier_rounds_decide_the_shape_and_count_towards_the_limits(
        self, honest: list[SyntheticSet]
    ) -> None:
        asked, kept = [question(node) for node in (1, 2)], {"away": made("01", 900), "near": honest[0]}
        mailbox = Mailbox(asked, LIMITS, kept=kept)
        for sent, synthetic in zip(asked, (made("01", 200), made("01", shape=(1, 1, 1))), strict=True):
            with task_identity():
                mailbox.take(Message(pack_answer(synthetic, About(WIRE), ("", 0), 1, 1.0), reply_to=sent.message))
        (answer,), (refusal,) = mailbox.sorted()
        assert (answer.site.name, refusal.site.name) == ("node-1", "node-2")
        assert list(mailbox.outgrown()) == ["away"]


class TestInCommon:
    def test_it_is_that_of_most_sites_whoever_comes_first(self) -> None:
        assert in_common({"a": "small", "b": "large", "c": "large"}) == "large"

    def test_of_two_that_are_as_frequent_none_is(self) -> None:
        said = {"site-10": "x", "site-9": "x", "b": "w", "c": "w", "d": "v"}
        with pytest.raises(UntrustedSetError, match=r"w \(b, c\) and x \(site-9, site-10\) came from 2 each"):
            in_common(said)


class TestNormalised:
    def test_it_is_the_median_of_sites_channel_by_channel(self) -> None:
        sets = [made("01", mean=(m,), std=(s,)) for m, s in ((0.1, 0.3), (0.2, 0.1), (0.9, 0.2))]
        assert {(one.record.mean, one.record.std) for one in normalised(sets)} == {((0.2,), (0.2,))}

    def test_of_two_deviations_the_larger_is_taken(self) -> None:
        sets = [made("01", std=(1e-6,)), made("01", std=(0.25,))]
        assert [one.record.std for one in normalised(sets)] == [(0.25,), (0.25,)]

    def test_sets_that_agree_are_returned_themselves(self) -> None:
        sets = [made("01"), made("12")]
        assert all(one is other for one, other in zip(normalised(sets), sets, strict=True))

    def test_a_server_that_knows_goes_before_all_of_them(self) -> None:
        assert normalised([made("01")] * 3, (0.1,), (0.2,))[2].record.mean == (0.1,)


@given(st.lists(st.integers(1, 400), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_who_keeps_to_a_fair_share_stays_and_no_more_go_than_must(sizes: list[int], random: Any) -> None:
    held = {f"{k}": Held(made("01", size), 500) for k, size in enumerate(sizes)}
    mixed = list(held.items())
    random.shuffle(mixed)
    gone = over_limits(dict(mixed), LIMITS.together)
    assert gone == over_limits(held, LIMITS.together)
    kept = [size for k, size in enumerate(sizes) if f"{k}" not in gone]
    out = [size for k, size in enumerate(sizes) if f"{k}" in gone]
    assert sum(kept) <= 1000
    assert not out or (
        min(out) > 1000 // len(sizes) and max(kept, default=0) <= min(out) and sum(kept) + min(out) > 1000
    )


def test_headers_are_counted_where_they_could_matter() -> None:
    """A file of the union could not be read again."""
    long = made([f"{k}{'x' * 150}" for k in range(90)])
    held = {"small": Held(made("01"), 4000), "large": Held(long, long.nbytes + 3000)}
    limits = replace(LIMITS.together, header=made("01").nbytes + 1000)
    assert list(over_limits(held, limits)) == ["large"]
    assert "bytes of headers" in over_limits(held, limits)["large"]
    assert not over_limits({"small": held["small"]}, limits)
