from __future__ import annotations

import json
import random
import resource
import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.data.images import Data
from fedcondense.errors import UntrustedSetError
from fedcondense.flower.contract import Answer, Site
from fedcondense.flower.history import Tally
from fedcondense.flower.hosts.inprocess import InProcessGrid, task_identity
from fedcondense.flower.inbox import GONE
from fedcondense.flower.payloads import Metrics, Payload
from fedcondense.flower.replies import Mailbox, Refusal, ReplyLimits, Sent
from fedcondense.flower.run_folder import refusals
from fedcondense.flower.strategies.one_shot import OneShot
from fedcondense.flower.wire import WIRE, About, pack_answer
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def honest(train: Data) -> SyntheticSet:
    return select(train, 2, "random", seed=0)


@pytest.fixture(scope="module")
def expected(train: Data) -> ReplyLimits:
    return ReplyLimits.of(train.spec)


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def question(node: int, kind: type[Payload] = SyntheticSet, name: str = "") -> Sent:
    """Return a question as it is once a grid has sent it."""
    with task_identity():
        message = Message(RecordDict(), node, "query.condense")
    message.metadata.__dict__["_message_id"] = f"question {node}"
    return Sent(message, Site(name, str(node), node), kind)


def reply(sent: Sent, content: RecordDict | Error) -> Message:
    with task_identity():
        if isinstance(content, Error):
            return Message(content, reply_to=sent.message)
        return Message(content, reply_to=sent.message)


def unpack(content: RecordDict, limits: ReplyLimits) -> Answer[Any]:
    """Return what becomes of the one reply to one question, or raise what is said of it."""
    sent = question(100)
    mailbox = Mailbox([sent], limits)
    mailbox.take(reply(sent, content))
    answers, refused = mailbox.sorted()
    if refused:
        raise UntrustedSetError(refused[0].reason)
    return answers[0]


def pack(synthetic: SyntheticSet, *, site: int = 0, num_examples: int = 100, seconds: float = 1.0) -> RecordDict:
    return pack_answer(synthetic, About(WIRE), (f"client-{site}", site), num_examples, seconds)


def content_of(blob: bytes, about: Any = None, **metrics: Any) -> RecordDict:
    file = ArrayRecord({"file": Array(np.frombuffer(blob, np.uint8))})
    numbers = {"num-examples": 100, "seconds": 1.0, "bytes": len(blob)} | metrics
    if "partition-id" in metrics:  # wire 1
        return RecordDict({"synthetic": file, "metrics": MetricRecord(numbers)})
    says = ConfigRecord({"wire": WIRE, "version": "1", "task": "condense", "round": 1, "site": "a", **(about or {})})
    return RecordDict({"payload": file, "metrics": MetricRecord(numbers), "about": says})


def edited(blob: bytes, edit: Callable[[dict[str, Any], dict[str, Any]], None]) -> bytes:
    """Return a file whose header and record were changed, with a header length that is right again."""
    size = int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8 : 8 + size])
    content = json.loads(header["__metadata__"]["fedcondense"])
    edit(header, content)
    if "__metadata__" in header:
        header["__metadata__"]["fedcondense"] = json.dumps(content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + blob[8 + size :]


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"", version: bytes = b"\x01\x00") -> bytes:
    """Return an npy file that says what it likes about the data behind it."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


def replaced(honest: SyntheticSet, array: Array) -> RecordDict:
    content = pack(honest)
    content["payload"] = ArrayRecord({"file": array})
    return content


def raw(data: bytes, stype: str = "numpy.ndarray") -> Array:
    return Array(dtype="uint8", shape=(10,), stype=stype, data=data)


def in_record(**changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(header: dict[str, Any], content: dict[str, Any]) -> None:
        content["parts"][0]["record"].update(changes)

    return edit


def in_tensor(name: str, **changes: Any) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def edit(header: dict[str, Any], content: dict[str, Any]) -> None:
        header[name].update(changes)

    return edit


def hostile(kind: str, honest: SyntheticSet, rng: random.Random) -> RecordDict:
    """Return one reply of a kind, every one of which has to be refused."""
    blob = honest.to_bytes()
    classes, names = len(honest.classes), list(honest.classes)
    html = f"<img src=x onerror=alert({rng.randrange(99)})>"
    big = rng.randrange(10**6, 10**12)
    edits: dict[str, Callable[[dict[str, Any], dict[str, Any]], None]] = {
        "wrong image shape": in_record(shape=[1, rng.randrange(9, 4000), 8]),
        "wrong channels": in_record(shape=[3, 8, 8]),
        "negative shape": in_tensor("0.images", shape=[-1, 1, 8, 8]),
        "huge shape": in_tensor("0.images", shape=[big, 1, 8, 8]),
        "other dtype": in_tensor("0.images", dtype=rng.choice(["F32", "F16", "I16", "F64", "BF16", "U7"])),
        "offsets outside": in_tensor("0.images", data_offsets=[0, big]),
        "offsets overlap": in_tensor("0.targets", data_offsets=[0, 20]),
        "html class": in_record(classes=[html, *names[1:]]),
        "unknown class": in_record(classes=[*names[:-1], f"other {rng.random()}"]),
        "repeated class": in_record(classes=[names[0], *names[:-1]]),
        "fewer classes than labels": in_record(classes=names[:1], counts=[1]),
        "many classes": in_record(classes=[str(k) for k in range(20_000)], counts=[]),
        "nan mean": in_record(mean=[float("nan")]),
        "infinite std": in_record(std=[float("inf")]),
        "zero std": in_record(std=[0.0]),
        "tiny std": in_record(std=[10.0 ** -rng.randrange(7, 30)]),
        "other mean": in_record(mean=[rng.uniform(2, 1e9)]),
        "claims of many records": in_record(counts=[rng.randrange(10**8, 10**12)] * classes),
        "negative counts": in_record(counts=[-rng.randrange(1, 99)] * classes),
        "counts of another length": in_record(counts=[1] * (classes + 1)),
        "text for a number": in_record(ipc=html),
        "negative seed": in_record(seed=-1),
        "unknown field": in_record(**{html: 1}),
        "long method": in_record(method=html * 1000),
        "nested privacy": in_record(privacy=[[[]]]),
        "unknown augmentation": in_record(augmentation=["flip", html]),
        "unknown parametrization": lambda h, c: c["parts"][0].update(parametrization=f"__import__('os').{html}"),
        "settings of another kind": lambda h, c: c["parts"][0].update(factor=rng.randrange(2, 9)),
        "decompression": lambda h, c: c["parts"][0].update(parametrization="multi-formation", factor=10**6),
        "newer version": lambda h, c: c.update(version=rng.randrange(2, 10**6)),
        "no version": lambda h, c: c.pop("version"),
        "no parts": lambda h, c: c.update(parts=[]),
        "many parts": lambda h, c: c.update(parts=c["parts"] * 20_000),
        "part that is missing": lambda h, c: c.update(parts=c["parts"] * 2),
        "no record": lambda h, c: c["parts"][0].pop("record"),
        "no metadata": lambda h, c: h.pop("__metadata__"),
        "no targets": lambda h, c: h.pop("0.targets"),
        "another tensor": lambda h, c: h.update({"0.more": {**h["0.targets"]}}),
        "huge metadata": lambda h, c: h["__metadata__"].update(filler="x" * (2 << 20)),
        "deep metadata": lambda h, c: c.update(evaluation=[[]]),
    }
    if kind in edits:
        return content_of(edited(blob, edits[kind]))
    cut = rng.randrange(len(blob))
    files: dict[str, Callable[[], bytes]] = {
        "truncated": lambda: blob[:cut],
        "longer": lambda: blob + bytes(rng.randrange(1, 5000)),
        "empty": lambda: b"",
        "noise": lambda: rng.randbytes(rng.randrange(1, 5000)),
        "header length": lambda: rng.randrange(2**20, 2**63).to_bytes(8, "little") + blob[8:],
        "deep json": lambda: (200_000).to_bytes(8, "little") + b"[" * 200_000 + blob[8:],
        "labels beyond the classes": lambda: blob[: -len(honest)] + bytes([rng.randrange(classes, 256)]) * len(honest),
        "not a file": lambda: b"<html>" + rng.randbytes(100),
    }
    if kind in files:
        return content_of(files[kind]())
    arrays: dict[str, Callable[[], Array]] = {
        "npy header bomb": lambda: raw(npy((big, big), "<f8")),
        "npy shape beyond the data": lambda: raw(npy((big,), data=blob)),
        "npy object dtype": lambda: raw(npy((3,), "|O", rng.randbytes(24))),
        "npy code in the header": lambda: raw(
            b"\x93NUMPY\x01\x00\x20\x00" + b"__import__('os').getcwd()       \n" + blob
        ),
        "npy of version 3": lambda: raw(npy((len(blob),), data=blob, version=b"\x03\x00")),
        "npy of floats": lambda: Array(np.full(rng.randrange(9, 99), np.nan)),
        "npy in two dimensions": lambda: Array(np.frombuffer(blob, np.uint8)[None]),
        "npy without end": lambda: raw(b"\x93NUMPY\x01\x00\xff\xff"),
        "pickle": lambda: raw(b"\x80\x04cos\nsystem\n(S'true'\ntR.", "pickle"),
        "larger than allowed": lambda: raw(npy((20 << 20,), data=bytes(20 << 20))),
    }
    if kind in arrays:
        return replaced(honest, arrays[kind]())
    content = content_of(blob)
    records: dict[str, Callable[[], RecordDict]] = {
        "no records": RecordDict,
        "another record": lambda: RecordDict({**content, html: ConfigRecord({"a": html})}),
        "records swapped": lambda: RecordDict(
            {**content, "payload": content["metrics"], "metrics": content["payload"]}
        ),
        "no about": lambda: RecordDict({"payload": content["payload"], "metrics": content["metrics"]}),
        "about of another kind": lambda: RecordDict({**content, "about": content["metrics"]}),
        "about of wrong types": lambda: content_of(blob, about={"wire": "2", "site": html}),
        "a name that is no text": lambda: content_of(blob, about={"site": [html]}),
        "a name that is not printable": lambda: content_of(blob, about={"site": "a\x1b[31m"}),
        "a later wire": lambda: content_of(blob, about={"wire": rng.randrange(WIRE + 1, 99)}),
        "no partition": lambda: content_of(blob, **{"partition-id": -1}),
        "partition that is no number": lambda: content_of(blob, **{"partition-id": [1, 2]}),
        "partition that is not whole": lambda: content_of(blob, **{"partition-id": float("nan")}),
        "examples below zero": lambda: content_of(blob, **{"num-examples": -5}),
        "seconds without end": lambda: content_of(blob, seconds=float("inf")),
        "seconds that are none": lambda: content_of(blob, seconds=float("nan")),
        "two arrays": lambda: RecordDict({**content, "payload": ArrayRecord({"file": raw(b""), "more": raw(b"")})}),
    }
    return records[kind]()


KINDS = (
    *("wrong image shape", "wrong channels", "negative shape", "huge shape", "other dtype", "offsets outside"),
    *("offsets overlap", "html class", "unknown class", "repeated class", "fewer classes than labels", "many classes"),
    *("nan mean", "infinite std", "zero std", "tiny std", "other mean", "claims of many records", "negative counts"),
    *("counts of another length", "text for a number", "negative seed", "unknown field", "long method"),
    *("nested privacy", "unknown augmentation", "unknown parametrization", "settings of another kind", "decompression"),
    *("newer version", "no version", "no parts", "many parts", "part that is missing", "no record", "no metadata"),
    *("no targets", "another tensor", "huge metadata", "deep metadata", "truncated", "longer", "empty", "noise"),
    *("header length", "deep json", "labels beyond the classes", "not a file", "npy header bomb"),
    *("npy shape beyond the data", "npy object dtype", "npy code in the header", "npy of version 3", "npy of floats"),
    *("npy in two dimensions", "npy without end", "pickle", "larger than allowed", "no records", "another record"),
    *("records swapped", "no partition", "partition that is no number", "partition that is not whole"),
    *("no about", "about of another kind", "about of wrong types", "a name that is no text"),
    *(
        "a name that is not printable",
        "a later wire",
        "examples below zero",
        "seconds without end",
        "seconds that are none",
        "two arrays",
    ),
)


HOSTILE = 4 * len(KINDS)


class TestRoundTrip:
    def test_a_set_arrives_bit_by_bit_and_says_its_bytes(self, honest: SyntheticSet, expected: ReplyLimits) -> None:
        answer = unpack(pack(honest, site=3, num_examples=17, seconds=1.5), expected)
        assert answer.payload.to_bytes() == honest.to_bytes()
        assert (answer.site, answer.num_examples, answer.seconds) == (Site("client-3", "100", 100), 17, 1.5)
        assert 0 < answer.nbytes - honest.nbytes < 3000  # of the whole message

    def test_half_resolution_travels_too(self, train: Data, expected: ReplyLimits) -> None:
        small = select(train, 1, "half-resolution", seed=0)
        answer = unpack(pack(small), expected)
        torch.testing.assert_close(answer.payload.decode().images, small.decode().images, rtol=0, atol=0)


class TestHostileReplies:
    @pytest.mark.parametrize("kind", KINDS)
    def test_each_kind_is_refused_with_a_reason_that_is_safe_to_show(
        self, kind: str, honest: SyntheticSet, expected: ReplyLimits
    ) -> None:
        with pytest.raises(UntrustedSetError) as refused:
            unpack(hostile(kind, honest, random.Random(0)), expected)
        reason = str(refused.value)
        assert 0 < len(reason) <= 300
        assert reason.isprintable()
        assert not set(reason) & set("<>&")

    def test_a_site_may_normalise_by_its_own_mean(self, honest: SyntheticSet) -> None:
        """The pixels count: they are normalised as the server says."""
        spec = honest.record
        other = honest.with_record(mean=tuple(0.9 * m for m in spec.mean), std=tuple(1.1 * s for s in spec.std))
        expected = ReplyLimits(shape=honest.shape, classes=honest.classes, mean=spec.mean, std=spec.std)
        read = unpack(pack(other), expected).payload
        torch.testing.assert_close(read.decode().images, honest.decode().images)

    def test_parts_may_together_name_no_more_classes_than_allowed(self, honest: SyntheticSet) -> None:
        other = honest.with_record(classes=tuple(f"other {name}" for name in honest.classes))
        joined = SyntheticSet.join([honest, other])
        limits = replace(ReplyLimits().limits, classes=len(joined.classes) - 1)
        with pytest.raises(UntrustedSetError, match=r"names 20 classes; allowed: 19"):
            unpack(pack(joined), ReplyLimits(limits=limits))

    @pytest.mark.parametrize(("mean", "std"), [(1e6, 1e-6), (-0.5, 0.5), (0.5, 2.0)])
    def test_a_scale_that_pixels_cannot_have_is_refused_where_none_is_expected(
        self, honest: SyntheticSet, mean: float, std: float
    ) -> None:
        parts = [replace(p, record=replace(p.record, mean=(mean,), std=(std,))) for p in honest.parts]
        content = pack(SyntheticSet(parts))
        with pytest.raises(UntrustedSetError, match=r"possible of pixels in \[0, 1\]"):
            unpack(content, ReplyLimits())

    def test_a_surprise_in_one_answer_ends_that_answer(self, honest: SyntheticSet) -> None:
        def examine(answer: Answer[Any]) -> None:
            raise RuntimeError("not enough <memory>")

        asked = question(100)
        mailbox = Mailbox([asked], ReplyLimits(), examine)
        assert not mailbox.take(reply(asked, pack(honest)))
        assert mailbox.sorted()[1][0].reason == "cannot be used (RuntimeError: not enough (memory))"

    def test_hundreds_of_them_cost_an_honest_client_nothing(
        self, honest: SyntheticSet, expected: ReplyLimits, train: Data
    ) -> None:
        """All go through Flower's serialisation and the strategy; one honest set is left, and memory stays bounded."""
        client = ClientApp()

        @client.query("condense")
        def answer(message: Message, context: Context) -> Message:
            k = int(context.node_config["partition-id"])
            if k == HOSTILE:
                return Message(pack(honest, site=k), reply_to=message)
            content = hostile(KINDS[k % len(KINDS)], honest, random.Random(k))
            return Message(content, reply_to=message)

        with task_identity():
            grid = InProcessGrid(client, HOSTILE + 1)
            strategy = OneShot(lambda joined: torch.nn.Linear(1, 1), expected, min_train_nodes=HOSTILE + 1)
            messages = list(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), grid))
            replies = list(grid.send_and_receive(messages))
            before = peak_bytes()
            strategy.aggregate_train(1, replies)
        assert [answer.site.name for answer in strategy.answers] == [f"client-{HOSTILE}"]
        assert len(strategy.refused) == HOSTILE
        assert strategy.joined is not None
        assert strategy.joined.to_bytes() == honest.to_bytes()
        assert peak_bytes() - before < 128 << 20

    @given(st.lists(st.tuples(st.integers(0, 2**20), st.integers(0, 255)), min_size=1, max_size=20))
    def test_bytes_changed_at_random_give_a_refusal_or_a_sound_set(
        self, honest: SyntheticSet, expected: ReplyLimits, changes: list[tuple[int, int]]
    ) -> None:
        blob = bytearray(honest.to_bytes())
        for place, value in changes:
            blob[place % len(blob)] = value
        try:
            answer = unpack(content_of(bytes(blob)), expected)
        except UntrustedSetError:
            return
        images, targets = answer.payload.decode()
        assert images.shape[1:] == expected.shape
        assert bool(images.isfinite().all())
        torch.testing.assert_close(targets.sum(1), torch.ones(len(targets)), rtol=0, atol=0.02)
        assert expected.classes is not None
        assert set(answer.payload.classes) <= set(expected.classes)


class TestMailbox:
    def test_replies_are_taken_once_and_only_to_questions_of_this_round(self, honest: SyntheticSet) -> None:
        asked, other = question(100), question(200)
        mailbox = Mailbox([asked], ReplyLimits())
        assert not mailbox.take(reply(other, pack(honest)))
        assert mailbox.take(reply(asked, pack(honest)))
        assert not mailbox.take(reply(asked, pack(honest, num_examples=5)))
        assert not mailbox.take(reply(asked, Error(2, "no")))
        (answer,), refused = mailbox.sorted()
        assert (answer.num_examples, refused, mailbox.silent()) == (100, [], [])

    def test_an_error_is_a_refusal_whose_last_line_is_safe_and_cannot_be_taken_back(self, honest: SyntheticSet) -> None:
        asked = question(100)
        mailbox = Mailbox([asked], ReplyLimits())
        assert not mailbox.take(reply(asked, Error(2, "Traceback\n\x1b[31m<b>no data</b>\n")))
        assert not mailbox.take(reply(asked, pack(honest)))
        assert mailbox.sorted() == ([], [Refusal(Site("node-100", "100", 100), "(b)no data(/b)")])

    @pytest.mark.parametrize("code", [3, 4, 5])
    def test_a_node_that_flower_misses_is_absent_and_neither_waited_for_nor_asked_again(self, code: int) -> None:
        asked = question(100)
        mailbox = Mailbox([asked], ReplyLimits(), again=lambda site, reason: question(site.node))
        assert not mailbox.take(reply(asked, Error(code, "Error: Node Unavailable")))
        assert (mailbox.open(), mailbox.second()) == (set(), [])
        (refusal,) = mailbox.sorted()[1]
        assert refusal.reason == GONE
        (entry,) = refusals([(1, refusal)], "one-shot")
        assert entry["absent"] is True
        tally = Tally()
        tally.reads(mailbox, [], [refusal])
        assert (tally.asked, tally.answered, tally.refused) == ({100}, set(), set())

    def test_a_node_that_does_not_know_the_task_is_told_what_to_install(self) -> None:
        asked = question(100)
        mailbox = Mailbox([asked], ReplyLimits())
        mailbox.take(reply(asked, Error(2, "ValueError: No query function registered with name 'walk'")))
        ((_, reason),) = mailbox.sorted()[1]
        assert "No query function registered with name 'walk'" in reason
        assert "this node does not know the task; install fedcondense" in reason

    def test_answers_come_by_name_in_natural_order_and_the_silent_are_refused(self, honest: SyntheticSet) -> None:
        asked = [question(node) for node in (1, 2, 3, 4)]
        mailbox = Mailbox(asked, ReplyLimits())
        for sent, site in zip(asked[:3], (10, 9, 2), strict=True):
            mailbox.take(reply(sent, pack(honest.with_record(seed=site), site=site)))
        assert [site.node for site in mailbox.silent()] == [4]
        answers, refused = mailbox.sorted()
        assert [answer.site.name for answer in answers] == ["client-2", "client-9", "client-10"]
        assert refused == [Refusal(Site("node-4", "4", 4), "no reply within the deadline")]

    def test_a_name_that_is_claimed_twice_keeps_both_and_belongs_to_none(self, honest: SyntheticSet) -> None:
        """A cheat would lose an honest site its answer if the second were refused, and its name if the first had it."""
        asked = [question(node) for node in (1, 2)]
        mailbox = Mailbox(asked, ReplyLimits())
        for seed, sent in enumerate(reversed(asked)):
            mailbox.take(reply(sent, pack(honest.with_record(seed=seed), site=0)))
        answers, _ = mailbox.sorted()
        assert [(answer.site.name, answer.site.node) for answer in answers] == [("client-0-1", 1), ("client-0-2", 2)]

    def test_a_registered_name_goes_before_a_claim(self, honest: SyntheticSet) -> None:
        asked = [question(1), question(2, name="client-0")]
        mailbox = Mailbox(asked, ReplyLimits())
        mailbox.take(reply(asked[0], pack(honest, site=0)))
        mailbox.take(reply(asked[1], pack(honest.with_record(seed=7), site=7)))
        answers, _ = mailbox.sorted()
        assert [(answer.site.name, answer.site.node) for answer in answers] == [("client-0", 2), ("client-0-1", 1)]

    def test_who_is_refused_is_called_by_what_it_claimed(self, honest: SyntheticSet) -> None:
        asked = question(1)
        mailbox = Mailbox([asked], ReplyLimits(classes=("cat",)))
        mailbox.take(reply(asked, pack(honest, site=4)))
        ((site, reason),) = mailbox.sorted()[1]
        assert site.name == "client-4"
        assert "are not among the 1 of this run" in reason

    def test_an_answer_is_read_as_what_was_asked_for(self, honest: SyntheticSet) -> None:
        asked = [question(1, Metrics), question(2, Metrics)]
        mailbox = Mailbox(asked, ReplyLimits())
        numbers = pack_answer(Metrics({"loss": 0.5}), About(WIRE, task="evaluate"), ("a", 0), 3, 0.1)
        assert mailbox.take(reply(asked[0], numbers))
        assert not mailbox.take(reply(asked[1], pack(honest)))
        (answer,), (refusal,) = mailbox.sorted()
        assert answer.payload == Metrics({"loss": 0.5})
        assert "metrics" in refusal.reason
