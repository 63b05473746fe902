"""What the library notes of a stage beside what a strategy keeps: who answered and is away, what it took."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.exception import AggregationError

from fedcondense.flower.asking import Asking
from fedcondense.flower.contract import Answer, Site, State
from fedcondense.flower.inbox import Refusal
from fedcondense.flower.payloads import Metrics

__all__ = ["ALONE", "ages", "booked", "check_enough", "check_finite", "first_round", "metrics_of", "spent_per_site"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_TOOK = ("bytes-up", "bytes-down", "client-seconds")
_FIRST, _LAST, _SPENT = "first/", "seen/", "spent/"  # what the names of the library's own numbers begin with
ALONE = "alone/"
"""What the name of one begins with that says how good a site is alone; its key follows."""


def booked(
    before: State,
    after: State,
    server_round: int,
    asked: Sequence[Site],
    answers: Sequence[Answer[Any]],
    down: int,
    *,
    is_combined: bool = True,
) -> State:
    """Return what a strategy keeps after a stage, with what the library keeps of it.

    Args:
        before: What was kept before the stage.
        after: What the strategy made of it.
        server_round: From 1 on.
        asked: Who was asked, under the names that they are registered by.
        answers: What the strategy combined.
        down: Bytes of all questions.
        is_combined: Whether what is kept follows from the answers; not where sites evaluated.
    """
    own = {name: value for name, value in before.numbers.items() if name.startswith((_FIRST, _LAST, _SPENT, ALONE))}
    for answer in answers if is_combined else ():
        own.setdefault(f"{_FIRST}{answer.site.name}", server_round)
        own[f"{_LAST}{answer.site.name}"] = server_round
    took = (sum(a.nbytes for a in answers), down, sum(a.seconds for a in answers))
    own |= {f"{_SPENT}{name}": float(own.get(f"{_SPENT}{name}", 0)) + n for name, n in zip(_TOOK, took, strict=True)}
    sites = dict(before.sites)
    sites |= {site.key: sites.get(site.key, site.name) for site in asked}
    sites |= {answer.site.key: answer.site.name for answer in answers}
    return after.but(sites=sites, numbers={**after.numbers, **own})


def spent_per_site(state: State) -> dict[str, float]:
    """Return what the rounds so far took per site that was ever asked: bytes up and down, and the site's seconds."""
    return {name: float(state.numbers.get(f"{_SPENT}{name}", 0)) / max(1, len(state.sites)) for name in _TOOK}


def first_round(state: State, site: str) -> int | None:
    """Return the round in which an answer of a site first counted; None: in none so far."""
    name = f"{_FIRST}{site}"
    return int(state.numbers[name]) if name in state.numbers else None


def ages(state: State) -> dict[str, dict[str, Any]]:
    """Return who is absent from the last round: how many ``rounds`` ago each answered last, and in which ``round``."""
    last = {name.removeprefix(_LAST): int(n) for name, n in state.numbers.items() if name.startswith(_LAST)}
    return {site: {"rounds": state.round - n, "round": n} for site, n in last.items() if n < state.round}


def check_finite(server_round: int, state: State, answers: int) -> None:
    """Refuse weights that left the finite numbers.

    Raises:
        AggregationError: They did.
    """
    weights = {} if state.weights is None else state.weights.tensors
    if not all(bool(torch.isfinite(value).all()) for value in weights.values()):
        raise AggregationError(
            f"round {server_round}: training on the answers of {answers} nodes ended in weights that are not "
            "finite; take a network with a norm, or ask again without the nodes that you do not trust"
        )


def check_enough(server_round: int, answers: Sequence[Answer[Any]], refused: Sequence[Refusal], needed: int) -> None:
    """Log who is left out, and refuse a stage with fewer usable answers than are needed.

    Raises:
        AggregationError: There are fewer.
    """
    for site, reason in refused:
        _LOG.warning("round %d: %s is left out: %s", server_round, site.name, reason)
    if len(answers) < needed:
        first = "; ".join(f"{site.name}: {reason}" for site, reason in refused[:3])
        raise AggregationError(
            f"round {server_round}: {len(answers)} usable answers of {len(answers) + len(refused)}, {needed} needed; "
            f"{first or 'all that were asked have answered: ask more, or lower min_replies'}"
        )


def metrics_of(answers: Sequence[Answer[Any]], refused: Sequence[object], asking: Asking) -> MetricRecord:
    """Return a stage in numbers, as Flower's result holds them, and what `Asking.train_metrics_aggr_fn` makes of it."""
    numbers: dict[str, Any] = {
        "clients": len(answers),
        "refused": len(refused),
        "num-examples": sum(answer.num_examples for answer in answers),
        "bytes-up": sum(answer.nbytes for answer in answers),
        "client-seconds": sum(answer.seconds for answer in answers),
    }
    if asking.train_metrics_aggr_fn is None:
        return MetricRecord(numbers)
    records = []
    for answer in answers:
        said: dict[str, Any] = {"num-examples": answer.num_examples, "seconds": answer.seconds, "bytes": answer.nbytes}
        more = answer.payload.numbers if isinstance(answer.payload, Metrics) else {}
        records.append(RecordDict({"metrics": MetricRecord({**more, **said})}))
    return MetricRecord({**numbers, **asking.train_metrics_aggr_fn(records, asking.weighted_by_key)})
