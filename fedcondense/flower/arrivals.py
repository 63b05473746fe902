"""Replies are kept as they arrive: a server that is killed in mid-round asks those sites no second time.

A reply belongs to a question, by what it says, and to a site. Which of them are usable is for whoever reads them to
say, now and after a resume.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import torch
from flwr.app import Message
from flwr.serverapp import Grid

from fedcondense.checksums import dump_tensors, load_tensors
from fedcondense.errors import OutputError
from fedcondense.files import remove, write_file
from fedcondense.flower.around import GridAround
from fedcondense.flower.held import as_first
from fedcondense.flower.replies import is_gone
from fedcondense.flower.serialised import message_of, message_parts
from fedcondense.flower.sites import unnamed
from fedcondense.flower.waiting import Waiting, named

__all__ = ["ENDING", "KeepingGrid"]

ENDING = ".reply"
"""How the names of kept replies end."""

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_POLL_S = 0.2


class KeepingGrid(GridAround):
    """A grid that writes each reply to a folder before it hands it out, and asks nobody whose reply is there.

    Args:
        grid: Reaches the nodes.
        folder: Where replies are kept; it is made when the first arrives.
    """

    def __init__(self, grid: Grid, folder: Path) -> None:
        super().__init__(grid)
        self.folder = folder
        self._paths: dict[str, tuple[int, Path]] = {}  # by the question's id: whose reply goes where
        self._found: dict[str, Message] = {}  # replies of an earlier run, by the ids of this one's questions

    def get_node_ids(self) -> Iterable[int]:
        """Return the connected nodes in ascending order: strategies draw a sample of them."""
        return sorted(self.grid.get_node_ids())

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send the questions that no reply is kept for; return the ids of all, in their order."""
        messages = list(messages)
        names = self._names()
        paths = [self._path(message, names) for message in messages]
        found = [_read(path) for path in paths]
        asked = [message for message, reply in zip(messages, found, strict=True) if reply is None]
        if len(asked) < len(messages):
            _LOG.info(
                "%d of %d replies are kept from before; asking the others", len(messages) - len(asked), len(messages)
            )
        pushed, identifiers = iter(self.grid.push_messages(asked) if asked else ()), list[str]()
        for message, path, reply in zip(messages, paths, found, strict=True):
            if reply is None:
                identifier = next(pushed)
            else:
                identifier = f"kept-{uuid.uuid4()}"
                message.metadata.__dict__["_message_id"] = identifier  # as a grid does that sends it
                reply.metadata.__dict__.update(
                    _message_id=str(uuid.uuid4()),
                    _reply_to_message_id=identifier,
                    _src_node_id=message.metadata.dst_node_id,
                    _dst_node_id=message.metadata.src_node_id,
                    _run_id=message.metadata.run_id,
                )
                self._found[identifier] = reply
            self._paths[identifier] = (message.metadata.dst_node_id, path)
            identifiers.append(identifier)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, by node; each is kept before it is handed out."""
        wanted = list(message_ids)
        replies = [self._found.pop(one) for one in wanted if one in self._found]
        there = {reply.metadata.reply_to_message_id for reply in replies}
        left = [one for one in wanted if one not in there]
        for reply in self.grid.pull_messages(left) if left else ():
            self._keep(reply)
            replies.append(reply)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Send questions, and return the replies that arrive in time, by node; the log says whose are missing."""
        waiting = {one for one in self.push_messages(messages) if one}
        log, end = Waiting(), time.monotonic() + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        while waiting:
            for reply in self.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                replies.append(reply)
            if not waiting or time.monotonic() > end:
                break
            if log.is_due():
                known = {info.node_id: info for info in self.grid.get_nodes()}
                nodes = sorted(self._paths[one][0] for one in waiting)
                _LOG.info(
                    "%.0f s: %d answered, %d refused, %d gone; missing: %s; they have %.0f s (timeout)",
                    log.seconds,
                    sum(not reply.has_error() for reply in replies),
                    sum(reply.has_error() and not is_gone(reply) for reply in replies),
                    sum(map(is_gone, replies)),
                    named(unnamed(node, known.get(node)) for node in nodes),
                    end - time.monotonic(),
                )
            time.sleep(_POLL_S)
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def forget(self, nodes: Collection[int] | None = None) -> None:
        """Remove what is kept: of some nodes, whose replies are of no use, or of all, since a round is done."""
        for node, path in self._paths.values():
            if nodes is None or node in nodes:
                remove(path)
        if nodes is None:
            self._paths.clear()

    def _keep(self, reply: Message) -> None:
        node, path = self._paths.get(reply.metadata.reply_to_message_id, (0, None))
        if path is None or reply.has_error():
            return
        root, parts = message_parts(reply)
        tensors = {name: torch.frombuffer(bytearray(blob), dtype=torch.uint8) for name, blob in parts.items()}
        try:
            write_file(path, dump_tensors(tensors, "reply", {"root": root}), overwrite=True)
        except OutputError as error:
            _LOG.warning("the reply of node %d cannot be kept: %s", node, error)

    def _names(self) -> dict[int, str]:
        """Return what sites are found again by in another run: a public key, a registered name of one alone, the id."""
        sites = [unnamed(info.node_id, info) for info in self.grid.get_nodes()]
        count = Counter(site.name for site in sites)
        return {
            site.node: site.name if site.key == str(site.node) and site.name and count[site.name] == 1 else site.key
            for site in sites
        }

    def _path(self, message: Message, names: dict[int, str]) -> Path:
        about = message.metadata
        site = names.get(about.dst_node_id, str(about.dst_node_id))
        content = as_first(message.content).object_id if message.has_content() else ""
        text = "\0".join((site, about.message_type, about.group_id, content))
        return self.folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{ENDING}"


def _read(path: Path) -> Message | None:
    """Return a kept reply, or None: there is none, or a damaged one, and the site is asked."""
    if not path.exists():
        return None
    try:
        tensors, record = load_tensors(path.read_bytes(), "reply")
        return message_of(record["root"], {name: value.numpy().tobytes() for name, value in tensors.items()})
    except (OSError, ValueError, LookupError, TypeError) as error:
        _LOG.warning("%s is damaged (%s); that site is asked again", path, error)
        remove(path)
        return None
