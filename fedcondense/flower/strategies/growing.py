"""Round 1 is one-shot; then the union goes down, and each site adds images of what the union lacks for its records.

A site that condenses alone knows nothing of classes that it has no record of. Beside the others' sets it places its
images where its records are taken for another class, and spends none on what is there already (`Residual`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Unpack

import torch
from torch import nn

from fedcondense.contract import Holder, Objective
from fedcondense.errors import SettingError
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Answer, Job, Node, Question, Screen, Site, State, Store, Task
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.settings import number
from fedcondense.flower.sites import site_and_round
from fedcondense.flower.stores import EveryRound
from fedcondense.flower.strategies.anchors import Shared, who_shares
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import InBytes, asked_in_bytes
from fedcondense.flower.strategies.one_shot import Condense, OneShot, condensed, log_absent, train_network
from fedcondense.objectives import DEFAULT_OBJECTIVE
from fedcondense.objectives.residual import Residual
from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["GROWING", "Complete", "Growing"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us


@dataclass(frozen=True)
class Complete(InBytes, Task[SyntheticSet]):
    """Condense what a union of sets lacks for the records of a site.

    Args:
        union: The sets that stay as they are, this site's own among them; None: there are none.
        late: Whether the site has sent nothing before; its set says then how many records it stands for.
        trained: Networks that the site trains on the union, to match images on them; 0: untrained ones are taken.
        ipc: As in `Condense`, and so are the others; the objective is `Residual`.
        parametrization: A name in the node's `PARAMETRIZATIONS`.
        steps: Optimisation steps; 0: the objective's recipe says.
        seed: The root seed of the run plus the rounds before this one; each node draws from a child of it.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        start: A name in `STARTS`; ``"real"`` publishes records.
        budget: As in `InBytes`; `ipc` plays no part then, nor `parametrization` if it is empty.
        codec: As in `InBytes`.
        codecs: As in `InBytes`.
    """

    union: SyntheticSet | None = None
    late: bool = False
    trained: int = number(4, 0, 32)
    ipc: int = number(10, 1)
    parametrization: str = "pixels"
    steps: int = number(0, 0)
    seed: int = number(0, 0)
    network: str = ""
    start: str = "gaussian"

    name: ClassVar[str] = "complete"
    leaves: ClassVar[str] = "synthetic images of what all sites' sets lack for the records here"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Prepare the loop, with the union beside the images that are to come."""
        objective = DEFAULT_OBJECTIVE if self.union is None else _lacking(self.union, holder, node, self.trained)
        job = condensed(self, holder, node, objective)
        if self.late:
            return job
        return Job(job.cost, lambda: job.run().with_record(counts=()))  # its first set stands for the same records


def _lacking(union: SyntheticSet, holder: Holder, node: Node, networks: int) -> Objective:
    """Return the objective of images that stand beside a union; classes are matched by name.

    Raises:
        SettingError: The union's images are of another shape, or too many for this node's memory.
    """
    spec, count = holder.spec, len(union)
    if union.shape != spec.shape:
        raise SettingError(f"a union of images of shape {union.shape}; {node.name} has {spec.shape}: leave it out")
    memory = 4 * count * (torch.Size(spec.shape).numel() + 3 * count)  # images, and the kernel's matrix and its solve
    if memory > node.caps.max_memory:
        allowed = f"this node allows {node.caps.max_memory} (max-memory): ask for a smaller union-bytes"
        raise SettingError(f"a union of {count} images takes {memory} bytes of working memory; {allowed}")
    batch, records = union.pixels(), dict.fromkeys(union.classes, 0)
    for part in union.parts:
        for name, claimed in zip(part.record.classes, part.record.counts, strict=False):  # none of a later round
            records[name] += claimed
    columns = {name: batch.targets[:, k] for k, name in enumerate(union.classes)}
    others = [name for name in union.classes if name not in spec.classes]
    nothing = torch.zeros(count)
    targets = torch.stack([columns.get(name, nothing) for name in (*spec.classes, *others)], 1)
    own = holder.counts.tolist()
    share = [mine / max(1, mine, records.get(name, 0)) for name, mine in zip(spec.classes, own, strict=True)]
    return Residual(spec.normalise(batch.images), targets, torch.tensor(share), networks=networks)


_SHARED, _EVERY_ROUND = Shared(), EveryRound()


class Growing(OneShot):
    """One-shot sets first; in each round after, sites send what the union lacks for their records, and it grows.

    A site that comes late is sent the union at once. What goes down to everybody are the sets of sites that share
    theirs, and a site's own to itself. All sets of all rounds stay: `joined` is their union, and the global network is
    trained on it from scratch in each round.

    Args:
        fit: Trains a network on the joined set; `train_network` is the usual one.
        limits: What a reply may hold.
        task: What is asked in the first round: a task that is answered with a set.
        then: What is asked in the rounds after; the strategy sets union and seed.
        union: What goes down, from the sets and the names of those that may.
        store: Which sets are kept.
        screen: Judges sets per site and class before they are joined.
        asked: As in `Rounds`.
    """

    rounds = 2
    most_rounds = None  # type: ignore[assignment]  # of OneShot it is 1

    def __init__(
        self,
        fit: Callable[[SyntheticSet], nn.Module] = train_network,
        limits: ReplyLimits = ReplyLimits(),
        *,
        task: Question = Condense(),
        then: Complete = Complete(),
        union: Callable[[Mapping[str, SyntheticSet], frozenset[str]], SyntheticSet | None] = _SHARED,
        store: Store = _EVERY_ROUND,
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(fit, limits, task=task, screen=screen, **asked)
        self.then, self.union, self.store = then, union, store

    def ask(  # type: ignore[override]  # one-shot asks all the same
        self, server_round: int, stage: str, state: State, sites: Sequence[Site]
    ) -> Mapping[Site, Question]:
        """Ask for a set; then send what may go down to whom."""
        if not state.sets:
            return dict.fromkeys(sites, super().ask(server_round, stage, state, sites))
        then: Complete = replace(asked_in_bytes(self.then), seed=self.then.seed + server_round - 1)
        shared = self.shared(state)
        made: dict[frozenset[str], SyntheticSet | None] = {}
        asked: dict[Site, Question] = {}
        for site in sites:
            own = frozenset(name for name in state.sets if site.name and site_and_round(name)[0] == site.name)
            names = shared | own
            if names not in made:
                made[names] = self.union(state.sets, names)
            asked[site] = replace(then, union=made[names], late=not own)
        _LOG.info("round %d: the sets of %d of %d go down to all", server_round, len(shared), len(state.sets))
        return asked

    @staticmethod
    def shared(state: State) -> frozenset[str]:
        """Return the names of the sets that may go to other sites."""
        return frozenset(name for name in state.sets if f"shares/{site_and_round(name)[0]}" in state.numbers)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        """Add the sets to those that are there, and train on all of them."""
        sets = self.store.take(server_round, answers, state.sets)
        joined = SyntheticSet.join(sets.values())
        log_absent(server_round, joined, self.limits)
        said = {f"shares/{answer.site.name}": answer.shares for answer in answers}  # the last word of a site counts
        numbers = {name: value for name, value in state.numbers.items() if name not in said}
        numbers |= {name: 1 for name, shares in said.items() if shares}
        return state.but(sets=sets, numbers=numbers, weights=Weights.of(self.fit(joined)))


@dataclass(frozen=True)
class Settings(Condense):
    """Keys of a run: those of one-shot, which hold for each round, and what may go down.

    Args:
        union_bytes: What the union may take that goes to each site, however many sites there are.
        trained: As in `Complete`.
    """

    union_bytes: int = number(100_000, 0)
    trained: int = number(Complete.trained, 0, 32)


def _growing(side: ServerSide) -> Growing:
    own = side.settings
    given = {item.name: getattr(own, item.name) for item in fields(Condense)}
    then = Complete(trained=own.trained, **{name: value for name, value in given.items() if name != "objective"})
    first, union = Condense(**given), Shared(own.union_bytes)
    return Growing(side.fit, side.limits, task=first, then=then, union=union, screen=side.screen, **side.asked)


_SERVER_SEES = "the server sees each site's synthetic images and class counts"


def _saw(strategy: Any) -> str:
    return f"{_SERVER_SEES}; sites see those of {who_shares(strategy.state)}"


GROWING = Entry(
    _growing,
    label="growing",
    travels="synthetic images, every round; the union goes down",
    seen=f"{_SERVER_SEES}; sites see those of sites that share theirs",
    saw=_saw,
    settings=Settings(),
    tasks=(Condense, Complete),
    rounds=2,
)
