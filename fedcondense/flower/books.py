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
from fedcondense.flower.held import is_held
from fedcondense.flower.inbox import Inbox, Refusal
from fedcondense.flower.payloads import Metrics
from fedcondense.flower.sites import natural

__all__ = [
    "ALONE",
    "ages",
    "booked",
    "by_site",
    "check_enough",
    "check_finite",
    "ever_asked",
    "first_round",
    "metrics_of",
    "spent_per_site",
]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_TOOK = ("bytes-up", "bytes-down", "client-seconds")
_ADDED = ("bytes_up", "bytes_down", "seconds")  # of one site, over all rounds
_SAID = ("records", "broken", *_ADDED)
_FIRST, _LAST, _SPENT = "first/", "seen/", "spent/"  # what the names of the library's own numbers begin with
_OF_SITE = "site/"  # likewise, of one site: what it is, and the site's key, follow
ALONE = "alone/"
"""What the name of one begins with that says how good a site is alone; its key follows."""


def booked(
    before: State,
    after: State,
    server_round: int,
    asked: Inbox,
    answers: Sequence[Answer[Any]],
    *,
    is_combined: bool = True,
) -> State:
    """Return what a strategy keeps after a stage, with what the library keeps of it.

    Args:
        before: What was kept before the stage.
        after: What the strategy made of it.
        server_round: From 1 on.
        asked: Who was asked, and what the questions took.
        answers: What the strategy combined.
        is_combined: Whether what is kept follows from the answers; not where sites evaluated.
    """
    ours = (_FIRST, _LAST, _SPENT, _OF_SITE, ALONE)
    own = {name: value for name, value in before.numbers.items() if name.startswith(ours)}
    for answer in answers if is_combined else ():
        own.setdefault(f"{_FIRST}{answer.site.name}", server_round)
        own[f"{_LAST}{answer.site.name}"] = server_round
    took = (sum(a.nbytes for a in answers), asked.bytes_down(), sum(a.seconds for a in answers))
    own |= {f"{_SPENT}{name}": float(own.get(f"{_SPENT}{name}", 0)) + n for name, n in zip(_TOOK, took, strict=True)}
    down = asked.down_by_node()
    for site in asked.sites:
        _add(own, site, bytes_down=down.get(site.node, 0.0))
    for answer in answers:
        _add(own, answer.site, bytes_up=float(answer.nbytes), seconds=answer.seconds)
        if is_combined:
            own[f"{_OF_SITE}records/{answer.site.key}"] = answer.num_examples
            own[f"{_OF_SITE}broken/{answer.site.key}"] = answer.broken
    sites = dict(before.sites)
    sites |= {site.key: sites.get(site.key, site.name) for site in asked.sites}
    sites |= {answer.site.key: answer.site.name for answer in answers}
    return after.but(sites=sites, numbers={**after.numbers, **own})


def _add(numbers: dict[str, float | int | str], site: Site, **took: float) -> None:
    for name, amount in took.items():
        key = f"{_OF_SITE}{name}/{site.key}"
        numbers[key] = float(numbers.get(key, 0)) + amount


def by_site(state: State, answers: Sequence[Answer[Any]] = ()) -> list[dict[str, Any]]:
    """Return what ``result.json`` says of each site that was ever asked: the bytes of all rounds, and its last answer.

    ``last`` is the round of it, ``records`` those that it was made from, and ``broken`` how many image files the site
    could not read, as it says; the three are None of a site that never answered.

    Args:
        state: After a round.
        answers: Of a round that failed: their sites are there, too.
    """
    found: list[dict[str, Any]] = [
        {"site": one.site.name, "last": None, "records": one.num_examples, "broken": one.broken}
        | {"bytes_up": float(one.nbytes), "bytes_down": None, "seconds": round(one.seconds, 3)}
        for one in answers
        if one.site.key not in state.sites
    ]
    for keys in _keys(state):
        name = state.sites[keys[0]]
        entry: dict[str, Any] = {"site": name, "last": state.numbers.get(f"{_LAST}{name}") if name else None}
        for what in _SAID:
            said = [state.numbers[at] for key in keys if (at := f"{_OF_SITE}{what}/{key}") in state.numbers]
            entry[what] = None if not said else round(sum(map(float, said)), 3) if what in _ADDED else said[-1]
        found.append(entry)
    return sorted(found, key=lambda entry: natural(str(entry["site"])))


def _keys(state: State) -> list[list[str]]:
    """Return the keys of each site that was ever asked; one that came again with another key, by its name, has two."""
    by_name: dict[str, list[str]] = {}
    for key, name in state.sites.items():
        by_name.setdefault(name or key, []).append(key)
    return list(by_name.values())


def spent_per_site(state: State) -> dict[str, float]:
    """Return what the rounds so far took per site that was ever asked: bytes up and down, and the site's seconds."""
    return {name: float(state.numbers.get(f"{_SPENT}{name}", 0)) / max(1, ever_asked(state)) for name in _TOOK}


def ever_asked(state: State) -> int:
    """Return how many sites were ever asked, by name."""
    return len(_keys(state))


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
        if any(is_held(reason) for _, reason in refused):
            first += "; once people there have looked (fedcondense review), resume = true asks them again"
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
