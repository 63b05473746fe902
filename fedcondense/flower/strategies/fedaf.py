"""FedAF: aggregation-free, with class logits of all sites (Wang et al., CVPR 2024, https://arxiv.org/abs/2404.18962)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar, Self, Unpack, cast

import torch
from torch import Tensor, nn

from fedcondense.contract import Holder, NetworkSource
from fedcondense.data import Data, Spec
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.flower.asking import Asked
from fedcondense.flower.contract import Answer, Job, Node, Question, Screen, Site, State, Store
from fedcondense.flower.payloads import Weights
from fedcondense.flower.replies import ReplyLimits
from fedcondense.flower.settings import number
from fedcondense.flower.stores import Latest
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.iterative import BothLayers, FedDM, MatchNear, started
from fedcondense.networks import default_network
from fedcondense.networks.passes import repeatable
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import ClassSums
from fedcondense.randomness import stream
from fedcondense.sets.format import Limits
from fedcondense.sets.synthetic import Part, SyntheticSet
from fedcondense.sources.near import Resampled
from fedcondense.training.evaluation import batch_for
from fedcondense.training.fit import Fit, fit

__all__ = ["FEDAF", "Aligned", "Collaborative", "FedAF", "MatchAligned"]

_AT_ONCE = 512  # records that pass a network together
_LARGEST = 1e4  # of a logit
_DIRECTIONS = 50  # that slices are taken along


class Aligned(SyntheticSet):
    """A set, and the mean logits of a site's records of each class: the set's file, the numbers, and how many.

    `logits` are (C, K) float16 for the set's C classes, in their order, and the network's K outputs. Every operation
    that makes another set of it (a cut, another normalisation) leaves them out.
    """

    logits: Tensor | None = None

    def __init__(
        self, parts: Iterable[Part], evaluation: Mapping[str, Any] | None = None, logits: Tensor | None = None
    ) -> None:
        super().__init__(parts, evaluation)
        self.logits = logits

    def to_bytes(self) -> bytes:
        """Return what travels."""
        numbers = b"" if self.logits is None else self.logits.contiguous().numpy().tobytes()
        return super().to_bytes() + numbers + (len(numbers) // 2).to_bytes(4, "little")

    @classmethod
    def from_bytes(cls, blob: bytes | memoryview, limits: Limits | None = None) -> Self:
        """Parse bytes of unknown origin.

        Raises:
            UntrustedSetError: They are no set with as many numbers for each class, finite and of a usual size.
        """
        limits, count = limits or Limits(), int.from_bytes(bytes(blob[-4:]), "little")
        end = len(blob) - 4 - 2 * count
        if len(blob) > limits.nbytes or end < 0:
            raise UntrustedSetError(f"a set and {count} numbers in {len(blob)} bytes; allowed: {limits.nbytes}")
        found = SyntheticSet.from_bytes(memoryview(blob)[:end], limits)
        if not count:
            return cls(found.parts, found.evaluation)
        numbers = torch.frombuffer(bytearray(blob[end:-4]), dtype=torch.float16).clone()
        if count % len(found.classes) or not bool((numbers.abs() < _LARGEST).all()):
            raise UntrustedSetError(
                f"{count} logits for {len(found.classes)} classes; needed: as many for each, finite"
            )
        return cls(found.parts, found.evaluation, numbers.view(len(found.classes), -1))


@dataclass(frozen=True, eq=False, repr=False)
class Collaborative(BothLayers):
    r"""Distribution matching on the embedding, and class logits near those that all sites have in the mean.

    .. math:: \sum_c \lVert \mu_c^h(\mathrm{real}) - \mu_c^h(\mathrm{synthetic}) \rVert_2^2
        + \lambda\, \mathbb{E}_{\lVert \omega \rVert = 1}
        \big\lvert \omega \cdot (\mu_c^z(\mathrm{synthetic}) - V_c) \big\rvert

    The second term is the sliced Wasserstein distance of two points, over directions that are always the same.

    Args:
        logits: (C, K) for the C classes of the records and the network's K outputs; nan where nobody has sent any.
        strength: Lambda.
    """

    logits: Tensor | None = None
    strength: float = 0.1

    def __repr__(self) -> str:
        return f"Collaborative({self.strength:g})"

    def compare(self, observed: ClassSums, rows: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of synthetic rows (N, D + K), embedding and logits side by side."""
        assert self.logits is not None
        wanted = self.logits.to(rows.device, rows.dtype)
        width = rows.shape[1] - wanted.shape[1]
        loss = super().compare(observed._replace(sums=observed.sums[:, :width]), rows[:, :width], targets)
        mass = targets.sum(0)
        means = targets.T @ rows[:, width:] / mass.clamp_min(torch.finfo(mass.dtype).tiny).unsqueeze(1)
        directions = torch.randn(wanted.shape[1], _DIRECTIONS, generator=stream(0, "slices")).to(
            rows.device, rows.dtype
        )
        known = (mass > 0) & wanted.isfinite().all(1)
        away = (means - wanted.nan_to_num()) @ (directions / directions.norm(dim=0))
        away_by_class: Tensor = away.abs().mean(1) * known
        return loss + self.strength * away_by_class.sum()


@dataclass(frozen=True)
class MatchAligned(MatchNear):
    """Condense around the global network, with class logits near those of all sites, and send this site's.

    Args:
        weights: As in `MatchNear`.
        classes: As in `MatchNear`.
        ipc: As in `MatchNear`.
        radius: The share of the global network's weights in those that are matched on, the rest is untrained; a guess.
        networks: How many are drawn.
        steps: Optimisation steps.
        seed: The root seed of the run plus the rounds before this one.
        round: Of the run.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        logits: ``logits`` (K, K), the mean logits of all sites' records by class, and ``known`` (K,), of which classes
            there are some; None: nobody has sent any.
        strength: Weight of the term that holds class logits to them; a guess.
    """

    radius: float = number(0.9, 0, 1)
    logits: Weights | None = None
    strength: float = number(0.1, 0)

    name: ClassVar[str] = "match_aligned"
    leaves: ClassVar[str] = "synthetic images, and the mean logits of the records of each class"
    payload: ClassVar[type[SyntheticSet]] = Aligned

    def compared(self, classes: Sequence[str]) -> DistributionMatching:
        """Return the objective for records of these classes."""
        if self.logits is None:
            return DistributionMatching()
        size = len(self.classes)
        like = {"logits": torch.empty(size, size).half(), "known": torch.empty(size).bool()}
        given = self.logits.matching(like, "this question").tensors
        rows = given["logits"].float().masked_fill(~given["known"].unsqueeze(1), math.nan)
        places = {name: k for k, name in enumerate(self.classes)}
        lacking = rows.new_full((size,), math.nan)
        of_classes = [rows[places[name]] if name in places else lacking for name in classes]
        return Collaborative(logits=torch.stack(of_classes), strength=self.strength)

    def source(self) -> Callable[..., NetworkSource]:
        """Return what builds the networks that images are matched on."""
        return partial(Resampled, weights=self.weights.tensors, radius=self.radius, size=self.networks)

    def prepare(self, holder: Holder, node: Node) -> Job[SyntheticSet]:
        """Condense, and pass all records through the global network once."""
        job = super().prepare(holder, node)
        if holder.data is None:
            raise SettingError("class logits are those of records, which this node's holder does not hand out")
        data, network = holder.data, self.network or default_network(holder.spec.shape)
        numbers = 2 * len(self.classes) * len(data.spec.classes) + 4

        def run() -> SyntheticSet:
            made = job.run()
            global_network = started(self.weights, network, data.spec.shape, len(self.classes)).to(data.device).eval()
            return Aligned(made.parts, logits=class_logits(global_network, data))

        return Job(job.cost.but(nbytes=job.cost.nbytes + numbers), run)


@torch.no_grad()
def class_logits(network: nn.Module, data: Data) -> Tensor:
    """Return the mean logits of the records of each class, (C, K) float16 on the CPU; zero for an absent class."""
    total: Tensor | float = 0.0
    for k, index in enumerate(torch.arange(len(data)).split(_AT_ONCE)):
        batch = data.batch(index)
        with repeatable(network, 0, k), torch.autocast(data.device.type, enabled=False):
            total = total + batch.targets.T @ network(batch.images)
    assert isinstance(total, Tensor)
    return (total.cpu() / data.counts.clamp_min(1).unsqueeze(1)).clamp(-_LARGEST, _LARGEST).half()


_LATEST = Latest()


class FedAF(FedDM):
    """FedDM in which sites are told the class logits of all of them, and the server trains towards those.

    The paper's server adds, to cross-entropy on the union, the divergence between the softmax R of a class's mean
    logits over all sites and that of its synthetic images. Here each synthetic image has the target
    ``(1 - mixed) * label + mixed * R``: the same two terms with the divergence taken image by image, which is no
    smaller, in the training loop that all strategies share.

    Args:
        spec: As in `FedDM`, and so are `fit` and `store`.
        task: What is asked; the strategy sets weights, classes, logits and the round's seed.
        limits: What a reply may hold; None: what `spec` says.
        screen: Judges sets per site and class.
        asked: As in `Rounds`.
    """

    mixed: float = 0.2  # the share of R in a target; a guess
    temperature: float = 2.0  # that logits are divided by before the softmax; a guess

    def __init__(
        self,
        spec: Spec,
        task: MatchAligned = MatchAligned(),
        fit: Fit = Fit(),
        store: Store = _LATEST,
        *,
        limits: ReplyLimits | None = None,
        screen: Screen | None = None,
        **asked: Unpack[Asked],
    ) -> None:
        super().__init__(spec, task, fit, store, limits=limits, screen=screen, **asked)

    def ask(self, server_round: int, stage: str, state: State, sites: Sequence[Site]) -> Question:
        """Send the global network and the logits of all sites, after the first round."""
        question = cast(MatchAligned, super().ask(server_round, stage, state, sites))
        if "logits" not in state.tensors:
            return question
        told = {"logits": state.tensors["logits"].half(), "known": state.tensors["known"]}
        return replace(question, logits=Weights(told))

    def examine(self, stage: str, answer: Answer[Any]) -> None:
        """Refuse logits of another number of outputs."""
        logits = answer.payload.logits
        if logits is None or logits.shape[1] != len(self.spec.classes):
            given = "none" if logits is None else f"{logits.shape[1]}"
            raise UntrustedSetError(f"{given} logits of a class; needed: {len(self.spec.classes)}")

    def combine(self, server_round: int, stage: str, state: State, answers: Sequence[Answer[Any]]) -> State:
        """Average logits by the records that sites say they have, and train on the union of the sets."""
        state = state.but(tensors={**state.tensors, **self._logits(answers)})
        plain = [answer._replace(payload=SyntheticSet(answer.payload.parts)) for answer in answers]
        return super().combine(server_round, stage, state, plain)

    def _logits(self, answers: Sequence[Answer[Any]]) -> dict[str, Tensor]:
        """Return the mean logits of all sites by class, and of which classes there are some."""
        size = len(self.spec.classes)
        total, records = torch.zeros(size, size), torch.zeros(size)
        places = {name: k for k, name in enumerate(self.spec.classes)}
        for _, payload, *_ in answers:
            logits = getattr(payload, "logits", None)
            if logits is None:  # cut by a screen, or put on this server's scale
                continue
            claimed = dict.fromkeys(payload.classes, 0)
            for part in payload.parts:
                for name, n in zip(part.record.classes, part.record.counts, strict=False):
                    claimed[name] += min(n, self.limits.records)
            for name, row in zip(payload.classes, logits.float(), strict=True):
                if name in places:
                    total[places[name]] += claimed[name] * row
                    records[places[name]] += claimed[name]
        return {"logits": total / records.clamp_min(1).unsqueeze(1), "known": records > 0}

    def trained(self, union: SyntheticSet, before: Weights, server_round: int, state: State) -> nn.Module:
        """Return the global network after a round's training on mixed targets."""
        device = "cuda" if torch.cuda.is_available() else "cpu"
        network = started(before, self.task.network, self.spec.shape, len(self.spec.classes)).to(device)
        (images, targets), _ = batch_for(union, self.spec.classes, device)
        soft = (state.tensors["logits"] / self.temperature).softmax(1)
        label = torch.eye(len(soft))
        soft = torch.where(state.tensors["known"].unsqueeze(1), soft, label)  # of the others nothing is known
        wanted = targets @ label.lerp(soft, self.mixed).to(device)
        operations = union.record.augmentation or self.spec.operations
        fit(network, images, wanted, self.fit, seed=self.task.seed + server_round, operations=operations)
        return network


def _fedaf(side: ServerSide) -> FedAF:
    if side.spec is None:
        raise SettingError("fedaf needs a server that knows the data, whose classes the network has: data = ...")
    task = replace(side.settings, network=side.network or side.settings.network)
    return FedAF(side.spec, task, fit=side.recipe, limits=side.limits, screen=side.screen, **side.asked)


FEDAF = Entry(
    _fedaf,
    label="iterative (FedAF)",
    travels="synthetic images and mean logits of each class, every round",
    seen="sites see the network and all sites' mean logits; the server sees each one's images, counts and mean logits",
    settings=MatchAligned(),
    tasks=(MatchAligned,),
    rounds=5,
    starts=True,
)
