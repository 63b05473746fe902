"""The client app: it answers tasks, and Flower's own messages, with its node's data, within what the node allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from fedcondense.condensing import Own, Progress
from fedcondense.data import Data, load_data
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.partitions import partition
from fedcondense.errors import DivergenceError, SettingError, UntrustedSetError, unknown
from fedcondense.flower.caps import Caps
from fedcondense.flower.contract import Node, Question
from fedcondense.flower.ledger import Charge
from fedcondense.flower.node import Desk, NodeConfig, answer, ledger_of, place_of
from fedcondense.flower.settings import keys_of, number, read
from fedcondense.flower.strategies import TASKS
from fedcondense.flower.strategies.averaging import local_round
from fedcondense.flower.wire import safe_text

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
    desk = Desk(caps=caps, is_counted=is_counted, cache=cache, progress=progress)
    return _app(load_partition, desk, {**TASKS, **{kind.name: kind for kind in tasks}})


def _app(load: LoadPartition, desk: Desk, tasks: dict[str, type[Question]]) -> ClientApp:
    client = ClientApp()
    for name, kind in tasks.items():

        def asked(message: Message, context: Context, kind: type[Question] = kind) -> RecordDict:
            return answer(message.content, context, kind, load, desk)

        client.query(name)(_guarded(asked, desk))

    def train(message: Message, context: Context) -> RecordDict:
        placed = place_of(context, desk)
        if placed.config.threads:
            torch.set_num_threads(placed.config.threads)
        node = Node(placed.name(context), placed.caps, place=placed.place(context))
        ledger = ledger_of(placed, desk)
        if ledger is not None:  # weights that were trained on records count as a question
            arrays = message.content.array_records.values()
            ledger.charge("train", Charge(nbytes=sum(record.count_bytes() for record in arrays)))
        return local_round(message.content, Own(placed.enough(load(context))), node)

    client.train()(_guarded(train, desk))
    return client


def _guarded(handler: _Handler, desk: Desk) -> Callable[[Message, Context], Message]:
    """Turn what a handler raises into an error reply: a refusal with its reason, a surprise without its text."""

    def guarded(message: Message, context: Context) -> Message:
        try:
            return Message(handler(message, context), reply_to=message)
        except (SettingError, UntrustedSetError, DivergenceError) as refused:
            return Message(Error(CLIENT_RAISED, safe_text(f"{_whose(context)}: {refused}")), reply_to=message)
        except Exception as surprise:
            _LOG.exception("%s failed at %s", _whose(context), message.metadata.message_type)
            reason = f"{_whose(context)}: failed with {type(surprise).__name__}; the node's log says more"
            return Message(Error(CLIENT_RAISED, reason), reply_to=message)

    return guarded


def _whose(context: Context) -> str:
    """Return what an error calls a node, whatever its config holds."""
    number = context.node_config.get("partition-id")
    return f"partition {number}" if isinstance(number, int) else f"node {context.node_id}"


def load_partition(context: Context) -> Data:
    """Return the data of a node that was started from the command line.

    The node's config names them: ``data`` (as `load_data`, ``folder:...`` for a site's own), ``data-root``, and where
    they are to be divided ``num-partitions``, ``partition-id`` and the rule. A node that names none divides a public
    data set as the run says; a run can name data sets of the toolkit only, and never says where they are.

    Raises:
        SettingError: A run that would divide a node's own data: chosen divisions can single records out.
    """
    config = place_of(context, Desk(is_stock=True)).config
    run = {key: value for key, value in context.run_config.items() if key in _RUN}
    if config.data:
        chosen = sorted(key for key in run if key != "data" and run[key] != _RUN[key])
        if chosen:
            raise SettingError(
                f"the run's config sets {', '.join(chosen)}; this node's config names data of its own, which no run "
                "divides: leave the keys out of the run, or set them in the node's config"
            )
        if not config.num_partitions:
            return _train(config.data, config.data_root or None)
        return _divided(config)[config.partition_id]
    public = read(_Public, run, "the run's config")
    name = public.data or "digits"
    if name not in CATALOGUE:
        known = unknown("data set", name[:100], CATALOGUE)
        raise SettingError(f"{known}; a node's own data are named in the node's config: data = ...")
    whole = NodeConfig(data=name, data_root=config.data_root, num_partitions=config.num_partitions)
    if not config.num_partitions:
        return _train(name, config.data_root or None)
    return _divided(public.onto(whole))[config.partition_id]


@dataclass(frozen=True)
class _Public:
    """How a run divides a public data set."""

    data: str = "digits"
    partition_by: str = "dirichlet"
    alpha: float = number(0.5, 0)
    partition_seed: int = number(42, 0)
    min_partition_size: int = number(10, 0)

    def onto(self, config: NodeConfig) -> NodeConfig:
        """Return a node's config with this division."""
        return replace(config, **{k: v for k, v in vars(self).items() if k != "data"})


_RUN = {key: item.default for key, item in keys_of(_Public).items()}


@lru_cache(maxsize=1)
def _train(name: str, root: str | None) -> Data:
    return load_data(name, root).train


@lru_cache(maxsize=1)
def _divided(config: NodeConfig) -> list[Data]:
    train = _train(config.data, config.data_root or None)
    held = partition(
        train,
        config.num_partitions,
        config.partition_by,
        alpha=config.alpha,
        seed=config.partition_seed,
        min_partition_size=config.min_partition_size,
    )
    return [train.subset(index) for index in held]


app = _app(load_partition, Desk(is_stock=True), TASKS)
