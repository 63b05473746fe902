"""Flower's Ray simulation of the same apps: many nodes at once, on as many cores and GPUs as there are."""

from __future__ import annotations

import importlib.util
import os

from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp

from fedcondense.errors import MissingExtraError

__all__ = ["simulate"]


def simulate(
    server_app: ServerApp, client_app: ClientApp, num_supernodes: int, *, cpus: int = 1, gpus: float = 0.0
) -> None:
    """Run a ServerApp against nodes that Ray schedules; returns when the slowest node is done.

    The server's main function runs in a thread of this process, so it may leave its result in a closure. Clients that
    are defined in a module go by reference and keep that module's caches; others are copied anew with each message. For
    a handful of nodes on one core, `run_in_process` gives the same without the 10 to 20 seconds that Ray takes.

    Args:
        server_app: As for any Flower run.
        client_app: What every node runs.
        num_supernodes: How many there are, with partitions 0, 1, ...
        cpus: Cores, and threads of torch, that a node takes while it works.
        gpus: Share of a GPU; 0 hides GPUs from the nodes. It schedules only: memory is not capped.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("ray", "simulation")
    from flwr.simulation import run_simulation

    before = os.environ.get("PYTHONPATH")
    try:
        run_simulation(
            server_app,
            client_app,
            num_supernodes,
            backend_config={
                "client_resources": {"num_cpus": cpus, "num_gpus": gpus},
                "init_args": {"logging_level": "ERROR", "log_to_driver": False},
            },
        )
    finally:  # it leaves all of sys.path there
        if before is None:
            os.environ.pop("PYTHONPATH", None)
        else:
            os.environ["PYTHONPATH"] = before
