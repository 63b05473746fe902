"""The client app: it answers tasks, and Flower's own messages, with its node's data, within what the node allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense.condensing import Own, Progress
from fedcondense.data import Data
from fedcondense.errors import DivergenceError, OutputError, ResumeError, SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Node, Question
from fedcondense.flower.kept import Kept
from fedcondense.flower.ledger import Charge
from fedcondense.flower.node import answer, check_wire, drawer_of, kept_by
from fedcondense.flower.node_config import KEPT_BYTES, Desk, ledger_of, log_path, place_of
from fedcondense.flower.node_log import NodeLog, line_of, note_outcome
from fedcondense.flower.site_data import load_partition
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.strategies.averaging import check_allowed, local_round
from fedcondense.flower.untrusted import safe_text
from fedcondense.flower.wire import About
from fedcondense.progress import reporting

__all__ = ["CLIENT_RAISED", "app", "load_partition", "make_client_app"]

_LOG = logging.getLogger(__name__)

CLIENT_RAISED = 2
"""Flower's code for an exception in a ClientApp."""

LoadPartition = Callable[[Context], Data]
"""Returns a node's data; empty where it has none."""

_Handler = Callable[[Message, Context], RecordDict]


def make_client_app(
    load_partition: LoadPartition,
    *,
    tasks: Iterable[type[Question]] = (),
    caps: Caps = Caps(),
    cache: Path | None = None,
    progress: Callable[[int, Progress], None] | None = None,
    is_counted: bool = True,
) -> ClientApp:
    """Return a ClientApp that answers every task in `TASKS`, tasks of one's own, and Flower's ``train``.

    A question that breaks the caps, names something unknown or meets no data is answered with an error and its reason.
    What is unexpected goes into the node's log only: an exception's text may quote the data.

    Args:
        load_partition: Returns the node's data.
        tasks: Further tasks, which go before those of the same name.
        caps: What a server may ask for, before the node's config has its say.
        cache: A folder that keeps each answer and the checkpoint of one in progress, so that a node which died or is
            asked the same again goes on where it was. None: ``cache`` of the node's config, or nothing is kept.
        progress: Called with the node's number and how far condensing is.
        is_counted: Whether a ledger counts what a node with data of its own gives away over its life.
    """
    memory = Kept(None, KEPT_BYTES)  # of this app alone
    desk = Desk(caps=caps, is_counted=is_counted, cache=cache, memory=memory, progress=progress)
    return _app(load_partition, desk, {**TASKS, **{kind.name: kind for kind in tasks}})


def _app(load: LoadPartition, desk: Desk, tasks: dict[str, type[Question]]) -> ClientApp:
    client = _Logged(desk)
    for name, kind in tasks.items():

        def asked(message: Message, context: Context, kind: type[Question] = kind) -> RecordDict:
            return answer(message.content, context, kind, load, desk)

        client.query(name)(_guarded(asked, desk))

    def train(message: Message, context: Context) -> RecordDict:
        placed = place_of(context, desk)
        if placed.config.threads:
            torch.set_num_threads(placed.config.threads)
        until = time.monotonic() + placed.caps.max_seconds
        place = placed.place(context)
        kept = drawer_of(kept_by(placed, desk), place, context)
        node = Node(placed.name(context), placed.caps, until, kept, place=place)
        check_allowed(node.caps)
        data = placed.enough(load(context))
        ledger = ledger_of(placed, desk)
        if ledger is not None:  # weights that were trained on records count as a question; what is refused does not
            arrays = message.content.array_records.values()
            ledger.charge("train", Charge(nbytes=sum(record.count_bytes() for record in arrays)))
        with reporting(f"{node.name}, train", bar=False, log=logging.getLogger("flwr")):
            return local_round(message.content, Own(data), node)

    client.train()(_guarded(train, desk))
    return client


def _guarded(handler: _Handler, desk: Desk) -> Callable[[Message, Context], Message]:
    """Turn what a handler raises into an error reply: a refusal with its reason, a surprise without its text."""

    def guarded(message: Message, context: Context) -> Message:
        threads = torch.get_num_threads()
        try:
            check_wire(About.of(message.content))
            return Message(handler(message, context), reply_to=message)
        except (SettingError, UntrustedSetError, DivergenceError) as refused:
            return Message(Error(CLIENT_RAISED, safe_text(f"{_whose(context)}: {refused}")), reply_to=message)
        except Exception as surprise:
            note_outcome("failed")
            _LOG.exception("%s failed at %s", _whose(context), message.metadata.message_type)
            reason = f"{_whose(context)}: failed with {type(surprise).__name__}; the node's log says more"
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)
        finally:
            if torch.get_num_threads() != threads:  # the node's config sets them, for this process
                torch.set_num_threads(threads)

    return guarded


class _Logged(ClientApp):
    """A ClientApp that writes each message and what comes of it to its node's log, around all mods and handlers.

    Args:
        desk: What the app settles.
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__()
        self._desk = desk

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message; what cannot be written down is withheld."""
        log = _log_of(context, self._desk)
        if log is None:
            return super().__call__(message, context)
        note_outcome("")
        try:
            log.check()  # before the work: an allowance is not spent on what cannot leave
            try:
                reply = super().__call__(message, context)
            except Exception as unknown:  # Flower's: nothing here answers such a message
                log.append(line_of(message, None, safe_text(str(unknown))))
                raise
            log.append(line_of(message, reply))
        except (ResumeError, OutputError) as error:
            _LOG.error("%s: %s", _whose(context), error)
            withheld = "this node's log cannot be written, so nothing leaves; its people find why in what it prints"
            return Message(Error(CLIENT_RAISED, f"{_whose(context)}: {withheld}"), reply_to=message)
        return reply


def _log_of(context: Context, desk: Desk) -> NodeLog | None:
    """Return a node's log, where its config can be read; else the one that it names, for what is refused by it."""
    try:
        path = log_path(place_of(context, desk), desk)
    except SettingError:
        named = context.node_config.get("log")
        path = Path(named) if desk.is_counted and isinstance(named, str) and named else None
    return None if path is None else NodeLog(path)


def _whose(context: Context) -> str:
    """Return what an error calls a node, whatever its config holds."""
    number = context.node_config.get("partition-id")
    return f"partition {number}" if isinstance(number, int) else f"node {context.node_id}"


app = _app(load_partition, Desk(memory=Kept(None, KEPT_BYTES), is_stock=True), TASKS)
