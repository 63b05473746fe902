"""A message as its bytes: two private imports of flwr, and a test that fails loudly when an upgrade moves them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import cast

from flwr.app import Message, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

__all__ = ["bytes_of_each", "content_bytes", "message_bytes", "message_of", "message_parts", "over_the_wire"]


def message_bytes(message: Message) -> int:
    """Return how many bytes a message takes, its headers and metadata included."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(message).values())


def bytes_of_each(messages: Iterable[Message]) -> Iterator[int]:
    """Return how many bytes each message takes; a content that many share is serialised once."""
    sizes: dict[int, int] = {}
    for message in messages:
        if not message.has_content():
            yield message_bytes(message)
            continue
        content = message.content
        if id(content) not in sizes:
            sizes[id(content)] = content_bytes(content)
        yield sizes[id(content)] + len(message.deflate())


def content_bytes(content: RecordDict) -> int:
    """Return how many bytes a message's content takes; the message around it takes up to 160 more."""
    return sum(len(item.deflate()) for item in get_all_nested_objects(content).values())


def message_parts(message: Message) -> tuple[str, dict[str, bytes]]:
    """Return a message's own name and its pieces by their names."""
    return message.object_id, {key: item.deflate() for key, item in get_all_nested_objects(message).items()}


def message_of(root: str, parts: dict[str, bytes]) -> Message:
    """Return the message that `message_parts` was given; the pieces are used up."""
    return cast(Message, inflate_object_from_contents(root, parts, keep_object_contents=False))


def over_the_wire(message: Message) -> tuple[Message, int]:
    """Serialise and parse a message; return what arrives and how many bytes it took."""
    root, parts = message_parts(message)
    size = sum(map(len, parts.values()))  # before inflating, which empties `parts`
    arrived = message_of(root, parts)
    arrived.metadata.__dict__["_message_id"] = message.metadata.message_id  # identifiers do not travel with the objects
    return arrived, size
