"""One round: ask each site for a synthetic set, and train the global network on all of them together."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Unpack

import torch
from torch import nn

from fedcondense.ambient import in_own_state
from fedcondense.condensing import STARTS, estimate, images_per_class, prepare, run
from fedcondense.contract import Holder, Objective
from fedcondense.data import Data, Spec
from fedcondense.errors import look_up
from fedcondense.flower.asking import Asked
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Answer, Job, Node, Question, Screen, Site, State, Task
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits, by_name
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import InBytes, asked_in_bytes
from fedcondense.networks import default_network, network_kinds
from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = ["ONE_SHOT", "Condense", "OneShot", "condensed", "condensing", "cost_of", "train_network"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us
_SECONDS = 16  # bytes at most that seconds take in a record


@dataclass(frozen=True)
class Condense(InBytes, Task[SyntheticSet]):
    """Condense the records of a site.

    Args:
        ipc: Byte budget per class, counted in uncompressed images; a node sends at most one image for each
            ``min-records`` records of the class.
        objective: A name in the node's `OBJECTIVES`.
        parametrization: A name in its `PARAMETRIZATIONS`.
        steps: Optimisation steps; 0: the objective's recipe says.
        seed: The root seed; each node draws from a child of it, in every round the same: change it with the round.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        start: A name in `STARTS`; ``"real"`` publishes records.
        budget: As in `InBytes`; `ipc` plays no part then, nor `parametrization` if it is empty.
        codec: As in `InBytes`.
        codecs: As in `InBytes`.
    """

    ipc: int = number(10, 1)
    objective: str = DEFAULT_OBJECTIVE
    parametrization: str = "pixels"
    steps: int = number(0, 0)
    seed: int = number(0, 0)
    network: str = ""
    start: str = "gaussian"

    name: ClassVar[str] = "condense"
    leaves: ClassVar[str] = "synthetic images condensed from the records"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Prepare the loop once; its estimate leaves it as it was."""
        look_up("objective", self.objective, OBJECTIVES)
        return condensed(self, holder, node, self.objective)


def condensed(task: Any, holder: Holder, node: Node, compared: str | Objective) -> Job[SyntheticSet]:
    """Return the job of condensing a node's records by an objective, in the images or the bytes that a task allows.

    Args:
        task: An `InBytes` with the fields of `Condense` but for `objective`.
        holder: The node's records.
        node: As in `Task.prepare`.
        compared: The objective, or its name.

    Raises:
        SettingError: A name is unknown, or a number is beyond what the node allows.
    """
    codec = task.checked_codec()
    if not task.budget:
        node.caps.check_ipc(task.ipc)
    objective = OBJECTIVES[compared] if isinstance(compared, str) else compared
    if task.parametrization or not task.budget:
        look_up("parametrization", task.parametrization, PARAMETRIZATIONS)
    look_up("start", task.start, STARTS)  # an empty one would be the recipe's own, real records of some
    steps = task.steps or objective.recipe.steps
    node.caps.check_steps(steps)
    network = task.network or default_network(holder.spec.shape)
    network_kinds(network)
    loop = prepare(
        holder,
        task.within(holder, node) if task.budget else task.ipc,
        compared,
        task.parametrization or None,
        codec=codec,
        network=network,
        seed=node.seed(task.seed),
        steps=steps,
        start=task.start,
        limit=node.caps.share,
    )
    if not task.budget and (warning := images_per_class(holder, task.ipc, node.caps.share).warning):
        _LOG.info("%s: %s", node.name, warning)
    job = condensing(loop, node, loop.recipe.start == "real")
    nbytes = min(job.cost.nbytes, task.budget) if task.budget else job.cost.nbytes
    return Job(job.cost.but(nbytes=nbytes), lambda: task.checked(job.run(), node))


def condensing(loop: Any, node: Node, is_real: bool = False) -> Job[SyntheticSet]:
    """Return the job of running a prepared loop: what it costs, and the run within the node's time.

    The images are encoded once, at the end; the cost is that of raw ones, which no codec that is worth its name passes.
    """
    timed = node.caps.max_seconds < float("inf")
    plan = estimate(loop, until=node.until) if timed else None  # it takes some seconds itself
    cost = cost_of(loop.finished(), steps=loop.recipe.steps, is_real=is_real)
    cost = cost.but(nbytes=cost.nbytes + _SECONDS)
    if plan is not None:
        cost = cost.but(seconds=plan.seconds, memory=plan.memory)
    return Job(cost, lambda: run(loop, checkpoint=node.checkpoint, progress=node.progress, until=node.until))


def cost_of(synthetic: SyntheticSet, steps: int = 0, is_real: bool = False) -> Cost:
    """Return what sending a set gives away."""
    stored = torch.zeros(len(synthetic.classes), dtype=torch.int64)
    for part in synthetic.parts:
        stored += torch.bincount(part.labels(), minlength=len(synthetic.classes))
    decoded = synthetic.counts().tolist()
    return Cost(
        images={name: n for name, n in zip(synthetic.classes, stored.tolist(), strict=True) if n},
        decoded={name: n for name, n in zip(synthetic.classes, decoded, strict=True) if n},
        steps=steps,
        nbytes=synthetic.nbytes,
        pixels=4 * len(synthetic) * synthetic.shape[0] * synthetic.shape[1] * synthetic.shape[2],
        networks=(synthetic.record.network,) if synthetic.record.network else (),
        is_real=is_real,
    )


@in_own_state
def train_network(joined: SyntheticSet, network: str = "", recipe: Fit = Fit(), seed: int = 0) -> nn.Module:
    """Train a network from scratch on a set, on a GPU if there is one; its outputs are the set's classes.

    A server that has test data calls `train_on` with them instead, whose outputs are the classes of the data.

    Args:
        joined: A set, of one site or many.
        network: A name in `NETWORKS`; by default the one for the images' size.
        recipe: How it is trained.
        seed: Of the initial weights and the batches.
    """
    record = joined.record
    spec = Spec(joined.name, joined.shape, joined.classes, record.mean, record.std)
    like = Data(torch.empty(0, *joined.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), spec)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return train_on(joined, like, network=network or None, recipe=recipe, seed=seed, device=device)


class OneShot(Rounds):
    """Ask each site for a synthetic set once, and train the global network on all of them together.

    Weights never travel up. After the round `joined` is the union of the usable sets, `missing` names the classes that
    no set holds, and Flower's ``Result.arrays`` holds the trained weights.

    Args:
        fit: Trains a network on the joined set; `train_network` is the usual one.
        limits: What a reply may hold.
        task: What is asked: `Condense`, or any other task that is answered with a set.
        screen: Judges sets per site and class before they are joined.
        asked: As in `Rounds`: ``min_available_nodes=10, min_replies=8, grace=60``.
    """

    most_rounds = 1  # more images come from a larger ipc

    def __init__(
        self,
        fit: Callable[[SyntheticSet], nn.Module] = train_network,
        limits: ReplyLimits = ReplyLimits(),
        *,
        task: Question = Condense(),
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(limits, screen, **asked)
        self.fit, self.task = fit, task

    @property
    def joined(self) -> SyntheticSet | None:
        """The union of the usable sets, by name of their sites; None before the round."""
        return self.state.joined

    @property
    def missing(self) -> tuple[str, ...]:
        """The classes of which no set holds an image."""
        return absent(self.joined, self.limits)

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Ask everybody the same."""
        asked: Question = asked_in_bytes(self.task)
        return asked

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        """Join the sets and train on them."""
        sets = by_name(answers)
        joined = SyntheticSet.join(sets.values())
        log_absent(server_round, joined, self.limits)
        return state.but(sets=sets, weights=Weights.of(self.fit(joined)))


def absent(joined: SyntheticSet | None, limits: ReplyLimits) -> tuple[str, ...]:
    """Return the classes that are expected, or named by some site, and have no image."""
    if joined is None:
        return ()
    counts = dict(zip(joined.classes, joined.counts().tolist(), strict=True))
    return tuple(name for name in limits.classes or counts if not counts.get(name))


def log_absent(server_round: int, joined: SyntheticSet, limits: ReplyLimits) -> None:
    """Say which classes no set holds."""
    missing = absent(joined, limits)
    if missing:
        names = ", ".join(map(repr, missing[:10]))
        _LOG.warning("round %d: no set holds images of %d classes: %s", server_round, len(missing), names)


def _one_shot(side: ServerSide) -> OneShot:
    return OneShot(side.fit, side.limits, task=side.settings, screen=side.screen, **side.asked)


ONE_SHOT = Entry(
    _one_shot,
    label="one-shot",
    travels="synthetic images",
    seen="the server sees each site's synthetic images and class counts",
    settings=Condense(),
    tasks=(Condense,),
)
