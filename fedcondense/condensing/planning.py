"""What a run will cost, before it starts, and when something simpler would do."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch

from fedcondense.ambient import in_own_state
from fedcondense.budgets import Budget
from fedcondense.condensing.loop import Loop
from fedcondense.condensing.preparing import prepare
from fedcondense.condensing.rate import LONGEST
from fedcondense.contract import Network, Objective, Parametrization, Recipe
from fedcondense.deadline import OutOfTime, stop_at, time_left
from fedcondense.errors import SettingError
from fedcondense.networks import NetworkMaker, build
from fedcondense.networks.passes import repeatable
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.objectives.features import images_in_graph
from fedcondense.sets.codecs import RAW
from fedcondense.sets.fitting import Within, amount_of
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import Pool
from fedcondense.sources.trajectories import Trajectories

__all__ = ["Plan", "estimate", "make_trial", "plan"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What `condense` would make of its arguments, and what it would cost on this machine.

    Args:
        nbytes: The set's file; of coded images an estimate (`experiments/coded.md` has its error on four data sets).
            With a budget, room for the evaluation is counted.
        decoded: Images that it decodes to.
        steps: Optimisation steps.
        seconds: All of the run, by a short trial of the real thing.
        memory: Bytes at the peak, beyond what the process and the data take already; an estimate from shapes.
        network: Whose features or gradients are compared.
        advice: What to consider, most important first; empty if nothing is simpler.
        most: Bytes that the file does not pass; None where a picture codec cannot say.
        codec: What images are stored in.
        ipc: The most images of a class, counted in uncompressed ones.
    """

    nbytes: int
    decoded: int
    steps: int
    seconds: float
    memory: int
    network: str
    advice: tuple[str, ...]
    most: int | None = None
    codec: str = RAW
    ipc: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self) | {"advice": list(self.advice), "seconds": round(self.seconds, 1)}


@in_own_state
def plan(
    data: Any,
    ipc: int | str | Within | None = None,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    parametrization: str | Parametrization | None = None,
    *,
    budget: int | str | Budget | Within | None = None,
    codec: str | None = None,
    network: str | NetworkMaker | None = None,
    steps: int | None = None,
    recipe: Recipe | None = None,
    limit: float = 1.0,
) -> Plan:
    """Estimate bytes, seconds and memory of `condense` with the same arguments: `prepare`, then `estimate`.

    Takes four of its steps: about 2 seconds at 28x28 and width 32.
    """
    began = time.monotonic()
    chosen: dict[str, Any] = {"network": network, "steps": steps, "recipe": recipe, "limit": limit}
    loop = prepare(data, amount_of(ipc, budget, codec), objective, parametrization, codec=codec or RAW, **chosen)
    if loop.warning:
        _LOG.warning(loop.warning)
    to_start = time.monotonic() - began
    expected = estimate(loop)
    seconds = to_start + expected.seconds
    return replace(expected, seconds=seconds, advice=_advice(loop, expected.decoded, seconds))


@in_own_state
def estimate(loop: Loop, *, until: float | None = None) -> Plan:
    """Estimate what a loop costs by four trial steps, and leave it as it was before them, bit for bit.

    What the trial computed and a run would compute again is kept: entries of a pool with what was observed for them,
    and an expert. So `prepare`, `estimate`, `run` prepare once, and their set is that of `prepare`, `run`.

    Args:
        loop: From `prepare`.
        until: When to give up, on the clock of `time.monotonic`, seconds; None: never. The trial of `mtt` trains an
            expert.

    Returns:
        The plan; its seconds are those of all steps, without those of `prepare`.

    Raises:
        SettingError: The moment came before the trial was done.
    """
    began = time.monotonic()
    with loop.on_trial(), _as_trial(loop):
        try:
            with stop_at(until):
                seconds = _seconds(loop)
        except OutOfTime:
            raise SettingError(
                f"the time was up after {time.monotonic() - began:.1f} s, in the four steps of a trial; needed: time "
                f"for {loop.recipe.steps}. Allow more, or take a smaller network or another objective"
            ) from None
        synthetic = loop.finished()
    pool = loop.source.size if isinstance(loop.source, Pool) else 0
    nbytes, most = _bytes(loop, synthetic)
    return Plan(
        nbytes=nbytes,
        decoded=len(synthetic),
        steps=loop.recipe.steps,
        seconds=seconds,
        memory=_memory(loop, len(synthetic), pool),
        network=synthetic.record.network,
        advice=_advice(loop, len(synthetic), seconds),
        most=most,
        codec=loop.codec,
        ipc=loop.record.ipc,
    )


def _bytes(loop: Loop, synthetic: SyntheticSet) -> tuple[int, int | None]:
    """Return what the file of a loop's set is expected to take, and what it takes at most."""
    if loop.rate is None:
        wide = synthetic.with_record(steps=loop.recipe.steps, seconds=LONGEST)
        return synthetic.nbytes, wide.nbytes
    most = loop.rate.most
    if loop.within is None:
        return loop.rate.nbytes, most
    return loop.rate.nbytes, loop.within.most if most is None else min(most, loop.within.most)


def _seconds(loop: Loop) -> float:
    """Return what all steps of a loop take, by its next four."""
    pool, to_start = make_trial(loop, time.monotonic)
    times = []
    for _ in range(4):
        began = time.monotonic()
        float(loop.step())
        times.append(time.monotonic() - began)
    new, seen, steps = times[1], min(times[2:]), loop.recipe.steps
    taken = min(pool, steps) if pool else steps
    return to_start + taken * new + (steps - taken) * seen


def make_trial(loop: Loop, clock: Callable[[], float]) -> tuple[int, float]:
    """Let a few steps of a loop tell what all of them cost, before its first one.

    Args:
        loop: A pool of it gets two draws, so that the third step meets one again; experts become one, trained here.
        clock: What is measured, in seconds.

    Returns:
        How many draws its pool had, 0 if it has none, and the seconds that all its experts take.

    Raises:
        SettingError: By the pace of an expert's first steps, all of them take more time than there is.
    """
    if isinstance(loop.source, Pool):
        pool, loop.source.size = loop.source.size, 2
        return pool, 0.0
    if not isinstance(loop.source, Trajectories) or loop.holder.data is None:
        return 0, 0.0
    experts, loop.source.experts = loop.source.experts, 1
    began = clock()
    last = loop.source.latest + loop.source.span
    for snapshot in range(1, min(last, 3)):
        paced = time.monotonic()
        loop.source.train_first(loop.draws, loop.holder.data, until=snapshot)
        pace = time.monotonic() - paced
        expected = pace * (experts * last - snapshot)
        if snapshot > 1 and expected > time_left():  # the first one has torch's start-up
            raise SettingError(
                f"{experts} experts of {last * loop.source.interval} training steps each take about {expected:.0f} "
                f"seconds more, and {time_left():.0f} are left; allow more, or take a smaller network, fewer experts "
                "or another objective"
            )
    loop.source.train_first(loop.draws, loop.holder.data)
    return 0, experts * (clock() - began)


@contextmanager
def _as_trial(loop: Loop) -> Iterator[None]:
    """Give back the number of draws or experts that `make_trial` took."""
    source = loop.source
    kept = {name: value for name, value in vars(source).items() if name in ("size", "experts")}
    try:
        yield
    finally:
        vars(source).update(kept)


def _memory(loop: Loop, decoded: int, pool: int) -> int:
    """Return bytes: the graph of the synthetic images (four maps a block), and a pool's float16 feature rows."""
    spec = loop.holder.spec
    module = build(loop.network, spec.shape, len(spec.classes), 0)
    image_bytes = int(getattr(module, "image_bytes", 4 * 64 * math.prod(spec.shape[1:])))
    with torch.no_grad(), repeatable(module, 0):
        width = cast(Network, module).features(torch.zeros(1, *spec.shape, dtype=torch.float32)).shape[1]
    rows = 64 * sum(n > 0 for n in loop.record.counts)
    return int(4 * image_bytes * min(decoded, images_in_graph(module, 512)) + pool * rows * width * 2)


def _advice(loop: Loop, decoded: int, seconds: float) -> tuple[str, ...]:
    advice = []
    spec, real, ipc = loop.holder.spec, sum(loop.record.counts), loop.record.ipc
    stored = decoded // loop.parametrization.start_count(1)
    if stored * 4 > real:
        advice.append(f"{stored} images for {real} records: a selection takes no seconds, if records may be shown")
    if ipc >= 50:
        advice.append(
            "from about 50 images per class on, real images come close at no cost, if records may be shown: compare"
        )
    if loop.rate is not None and loop.rate.codec.startswith("bits-1") and loop.within is not None:
        advice.append("the budget leaves one bit a value: in twice the bytes, two bits gain 2 to 3 points")
    if spec.shape[0] == 3 and spec.shape[1] >= 32 and loop.parametrization.start_count(1) == 1:
        advice.append("colour photographs gain more from 'multi-formation' (four small images in the bytes of one)")
    if seconds > 600:
        advice.append("over ten minutes: fewer steps, a narrower network or a GPU; the run can be resumed")
    return tuple(advice)
