"""Messages of both wires; what a mailbox makes of them is in `test_replies`."""

from __future__ import annotations

import io
import resource
import struct
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from fedcondense.contract import Holder
from fedcondense.data.images import Data
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.contract import Job, Node, Task
from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.payloads import Metrics, Weights
from fedcondense.flower.serialised import message_bytes, over_the_wire
from fedcondense.flower.settings import number
from fedcondense.flower.wire import (
    WIRE,
    About,
    own_version,
    pack_answer,
    pack_question,
    read_answer,
    read_question,
    safe_text,
    some_names,
    untrusted_array,
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
        assert About.of(content) == About(WIRE, own_version(), "everything", 3, "")

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


def test_bytes_of_a_message_are_those_that_it_is_sent_as(everything: Everything) -> None:
    with task_identity():
        message = Message(pack_question(everything, 1), 1, "query.everything")
        assert message_bytes(message) == over_the_wire(message)[1]


def test_names_are_quoted_shortened_and_counted() -> None:
    assert some_names(["b", "a"]) == "'a', 'b'"
    assert some_names([str(k) * 50 for k in range(7)]).endswith("'4444444444444444444444444444444444444444' and 2 more")


def npy(shape: tuple[int, ...], dtype: str = "|u1", data: bytes = b"") -> bytes:
    """Return an npy file that says what it likes about the data behind it."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape!r}, }}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


def raw(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(10,), stype="numpy.ndarray", data=data)


def peak_bytes() -> int:
    """The most memory this process ever held; Linux counts in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TestUntrustedArray:
    @given(st.integers(0, 300))
    def test_what_numpy_wrote_is_read_without_a_copy(self, size: int) -> None:
        values = np.arange(size, dtype=np.uint8)
        read = untrusted_array(Array(values), ("uint8",), 300)
        np.testing.assert_array_equal(read, values)
        assert not read.flags.writeable

    def test_a_header_that_lies_allocates_nothing(self) -> None:
        before = peak_bytes()
        with pytest.raises(UntrustedSetError, match="header says"):
            untrusted_array(raw(npy((3 << 30,))), ("uint8",), 1 << 20)
        assert peak_bytes() - before < 16 << 20

    @given(st.binary(max_size=200))
    def test_any_bytes_are_refused_or_read(self, data: bytes) -> None:
        for blob in (data, b"\x93NUMPY\x01\x00" + data):
            try:
                untrusted_array(raw(blob), ("uint8",), 1 << 20)
            except UntrustedSetError:
                continue
            assert np.load(io.BytesIO(blob), allow_pickle=False) is not None


class TestSafeText:
    @given(st.text())
    def test_it_is_printable_short_and_holds_no_markup(self, text: str) -> None:
        shown = safe_text(text)
        assert shown.isprintable()
        assert 0 < len(shown) <= 300
        assert not set(shown) & set("<>&")

    def test_the_last_line_of_a_traceback_is_what_counts(self) -> None:
        assert safe_text("Traceback\n  File x\nValueError: no \x1b[31mred\x1b[0m\n\n") == "ValueError: no red"
