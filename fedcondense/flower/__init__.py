"""Flower as the host: sites answer tasks, Flower ships the answers, the server combines them, round by round.

Importing this room costs nothing and needs nothing; the first name taken out of it imports flwr.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedcondense.errors import MissingExtraError

if TYPE_CHECKING:
    from fedcondense.flower.caps import Caps as Caps
    from fedcondense.flower.caps import Cost as Cost
    from fedcondense.flower.client import make_client_app as make_client_app
    from fedcondense.flower.comparison.averaging import fedavg as fedavg
    from fedcondense.flower.comparison.bench import Bench as Bench
    from fedcondense.flower.comparison.federate import Measured as Measured
    from fedcondense.flower.comparison.federate import federate as federate
    from fedcondense.flower.comparison.result import FederationResult as FederationResult
    from fedcondense.flower.comparison.result import Output as Output
    from fedcondense.flower.comparison.rows import ROWS as ROWS
    from fedcondense.flower.contract import Answer as Answer
    from fedcondense.flower.contract import Job as Job
    from fedcondense.flower.contract import Node as Node
    from fedcondense.flower.contract import Site as Site
    from fedcondense.flower.contract import State as State
    from fedcondense.flower.contract import Task as Task
    from fedcondense.flower.contract import Verdict as Verdict
    from fedcondense.flower.evaluating import Evaluate as Evaluate
    from fedcondense.flower.hosts.inprocess import InProcessGrid as InProcessGrid
    from fedcondense.flower.hosts.inprocess import run_in_process as run_in_process
    from fedcondense.flower.hosts.simulation import simulate as simulate
    from fedcondense.flower.payloads import Metrics as Metrics
    from fedcondense.flower.payloads import Sums as Sums
    from fedcondense.flower.payloads import Weights as Weights
    from fedcondense.flower.replies import ReplyLimits as ReplyLimits
    from fedcondense.flower.rounds import AggregationError as AggregationError
    from fedcondense.flower.rounds import Rounds as Rounds
    from fedcondense.flower.run_folder import RunFolder as RunFolder
    from fedcondense.flower.server import make_server_app as make_server_app
    from fedcondense.flower.site_data import load_partition as load_partition
    from fedcondense.flower.site_metrics import SiteMetrics as SiteMetrics
    from fedcondense.flower.strategies import STRATEGIES as STRATEGIES
    from fedcondense.flower.strategies import TASKS as TASKS
    from fedcondense.flower.strategies import Entry as Entry
    from fedcondense.flower.strategies import ServerSide as ServerSide
    from fedcondense.flower.strategies.averaging import LocalTraining as LocalTraining
    from fedcondense.flower.strategies.iterative import FedDM as FedDM
    from fedcondense.flower.strategies.iterative import MatchNear as MatchNear
    from fedcondense.flower.strategies.one_shot import Condense as Condense
    from fedcondense.flower.strategies.one_shot import OneShot as OneShot

_HOMES = {
    "AggregationError": "rounds",
    "Answer": "contract",
    "Bench": "comparison.bench",
    "Caps": "caps",
    "Condense": "strategies.one_shot",
    "Cost": "caps",
    "Entry": "strategies",
    "Evaluate": "evaluating",
    "FedDM": "strategies.iterative",
    "FederationResult": "comparison.result",
    "InProcessGrid": "hosts.inprocess",
    "Job": "contract",
    "LocalTraining": "strategies.averaging",
    "MatchNear": "strategies.iterative",
    "Measured": "comparison.federate",
    "Metrics": "payloads",
    "Node": "contract",
    "OneShot": "strategies.one_shot",
    "Output": "comparison.result",
    "ROWS": "comparison.rows",
    "ReplyLimits": "replies",
    "Rounds": "rounds",
    "RunFolder": "run_folder",
    "STRATEGIES": "strategies",
    "ServerSide": "strategies",
    "Site": "contract",
    "SiteMetrics": "site_metrics",
    "State": "contract",
    "Sums": "payloads",
    "TASKS": "strategies",
    "Task": "contract",
    "Verdict": "contract",
    "Weights": "payloads",
    "fedavg": "comparison.averaging",
    "federate": "comparison.federate",
    "load_partition": "site_data",
    "make_client_app": "client",
    "make_server_app": "server",
    "run_in_process": "hosts.inprocess",
    "simulate": "hosts.simulation",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import the module that a public name lives in, when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    except ModuleNotFoundError as missing:
        if (missing.name or "").partition(".")[0] == "flwr":
            raise MissingExtraError("flwr", "flower") from missing
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
