"""What left a node over its life, to whom, and what protected it: read from its config, its data and its log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from fedcondense.flower.node_config import Placed
from fedcondense.flower.node_log import LogLine
from fedcondense.flower.preview import check_node, read_log
from fedcondense.flower.strategies import TASKS

__all__ = ["Released", "released"]

_FLOWERS = {  # by Flower's own message types
    "train": "a network's weights after training on the records",
    "evaluate": "how many of the records kept apart the network is right about",
}
_LEFT = ("answered", "kept")  # decisions after which something left


class Released(NamedTuple):
    """What left a node over its life."""

    site: str
    log: Path
    answers: list[LogLine]
    nbytes: int
    refused: int  # questions
    records: int
    caps: dict[str, Any]
    epsilon: float  # that private answers spent, as the ledger says
    sent: str
    shared: str
    weights: str  # whether questions about weights are answered
    meaning: dict[str, str]  # of each task that was answered: what left


def released(config: Mapping[str, Any]) -> Released:
    """Read a node's config, data and log.

    Raises:
        SettingError: The config cannot work, or the node keeps no log.
        ResumeError: The log is damaged.
    """
    found = check_node(config)
    path, lines, _ = read_log(config)
    left = [line for line in lines if line.decision in _LEFT]
    own = found.placed.config
    return Released(
        own.name or (found.name if own.partition_id >= 0 else own.data),
        path,
        left,
        sum(line.nbytes for line in left),
        sum(line.decision not in (*_LEFT, "held") for line in lines),
        sum(found.classes.values()),
        asdict(found.placed.caps),
        0.0 if found.spent is None else found.spent.epsilon,
        "after somebody here looked at it" if own.send == "ask" else "at once",
        "to the server, which may send sets on to other sites" if own.share_with == "sites" else "to the server alone",
        _weights(found.placed),
        {line.task: _meaning(line.task) for line in left},
    )


def _meaning(task: str) -> str:
    known = TASKS[task].leaves if task in TASKS else _FLOWERS.get(task, "")
    return known or "a task of your own"


def _weights(placed: Placed) -> str:
    """Say which questions about weights a node answers."""
    caps, own = placed.caps, placed.config
    if caps.allow_weights and own.send != "ask":
        return "yes"
    if caps.allow_evaluate:
        return "no, but they may come to be tested: right answers per class leave, which nobody looks at before"
    return "no: nobody can look at them before they leave (send = ask)" if caps.allow_weights else "no"
