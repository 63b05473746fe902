"""One round: ask each client for a synthetic set, and train the global network on all of them together."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from logging import INFO, WARNING
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log
from torch import nn

from fedcondense.data.images import Data, Spec
from fedcondense.flower.message import CONDENSE, Expected, Refusal, Reply, read_replies, usable_partition
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = ["AggregationError", "OneShot", "collect", "train_network"]

_POLL_S = 0.2


def train_network(
    joined: SyntheticSet,
    network: str = "",
    recipe: Fit = Fit(),
    seed: int = 0,
) -> nn.Module:
    """Train a network from scratch on a set, on a GPU if there is one; its outputs are the set's classes.

    A server that has test data calls `train_on` with them instead, whose outputs are the classes of the data.

    Args:
        joined: A set, of one client or many.
        network: A name in `NETWORKS`; by default the one for the images' size.
        recipe: How it is trained.
        seed: Of the initial weights and the batches.
    """
    record = joined.record
    spec = Spec(joined.name, joined.shape, joined.classes, record.mean, record.std)
    like = Data(torch.empty(0, *joined.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), spec)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return train_on(joined, like, network=network or None, recipe=recipe, seed=seed, device=device)


class OneShot(Strategy):
    """Ask each client for a synthetic set once, and train the global network on all of them together.

    The client must answer ``query.condense``, as `make_client_app` does; weights never travel up. The round ends when
    all have answered, when `grace` seconds have passed since `min_replies` sets arrived, or at the deadline that
    `start` is given. After it, `joined` is the union of the usable sets, `accepted` and `refused` say whose they are
    and who was left out and why, `missing` names the classes that no set holds, and Flower's ``Result.arrays`` holds
    the trained weights.

    Args:
        fit: Trains a network on the joined set; `train_network` is the usual one.
        expected: What a reply may hold. Whatever breaks it is left out and named in the log.
        fraction_train: Share of the connected nodes that are asked.
        min_train_nodes: How many are asked at least.
        min_available_nodes: How many must be connected before any is asked.
        min_replies: How many usable sets the round needs.
        wait: Seconds to wait for `min_available_nodes`.
        grace: Seconds to go on waiting for the others after `min_replies` sets; None waits until the deadline.
        seed: Of the choice of nodes, where not all are asked.
    """

    def __init__(
        self,
        fit: Callable[[SyntheticSet], nn.Module] = train_network,
        expected: Expected = Expected(),  # noqa: B008 - frozen
        *,
        fraction_train: float = 1.0,
        min_train_nodes: int = 2,
        min_available_nodes: int = 2,
        min_replies: int = 1,
        wait: float = 60.0,
        grace: float | None = None,
        seed: int = 0,
    ) -> None:
        self.fit, self.expected = fit, expected
        self.fraction_train, self.min_train_nodes = fraction_train, min_train_nodes
        self.min_available_nodes, self.min_replies = min_available_nodes, min_replies
        self.wait, self.grace, self.seed = wait, grace, seed
        self.joined: SyntheticSet | None = None
        self.accepted: tuple[Reply, ...] = ()
        self.refused: tuple[Refusal, ...] = ()
        self.missing: tuple[str, ...] = ()
        self._sent: list[Message] = []

    def summary(self) -> None:
        """Log the settings."""
        log(INFO, "\t├──> Nodes: fraction %.2f, at least %d", self.fraction_train, self.min_train_nodes)
        log(INFO, "\t├──> Waits %.0f s for %d nodes to connect", self.wait, self.min_available_nodes)
        grace = "until the deadline" if self.grace is None else f"{self.grace:.0f} s for the others"
        log(INFO, "\t├──> Needs %d usable sets, then waits %s", self.min_replies, grace)
        log(INFO, "\t└──> Accepts up to %d bytes a set", self.expected.limits.nbytes)

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord | None = None,
        num_rounds: int = 1,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Run the round and return Flower's Result with the trained weights.

        Args:
            grid: Reaches the nodes.
            initial_arrays: Not sent; evaluated as round 0 if there are any.
            num_rounds: 1.
            timeout: Seconds that nodes have for their answer.
            train_config: What is asked for, as `Request` names it: ``ipc``, ``objective``, ``seed``, ...
            evaluate_config: Not used: nodes do not evaluate.
            evaluate_fn: Called with (1, the trained weights), and with round 0 if there are initial weights.
        """
        if num_rounds != 1:
            raise ValueError(f"OneShot is one round, not {num_rounds}; more images come from a larger ipc")

        def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            return evaluate_fn(server_round, arrays) if evaluate_fn and arrays else None

        deadline_grid = _Deadlines(grid, self.min_replies, self.grace, self.expected)
        start = initial_arrays if initial_arrays is not None else ArrayRecord()
        return super().start(deadline_grid, start, 1, timeout, train_config, evaluate_config, evaluate)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Wait for nodes, with a deadline, and return one question for each that is asked."""
        end = time.monotonic() + self.wait
        while len(nodes := sorted(grid.get_node_ids())) < max(self.min_available_nodes, self.min_train_nodes):
            if time.monotonic() > end:
                needed = max(self.min_available_nodes, self.min_train_nodes)
                raise TimeoutError(
                    f"{len(nodes)} of {needed} nodes connected within {self.wait:.0f} s; start the others, or lower "
                    "min_available_nodes and min_train_nodes"
                )
            time.sleep(_POLL_S)
        count = max(int(len(nodes) * self.fraction_train), self.min_train_nodes)
        if count < len(nodes):
            nodes = sorted(random.Random(self.seed).sample(nodes, count))
        content = RecordDict({"config": config})
        self._sent = [
            Message(content, dst_node_id=node, message_type=CONDENSE, group_id=str(server_round)) for node in nodes
        ]
        log(INFO, "configure_train: asking %d nodes for a synthetic set", len(nodes))
        return self._sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Check and join the sets, train on them, and return the weights.

        Raises:
            AggregationError: There are fewer usable sets than `min_replies`, or training on them diverges.
        """
        accepted, refused = read_replies(self._sent, replies, self.expected)
        self.accepted, self.refused = tuple(accepted), tuple(refused)
        for node, reason, _ in refused:
            log(WARNING, "round %d: node %d is left out: %s", server_round, node, reason)
        if len(accepted) < max(self.min_replies, 1):
            first = "; ".join(f"node {refusal.node}: {refusal.reason}" for refusal in refused[:3])
            raise AggregationError(
                f"round {server_round}: {len(accepted)} usable sets of {len(self._sent)}, {max(self.min_replies, 1)} "
                f"needed; {first or 'no node was asked'}"
            )
        self.joined = SyntheticSet.join(reply.synthetic for reply in accepted)
        counts = dict(zip(self.joined.classes, self.joined.counts().tolist(), strict=True))
        self.missing = tuple(name for name in self.expected.classes or counts if not counts.get(name))
        if self.missing:
            names = ", ".join(map(repr, self.missing[:10]))
            log(WARNING, "round %d: no set holds images of %d classes: %s", server_round, len(self.missing), names)
        network = self.fit(self.joined)
        if not all(bool(value.isfinite().all()) for value in network.state_dict().values()):
            raise AggregationError(
                f"round {server_round}: training on the sets of {len(accepted)} nodes ended in weights that are not "
                "finite; take a network with a norm, or ask again without the nodes that you do not trust"
            )
        metrics: dict[str, Any] = {
            "clients": len(accepted),
            "refused": len(refused),
            "num-examples": sum(reply.num_examples for reply in accepted),
            "bytes-up": sum(reply.nbytes for reply in accepted),
            "client-seconds": sum(reply.seconds for reply in accepted),
        }
        weights: dict[str, Any] = {name: value.detach().cpu() for name, value in network.state_dict().items()}
        return ArrayRecord(weights), MetricRecord(metrics)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask nobody: the server evaluates, if it has data."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Return nothing: nobody was asked."""
        return None


def collect(
    grid: Grid,
    messages: Iterable[Message],
    *,
    timeout: float | None,
    need: int = 0,
    grace: float | None = None,
    usable: Callable[[Message], Hashable | None] = lambda reply: None if reply.has_error() else reply,
) -> list[Message]:
    """Push messages and pull replies until all are there, the timeout, or `grace` seconds after `need` usable ones.

    Args:
        grid: Reaches the nodes.
        messages: What is asked.
        timeout: Seconds; None waits for all.
        need: Usable replies after which the grace period starts.
        grace: Seconds; None waits until the timeout.
        usable: Says what a reply counts as, once, or None; asked only where there is a grace period.
    """
    waiting = {identifier for identifier in grid.push_messages(list(messages)) if identifier}  # or it was not pushed
    end = time.monotonic() + (float("inf") if timeout is None else timeout)
    replies: list[Message] = []
    good, enough = set[Hashable](), False
    while waiting:
        for reply in grid.pull_messages(waiting):
            waiting.discard(reply.metadata.reply_to_message_id)
            replies.append(reply)
            if grace is not None:
                good.add(usable(reply))
        if grace is not None and len(good - {None}) >= need and not enough:
            end, enough = min(end, time.monotonic() + grace), True
        if not waiting or time.monotonic() > end:
            break
        time.sleep(min(_POLL_S, max(0.0, end - time.monotonic())))
    return replies


class _Deadlines(Grid):
    """A grid whose `send_and_receive` does not wait for all: Flower's own waits until the timeout for the last."""

    def __init__(self, grid: Grid, need: int, grace: float | None, expected: Expected) -> None:
        self._grid, self._need, self._grace, self._expected = grid, need, grace, expected

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        messages = list(messages)
        if not messages:
            return []
        return collect(
            self._grid,
            messages,
            timeout=timeout,
            need=self._need,
            grace=self._grace,
            usable=partial(usable_partition, expected=self._expected),
        )

    def get_node_ids(self) -> Iterable[int]:
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._grid.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return self._grid.pull_messages(message_ids)

    def set_run(self, run: Any) -> None:
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Any:
        return self._grid.create_message(*args, **kwargs)
