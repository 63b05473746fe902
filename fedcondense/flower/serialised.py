"""A message as its bytes: two private imports of flwr, and a test that fails loudly when an upgrade moves them."""

from __future__ import annotations

from typing import cast

from flwr.app import Message
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

__all__ = ["message_bytes", "over_the_wire"]


def message_bytes(message: Message) -> int:
    """Return how many bytes a message takes, its headers and metadata included."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def over_the_wire(message: Message) -> tuple[Message, int]:
    """Serialise and parse a message; return what arrives and how many bytes it took."""
    parts = {key: item.deflate() for key, item in get_all_nested_objects(message).items()}
    size = sum(map(len, parts.values()))  # before inflating, which empties `parts`
    arrived = cast(Message, inflate_object_from_contents(message.object_id, parts, keep_object_contents=False))
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id  # identifiers do not travel with the objects
    return arrived, size
