"""The client app: it answers tasks, and Flower's own messages, with its node's data, within what the node allows."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path

import torch
from flwr.app import ConfigRecord, Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense.condensing import Own, Progress
from fedcondense.data import Data
from fedcondense.errors import DivergenceError, OutputError, ResumeError, SettingError, UntrustedSetError
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Keeper, Node, Question
from fedcondense.flower.evaluating import Evaluate
from fedcondense.flower.kept import Kept
from fedcondense.flower.ledger import Charge
from fedcondense.flower.node import answer, check_carried, check_wire, drawer_of, kept_by
from fedcondense.flower.node_config import KEPT_BYTES, Desk, Placed, ledger_of, log_path, place_of
from fedcondense.flower.node_log import NodeLog, line_of, note_outcome
from fedcondense.flower.site_data import load_partition
from fedcondense.flower.sites import is_name
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.strategies.averaging import check_allowed, local_evaluation, local_round
from fedcondense.flower.untrusted import safe_text
from fedcondense.flower.wire import About
from fedcondense.progress import reporting

__all__ = ["CLIENT_RAISED", "app", "load_partition", "make_client_app"]

_LOG = logging.getLogger(__name__)

CLIENT_RAISED = 2
"""Flower's code for an exception in a ClientApp."""

_NUMBERS = 256  # bytes of the metrics of an evaluation, at most

LoadPartition = Callable[[Context], Data]
"""Returns a node's data; empty where it has none."""

Mod = Callable[[Message, Context, Callable[[Message, Context], Message]], Message]
"""Flower's: gets a message, the node's context and what comes next, and returns the reply."""

_Handler = Callable[[Message, Context], RecordDict]


def make_client_app(
    load_partition: LoadPartition,
    *,
    tasks: Iterable[type[Question]] = (),
    caps: Caps = Caps(),
    cache: Path | None = None,
    progress: Callable[[int, Progress], None] | None = None,
    is_counted: bool = True,
    mods: Sequence[Mod] = (),
) -> ClientApp:
    """Return a ClientApp that answers every task in `TASKS`, tasks of one's own, and Flower's ``train``, ``evaluate``.

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
        mods: Flower's, around whatever is answered, such as ``message_size_mod``; the first is outermost. A refusal
            that a mod cannot read goes out as it is.
    """
    memory = Kept(None, KEPT_BYTES)  # of this app alone
    desk = Desk(caps=caps, is_counted=is_counted, cache=cache, memory=memory, progress=progress)
    return _app(load_partition, desk, {**TASKS, **{kind.name: kind for kind in tasks}}, mods)


def _app(load: LoadPartition, desk: Desk, tasks: dict[str, type[Question]], mods: Sequence[Mod] = ()) -> ClientApp:
    client = _Logged(desk, mods)
    for name, kind in tasks.items():

        def asked(message: Message, context: Context, kind: type[Question] = kind) -> RecordDict:
            return answer(message.content, context, kind, load, desk)

        client.query(name)(_guarded(asked, desk))

    def train(message: Message, context: Context) -> RecordDict:
        placed, node = _placed(context, desk)
        check_allowed(node.caps)
        _check_unseen(placed)
        data = placed.enough(load(context))
        ledger = ledger_of(placed, desk)
        if ledger is not None:  # weights that were trained on records count as a question; what is refused does not
            arrays = message.content.array_records.values()
            ledger.charge("train", Charge(nbytes=sum(record.count_bytes() for record in arrays)))
        with reporting(f"{node.name}, train", bar=False, log=logging.getLogger("flwr")):
            return local_round(message.content, Own(data), node)

    def evaluate(message: Message, context: Context) -> RecordDict:
        placed, node = _placed(context, desk)
        check_carried(Evaluate, node.caps)
        if not placed.caps.allow_evaluate:
            _check_unseen(placed)
        loaded = load(context)
        data, node = placed.enough(loaded), node._replace(apart=placed.apart(loaded))
        job = local_evaluation(message.content, Own(data), node)
        ledger = ledger_of(placed, desk)
        if ledger is not None:
            ledger.charge("evaluate", Charge(nbytes=_NUMBERS))
        with reporting(f"{node.name}, evaluate", bar=False, log=logging.getLogger("flwr")):
            return job()

    client.train()(_guarded(train, desk))
    client.evaluate()(_guarded(evaluate, desk))
    return client


def _placed(context: Context, desk: Desk) -> tuple[Placed, Node]:
    """Read a node's config for a message of Flower's own."""
    placed = place_of(context, desk)
    if placed.config.threads:
        torch.set_num_threads(placed.config.threads)
    until, place = time.monotonic() + placed.caps.max_seconds, placed.place(context)
    keeper: Keeper = drawer_of(kept_by(placed, desk), place, context)
    return placed, Node(placed.name(context), placed.caps, until, keeper, place=place)


def _check_unseen(placed: Placed) -> None:
    if placed.config.send == "ask":
        raise SettingError("weights cannot be looked at before they leave: this node has send = ask")


class _Countable(ConfigRecord):
    """Flower's record, whose bytes a mod may count: 1.42 raises where a text or a list is empty."""

    def count_bytes(self) -> int:
        """Return the bytes of keys and values; those of an empty one are none."""
        full = {key: value for key, value in self.items() if value not in ("", b"", [])}
        return ConfigRecord(full).count_bytes() + sum(len(key) for key in self if key not in full)


_REFUSED: ContextVar[list[Message]] = ContextVar("refused")


def _around_mods(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
    """Let a refusal pass over which a mod stumbles, as those of Flower do that read a content: a refusal has none."""
    refused: list[Message] = []
    for name, record in message.content.config_records.items():
        message.content[name] = _Countable(dict(record))
    before = _REFUSED.set(refused)
    try:
        return call_next(message, context)
    except Exception as surprise:
        if refused:
            return refused[-1]
        _LOG.exception("a mod of %s failed at %s", _whose(context), message.metadata.message_type)
        reason = f"{_whose(context)}: a mod failed with {type(surprise).__name__}; the node's log says more"
        return Message(Error(CLIENT_RAISED, reason), reply_to=message)
    finally:
        _REFUSED.reset(before)


def _refusal(message: Message, reason: str, outcome: str = "") -> Message:
    """Return an error reply and note what came of the message: handlers travel to workers, and no variable does."""
    if outcome:
        note_outcome(outcome)
    reply = Message(Error(CLIENT_RAISED, reason), reply_to=message)
    _REFUSED.get([]).append(reply)
    return reply


def _guarded(handler: _Handler, desk: Desk) -> Callable[[Message, Context], Message]:
    """Turn what a handler raises into an error reply: a refusal with its reason, a surprise without its text."""

    def guarded(message: Message, context: Context) -> Message:
        threads = torch.get_num_threads()
        try:
            check_wire(About.of(message.content))
            return Message(handler(message, context), reply_to=message)
        except (SettingError, UntrustedSetError, DivergenceError) as refused:
            reason = safe_text(f"{_whose(context)}: {refused}")
            logging.getLogger("flwr").info("refused %s: %s", message.metadata.message_type, reason)
            return _refusal(message, reason)
        except Exception as surprise:
            _LOG.exception("%s failed at %s", _whose(context), message.metadata.message_type)
            reason = f"{_whose(context)}: failed with {type(surprise).__name__}; the node's log says more"
            return _refusal(message, reason, "failed")
        finally:
            if torch.get_num_threads() != threads:  # the node's config sets them, for this process
                torch.set_num_threads(threads)

    return guarded


class _Logged(ClientApp):
    """A ClientApp that writes each message and what comes of it to its node's log, around all mods and handlers.

    Args:
        desk: What the app settles.
        mods: Flower's.
    """

    def __init__(self, desk: Desk, mods: Sequence[Mod] = ()) -> None:
        super().__init__(mods=[_around_mods, *mods] if mods else None)
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
        named = (context.node_config.get("log"), context.node_config.get("ledger"))
        log, ledger = (text if isinstance(text, str) else "" for text in named)
        path = Path(log or f"{ledger}.log") if desk.is_counted and (log or ledger) else None
    return None if path is None else NodeLog(path)


def _whose(context: Context) -> str:
    """Return what an error calls a node, whatever its config holds."""
    named, number = context.node_config.get("name"), context.node_config.get("partition-id")
    if isinstance(named, str) and is_name(named):
        return named
    return f"partition {number}" if isinstance(number, int) else f"node {context.node_id}"


app = _app(load_partition, Desk(memory=Kept(None, KEPT_BYTES), is_stock=True), TASKS)
