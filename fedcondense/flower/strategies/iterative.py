"""FedDM: iterated synthetic sets (Xiong et al., CVPR 2023, https://arxiv.org/abs/2207.09653)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn

from fedcondense.condensing import prepare
from fedcondense.condensing.starts import STARTS
from fedcondense.contract import Batch, Draw, Holder, NetworkSource, Synthetic
from fedcondense.data import Data, Spec
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Answer, Job, Node, Question, Screen, Site, State, Store, Task
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.rounds import Rounds
from fedcondense.flower.settings import number
from fedcondense.flower.stores import Latest
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.one_shot import condensing, log_absent
from fedcondense.flower.two_rounds import TwoRounds
from fedcondense.networks import build, default_network
from fedcondense.networks.names import WithOutputs
from fedcondense.networks.passes import repeatable
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources.near import Near
from fedcondense.training.evaluation import train_on
from fedcondense.training.fit import Fit

__all__ = ["ITERATIVE", "BothLayers", "FedDM", "MatchNear", "started"]


@dataclass(frozen=True)
class BothLayers(DistributionMatching):
    r"""Distribution matching on embedding and logits together, as in FedDM.

    .. math:: \sum_c \lVert \mu_c^h(\mathrm{real}) - \mu_c^h(\mathrm{synthetic}) \rVert_2^2
        + \lVert \mu_c^z(\mathrm{real}) - \mu_c^z(\mathrm{synthetic}) \rVert_2^2
    """

    def rows(self, draw: Draw, batch: Batch | Synthetic) -> Tensor:
        """Return embedding and logits of the augmented images side by side, (N, D + K)."""
        images = draw.augment(batch.images, batch.targets.argmax(1))
        found = []
        for layer in ("embedding", "logits"):
            with repeatable(draw.network, draw.seed):
                found.append(draw.network.features(images, layer))
        return torch.cat(found, 1)


@dataclass(frozen=True)
class MatchNear(Task[SyntheticSet]):
    """Condense around the global network: features of networks within `radius` of `weights` are matched.

    Args:
        weights: Of the global network. They can be crafted: a node asks for ``allow-weights = true``.
        classes: The names of its outputs, in order.
        ipc: Byte budget per class, counted in uncompressed images; at most one image for each ``min-records`` records.
        radius: L2, of the ball that networks are drawn from; 5 as published.
        networks: How many are drawn; a guess.
        steps: Optimisation steps; a guess, 1000 in the paper.
        seed: The root seed of the run plus the rounds before this one; each node draws from a child of it.
        round: Of the run; from the second on a node starts from the images that it made in the one before.
        network: A name in `NETWORKS`; empty: the one for the images' size.
    """

    weights: Weights = Weights({})
    classes: tuple[str, ...] = ()
    ipc: int = number(10, 1)
    radius: float = number(5.0, 0)
    networks: int = number(16, 1, 1000)
    steps: int = number(200, 1)
    seed: int = number(0, 0)
    round: int = number(1, 1)
    network: str = ""

    name: ClassVar[str] = "match_near"
    leaves: ClassVar[str] = "synthetic images that match the records in networks near the server's"
    payload: ClassVar[type[SyntheticSet]] = SyntheticSet

    def compared(self, classes: Sequence[str]) -> DistributionMatching:
        """Return the objective for records of these classes."""
        return BothLayers()

    def source(self) -> Callable[..., NetworkSource]:
        """Return what builds the networks that images are matched on."""
        return partial(Near, weights=self.weights.tensors, radius=self.radius, size=self.networks)

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Start from this node's last set where it kept one, else from class Gaussians."""
        node.caps.check_ipc(self.ipc)
        node.caps.check_steps(self.steps)
        spec = holder.spec
        network = self.network or default_network(spec.shape)
        node.caps.check_networks([network])
        odd = sorted(
            name for name, n in zip(spec.classes, holder.counts.tolist(), strict=True) if n and name not in self.classes
        )
        if odd:
            raise SettingError(
                f"{node.name} has classes that the network lacks: {', '.join(odd[:5])}; name them, or leave it out"
            )
        self.weights.matching(build(network, spec.shape, len(self.classes), 0).state_dict(), "this node's network")
        recipe = replace(DistributionMatching.recipe, steps=self.steps, source=self.source())
        root = self.seed - self.round + 1  # another run has another, or begins anew
        last = TwoRounds(node.kept, f"{self.name}.{root}", self.round)
        loop = prepare(
            holder,
            self.ipc,
            self.compared(spec.classes),
            "pixels",
            network=WithOutputs(network, len(self.classes)),
            seed=node.seed(self.seed),
            recipe=recipe,
            start=_continued(last.before()),
            limit=node.caps.share,
        )
        job = condensing(loop, node)

        def run() -> SyntheticSet:
            made = job.run()
            last.keep(made.to_bytes())
            return made

        return Job(job.cost, run)


def _continued(blob: bytes | None) -> Callable[..., Tensor]:
    """Return a start: the images of a set where they fit, else class Gaussians."""

    def last_round(data: Data, counts: list[int], generator: torch.Generator) -> Tensor:
        fresh: Tensor = STARTS["gaussian"](data, counts, generator)
        if blob is None:
            return fresh
        try:
            before = SyntheticSet.from_bytes(blob, Limits(nbytes=len(blob)))
        except UntrustedSetError:
            return fresh
        pixels = before.pixels(fresh.device)
        if pixels.images.shape != fresh.shape or before.classes != data.spec.classes:
            return fresh
        order = pixels.targets.argmax(1).argsort(stable=True)
        same = torch.bincount(pixels.targets.argmax(1), minlength=len(counts)).tolist() == counts
        return pixels.images[order] if same else fresh

    return last_round


class FedDM(Rounds):
    """Each round, sites condense around the global network and the server trains on the union, from where it stood.

    Weights go down and never up. An absent site's last set stays in.

    Args:
        spec: Shape, classes and normalisation of the images: the network's outputs are its classes.
        task: What is asked; the strategy sets weights, classes and the round's seed.
        fit: How the server trains in a round.
        store: Which sets it trains on.
        stay: L2 distance that the global network may move in a round; infinite by default, the radius in the paper.
        limits: What a reply may hold; None: what `spec` says.
        screen: Judges sets per site and class.
        asked: As in `Rounds`.
    """

    rounds = 5

    def __init__(
        self,
        spec: Spec,
        task: MatchNear = MatchNear(),
        fit: Fit = Fit(),
        store: Store = Latest(),
        stay: float = float("inf"),
        *,
        limits: ReplyLimits | None = None,
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(ReplyLimits.of(spec) if limits is None else limits, screen, **asked)
        self.spec, self.fit, self.store, self.stay = spec, fit, store, stay
        network = task.network or default_network(spec.shape)
        self.task: MatchNear = replace(task, classes=spec.classes, network=network)

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Send the global network; before the first round an untrained one."""
        seed = self.task.seed + server_round - 1
        return replace(self.task, weights=self._weights(state), seed=seed, round=server_round)

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[SyntheticSet]]) -> State:
        """Train on the union of the sets that the store keeps, from the global network on."""
        sets = self.store.take(server_round, answers, state.sets)
        union = SyntheticSet.join(sets.values())
        log_absent(server_round, union, self.limits)
        before = self._weights(state)
        trained = self.trained(union, before, server_round, state)
        return state.but(sets=sets, weights=within(Weights.of(trained), before, self.stay))

    def trained(self, union: SyntheticSet, before: Weights, server_round: int, state: State) -> nn.Module:
        """Return the global network after a round's training, from where it stood."""
        like = Data(torch.empty(0, *self.spec.shape, dtype=torch.uint8), torch.empty(0, dtype=torch.int64), self.spec)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        stands = partial(started, before, self.task.network)
        return train_on(union, like, network=stands, recipe=self.fit, seed=self.task.seed + server_round, device=device)

    def _weights(self, state: State) -> Weights:
        if state.weights is not None:
            return state.weights
        return Weights.of(build(self.task.network, self.spec.shape, len(self.spec.classes), self.task.seed))


def started(weights: Weights, network: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Return a network with given weights, in the place of one that is built anew: ``partial(started, w, name)``."""
    return weights.load_into(build(network, shape, classes, 0))


def within(new: Weights, old: Weights, radius: float) -> Weights:
    """Return weights no farther than `radius` from the old ones, on the line between; buffers are taken as they are.

    The distance is over floating tensors, as one vector.
    """
    moved = {name: value - old.tensors[name] for name, value in new.tensors.items() if value.is_floating_point()}
    distance = float(torch.stack([step.double().square().sum() for step in moved.values()]).sum().sqrt())
    if distance <= radius:
        return new
    share = radius / distance
    return Weights({n: old.tensors[n] + share * moved[n] if n in moved else v for n, v in new.tensors.items()})


def _feddm(side: ServerSide) -> FedDM:
    if side.spec is None:
        raise SettingError("iterative needs a server that knows the data, whose classes the network has: data = ...")
    task = replace(side.settings, network=side.network or side.settings.network)
    return FedDM(side.spec, task, side.recipe, limits=side.limits, screen=side.screen, **side.asked)


ITERATIVE = Entry(
    _feddm,
    label="iterative (FedDM)",
    travels="synthetic images, every round",
    seen="sites see the global network; the server sees each site's synthetic images and class counts, every round",
    settings=MatchNear(),
    tasks=(MatchNear,),
    rounds=5,
    starts=True,
)
