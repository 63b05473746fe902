"""Flower as the host: clients condense, Flower ships the sets, the server trains on all of them together.

Importing this room costs nothing and needs nothing; the first name taken out of it imports flwr.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fedcondense.errors import MissingExtraError

if TYPE_CHECKING:
    from fedcondense.flower.client import ClientCaps as ClientCaps
    from fedcondense.flower.client import make_client_app as make_client_app
    from fedcondense.flower.fedavg import LocalTraining as LocalTraining
    from fedcondense.flower.fedavg import fedavg as fedavg
    from fedcondense.flower.fedavg import make_fedavg_client as make_fedavg_client
    from fedcondense.flower.federation import federate as federate
    from fedcondense.flower.federation_result import ROWS as ROWS
    from fedcondense.flower.federation_result import FederationResult as FederationResult
    from fedcondense.flower.inprocess import InProcessGrid as InProcessGrid
    from fedcondense.flower.inprocess import run_in_process as run_in_process
    from fedcondense.flower.message import Expected as Expected
    from fedcondense.flower.server import make_server_app as make_server_app
    from fedcondense.flower.simulation import simulate as simulate
    from fedcondense.flower.strategy import OneShot as OneShot

_HOMES = {
    "ClientCaps": "client",
    "FederationResult": "federation_result",
    "InProcessGrid": "inprocess",
    "LocalTraining": "fedavg",
    "OneShot": "strategy",
    "ROWS": "federation_result",
    "Expected": "message",
    "fedavg": "fedavg",
    "federate": "federation",
    "make_client_app": "client",
    "make_fedavg_client": "fedavg",
    "make_server_app": "server",
    "run_in_process": "inprocess",
    "simulate": "simulation",
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
