"""The condense loop: decode, draw, observe, match, step. One for every objective and parametrization."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.condensing.holders import Own
from fedcondense.condensing.rate import Rate
from fedcondense.contract import Codes, Draw, Holder, NetworkSource, Objective, Parametrization, Recipe, Synthetic
from fedcondense.data.images import Data
from fedcondense.deadline import OutOfTime, check_time, is_timed
from fedcondense.errors import SettingError
from fedcondense.networks import NetworkMaker
from fedcondense.objectives.gradient import capturable_on_samples
from fedcondense.sets.codecs import RAW
from fedcondense.sets.fitting import Within, fit_within
from fedcondense.sets.synthetic import Part, Record, SyntheticSet, to_storage
from fedcondense.training.graphs import StepGraph

__all__ = ["Loop", "onto_simplex", "step_graph"]

_AT_ONCE = 512  # synthetic images in one graph


@dataclass
class Loop:
    """A run between two steps: what it was asked for, and what changes from step to step."""

    holder: Holder
    objective: Objective
    parametrization: Parametrization
    recipe: Recipe
    record: Record
    configuration: dict[str, Any]
    codes: Codes
    extras: dict[str, Tensor]
    targets: Tensor
    optimizer: torch.optim.Optimizer
    source: NetworkSource
    draws: torch.Generator
    places: Tensor | None = None  # (N,) on the CPU, of decoded images in their class, where prefixes are to serve
    of_class: Mapping[int, Tensor] | None = None  # images of each class, where an objective may go class by class
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    observations: dict[Hashable, Any] = field(default_factory=dict)
    graph: StepGraph | None = None  # on a GPU, where each step's kernels are the same
    norm: Tensor | None = None  # the running mean of gradient norms, where they are clipped by it
    network: str | NetworkMaker = ""  # what the source builds
    warning: str = ""  # which classes are too small for `ipc`, for whoever speaks to a user
    within: Within | None = None  # what the file may take
    codec: str = RAW  # what the images will be stored in
    rate: Rate | None = None  # how the budget is spent, if there is one

    @in_own_state
    def step(self) -> Tensor:
        """Take one step and return its loss, still on the device.

        Raises:
            OutOfTime: The moment of a `stop_at` has come; the loop is as before the step.
        """
        check_time()
        if not is_timed() or self.source.trains_in_place:  # such a source hands out no keys, and nothing stops within
            return self._step()
        draws, source = self.draws.get_state(), self.source.state_dict()
        try:
            return self._step()
        except OutOfTime:
            self.draws.set_state(draws)
            self.source.load_state_dict(source)
            raise

    def _step(self) -> Tensor:
        spec = self.holder.spec
        with torch.autocast(self.targets.device.type, enabled=False):  # the same codes, the same images
            decoded = self.parametrization.decode(self.codes, self.targets)
        images = spec.normalise(decoded.images.detach()).requires_grad_()
        targets = decoded.targets.detach().requires_grad_(self.objective.learn_labels)
        leaves = Synthetic(images, targets, self.extras, self.of_class)
        draw = self.source.draw(self.draws, leaves, self.holder.data)
        self.optimizer.zero_grad(set_to_none=True)
        if self.places is not None and self.done % 2:
            loss = self._backward_prefix(draw, self._observe(draw), leaves, self.places)
        elif self.graph is not None and isinstance(self.holder, Own):
            loss = self.graph.backward(draw, self._seen(draw, self.holder.data), leaves)
        else:
            loss = self.objective.backward(draw, self._observe(draw), leaves, _AT_ONCE)
        if images.grad is None and targets.grad is None and not self.done:
            raise SettingError(
                f"the loss of {self.objective!r} does not follow from the synthetic images, so that nothing would be "
                "learned; look for a detach, a rounding or an argmax in it"
            )
        if images.grad is not None:
            std = images.new_tensor(spec.std).view(1, -1, 1, 1)
            decoded.images.backward(images.grad / std, retain_graph=targets.grad is not None)
        if targets.grad is not None:
            # less its mean under the targets: zero where moving probability gains nothing, at any optimizer's scale
            mean = (targets.detach() * targets.grad).sum(1, keepdim=True)
            decoded.targets.backward(targets.grad - mean)
        fall = (1 + math.cos(math.pi * self.done / max(1, self.recipe.steps))) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (self.recipe.decay + (1 - self.recipe.decay) * fall)
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(list(self.codes.values()), self.recipe.clip)
        if self.recipe.clip_growth is not None:
            self._clip_growth(self.recipe.clip_growth)
        self.optimizer.step()
        with torch.no_grad():
            self.parametrization.project(self.codes)
            if self.objective.learn_labels:
                held = torch.tensor(self.record.counts, device=targets.device) > 0
                self.targets.copy_(onto_simplex(self.targets, held))
        self.done += 1
        return loss

    @in_own_state
    def finished(self) -> SyntheticSet:
        """Return the set as it stands, rounded to what is stored."""
        codes, targets = to_storage(self.codes, self.targets, self.parametrization)
        record = replace(self.record, steps=self.done, seconds=round(max(0.0, time.monotonic() - self.began), 1))
        return SyntheticSet([Part(codes, targets, self.parametrization, record)])

    @in_own_state
    def stored(self, synthetic: SyntheticSet) -> SyntheticSet:
        """Return what `finished` gave as it is stored: in the codec, and within the budget if there is one."""
        return synthetic.recode(self.codec) if self.within is None else fit_within(synthetic, self.within, self.codec)

    @contextmanager
    def on_trial(self) -> Iterator[None]:
        """Take steps that leave no trace: the loop ends as it began, bit for bit.

        What follows from the source's seed alone is kept: a pool's entries, what was observed for them, experts.
        """
        optimizer = copy.deepcopy(self.optimizer.state_dict())
        state = copy.deepcopy({k: v for k, v in self.state_dict().items() if k != "seconds"})
        began = self.began
        try:
            yield
        finally:
            self.load_state_dict(state | {"seconds": 0.0})
            self.optimizer.load_state_dict(optimizer)
            self.optimizer.zero_grad(set_to_none=True)
            self.began = began

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        return {
            "codes": dict(self.codes),
            "extras": dict(self.extras),
            "targets": self.targets if self.objective.learn_labels else None,
            "norm": self.norm,
            "optimizer": self.optimizer.state_dict()["state"],
            "source": self.source.state_dict(),
            "draws": self.draws.get_state(),
            "done": self.done,
            "seconds": time.monotonic() - self.began,
        }

    @in_own_state
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what a checkpoint kept."""
        with torch.no_grad():
            for mine, kept in ((self.codes, state["codes"]), (self.extras, state["extras"])):
                for name, value in kept.items():
                    mine[name].copy_(value)
            if self.objective.learn_labels:
                self.targets.copy_(state["targets"])
        self.norm = _to(state.get("norm"), self.targets.device)
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state["optimizer"], "param_groups": groups})
        self.source.load_state_dict(_to(state["source"], self.targets.device))
        self.draws.set_state(state["draws"])
        self.done = state["done"]
        self.began = time.monotonic() - state["seconds"]

    def _backward_prefix(self, draw: Draw, observed: Any, leaves: Synthetic, places: Tensor) -> Tensor:
        """Match the first images of each class alone: those of a number of stored images drawn by chance."""
        first = int(torch.randint(1, self.record.ipc + 1, (), generator=self.draws))
        rows = (places < first).nonzero().squeeze(1).to(leaves.images.device, non_blocking=True)
        images = leaves.images.detach()[rows].requires_grad_()
        targets = leaves.targets.detach()[rows].requires_grad_(leaves.targets.requires_grad)
        loss = self.objective.backward(draw, observed, Synthetic(images, targets, leaves.extras), _AT_ONCE)
        for whole, part in ((leaves.images, images), (leaves.targets, targets)):
            if part.grad is not None:
                whole.grad = torch.zeros_like(whole).index_copy_(0, rows, part.grad)
        return loss

    def _clip_growth(self, most: float) -> None:
        """Cut the gradient to `most` running means of its norm, and let what is left move the mean."""
        gradients = [code.grad for code in self.codes.values() if code.grad is not None]
        if not gradients:
            return
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        mean = norm if self.norm is None else torch.where(self.norm > 0, self.norm, norm)
        share = (most * mean / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1)
        for gradient in gradients:
            gradient.mul_(share)
        self.norm = 0.9 * mean + 0.1 * norm * share

    def _observe(self, draw: Draw) -> Any:
        if draw.key is None:
            return self.holder.observe(self.objective, draw)
        if draw.key not in self.observations:
            self.observations[draw.key] = self.holder.observe(self.objective, draw)
        return self.observations[draw.key]

    def _seen(self, draw: Draw, data: Data) -> Any:
        """Return what a graph is given of the real data: images, where it can make the observation of them itself."""
        if draw.key is None and capturable_on_samples(self.objective):
            return dict(self.objective.sample(draw, data))
        return self._observe(draw)


def onto_simplex(targets: Tensor, held: Tensor) -> Tensor:
    """Return the nearest probabilities (N, K) to each row of targets (N, K); zero for classes not in held (K,) bool.

    A row is lowered by one number, and what is then negative is zero (Held, Wolfe and Crowder, 1974).
    """
    targets = torch.where(held, targets, targets.amin() - 2)  # too low to be left with anything
    falling = targets.sort(1, descending=True).values
    excess = falling.cumsum(1) - 1
    number = torch.arange(1, targets.shape[1] + 1, device=targets.device)
    left = (falling > excess / number).sum(1, keepdim=True).clamp_min(1)
    return (targets - excess.gather(1, left - 1) / left).clamp_min(0)


def step_graph(objective: Objective) -> StepGraph:
    """Return what replays `backward`, and `answer` before it where real images were seen (`Loop._seen`)."""

    def run(draw: Draw, seen: Any, leaves: Synthetic) -> Tensor:
        if draw.key is None and capturable_on_samples(objective):
            seen = objective.answer(draw, seen.items())
        return objective.backward(draw, seen, leaves, _AT_ONCE)

    return StepGraph(run)


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {k: _to(v, device) for k, v in value.items()} if isinstance(value, dict) else value
