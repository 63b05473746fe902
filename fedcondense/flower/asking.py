"""Who is asked in a round, how long the server waits for nodes and for answers, and how sites' metrics become one."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypedDict, runtime_checkable

from flwr.app import Message, MetricRecord, RecordDict
from flwr.serverapp import Grid

from fedcondense.errors import FedcondenseError
from fedcondense.flower.contract import Question, Site
from fedcondense.flower.inbox import is_absent
from fedcondense.flower.replies import Mailbox, Sent
from fedcondense.flower.settings import number
from fedcondense.flower.sites import unnamed
from fedcondense.flower.waiting import Waiting, named
from fedcondense.flower.wire import pack_question

__all__ = ["AggregateMetrics", "Asked", "Asking", "NotConnectedError", "collect", "connected", "questions"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us

_POLL_S = 0.2
_IDLE = 4  # times as long as a poll that brought nothing took, the server waits before the next: thousands of ids ...
_MOST_S = 5.0  # ... are work for the SuperLink, too


class NotConnectedError(FedcondenseError, TimeoutError):
    """Fewer nodes connected in time than a round needs."""


@runtime_checkable
class AggregateMetrics(Protocol):
    """Makes one MetricRecord of those of several sites; Flower's own signature."""

    def __call__(self, records: list[RecordDict], weighting_metric_name: str, /) -> MetricRecord:
        """Return the aggregate; each of `records` holds one MetricRecord."""


@dataclass(frozen=True)
class Asking:
    """Who is asked, how long the server waits, what becomes of metrics; Flower's names mean what they do in FedAvg.

    Args:
        fraction_train: Share of the connected nodes that are asked in a round.
        min_train_nodes: How many are asked at least.
        min_available_nodes: How many must be connected before any is asked.
        min_replies: How many usable answers a round needs.
        wait: Seconds to wait for `min_available_nodes`.
        grace: Seconds to go on waiting for the others after `min_replies` answers; None waits until the deadline.
        seed: Of the choice of nodes, where not all are asked.
        fraction_evaluate: Share of the connected nodes that are asked how good the weights are after a round.
        min_evaluate_nodes: How many are asked so at least, if so many are connected: none is waited for.
        weighted_by_key: The metric that sites are weighed by in means of their metrics.
        train_metrics_aggr_fn: Adds metrics to those of a round, from each answer's ``num-examples``, ``seconds`` and
            ``bytes`` and, where answers are `Metrics`, their numbers.
        evaluate_metrics_aggr_fn: Makes one of the sites' ``num-examples``, ``accuracy``, ``macro-accuracy`` and what
            else all of them say; None: the mean, weighted by `weighted_by_key`.
    """

    fraction_train: float = number(1.0, 0, 1)
    min_train_nodes: int = number(2, 1)
    min_available_nodes: int = number(2, 1)
    min_replies: int = number(1, 1)
    wait: float = number(60.0, 0)
    grace: float | None = number(None, 0)  # type: ignore[arg-type]
    seed: int = number(0, 0)
    fraction_evaluate: float = number(0.0, 0, 1)
    min_evaluate_nodes: int = number(2, 0)
    weighted_by_key: str = "num-examples"
    train_metrics_aggr_fn: AggregateMetrics | None = None
    evaluate_metrics_aggr_fn: AggregateMetrics | None = None

    def log(self) -> None:
        """Log the settings, as a part of Flower's list."""
        there = max(self.min_available_nodes, self.min_train_nodes)
        least = max(int(there * self.fraction_train), self.min_train_nodes)
        _LOG.info("\t├──> Nodes: fraction %.2f, at least %d", self.fraction_train, least)
        _LOG.info("\t├──> Waits %.0f s for %d nodes to connect", self.wait, there)
        grace = "until the deadline" if self.grace is None else f"{self.grace:.0f} s for the others"
        _LOG.info("\t├──> Needs %d usable answers, then waits %s", self.min_replies, grace)

    def sample(self, nodes: Sequence[int], server_round: int) -> list[int]:
        """Return who is asked in a round, in ascending order."""
        count = max(int(len(nodes) * self.fraction_train), self.min_train_nodes)
        return _sampled(nodes, count, random.Random(self.seed + server_round - 1))

    def sample_to_evaluate(self, nodes: Collection[int], server_round: int) -> list[int]:
        """Return who is asked to evaluate after a round, in ascending order; nobody for a fraction of 0."""
        if not self.fraction_evaluate:
            return []
        count = max(int(len(nodes) * self.fraction_evaluate), self.min_evaluate_nodes)
        return _sampled(nodes, count, random.Random(f"{self.seed}, evaluating, {server_round}"))


def _sampled(nodes: Collection[int], count: int, draws: random.Random) -> list[int]:
    return sorted(nodes) if count >= len(nodes) else sorted(draws.sample(sorted(nodes), count))


class Asked(TypedDict, total=False):
    """The fields of `Asking`, as keyword arguments of every strategy: Flower's own names."""

    fraction_train: float
    min_train_nodes: int
    min_available_nodes: int
    min_replies: int
    wait: float
    grace: float | None
    seed: int
    fraction_evaluate: float
    min_evaluate_nodes: int
    weighted_by_key: str
    train_metrics_aggr_fn: AggregateMetrics | None
    evaluate_metrics_aggr_fn: AggregateMetrics | None


def collect(grid: Grid, mailbox: Mailbox, timeout: float, asking: Asking) -> None:
    """Push a mailbox's questions and read replies until all are there, the deadline, or the end of the grace period.

    Args:
        grid: Reaches the nodes.
        mailbox: What is asked, and where replies go.
        timeout: Seconds.
        asking: After how many usable answers a grace period starts, and how long it is.
    """
    waiting = {identifier for identifier in grid.push_messages([sent.message for sent in mailbox.sent]) if identifier}
    log = Waiting()
    end, grace = time.monotonic() + timeout, asking.grace
    while waiting:
        polled = time.monotonic()
        replies = list(grid.pull_messages(waiting))
        took = time.monotonic() - polled
        held = set(mailbox.held)
        for reply in replies:
            mailbox.take(reply)
        if mailbox.held - held:
            _LOG.info("%s", _held(mailbox))
        if replies:
            waiting &= mailbox.open()
            if again := mailbox.second(end - time.monotonic()):
                waiting |= set(grid.push_messages([sent.message for sent in again])) - {""}
        now = time.monotonic()
        has_enough = grace is not None and replies and len(mailbox.answers) >= asking.min_replies
        if grace is not None and has_enough and mailbox.usable() >= asking.min_replies:  # which looks at all of them
            end, grace = min(end, now + grace), None  # once
        if not waiting or now > end:
            break
        if log.is_due():
            is_ending = asking.grace is not None and grace is None
            _LOG.info("%.0f s: %s", log.seconds, _so_far(mailbox, asking.min_replies, end - now, is_ending))
        pause = _POLL_S if replies else max(_POLL_S, min(_IDLE * took, _MOST_S))
        time.sleep(min(pause, max(0.0, end - now)))


def _so_far(mailbox: Mailbox, needed: int, left: float, is_ending: bool) -> str:
    """Say who has answered and who has not, and how long the others are waited for.

    Args:
        mailbox: What came.
        needed: How many usable answers the round needs.
        left: Seconds.
        is_ending: Whether they are those of the grace period.
    """
    gone = {node for node, reason in mailbox.refused.items() if is_absent(reason)}
    refused = mailbox.refused.keys() - gone - mailbox.held
    told = [f"{len(mailbox.answers)} answered, {len(refused)} refused"]
    told += [_held(mailbox)] * bool(mailbox.held)
    if missing := named(site for site in mailbox.silent() if site.node not in mailbox.held):
        told.append(f"missing: {missing}")
    if gone:
        told.append(f"gone: {named(site for site in mailbox.sites if site.node in gone)}")
    if len(mailbox.answers) < needed:
        lower = ", or resume the run with a lower min-replies" if needed > 1 else ""
        told.append(f"min-replies = {needed}, for which there are {left:.0f} s (timeout)")
        told.append(f"start who is gone{lower}" if gone else "a node that stopped is named after a minute")
    elif is_ending:
        told.append(f"the others have {left:.0f} s (grace)")
    else:
        told.append(
            f"min-replies = {needed} is reached, the others have {left:.0f} s (timeout); a run with grace = 60 waits a "
            "minute for them"
        )
    return "; ".join(told)


def _held(mailbox: Mailbox) -> str:
    sites = [sent.site for sent in mailbox.sent if sent.site.node in mailbox.held]
    return f"{len(sites)} of {len(mailbox.sent)} hold their answer for review there: {named(sites)}"


def questions(tasks: Mapping[Site, Question], server_round: int, classes: Sequence[str] | None = None) -> list[Sent]:
    """Return the messages of a round; sites that are asked by one and the same task share its content in memory.

    Args:
        tasks: What each site is asked.
        server_round: Of the run.
        classes: As in `pack_question`.
    """
    packed = {
        id(task): pack_question(task, server_round, classes) for task in {id(t): t for t in tasks.values()}.values()
    }
    sent = []
    for site, task in tasks.items():
        content, kind = packed[id(task)], f"query.{task.name}"
        message = Message(content, dst_node_id=site.node, message_type=kind, group_id=str(server_round))
        sent.append(Sent(message, site, task.payload))
    return sent


def connected(grid: Grid, asking: Asking, known: Mapping[str, str] = {}, barred: Collection[str] = ()) -> list[int]:
    """Wait until enough nodes are connected and return them; the log says meanwhile how many are, and who is not.

    Args:
        grid: Reaches the nodes.
        asking: How many are enough, and how long they are waited for.
        known: The names of sites that were there before, by their keys.
        barred: Keys of those that nobody waits for.

    Raises:
        NotConnectedError: There are too few in the end.
    """
    log, needed = Waiting(), max(asking.min_available_nodes, asking.min_train_nodes)
    which = "min-available-nodes" if asking.min_available_nodes == needed else "min-train-nodes"
    while len(nodes := sorted(grid.get_node_ids())) < needed:
        there = f"{len(nodes)} of {needed} nodes connected"
        if (left := asking.wait - log.seconds) < 0:
            away = _away(grid, known, barred)
            raise NotConnectedError(f"{there} within {asking.wait:.0f} s{away}; start the others, or lower {which}")
        if log.is_due():
            away = _away(grid, known, barred)
            then = f"start the others, or resume the run with a lower {which}" if needed > 1 else "start one"
            _LOG.info("%.0f s: %s, %.0f s left (wait)%s; %s", log.seconds, there, left, away, then)
        time.sleep(_POLL_S)
    return nodes


def _away(grid: Grid, known: Mapping[str, str], barred: Collection[str]) -> str:
    """Return who of the known sites is not connected, as a part of a sentence; empty: all are, or none is known."""
    sites = [unnamed(info.node_id, info) for info in grid.get_nodes()]
    there = {site.name for site in sites} | {known.get(site.key, "") for site in sites}
    away = {name: Site(name) for key, name in known.items() if name and name not in there and key not in barred}
    return f"; missing: {named(away.values())}" if away else ""
