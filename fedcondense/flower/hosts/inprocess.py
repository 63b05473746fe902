"""A federation in one process: the same ServerApp and ClientApp, over Flower's real serialisation, without a cluster.

One private import of flwr stands here and two in `serialised`; `tests/flower` runs the same client here and under Ray,
and fails loudly when an upgrade moves them.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from flwr.app import Context, Error, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.task_identity import TaskIdentity

from fedcondense.flower.client import CLIENT_RAISED
from fedcondense.flower.serialised import over_the_wire

__all__ = ["InProcessGrid", "Traffic", "log_from", "run_in_process", "task_identity"]


class Traffic(NamedTuple):
    """Serialised bytes of the messages that one node received and sent."""

    down: int = 0
    up: int = 0


class InProcessGrid(Grid):
    """Answer a ServerApp by running the ClientApp at once, one node after another.

    Messages are serialised and parsed exactly as for a network, so what cannot travel fails here too, and the bytes
    are true ones (headers and metadata of the message included). There is no timeout: a client that hangs, hangs this.

    Args:
        client_app: What every node runs.
        num_nodes: Nodes 100, 101, ... hold partitions 0, 1, ...; or what each is called.
        run_config: As from ``flwr run --run-config``.
        node_config: Added to every node's ``partition-id`` and ``num-partitions``.
    """

    def __init__(
        self,
        client_app: ClientApp,
        num_nodes: int | Sequence[str],
        run_config: Mapping[str, Any] | None = None,
        node_config: Mapping[str, Any] | None = None,
    ) -> None:
        self.client_app = client_app
        self.names = [f"client-{i}" for i in range(num_nodes)] if isinstance(num_nodes, int) else list(num_nodes)
        self.traffic = {100 + i: Traffic() for i in range(len(self.names))}
        self._replies: dict[str, Message] = {}
        self._contexts = {node: self._context(node, run_config, node_config) for node in self.traffic}

    def _context(
        self, node: int, run_config: Mapping[str, Any] | None, node_config: Mapping[str, Any] | None
    ) -> Context:
        place, name = node - 100, self.names[node - 100]
        config: UserConfig = {"partition-id": place, "num-partitions": len(self.names), **(node_config or {})}
        if name != f"client-{place}":
            config["name"] = name
        return Context(1, node, config, RecordDict(), dict(run_config or {}))

    def get_node_ids(self) -> Iterable[int]:
        """Return the nodes, all connected from the start."""
        return list(self.traffic)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """Return the nodes under the names of their partitions, as if they were registered by them."""
        return [NodeInfo(node_id=node, name=self.names[node - 100]) for node in self.traffic]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Deliver each message and keep the reply for `pull_messages`; an exception becomes an error reply."""
        sent = []
        for message in messages:
            node, identifier = message.metadata.dst_node_id, str(uuid.uuid4())
            message.metadata.__dict__["_message_id"] = identifier  # Flower's own in-memory grid does the same
            delivered, down = over_the_wire(message)
            try:
                reply = self.client_app(delivered, self._contexts[node])
            except Exception as raised:  # whatever a client raises is that client's failure, as on a real node
                reply = Message(Error(CLIENT_RAISED, f"{type(raised).__name__}: {raised}"), reply_to=message)
            reply.metadata.__dict__["_src_node_id"] = node
            reply.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self._replies[identifier], up = over_the_wire(reply)
            before = self.traffic[node]
            self.traffic[node] = Traffic(before.down + down, before.up + up)
            sent.append(identifier)
        return sent

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies to these messages, by node: strategies sum floats in this order, so runs repeat."""
        replies = [self._replies.pop(i) for i in message_ids if i in self._replies]
        return sorted(replies, key=lambda reply: reply.metadata.src_node_id)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Deliver the messages and return their replies."""
        return self.pull_messages(self.push_messages(messages))

    def set_run(self, run: object) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> NoReturn:
        """Raise: a run in one process has no record on a SuperLink."""
        raise NotImplementedError("a federation in one process has no flwr Run; nothing here needs one")

    def create_message(self, *_: object, **__: object) -> NoReturn:
        """Raise: Flower deprecated it, construct a `Message`."""
        raise NotImplementedError("construct flwr.app.Message(content, dst_node_id=..., message_type=...) instead")


def run_in_process(
    server_app: ServerApp,
    client_app: ClientApp,
    num_nodes: int | Sequence[str],
    *,
    run_config: Mapping[str, Any] | None = None,
    node_config: Mapping[str, Any] | None = None,
) -> InProcessGrid:
    """Run a ServerApp against nodes in this process; return the grid, which counted the bytes of every node.

    Args:
        server_app: Its main function may leave its result in a closure, as `federate` does, or in a file.
        client_app: What every node runs.
        num_nodes: How many there are, or what each is called.
        run_config: As from ``flwr run --run-config``.
        node_config: Added to every node's ``partition-id`` and ``num-partitions``.
    """
    with task_identity():
        grid = InProcessGrid(client_app, num_nodes, run_config, node_config)
        run_id = uuid.uuid4().int >> 65  # as Flower draws one: results may be filed under it
        server_app(grid, Context(run_id, 0, {}, RecordDict(), dict(run_config or {})))
    return grid


@contextmanager
def task_identity() -> Iterator[None]:
    """Let messages be constructed outside a Flower run, and leave the process as it was."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    for name in names:
        if before[name] is None:
            setattr(TaskIdentity, name, 1)
    try:
        yield
    finally:
        for name in names:
            setattr(TaskIdentity, name, before[name])


@contextmanager
def log_from(level: int, name: str = "flwr") -> Iterator[None]:
    """Let a logger log from `level` upwards for a while; a library call has no use for Flower's lines on each round."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)
