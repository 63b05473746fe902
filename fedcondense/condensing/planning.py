"""What a run will cost, before it starts, and when something simpler would do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch

from fedcondense.condensing.loop import Loop, prepare
from fedcondense.contract import Network, Objective, Parametrization, Recipe
from fedcondense.data.images import Data
from fedcondense.networks import NetworkMaker, build
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.sources.networks import Pool
from fedcondense.sources.trajectories import Trajectories

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """What `condense` would make of its arguments, and what it would cost on this machine.

    Args:
        nbytes: The set's file.
        decoded: Images that it decodes to.
        steps: Optimisation steps.
        seconds: All of the run, by a short trial of the real thing.
        memory: Bytes at the peak, beyond what the process and the data take already; an estimate from shapes.
        network: Whose features or gradients are compared.
        advice: What to consider, most important first; empty if nothing is simpler.
    """

    nbytes: int
    decoded: int
    steps: int
    seconds: float
    memory: int
    network: str
    advice: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"advice": list(self.advice), "seconds": round(self.seconds, 1)}


def plan(
    data: Data,
    ipc: int = 10,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    parametrization: str | Parametrization = "pixels",
    *,
    network: str | NetworkMaker | None = None,
    steps: int | None = None,
    recipe: Recipe | None = None,
    limit: float = 1.0,
) -> Plan:
    """Estimate bytes, seconds and memory of `condense` with the same arguments.

    Takes four of its steps: about 2 seconds at 28x28 and width 32.
    """
    began = time.monotonic()
    loop = prepare(data, ipc, objective, parametrization, network=network, steps=steps, recipe=recipe, limit=limit)
    to_start = time.monotonic() - began
    pool, experts = shorten(loop, data, time.monotonic)
    to_start += experts
    times = []
    for _ in range(4):
        began = time.monotonic()
        float(loop.step())
        times.append(time.monotonic() - began)
    new, seen = times[1], min(times[2:])
    steps = loop.recipe.steps
    taken = min(pool, steps) if pool else steps
    seconds = to_start + taken * new + (steps - taken) * seen
    synthetic = loop.finished()
    return Plan(
        nbytes=synthetic.nbytes,
        decoded=len(synthetic),
        steps=steps,
        seconds=seconds,
        memory=_memory(data, len(synthetic), synthetic.record.network if network is None else network, pool),
        network=synthetic.record.network,
        advice=_advice(data, ipc, len(synthetic) // loop.parametrization.start_count(1), seconds, loop.parametrization),
    )


def shorten(loop: Loop, data: Data, clock: Callable[[], float]) -> tuple[int, float]:
    """Let a few steps of a loop tell what all of them cost, before its first one.

    Args:
        loop: A pool of it gets two draws, so that the third step meets one again; experts become one, trained here.
        data: The real images.
        clock: What is measured, in seconds.

    Returns:
        How many draws its pool had, 0 if it has none, and the seconds that all its experts take.
    """
    if isinstance(loop.source, Pool):
        pool, loop.source.size = loop.source.size, 2
        return pool, 0.0
    if not isinstance(loop.source, Trajectories):
        return 0, 0.0
    experts, loop.source.experts, loop.source.seed = loop.source.experts, 1, 0
    began = clock()
    loop.source.snapshots(0, (loop.source.latest + loop.source.span,), data)
    return 0, experts * (clock() - began)


def _memory(data: Data, decoded: int, network: str | NetworkMaker, pool: int) -> int:
    """Return bytes: the graph of the synthetic images (four maps a block), and a pool's float16 feature rows."""
    module = build(network, data.spec.shape, len(data.spec.classes), 0)
    image_bytes = int(getattr(module, "image_bytes", 4 * 64 * math.prod(data.spec.shape[1:])))
    with torch.no_grad():
        width = cast(Network, module).features(torch.zeros(1, *data.spec.shape)).shape[1]
    rows = 64 * int((data.counts > 0).sum())
    return int(4 * image_bytes * min(decoded, 512) + pool * rows * width * 2)


def _advice(data: Data, ipc: int, stored: int, seconds: float, parametrization: Parametrization) -> tuple[str, ...]:
    advice = []
    real = int(data.counts.sum())
    if stored * 4 > real:
        advice.append(f"{stored} images stand for {real} records: sending a selection of them costs no seconds")
    if ipc >= 50:
        advice.append("from about 50 images per class on, k-means or random real images come close at no cost: compare")
    if data.spec.shape[0] == 3 and data.spec.shape[1] >= 32 and parametrization.start_count(1) == 1:
        advice.append("colour photographs gain more from 'multi-formation' (four small images in the bytes of one)")
    if seconds > 600:
        advice.append("over ten minutes: fewer steps, a narrower network or a GPU; the run can be resumed")
    return tuple(advice)
