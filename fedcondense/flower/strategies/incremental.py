"""A stream of tasks with new classes: sites send a set of what is new, and the server keeps what it has of the old.

Sites need no memory of old classes. What they are asked is `CondenseClasses`, in a file of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Unpack

import torch
from torch import nn

from fedcondense.data import Data, Spec
from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asked
from fedcondense.flower.bounded import Bounded
from fedcondense.flower.contract import Answer, Question, Screen, Site, State, Store
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.stores import Latest
from fedcondense.flower.strategies.condense_classes import CondenseClasses
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import asked_in_bytes
from fedcondense.flower.untrusted import some_names
from fedcondense.machine import usual_device
from fedcondense.networks import build, default_network
from fedcondense.randomness import stream
from fedcondense.sets.synthetic import Part, SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = [
    "INCREMENTAL",
    "Incremental",
    "IncrementalSettings",
    "begins",
    "check_tasks",
    "done_by",
    "tasks_of",
]


def tasks_of(classes: Sequence[str], per_task: int, order: int = 0) -> tuple[tuple[str, ...], ...]:
    """Return the classes of each task.

    Args:
        classes: Names.
        per_task: How many are new in a task; the last one may have fewer. 0: no tasks, sites hold what they hold.
        order: A seed of the order in which classes come; 0: as they are named.
    """
    if not per_task:
        return ()
    places = torch.arange(len(classes)) if not order else torch.randperm(len(classes), generator=stream(order, "tasks"))
    return tuple(tuple(classes[c] for c in piece) for piece in places.split(per_task))


class Incremental(Rounds):
    """Ask for sets of each task's classes in turn, keep those of the classes before, and train on all of them.

    A site that has answered a task is not asked for its classes again, and keeps nothing of them; one that was away is
    asked for what it missed. `seen` are the classes so far.

    Args:
        spec: Shape, classes and normalisation of the images: the network's outputs are its classes.
        tasks: Names of classes that come together, task by task (`tasks_of`). Empty: questions name none, and each site
            condenses what it holds at present, wherever it is in a stream of its own.
        task: What is asked; the strategy sets classes and the round's seed.
        rounds_per_task: The last round's set of a task is kept.
        memory: Bytes of the file of all sets that the server keeps; 0: any number. Unless `task` has a budget, each
            site is asked for an equal share of what the tasks before have left for those to come.
        anew: Train from scratch in each round, instead of from the weights of the round before.
        fit: How the server trains in a round.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        store: Which sets it keeps; `Latest` unless old classes are to be forgotten.
        limits: What a reply may hold; None: what `spec` says.
        screen: Judges sets per site and class.
        asked: As in `Rounds`. A site without a class of a task is left out and has not failed: `min_replies` counts
            the others.

    Raises:
        SettingError: A task names no class, one that `spec` lacks, or one that came before.
    """

    def __init__(
        self,
        spec: Spec,
        tasks: Sequence[Sequence[str]] = (),
        task: CondenseClasses = CondenseClasses(),
        *,
        rounds_per_task: int = 1,
        memory: int = 0,
        anew: bool = True,
        fit: Fit = Fit(),
        network: str = "",
        store: Store = Latest(),
        limits: ReplyLimits | None = None,
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(ReplyLimits.of(spec) if limits is None else limits, screen, **asked)
        self.spec, self.tasks, self.rounds_per_task = spec, tuple(map(tuple, tasks)), rounds_per_task
        check_tasks(self.tasks, spec)
        self.task: CondenseClasses = asked_in_bytes(task)
        self.memory, self.anew, self.fit = memory, anew, fit
        self.network = network or default_network(spec.shape)
        self.store = Bounded(store, memory)
        self.rounds = max(1, len(self.tasks)) * rounds_per_task

    @property
    def seen(self) -> tuple[str, ...]:
        """The classes of which the server has images, in the order of `spec`."""
        joined = self.state.joined
        held = {} if joined is None else dict(zip(joined.classes, joined.counts().tolist(), strict=True))
        return tuple(name for name in self.spec.classes if held.get(name))

    def ask(
        self, server_round: int, stage: str, state: State, sites: Sequence[Site]
    ) -> Question | Mapping[Site, Question]:
        """Ask for the classes of the round's task, and late sites also for those that they missed; then nobody."""
        seed = self.task.seed + server_round - 1
        if not self.tasks:
            return replace(self.task, seed=seed)
        place = (server_round - 1) // self.rounds_per_task
        if place >= len(self.tasks):
            return {}
        share = self._free(place, state) // ((len(self.tasks) - place) * len(sites))
        missed = begins(place, state, sites)
        return {site: self._question(begin, place + 1, seed, share) for site, begin in missed.items()}

    def _free(self, place: int, state: State) -> int:
        """Return the bytes of the memory that sets of the tasks before leave, 0 if there is no bound."""
        before = {name for names in self.tasks[:place] for name in names}
        parts = [part for one in state.sets.values() for part in one.parts if before & _classes_of(part)]
        return max(0, self.memory - (SyntheticSet(parts).nbytes if parts else 0))

    def _question(self, begin: int, end: int, seed: int, share: int) -> CondenseClasses:
        """Return what a site is asked that has answered `begin` tasks of `end`."""
        classes = tuple(name for names in self.tasks[begin:end] for name in names)
        task = replace(self.task, seed=seed, classes=classes)
        if not self.memory or task.budget:
            return task
        share = max(1, share * (end - begin))
        asked: CondenseClasses = asked_in_bytes(replace(task, budget=share, parametrization="", in_union=True))
        return asked

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        """Keep the new sets beside the old, within the memory, and train on all of them."""
        sets = self.store.take(server_round, answers, state.sets)
        like = Data(torch.empty(0, *self.spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), self.spec)
        before = None if self.anew else state.weights
        network: Any = self.network if before is None else partial(_loaded, before, self.network)
        how: Any = {"network": network, "recipe": self.fit, "seed": self.task.seed + server_round}
        trained = train_on(SyntheticSet.join(sets.values()), like, **how, device=usual_device())
        done = min(len(self.tasks), (server_round - 1) // self.rounds_per_task + 1)
        numbers = {**state.numbers, **done_by(answers, done)} if self.tasks else state.numbers
        return state.but(sets=sets, weights=Weights.of(trained), numbers=numbers)


def check_tasks(tasks: Sequence[Sequence[str]], spec: Spec) -> None:
    """Refuse a task that names no class, one that is unknown, or one that came before.

    Raises:
        SettingError: There is one.
    """
    before: set[str] = set()
    for number_, names in enumerate(tasks, 1):
        odd = [name for name in names if name not in spec.classes or name in before]
        if odd or not names:
            why = f"class {odd[0]!r} is unknown or came before" if odd else "names no class"
            raise SettingError(
                f"task {number_} of {len(tasks)}: {why}; needed: classes of {spec.name}, each in one task: "
                f"{some_names(spec.classes)}"
            )
        before |= set(names)


def _classes_of(part: Part) -> set[str]:
    return {part.record.classes[c] for c in part.labels().unique().tolist()}


def begins(place: int, state: State, sites: Sequence[Site]) -> dict[Site, int]:
    """Return with which task each site begins when one is due, the first being 0: with the first that it missed."""
    return {site: min(place, int(state.numbers.get(_done(site), 0))) for site in sites}


def done_by(answers: Sequence[Answer[Any]], tasks: int) -> dict[str, int]:
    """Return what a state's numbers say from now on: who has answered so many tasks."""
    return {_done(answer.site): tasks for answer in answers}


def _done(site: Site) -> str:
    return f"tasks/{site.key}"


def _loaded(weights: Weights, network: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    return weights.load_into(build(network, shape, classes, 0))


@dataclass(frozen=True)
class IncrementalSettings(CondenseClasses):
    """What a run says of a stream: keys of its own, and those of the question.

    Args:
        classes_per_task: How many classes are new in a task; 0: each site decides what it holds at present.
        order: A seed of the order in which classes come; 0: as the server's data name them.
        rounds_per_task: As in `Incremental`.
        memory: As in `Incremental`.
        anew: As in `Incremental`.
    """

    classes_per_task: int = number(2, 0)
    order: int = number(0, 0)
    rounds_per_task: int = number(1, 1)
    memory: int = number(0, 0)
    anew: bool = True


def _incremental(side: ServerSide) -> Incremental:
    if side.spec is None:
        raise SettingError("incremental needs a server that knows the data, whose classes the tasks name: data = ...")
    given: IncrementalSettings = side.settings
    question = CondenseClasses(**{item.name: getattr(given, item.name) for item in fields(CondenseClasses)})
    return Incremental(
        side.spec,
        tasks_of(side.spec.classes, given.classes_per_task, given.order),
        question,
        rounds_per_task=given.rounds_per_task,
        memory=given.memory,
        anew=given.anew,
        fit=side.recipe,
        network=side.network or given.network,
        limits=side.limits,
        screen=side.screen,
        **side.asked,
    )


INCREMENTAL = Entry(
    _incremental,
    label="incremental",
    travels="synthetic images of new classes, every task",
    seen="the server sees each site's synthetic images and class counts, task by task",
    settings=IncrementalSettings(),
    tasks=(CondenseClasses,),
    rounds=5,
    starts=True,
)
