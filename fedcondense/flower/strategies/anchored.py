"""Round 1 is one-shot; then weights are averaged from those that the union trained, which stays beside the records.

What comes up in the first round, synthetic images of every site and class, is worth more than one training. It goes
down once, as far as sites share it, so that a site that lacks classes does not unlearn them (anchors), and the server
may train on it after averaging, which is Flower's own. Weights travel at eight bits. The last layer is solved for last.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Unpack

import torch
from flwr.serverapp.strategy import FedAvg
from torch import nn

from fedcondense.data import Data, Spec
from fedcondense.errors import SettingError, UntrustedSetError, look_up
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Answer, Question, Screen, Site, State
from fedcondense.flower.eight_bits import Packed
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.replies import Refusal, ReplyLimits, by_name
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.anchors import ANCHORS, Shared, kept_as_tensors, saw
from fedcondense.flower.strategies.averages import AVERAGES, averaged
from fedcondense.flower.strategies.closed_head import Head, balance_of, check_head, head_dims, too_few, with_head
from fedcondense.flower.strategies.continuing import NO_ANCHORS, Continue, LocalSteps
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.in_bytes import asked_in_bytes
from fedcondense.flower.strategies.iterative import started
from fedcondense.flower.strategies.one_shot import Condense, log_absent
from fedcondense.machine import usual_device
from fedcondense.networks import NetworkMaker, build, default_network
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = ["ANCHORED", "Anchored"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us

_CONTINUE, _SHARED, _POLISH = Continue(), Shared(), Fit(steps=0, lr=0.01)


class Anchored(Rounds):
    """One-shot sets first; then rounds of averaging from the weights that they trained, with the sets as anchors.

    A site that comes late joins the averaging at once; where the server trains on the union (`polish`), which has the
    last set of every site, it is asked for its set first. Anchors are made once, after the first round.

    Args:
        spec: Shape, classes and normalisation of the images: the network's outputs are its classes. None: those of the
            first round's union; classes that only a late site has are left out then.
        fit: How the server trains from scratch on the sets of the first round.
        first: What is asked in a site's first round: a task that is answered with a set. None: no sets, and averaging
            begins in the first round from an untrained network, as a rival that has the same local steps.
        task: What is asked in the rounds after.
        anchors: What goes down, from the sets and who shares them.
        polish: How the server trains on the union after averaging; ``steps=0``, the default, leaves it out, since
            beside balanced softmax it took accuracy (experiments/anchored.md).
        average: Flower's strategy that combines changes; None: FedAvg.
        head_bytes: Of the sums that sites send in the last round, from which the last layer is solved (`Head`); 0: as
            many as weights take; None: the last round averages, too.
        limits: What a reply may hold; None: what `spec` says.
        screen: Judges sets per site and class before they are joined.
        asked: As in `Rounds`.
    """

    rounds = 5

    def __init__(
        self,
        spec: Spec | None = None,
        fit: Fit = Fit(),
        *,
        first: Question | None = Condense(),
        task: Continue = _CONTINUE,
        anchors: Callable[[Mapping[str, SyntheticSet], frozenset[str]], SyntheticSet | None] = _SHARED,
        polish: Fit = _POLISH,
        average: FedAvg | None = None,
        head_bytes: int | None = None,
        limits: ReplyLimits | None = None,
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        usual = ReplyLimits() if spec is None else ReplyLimits.of(spec)
        super().__init__(usual if limits is None else limits, screen, **asked)
        self.spec, self.fit, self.first, self.anchors, self.polish = spec, fit, first, anchors, polish
        self.average, self.head_bytes = FedAvg() if average is None else average, head_bytes
        self.task: Continue = task
        if first is None and spec is None:
            raise SettingError("no sets are asked for, and no spec says what the network is for: give one of them")
        if spec is not None:
            self._network(self.state)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the network's outputs, in order; before the first round only if a spec names them."""
        return self._spec(self.state).classes if self.spec is not None or self.state.round else ()

    def _spec(self, state: State) -> Spec:
        if self.spec is not None:
            return self.spec
        told = json.loads(str(state.numbers["spec"]))
        fields_of: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in told.items()}
        return Spec(**fields_of)

    def _network(self, state: State) -> tuple[str, nn.Module]:
        """Return the global network's name, and one as it was before the first round."""
        spec = self._spec(state)
        name = self.task.network or default_network(spec.shape)
        model = build(name, spec.shape, len(spec.classes), self.task.seed)
        if self.head_bytes is not None:
            head_dims(model, len(spec.classes), 1)  # refuses what cannot be solved for, before a round is spent
        return name, model

    def sample(self, nodes: Sequence[int], server_round: int) -> list[int]:
        """Return all nodes in the round that solves for the last layer: sums of few are worth little."""
        solves = self.head_bytes is not None and server_round == self.last_round > 1
        return sorted(nodes) if solves else super().sample(nodes, server_round)

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Mapping[Site, Question]:
        """Ask for sets that the server will train on; others train, and whoever may lack the anchors is sent them."""
        if self.head_bytes is not None and server_round == self.last_round and state.weights is not None:
            return dict.fromkeys(sites, self._head(state, [site.name for site in sites]))
        first = None if self.first is None else asked_in_bytes(self.first)
        if first is not None and state.weights is None:
            return dict.fromkeys(sites, first)
        if not self.polish.steps:
            first = None  # nobody would train on a set that comes now
        has, lacks = self._continue(server_round, state), self._continue(server_round, state, anchors_too=True)
        told = {site: has if f"anchored/{site.key}" in state.numbers else lacks for site in sites}
        return {site: told[site] if first is None or site.name in state.sets else first for site in sites}

    def again(self, server_round: int, stage: str, state: State, site: Site, reason: str) -> Question | None:
        """Send the anchors to a site that keeps them no more: another run's nodes may have begun anew."""
        return self._continue(server_round, state, anchors_too=True) if reason.endswith(NO_ANCHORS) else None

    def _continue(self, server_round: int, state: State, anchors_too: bool = False) -> Continue:
        spec, (network, model) = self._spec(state), self._network(state)
        weights = state.weights or Weights.of(model)
        kept = state.tensors.get("anchors")
        blob = b"" if kept is None else kept.numpy().tobytes()
        return replace(
            self.task,
            weights=Packed.of(weights.tensors, model),
            classes=spec.classes,
            mean=spec.mean,
            std=spec.std,
            network=network,
            anchors=SyntheticSet.from_bytes(blob) if blob and anchors_too else None,
            anchored=hashlib.sha256(blob).hexdigest() if blob else "",
            round=server_round,
        )

    def _head(self, state: State, names: Collection[str] = ()) -> Head:
        spec, (network, model) = self._spec(state), self._network(state)
        dims = head_dims(model, len(spec.classes), self.head_bytes or 0)
        is_balanced = self.task.loss == "balanced"
        balance = balance_of(state.sets, names, spec.classes, self.task.strength) if is_balanced else ()
        packed = Packed.of((state.weights or Weights.of(model)).tensors, model)
        return Head(packed, spec.classes, spec.mean, spec.std, network, self.task.seed, dims, balance)

    def examine(self, stage: str, answer: Answer[Any]) -> None:
        """Refuse what is of another network, and changes by a site that says it has no records."""
        if isinstance(answer.payload, Sums):
            model, classes = self._network(self.state)[1], len(self.classes)
            check_head(answer.payload, model, classes, head_dims(model, classes, self.head_bytes or 0))
        if isinstance(answer.payload, Packed):
            answer.payload.weights(self._network(self.state)[1])
            if not answer.num_examples:
                raise UntrustedSetError("changes of weights by 0 records; needed: 1 or more")

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        """Take in sets that came, average changes and train on the union; or solve for the last layer."""
        if any(isinstance(answer.payload, Sums) for answer in answers):
            model, head = self._network(state)[1], self._head(state)
            if not state.sets or not (why := too_few(state.sets, answers, head, model)):
                return state.but(weights=with_head(model, head, answers))
            _LOG.warning("round %d: %s; the last layer stays", server_round, why)
            self.left_out += [(server_round, Refusal(one.site, f"its sums are not used: {why}")) for one in answers]
            return state
        new = [answer for answer in answers if isinstance(answer.payload, SyntheticSet)]
        changes = [answer for answer in answers if isinstance(answer.payload, Packed)]
        numbers = {**state.numbers, **{f"shares/{answer.site.name}": 1 for answer in new if answer.shares}}
        if state.weights is None and new:
            sets = by_name(new)
            joined = SyntheticSet.join(sets.values())
            log_absent(server_round, joined, self.limits)
            if self.spec is None:
                mean, std = joined.record.mean, joined.record.std
                numbers["spec"] = json.dumps(asdict(Spec(joined.name, joined.shape, joined.classes, mean, std)))
            shared = frozenset(name for name in sets if f"shares/{name}" in numbers)
            state = state.but(
                sets=sets, numbers=numbers, tensors={**state.tensors, **kept_as_tensors(self.anchors, sets, shared)}
            )
            name, _ = self._network(state)
            return state.but(weights=self._trained(state, name, self.fit, 0))
        late = {name: one.restrict(self._spec(state).classes) for name, one in by_name(new).items()}
        sets = {**state.sets, **{name: one for name, one in late.items() if one is not None}}
        numbers = {name: value for name, value in numbers.items() if not name.startswith("anchored/")}
        numbers |= {f"anchored/{answer.site.key}": server_round for answer in changes}  # who has them for sure
        state = state.but(sets=sets, numbers=numbers)
        if changes:
            _, model = self._network(state)
            before = state.weights or Weights.of(model)
            weights, kept = averaged(self.average, server_round - 1, before, model, changes, state.tensors)
            state = state.but(weights=weights, tensors=kept)
        return self._polished(server_round, state)

    def _polished(self, server_round: int, state: State) -> State:
        """Train on the union of all sites' sets, from the average on."""
        if not self.polish.steps or not state.sets or state.weights is None:
            return state
        network = partial(started, state.weights, self._network(state)[0])
        return state.but(weights=self._trained(state, network, self.polish, server_round))

    def _trained(self, state: State, network: str | NetworkMaker, recipe: Fit, server_round: int) -> Weights:
        spec, union = self._spec(state), SyntheticSet.join(state.sets.values())
        like = Data(torch.empty(0, *spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), spec)
        how: dict[str, Any] = {"seed": self.task.seed + server_round, "device": usual_device()}
        return Weights.of(train_on(union, like, network=network, recipe=recipe, **how))


@dataclass(frozen=True)
class Settings(Condense):
    """Keys of a run: those of one-shot for the first round, and what the rounds after take.

    Args:
        anchors: A name in `ANCHORS`: what goes down.
        anchor_bytes: What it may take, however many sites there are.
        average: A name in `AVERAGES`.
        polish_steps: Steps that the server trains on the union after averaging; 0: none.
        polish_lr: Their largest step size.
        head: ``"closed-form"``: in the last round sums of features come up, from which the last layer is solved;
            ``"averaged"``: that round averages, too.
        head_bytes: What these sums may take, about: 120 kB hold 512 features; 0: as many as weights.
        lr: As in `LocalSteps`; so are the others.
        lr_end: Here 0, and two epochs: on held-out images of Fashion-MNIST the two gained 0.6 points over two rounds.
    """

    anchors: str = "none"
    anchor_bytes: int = number(100_000, 0)
    average: str = "fedavg"
    polish_steps: int = number(0, 0)
    polish_lr: float = number(0.01, 0)
    head: str = "closed-form"
    head_bytes: int = number(120_000, 0)
    lr: float = number(LocalSteps.lr, 0)
    lr_end: float = number(0.0, 0, 1)
    epochs: int = number(2, 1)
    batch: int = number(LocalSteps.batch, 1)
    momentum: float = number(LocalSteps.momentum, 0, 1)
    anchor_batch: int = number(LocalSteps.anchor_batch, 1)
    anchor_weight: float = number(LocalSteps.anchor_weight, 0, 1)
    loss: str = LocalSteps.loss
    strength: float = number(LocalSteps.strength, 0)
    proximal_mu: float = number(LocalSteps.proximal_mu, 0)
    augment: bool = LocalSteps.augment


def _anchored(side: ServerSide) -> Anchored:
    own = side.settings
    first = Condense(**{item.name: getattr(own, item.name) for item in fields(Condense)})
    steps = {item.name: getattr(own, item.name) for item in fields(LocalSteps) if hasattr(own, item.name)}
    task = Continue(**steps, network=side.network or own.network, seed=own.seed)
    return Anchored(
        side.spec,
        side.recipe,
        first=first,
        task=task,
        anchors=look_up("anchors", own.anchors, ANCHORS)(own.anchor_bytes),
        polish=replace(side.recipe, steps=own.polish_steps, lr=own.polish_lr),
        average=look_up("average", own.average, AVERAGES)(),
        head_bytes=look_up("head", own.head, {"closed-form": own.head_bytes, "averaged": None}),
        limits=side.limits,
        screen=side.screen,
        **side.asked,
    )


ANCHORED = Entry(
    _anchored,
    label="anchored",
    travels="synthetic images once, then weights at 8 bits, last sums of features if the last layer is solved for",
    seen="the server sees each site's images, class counts, weights and sums; sites see images that their sites share",
    saw=saw,
    settings=Settings(),
    tasks=(Condense, Continue, Head),
    rounds=5,
    starts=True,
)
