"""What the library notes of a stage beside what a strategy keeps: who answered and is away, what it took."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from flwr.app import MetricRecord
from flwr.serverapp.exception import AggregationError

from fedcondense.flower.contract import Answer, Site, State

__all__ = ["ages", "booked", "check_finite", "first_round", "metrics_of", "spent_per_site"]

_TOOK = ("bytes-up", "bytes-down", "client-seconds")
_FIRST, _LAST, _SPENT = "first/", "seen/", "spent/"  # what the names of the library's own numbers begin with


def booked(
    before: State, after: State, server_round: int, asked: Sequence[Site], answers: Sequence[Answer[Any]], down: int
) -> State:
    """Return what a strategy keeps after a stage, with what the library keeps of it.

    Args:
        before: What was kept before the stage.
        after: What the strategy made of it.
        server_round: From 1 on.
        asked: Who was asked, under the names that they are registered by.
        answers: What the strategy combined.
        down: Bytes of all questions.
    """
    own = {name: value for name, value in before.numbers.items() if name.startswith((_FIRST, _LAST, _SPENT))}
    for answer in answers:
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


def metrics_of(answers: Sequence[Answer[Any]], refused: Sequence[object]) -> MetricRecord:
    """Return a stage in numbers, as Flower's result holds them."""
    numbers: dict[str, Any] = {
        "clients": len(answers),
        "refused": len(refused),
        "num-examples": sum(answer.num_examples for answer in answers),
        "bytes-up": sum(answer.nbytes for answer in answers),
        "client-seconds": sum(answer.seconds for answer in answers),
    }
    return MetricRecord(numbers)
