"""Messages of both wires; what a mailbox makes of them is in `test_replies`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.payloads import Metrics, Sums, Weights
from fedcondense.flower.serialised import message_bytes, over_the_wire
from fedcondense.flower.settings import number
from fedcondense.flower.untrusted import untrusted_array
from fedcondense.flower.wire import (
    ANSWERS,
    WIRE,
    About,
    own_version,
    pack_answer,
    pack_question,
    read_answer,
    read_question,
)
from fedcondense.sets.format import Limits
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@dataclass(frozen=True)
class Everything(Task[Metrics]):
    """A task with a field of each kind that travels."""

    weights: Weights
    before: SyntheticSet
    count_of_images: int = number(3, 0, 9)
    share: float = number(0.5, 0, 1)
    text: str = ""
    names: tuple[str, ...] = ()
    is_new: bool = False

    name: ClassVar[str] = "everything"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        raise AssertionError


@dataclass(frozen=True)
class Say(Task[Metrics]):
    """A task without fields."""

    name: ClassVar[str] = "say"
    payload: ClassVar[type[Metrics]] = Metrics

    def prepare(self, holder: Holder, node: Node) -> Job[Metrics]:
        raise AssertionError


@pytest.fixture(scope="module")
def honest(train: Data) -> SyntheticSet:
    return select(train, 1, "random", seed=0)


@pytest.fixture
def everything(honest: SyntheticSet) -> Everything:
    weights = Weights({"a": torch.arange(6.0).reshape(2, 3), "steps": torch.tensor(7), "b": torch.ones(2).half()})
    return Everything(weights, honest, 4, 1.0, "ü", ("cat", "a dog"), True)


def arrived(content: RecordDict) -> RecordDict:
    """Return a content as it is after Flower's serialisation."""
    with task_identity():
        message, _ = over_the_wire(Message(content, 1, "query.everything"))
    return message.content


class TestQuestion:
    def test_every_kind_of_field_arrives_as_it_was(self, everything: Everything) -> None:
        content = arrived(pack_question(everything, 3))
        read = read_question(content, Everything, Limits())
        for name in ("count_of_images", "share", "text", "names", "is_new"):
            assert getattr(read, name) == getattr(everything, name)
            assert type(getattr(read, name)) is type(getattr(everything, name))
        assert read.before.to_bytes() == everything.before.to_bytes()
        for name, value in everything.weights.tensors.items():
            torch.testing.assert_close(read.weights.tensors[name], value, rtol=0, atol=0)
        assert About.of(content) == About(WIRE, own_version(), "everything", 3, "", ANSWERS)

    def test_keys_are_in_kebab_case_and_what_is_carried_has_a_record_each(self, everything: Everything) -> None:
        content = pack_question(everything, 1)
        assert set(content) == {"about", "config", "weights", "before"}
        assert set(content.config_records["config"]) == {"count-of-images", "share", "text", "names", "is-new"}

    def test_all_that_is_wrong_is_said_in_one_line(self, everything: Everything) -> None:
        content = pack_question(everything, 1)
        content["config"] = ConfigRecord({"count-of-images": 10, "share": float("nan"), "nams": ["a"], "is-new": 1})
        with pytest.raises(SettingError) as refused:
            read_question(arrived(content), Everything, Limits())
        for needed in (
            "count-of-images = 10; needed: a whole number from 0 to 9",
            "share = nan; needed: a number from 0 to 1",
            "is-new = 1; needed: true or false",
            "no setting is called 'nams'; did you mean 'names'?",
        ):
            assert needed in str(refused.value)
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("key", ["weights", "before"])
    @pytest.mark.parametrize("what", ["missing", "a config", "two arrays", "cut", "text in the config"])
    def test_what_is_carried_is_refused_unless_it_is_one_sound_array(
        self, everything: Everything, key: str, what: str
    ) -> None:
        content = pack_question(everything, 1)
        file = content.array_records[key]["file"]
        if what in ("missing", "text in the config"):
            del content[key]
            if what == "text in the config":
                content.config_records["config"][key] = "all"
        elif what == "a config":
            content[key] = ConfigRecord({"file": "a"})
        elif what == "two arrays":
            content[key] = ArrayRecord({"file": file, "more": file})
        else:
            content[key] = ArrayRecord({"file": Array(file.numpy()[:-3].copy())})
        with pytest.raises((SettingError, UntrustedSetError)):
            read_question(arrived(content), Everything, Limits())

    def test_what_is_carried_is_held_to_the_nodes_limit(self, everything: Everything) -> None:
        with pytest.raises(UntrustedSetError, match="bytes; allowed: 100"):
            read_question(pack_question(everything, 1), Everything, Limits(nbytes=100))

    def test_a_config_of_another_kind_is_refused(self, everything: Everything) -> None:
        content = pack_question(everything, 1)
        content["config"] = MetricRecord({"share": 1.0})
        with pytest.raises(SettingError, match="another protocol"):
            read_question(content, Everything, Limits())


class TestAbout:
    def test_a_message_without_it_is_of_wire_1(self) -> None:
        assert About.of(RecordDict({"config": ConfigRecord({"ipc": 3})})) == About(
            1, "0.1.0 or older", "condense", 1, ""
        )

    def test_what_a_later_version_adds_is_passed_over(self) -> None:
        record = ConfigRecord({**About(WIRE, "9", "walk", 2, "b").record(), "mood": "good"})
        assert About.of(RecordDict({"about": record})) == About(WIRE, "9", "walk", 2, "b")

    @pytest.mark.parametrize("wrong", [{"wire": "2"}, {"wire": 0}, {"round": -1}, {"site": 3}, {"task": ["a"]}])
    def test_fields_of_other_types_are_refused_by_name(self, wrong: dict[str, Any]) -> None:
        (key,) = wrong
        with pytest.raises(SettingError, match=f"about: {key} = "):
            About.of(RecordDict({"about": ConfigRecord({**About(WIRE).record(), **wrong})}))


class TestAnswer:
    def test_wire_1_is_answered_in_kind(self, honest: SyntheticSet) -> None:
        """An old server takes these records and numbers alone."""
        content = arrived(pack_answer(honest, About(), ("st-marys", 3), 100, 1.5))
        assert set(content) == {"synthetic", "metrics"}
        assert set(content.array_records["synthetic"]) == {"file"}
        numbers = dict(content.metric_records["metrics"])
        assert numbers == {"num-examples": 100, "partition-id": 3, "seconds": 1.5, "bytes": honest.nbytes}
        file = untrusted_array(content.array_records["synthetic"]["file"], ("uint8",), 1 << 20)
        assert file.tobytes() == honest.to_bytes()

    def test_a_wire_1_answer_is_read_under_the_name_of_its_partition(self, honest: SyntheticSet) -> None:
        received = read_answer(pack_answer(honest, About(), ("x", 3), 100, 1.5), SyntheticSet, Limits())
        assert received.payload.to_bytes() == honest.to_bytes()
        assert (received.about.wire, received.about.site) == (1, "client-3")
        assert (received.num_examples, received.seconds) == (100, 1.5)

    def test_wire_2_says_who_speaks(self, honest: SyntheticSet) -> None:
        asked = About(WIRE, "9.9", "condense", 4)
        received = read_answer(arrived(pack_answer(honest, asked, ("a", 3), 7, 0.0)), SyntheticSet, Limits())
        assert received.about == About(WIRE, own_version(), "condense", 4, "a")

    def test_a_later_wire_is_refused_naming_both_versions(self, honest: SyntheticSet) -> None:
        content = pack_answer(honest, About(WIRE), ("a", 0), 7, 0.0)
        content["about"] = About(WIRE + 1, "9.9", "condense", 1, "a").record()
        with pytest.raises(
            UntrustedSetError, match=rf"speaks wire {WIRE + 1} \(fedcondense 9.9\), this server wire {WIRE}"
        ):
            read_answer(content, SyntheticSet, Limits())


class TestShortAnswer:
    """Wire 3: what is sent to whoever says that they read it."""

    @pytest.fixture
    def asked(self, honest: SyntheticSet) -> About:
        return About.of(arrived(pack_question(Say(), 4, honest.classes)))

    def test_it_is_read_as_it_was_sent_and_takes_four_times_less_beside_the_codes(
        self, honest: SyntheticSet, asked: About
    ) -> None:
        content = arrived(pack_answer(honest, asked, ("a", 3), 40, 1.5, honest.classes))
        received = read_answer(content, SyntheticSet, Limits(), honest.classes)
        assert received.payload.to_bytes() == honest.to_bytes()
        assert (received.about.site, received.num_examples, received.seconds) == ("a", 40, 1.5)
        before = pack_answer(honest, About(WIRE), ("a", 3), 40, 1.5)
        codes = sum(code.nbytes for code in honest.parts[0].codes.values()) + honest.parts[0].targets.nbytes
        with task_identity():
            short, long = (message_bytes(Message(each, 1, "query.say")) - codes for each in (content, before))
        assert 4 * short < long + 200

    def test_a_question_that_does_not_name_it_is_answered_by_wire_2(self, honest: SyntheticSet) -> None:
        content = pack_answer(honest, About(WIRE, "test", "say", 4), ("a", 3), 40, 1.5, honest.classes)
        assert set(content) == {"payload", "metrics", "about"}
        assert set(content.config_records["about"]) == {"wire", "version", "task", "round", "site"}

    def test_sums_travel_in_it_too_and_large_files_do_not(self, asked: About) -> None:
        sums = Sums({"gram": torch.arange(6.0), "products": torch.ones(3, 2)})
        read = read_answer(arrived(pack_answer(sums, asked, ("a", 3), 1, 0.0)), Sums, Limits()).payload
        assert {name: value.tolist() for name, value in read.tensors.items()} == {
            "gram": [0, 1, 2, 3, 4, 5],
            "products": [[1, 1]] * 3,
        }
        large = Sums({"gram": torch.zeros(1 << 18)})
        assert "payload" in pack_answer(large, asked, ("a", 3), 1, 0.0)

    def test_names_that_the_server_does_not_know_travel(self, honest: SyntheticSet) -> None:
        for classes in (None, (*honest.classes, "another")):
            asked = About.of(pack_question(Say(), 4, classes))
            content = pack_answer(honest, asked, ("a", 3), 40, 1.5, honest.classes)
            assert read_answer(content, SyntheticSet, Limits(), classes).payload.classes == honest.classes

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"wire": 6}, "it answers by wire 6, this server reads 5; update fedcondense here"),
            ({"wire": True}, "an answer of 'file', 'records', 'seconds', 'site', 'wire'; needed"),
            ({"more": 1}, "needed: file, records, seconds, site, wire"),
            ({"file": "text"}, "whose file is no bytes"),
            ({"file": b""}, "packed in a way that the question did not name"),
            ({"file": b"\x09" * 40}, "packed in a way that the question did not name"),
            ({"file": b"\x01\xff\xff"}, "a packed header that is damaged"),
            ({"file": b"\x00" * (1 << 20)}, "a file of 1048576 bytes; allowed: 100000"),
            ({"site": 3}, "whose site is no text"),
            ({"site": "a\nb"}, "site"),
            ({"records": -1}, "'records' is no whole number from 0"),
            ({"seconds": float("nan")}, "'seconds' is no number"),
        ],
    )
    def test_anything_else_is_refused_in_words(
        self, honest: SyntheticSet, asked: About, changes: dict[str, Any], reason: str
    ) -> None:
        said = dict(pack_answer(honest, asked, ("a", 3), 40, 1.5, honest.classes).config_records["answer"])
        content = RecordDict({"answer": ConfigRecord({**said, **changes})})
        with pytest.raises(UntrustedSetError, match=reason):
            read_answer(content, SyntheticSet, Limits(nbytes=100_000), honest.classes)

    def test_a_record_beside_it_is_refused(self, honest: SyntheticSet, asked: About) -> None:
        content = pack_answer(honest, asked, ("a", 3), 40, 1.5)
        content["more"] = ConfigRecord({})
        with pytest.raises(UntrustedSetError, match="needed: file, records"):
            read_answer(content, SyntheticSet, Limits())

    def test_a_question_says_what_it_reads_in_words_that_older_nodes_pass_over(self, honest: SyntheticSet) -> None:
        about = pack_question(Say(), 4, honest.classes).config_records["about"]
        assert (about["wire"], about["answers"]) == (WIRE, ANSWERS) == (2, 5)

    @pytest.mark.parametrize("shares", [False, True])
    def test_broken_files_are_counted_to_servers_that_read_it(
        self, honest: SyntheticSet, asked: About, shares: bool
    ) -> None:
        content = pack_answer(honest, asked, ("a", 3), 40, 1.5, honest.classes, shares, 2)
        about = read_answer(arrived(content), SyntheticSet, Limits(), honest.classes).about
        assert (about.broken, about.shares) == (2, shares)
        before = replace(asked, answers=4)
        assert "broken" not in pack_answer(honest, before, ("a", 3), 40, 1.5, (), shares, 2).config_records["answer"]
        assert "broken" not in pack_answer(honest, asked, ("a", 3), 40, 1.5, (), shares).config_records["answer"]
        long = pack_answer(honest, About(WIRE), ("a", 3), 40, 1.5, (), shares, 2)  # whose about older ones pass over
        assert read_answer(arrived(long), SyntheticSet, Limits()).about.broken == 2
        content.config_records["answer"]["broken"] = -1
        with pytest.raises(UntrustedSetError, match="broken"):
            read_answer(content, SyntheticSet, Limits(), honest.classes)

    def test_a_site_that_shares_its_set_says_so_to_servers_that_read_it(self, honest: SyntheticSet) -> None:
        asked = About.of(pack_question(Say(), 4))
        for reads, wire in ((4, 4), (3, 3)):
            content = pack_answer(honest, replace(asked, answers=reads), ("a", 3), 40, 1.5, shares=True)
            assert content.config_records["answer"]["wire"] == wire
            assert read_answer(content, SyntheticSet, Limits()).about.shares == (reads == 4)
        assert not read_answer(pack_answer(honest, asked, ("a", 3), 40, 1.5), SyntheticSet, Limits()).about.shares
        large = pack_answer(honest, replace(asked, answers=2), ("a", 3), 40, 1.5, shares=True)
        assert read_answer(large, SyntheticSet, Limits()).about.shares


def test_bytes_of_a_message_are_those_that_it_is_sent_as(everything: Everything) -> None:
    with task_identity():
        message = Message(pack_question(everything, 1), 1, "query.everything")
        assert message_bytes(message) == over_the_wire(message)[1]
