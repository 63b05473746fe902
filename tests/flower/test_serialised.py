"""A message as its bytes: what these tests hold fails loudly when an upgrade of flwr moves the private imports."""

from __future__ import annotations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.serialised import content_bytes, message_bytes, over_the_wire


def message(size: int) -> Message:
    array = Array(np.arange(size, dtype=np.uint8))
    content = RecordDict({"payload": ArrayRecord({"file": array}), "config": ConfigRecord({"text": "é", "n": [1, 2]})})
    with task_identity():
        return Message(content, 7, "query.condense", group_id="3")


def test_what_arrives_is_what_was_sent() -> None:
    sent = message(100)
    arrived, _ = over_the_wire(sent)
    assert arrived.content.array_records["payload"]["file"].numpy().tolist() == list(range(100))
    assert dict(arrived.content.config_records["config"]) == {"text": "é", "n": [1, 2]}
    kept = ("dst_node_id", "message_type", "group_id", "message_id")
    assert [getattr(arrived.metadata, name) for name in kept] == [getattr(sent.metadata, name) for name in kept]


def test_bytes_are_counted_alike_before_and_after_the_way() -> None:
    arrived, nbytes = over_the_wire(message(100))
    assert nbytes == message_bytes(message(100)) == message_bytes(arrived)


@pytest.mark.parametrize("more", [1, 155])
def test_a_byte_more_is_a_byte_more(more: int) -> None:
    """Below 128 npy pads its header; a length may take another digit."""
    assert message_bytes(message(100 + more)) - message_bytes(message(100)) == pytest.approx(more, abs=8)


def test_a_message_takes_at_most_160_bytes_around_its_content() -> None:
    """Its numbers are as wide as they can be: node ids of 64 bits, a long name of a task, a late round."""
    with task_identity():
        asked = Message(RecordDict(), 2**64 - 1, f"query.{'n' * 12}", group_id=str(10**6))
        asked.metadata.__dict__.update(_run_id=2**64 - 1, _src_node_id=2**64 - 1)
        reply = Message(message(3).content, reply_to=asked)
    assert 100 < message_bytes(reply) - content_bytes(reply.content) <= 160
