"""Running a loop to its end, or to the moment at which it has to stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch

from fedcondense.ambient import in_own_state
from fedcondense.budgets import Budget
from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing.loop import Loop
from fedcondense.condensing.preparing import prepare
from fedcondense.condensing.starts import Start
from fedcondense.contract import NetworkSource, Objective, Parametrization, Recipe
from fedcondense.deadline import OutOfTime, stop_at
from fedcondense.errors import DivergenceError, SettingError
from fedcondense.loggers import log_numbers
from fedcondense.networks import NetworkMaker
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.progress import reporting
from fedcondense.sets.codecs import RAW
from fedcondense.sets.fitting import Within, amount_of
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Progress", "condense", "run"]

_LOG = logging.getLogger(__name__)
# The share of its steps that a set needs. On digits at 1 image per class, a start at 73 percent is at 92 after a tenth
# of the default's steps and at 93 after all; with DSA at 86 and 91.
_LEAST = 0.1
_LOOK_S = 0.5  # seconds between two looks at the loss: each one waits for the device


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    steps: int
    loss: float
    seconds: float  # so far
    remaining: float  # seconds, estimated


@in_own_state
def condense(
    data: Any,
    ipc: int | str | Within | None = None,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    parametrization: str | Parametrization | None = None,
    *,
    budget: int | str | Budget | Within | None = None,
    codec: str | None = None,
    network: str | NetworkMaker | None = None,
    seed: int = 0,
    steps: int | None = None,
    start: str | Start | None = None,
    recipe: Recipe | None = None,
    source: NetworkSource | None = None,
    limit: float = 1.0,
    prefixes: bool = False,
    device: torch.device | str | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[Progress], None] | None = None,
    until: float | None = None,
) -> SyntheticSet:
    """Condense labelled images into a few synthetic ones of the same classes.

    The default objective takes about 40 s of one CPU core at 10 classes, 10 images per class, 28x28 and width 32;
    `plan` says what other settings take. It heeds a `torch.autocast` around it: bfloat16 features take 0.6 of the time
    on a CPU with AMX, at the same accuracy. Equal arguments give equal sets, bit by bit, on one CPU with as many
    threads, in any thread and whatever the caller's grad mode, default dtype or device. A network of one's own may draw
    in its passes; dropout inside of `torch.utils.checkpoint` cannot be repeated, and is refused.

    Args:
        data: The real images: `Data`, or a torch Dataset, a DataLoader, arrays, a folder or a name (`as_data`); or who
            answers for them. Classes may be absent or of any size.
        ipc: Byte budget per class, counted in uncompressed images; or a budget in bytes with its unit, ``"20 kB"``.
            None: 10, if there is no budget.
        objective: How real and synthetic images are compared: a name in `OBJECTIVES`, or an objective.
        parametrization: How images are stored: a name in `PARAMETRIZATIONS`, or a parametrization. None: ``"pixels"``,
            under a budget as the rate rule says.
        budget: What the set's file may take, header, labels, record and room for the evaluation of three networks
            included: ``"20 kB"``, ``20_000``. The rate rule (`condensing/rate.py`) chooses images and bits for it, and
            the set is fitted to it at the end (`fit_within`); the record's `ipc` is what was asked for before that.
        codec: How images are stored, by name: ``"bits-2"`` (`CODECS`); None: raw, under a budget as the rate rule says.
        network: Whose features or gradients are compared: a name in `NETWORKS`, names joined by ``+`` for networks of
            several kinds, ``"torchvision:NAME"``, a class or function of an image shape and a number of classes that
            builds an `nn.Module`, or a module, whose weights are drawn anew (`Anew`); None: as the image size asks.
        seed: All that is random follows from it.
        steps: Optimisation steps; None: the recipe's.
        start: A name in `STARTS`, or a function like them; None: the recipe's, or ``"grey"`` if the holder shows no
            records. ``"real"`` shows some.
        recipe: Optimizer, step size, schedule; None: the objective's own.
        source: Where networks come from; None: the recipe's.
        limit: For small classes: at most `limit` x (records of the class) images' bytes, never less than one image.
            Clients use 0.5.
        prefixes: Let every prefix of a class's images serve by itself, for memories that shrink
            (`SyntheticSet.restrict`): every other step matches the first images of each class alone, of a number drawn
            by chance. It costs accuracy of the whole set.
        device: Where to run; None: where the data are.
        checkpoint: Where to keep the state, and whether to go on from it.
        progress: Called about twice a second; without one a bar is drawn on a terminal (`fedcondense.progress`).
        until: When to stop and return what there is, on the clock of `time.monotonic`, seconds (`run`); None: never.

    Raises:
        SettingError: A name or number that cannot work, or too little time.
        DataError: The data hold no images.
        ResumeError: The checkpoint is of another configuration, or damaged.
        OutputError: Another run has the checkpoint, or it cannot be written.
        DivergenceError: The loss or the codes are no longer finite; the last good set is in its `synthetic`.
    """
    amount = amount_of(ipc, budget, codec)
    loop = prepare(
        data,
        amount,
        objective,
        parametrization,
        codec=codec or RAW,
        network=network,
        seed=seed,
        steps=steps,
        start=start,
        recipe=recipe,
        source=source,
        limit=limit,
        prefixes=prefixes,
        device=device,
    )
    if loop.warning:
        _LOG.warning(loop.warning)
    return run(loop, checkpoint=checkpoint, progress=progress, until=until)


@in_own_state
def run(
    loop: Loop,
    *,
    checkpoint: Checkpoint | None = None,
    progress: Callable[[Progress], None] | None = None,
    until: float | None = None,
    least: float = _LEAST,
) -> SyntheticSet:
    """Take the steps of a loop that are left, and return its set: `condense` is `prepare`, then this.

    With a moment to stop at, what was made so far is returned if it is sound: finite, and of a tenth of the steps at
    least; the record says how many were taken. Looking at the clock costs less than a microsecond a step, and waits for
    no device. The moment is overrun by one step at most, by less where a step meets an entry of a pool for the first
    time or trains an expert, which stop between two pieces; on a GPU, by what was queued since the last look at the
    loss, too. A step that was stopped is as if it had not begun: the loop, or its checkpoint, goes on bit-equal.

    Args:
        loop: From `prepare`; it may have taken steps before.
        checkpoint: Where to keep the state, and whether to go on from it.
        progress: Called about twice a second; without one a bar is drawn on a terminal (`fedcondense.progress`).
        until: When to stop, on the clock of `time.monotonic`, seconds; None: never.
        least: The share of the steps that makes a set worth having; 0: whatever there is, `Loop.done` tells the steps.

    Raises:
        ResumeError: The checkpoint is of another configuration, or damaged.
        OutputError: Another run has the checkpoint, or it cannot be written.
        DivergenceError: The loss or the codes are no longer finite; the last good set is in its `synthetic`.
        SettingError: The moment came before a tenth of the steps was taken, or the share that was named.
    """
    with nullcontext() if checkpoint is None else checkpoint.held():
        if checkpoint is not None and (state := checkpoint.read(loop.configuration)) is not None:
            loop.load_state_dict(state)
        return _run(loop, checkpoint, progress, until, least)


def _run(
    loop: Loop,
    checkpoint: Checkpoint | None,
    progress: Callable[[Progress], None] | None,
    until: float | None,
    least: float,
) -> SyntheticSet:
    first, steps, began, looked = loop.done, loop.recipe.steps, time.monotonic(), 0.0
    good, loss = loop.finished(), None
    label = f"condensing {loop.holder.spec.name}"
    with reporting(label, bar=progress is None) as report, stop_at(until):
        while loop.done < steps:
            try:
                loss = loop.step()
            except OutOfTime:
                break
            now = time.monotonic()
            if now - looked < _LOOK_S and loop.done < steps:
                continue
            looked = now
            value = float(loss)
            good = _look(loop, value, good)
            seconds = now - began
            if progress is not None:
                remaining = seconds / (loop.done - first) * (steps - loop.done)
                progress(Progress(loop.done, steps, value, seconds, remaining))
            log_numbers(loop.done, {"loss": value})
            report(loop.done / steps, f"step {loop.done} of {steps}, loss {value:.4g}")
            if checkpoint is not None and checkpoint.is_due():
                checkpoint.write(loop.configuration, loop.state_dict())
    if good.record.steps < loop.done and loss is not None:
        good = _look(loop, float(loss), good)
    if checkpoint is not None:
        checkpoint.write(loop.configuration, loop.state_dict())  # kept until the caller has saved the set
    if loop.done < math.ceil(least * steps):
        raise SettingError(_too_early(loop, first, time.monotonic() - began, checkpoint))
    return loop.stored(good)


def _look(loop: Loop, loss: float, good: SyntheticSet) -> SyntheticSet:
    """Return the set as it stands, or raise what says that it is broken, with the last good one."""
    if not (math.isfinite(loss) and all(bool(t.isfinite().all()) for t in (*loop.codes.values(), loop.targets))):
        then = f"try a smaller step size than {loop.recipe.lr:g} (recipe)"
        if loop.done <= 1:  # before any step was taken: no step size is to blame
            then = "nothing was learned before it, so mend the objective, the network or the images"
        raise DivergenceError(
            f"the loss is {loss} at step {loop.done} of {loop.recipe.steps}; that of step {good.record.steps} "
            f"is kept: {then}",
            good,
        )
    return loop.finished()


def _too_early(loop: Loop, first: int, seconds: float, checkpoint: Checkpoint | None) -> str:
    """Say how far a run came that had to stop too early, and what it would take."""
    steps = loop.recipe.steps
    needed = math.ceil(_LEAST * steps)
    pace = f" (about {seconds / (loop.done - first) * (needed - loop.done):.0f} s more)" if loop.done > first else ""
    kept = f"; {checkpoint.path} goes on from here" if checkpoint is not None else ""
    return (
        f"the time was up after {seconds:.1f} s, at step {loop.done} of {steps}; needed for a set worth having: "
        f"{needed} steps{pace}. Allow more time, or take fewer steps, a smaller ipc or a smaller network{kept}"
    )
