"""The condense loop: decode, draw, observe, match, step. One for every objective and parametrization."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fedcondense.condensing.checkpoints import Checkpoint
from fedcondense.condensing.starts import STARTS, Start
from fedcondense.contract import (
    Codes,
    Draw,
    Holder,
    NetworkSource,
    Objective,
    Parametrization,
    Recipe,
    Synthetic,
    class_rows,
)
from fedcondense.data.images import Data, Spec
from fedcondense.errors import DataError, DivergenceError, SettingError, look_up
from fedcondense.networks import NetworkMaker, build, default_network, describe, parts
from fedcondense.objectives import DEFAULT_OBJECTIVE, OBJECTIVES, recorded
from fedcondense.objectives.features import is_of_rows
from fedcondense.objectives.gradient import is_of_samples
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.randomness import stream
from fedcondense.sets.synthetic import Part, Record, SyntheticSet, to_storage
from fedcondense.sources.networks import Fresh, Pool, Trained
from fedcondense.training.graphs import StepGraph

__all__ = [
    "Loop",
    "Progress",
    "condense",
    "images_per_class",
    "precision_of",
    "prepare",
    "without_the_line_on_few_records",
]

_LOG = logging.getLogger(__name__)
_AT_ONCE = 512  # synthetic images in one graph
_GRAPH_BYTES = 1 << 30  # of the real images of a step, which a graph holds a copy of
_LOOK_S = 0.5  # seconds between two looks at the loss: each one waits for the device


class Progress(NamedTuple):
    """How far a run is."""

    step: int
    steps: int
    loss: float
    seconds: float  # so far
    remaining: float  # seconds, estimated


def condense(
    data: Data,
    ipc: int = 10,
    objective: str | Objective = DEFAULT_OBJECTIVE,
    parametrization: str | Parametrization = "pixels",
    *,
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
) -> SyntheticSet:
    """Condense labelled images into a few synthetic ones of the same classes.

    The default objective takes about 40 s of one CPU core at 10 classes, 10 images per class, 28x28 and width 32;
    `plan` says what other settings take. It heeds a `torch.autocast` around it: bfloat16 features take 0.6 of the time
    on a CPU with AMX, at the same accuracy. Equal arguments give equal sets, bit by bit, on one CPU with as many
    threads.

    Args:
        data: The real images; classes may be absent or of any size.
        ipc: Images per class whose bytes the codes of a class may take.
        objective: How real and synthetic images are compared: a name in `OBJECTIVES`, or an objective.
        parametrization: How images are stored: a name in `PARAMETRIZATIONS`, or a parametrization.
        network: Whose features or gradients are compared: a name in `NETWORKS`, names joined by ``+`` for networks of
            several kinds, or a function of an image shape and a number of classes that builds an `nn.Module`; None: as
            the image size asks.
        seed: All that is random follows from it.
        steps: Optimisation steps; None: the recipe's.
        start: A name in `STARTS`, or a function like them; None: the recipe's. ``"real"`` shows records.
        recipe: Optimizer, step size, schedule; None: the objective's own.
        source: Where networks come from; None: the recipe's.
        limit: The largest share of a class's records whose bytes its images may take, but at least one; 0.5 in
            federated code.
        prefixes: Let every prefix of a class's images serve by itself, for memories that shrink
            (`SyntheticSet.restrict`): every other step matches the first images of each class alone, of a number drawn
            by chance. It costs accuracy of the whole set.
        device: Where to run; None: where the data are.
        checkpoint: Where to keep the state, and whether to go on from it.
        progress: Called about twice a second.

    Raises:
        SettingError: A name or number that cannot work.
        DataError: The data hold no images.
        ResumeError: The checkpoint is of another configuration.
        DivergenceError: The loss or the codes are no longer finite; the last good set is in its `synthetic`.
    """
    loop = prepare(
        data,
        ipc,
        objective,
        parametrization,
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
    if checkpoint is not None and (state := checkpoint.read(loop.configuration)) is not None:
        loop.load_state_dict(state)
    first, loop_began, looked = loop.done, time.monotonic(), 0.0
    good = loop.finished()
    while loop.done < loop.recipe.steps:
        loss = loop.step()
        now = time.monotonic()
        if now - looked < _LOOK_S and loop.done < loop.recipe.steps:
            continue
        looked = now
        value = float(loss)
        if not (math.isfinite(value) and all(bool(t.isfinite().all()) for t in (*loop.codes.values(), loop.targets))):
            raise DivergenceError(
                f"the loss is {value} at step {loop.done} of {loop.recipe.steps}; that of step {good.record.steps} "
                f"is kept: try a smaller step size than {loop.recipe.lr:g} (recipe)",
                good,
            )
        good = loop.finished()
        seconds = now - loop_began
        if progress is not None:
            remaining = seconds / (loop.done - first) * (loop.recipe.steps - loop.done)
            progress(Progress(loop.done, loop.recipe.steps, value, seconds, remaining))
        if checkpoint is not None and checkpoint.is_due():
            checkpoint.write(loop.configuration, loop.state_dict())
    if checkpoint is not None:
        checkpoint.write(loop.configuration, loop.state_dict())  # kept until the caller has saved the set
    return good


def prepare(
    data: Data,
    ipc: int,
    objective: str | Objective,
    parametrization: str | Parametrization,
    *,
    network: str | NetworkMaker | None = None,
    seed: int = 0,
    steps: int | None = None,
    start: str | Start | None = None,
    recipe: Recipe | None = None,
    source: NetworkSource | None = None,
    limit: float = 1.0,
    prefixes: bool = False,
    device: torch.device | str | None = None,
) -> Loop:
    """Check the arguments of `condense`, draw the start, and return the loop before its first step."""
    spec = data.spec
    data = data.to(device) if device is not None else data
    objective = look_up("objective", objective, OBJECTIVES) if isinstance(objective, str) else objective
    if isinstance(parametrization, str):
        parametrization = look_up("parametrization", parametrization, PARAMETRIZATIONS)()
    recipe = recipe or objective.recipe
    begin = start if callable(start) else look_up("start", start or recipe.start, STARTS)
    recipe = replace(recipe, steps=recipe.steps if steps is None else steps, start=begin.__name__)
    if type(recipe.steps) is not int or recipe.steps < 0:
        raise SettingError(f"{recipe.steps} steps; give a whole number, 0 or more")
    network = network or default_network(spec.shape)
    stored = images_per_class(data, ipc, limit)
    make = partial(_build, network, spec)
    for k in range(len(parts(network))):
        make(k)  # refuse a network that does not fit before anything is computed
    if objective.learn_labels and objective.separable:
        raise SettingError(
            f"{objective!r} is taken class by class, and so are hard labels alone: set learn_labels=False"
        )
    operations = spec.operations if objective.siamese else ()
    source = source or recipe.source(make, operations, len(spec.classes))
    codes, targets = _start(data, parametrization, begin, stored, stream(seed, "start"))
    codes = {name: code.requires_grad_() for name, code in codes.items()}
    targets.requires_grad_(objective.learn_labels)
    extras = {name: value.to(data.device).requires_grad_() for name, value in objective.extras().items()}
    configuration = {
        "data": data.fingerprint,
        "ipc": ipc,
        "limit": limit,
        "prefixes": prefixes,
        "objective": repr(objective),
        "parametrization": repr(parametrization),
        "network": describe(network),
        "precision": precision_of(data.device.type),
        "seed": seed,
        "recipe": repr(replace(recipe, source=type(source))),
        "source": _settings(source),
    }
    record = replace(Record.of(data, recorded(objective), ipc, seed), network=describe(network), start=recipe.start)
    leaves = [*codes.values(), *([targets] if objective.learn_labels else [])]
    optimizer = _optimizer(leaves, list(extras.values()), recipe, spec, max(stored))
    draws = stream(seed, "draws")
    alike = len(parts(network)) == 1 and _is_steady(objective, source, data)
    graph = step_graph(objective) if alike and data.device.type == "cuda" else None
    decoded = _decoded_targets(parametrization, codes, targets)
    return Loop(
        data,
        objective,
        parametrization,
        recipe,
        record,
        configuration,
        codes,
        extras,
        targets,
        optimizer,
        source,
        draws,
        _places(decoded, ipc) if prefixes else None,
        class_rows(decoded) if objective.separable else None,
        graph=graph,
    )


def images_per_class(data: Data, ipc: int, limit: float = 1.0) -> list[int]:
    """Return how many images' bytes each class gets: `ipc`, or as many as `limit` times its records, at least one.

    Raises:
        SettingError: `ipc` is no whole number from 1, or `limit` is not in (0, 1].
        DataError: There are no images.
    """
    if type(ipc) is not int or ipc < 1:
        raise SettingError(f"ipc {ipc!r}; needed: a whole number of images per class, 1 or more")
    if not 0 < limit <= 1:
        raise SettingError(f"limit {limit!r}; needed: a share of the records of a class, above 0 and up to 1")
    counts = data.counts.tolist()
    if not sum(counts):
        raise DataError(f"{data.spec.name}: no images to condense; give a split or a client that has some")
    stored = [min(ipc, max(1, int(limit * n))) if n else 0 for n in counts]
    short = [f"{data.spec.classes[c]} ({n})" for c, n in enumerate(stored) if 0 < n < ipc]
    if short:
        allowed = "the records" if limit == 1 else f"{limit:g} of the records"
        text = "ipc %d is more than %s of some classes; they get what is there: %s"
        _LOG.warning(text, ipc, allowed, ", ".join(short))
    return stored


@contextmanager
def without_the_line_on_few_records() -> Iterator[None]:
    """Mute what `images_per_class` logs, where somebody else says it, or a stream would repeat it."""
    level = _LOG.level
    _LOG.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _LOG.setLevel(level)


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
    rows: Mapping[int, Tensor] | None = None  # of each class, where an objective may go class by class
    done: int = 0
    began: float = field(default_factory=time.monotonic)
    observations: dict[Hashable, Any] = field(default_factory=dict)
    graph: StepGraph | None = None  # on a GPU, where each step's kernels are the same
    norm: Tensor | None = None  # the running mean of gradient norms, where they are clipped by it

    def step(self) -> Tensor:
        """Take one step and return its loss, still on the device."""
        spec = self.holder.spec
        with torch.autocast(self.targets.device.type, enabled=False):  # the same codes, the same images
            decoded = self.parametrization.decode(self.codes, self.targets)
        images = spec.normalise(decoded.images.detach()).requires_grad_()
        targets = decoded.targets.detach().requires_grad_(self.objective.learn_labels)
        leaves = Synthetic(images, targets, self.extras, self.rows)
        draw = self.source.draw(self.draws, leaves, self.holder.data)
        self.optimizer.zero_grad(set_to_none=True)
        if self.places is not None and self.done % 2:
            loss = self._backward_prefix(draw, self._observe(draw), leaves, self.places)
        elif self.graph is not None and isinstance(self.holder, Data):
            loss = self.graph.backward(draw, self._seen(draw, self.holder), leaves)
        else:
            loss = self.objective.backward(draw, self._observe(draw), leaves, _AT_ONCE)
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

    def finished(self) -> SyntheticSet:
        """Return the set as it stands, rounded to what is stored."""
        codes, targets = to_storage(self.codes, self.targets, self.parametrization)
        record = replace(self.record, steps=self.done, seconds=round(time.monotonic() - self.began, 1))
        return SyntheticSet([Part(codes, targets, self.parametrization, record)])

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
        if draw.key is None and is_of_samples(self.objective):
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


def precision_of(device: str) -> str:
    """Return the dtype that the caller's autocast, if any, computes features in."""
    return str(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32)


def _settings(source: NetworkSource) -> str:
    """Return the plain values that a source was built with: a pool of another size is another run."""
    plain = {k: v for k, v in vars(source).items() if v is None or isinstance(v, (int, float, str, tuple))}
    return f"{type(source).__name__}({', '.join(f'{k}={v!r}' for k, v in plain.items())})"


def _build(network: str | NetworkMaker, spec: Spec, seed: int) -> torch.nn.Module:
    return build(network, spec.shape, len(spec.classes), seed)


def _start(
    data: Data, parametrization: Parametrization, start: Start, stored: list[int], generator: torch.Generator
) -> tuple[Codes, Tensor]:
    counts = [parametrization.start_count(n) if n else 0 for n in stored]
    parametrization.shapes(sum(counts), data.spec.shape)  # refuse what does not fit before anything is computed
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    targets = torch.nn.functional.one_hot(labels, len(counts)).float().to(data.device)
    # the same start at any precision; some starts and codes are computed on the CPU, wherever the data are
    with torch.autocast(data.device.type, enabled=False), torch.autocast("cpu", enabled=False):
        return parametrization.encode(start(data, counts, generator), targets)


def _is_steady(objective: Objective, source: NetworkSource, data: Data) -> bool:
    """Say whether a graph serves all steps: the objective reads what a graph copies, and the real images fit twice."""
    if isinstance(source, Pool) and is_of_rows(objective):
        return True
    if not (is_of_samples(objective) and isinstance(source, Fresh | Trained | Pool)):
        return False
    return 4 * math.prod(data.spec.shape) * int(data.counts.clamp_max(objective.per_class).sum()) <= _GRAPH_BYTES


def step_graph(objective: Objective) -> StepGraph:
    """Return what replays `backward`, and `answer` before it where real images were seen (`Loop._seen`)."""

    def run(draw: Draw, seen: Any, leaves: Synthetic) -> Tensor:
        observed = objective.answer(draw, seen.items()) if draw.key is None and is_of_samples(objective) else seen
        return objective.backward(draw, observed, leaves, _AT_ONCE)

    return StepGraph(run)


@torch.no_grad()
def _decoded_targets(parametrization: Parametrization, codes: Codes, targets: Tensor) -> Tensor:
    """Return the start's targets of all decoded images, (N, K); hard ones stay, and are asked for their class once."""
    return parametrization.decode(codes, targets).targets


def _places(decoded: Tensor, ipc: int) -> Tensor:
    """Return how many stored images of its class come before that of each decoded one, (N,) on the CPU.

    Once, while labels are hard: to ask a device in each step would make it wait.
    """
    labels = decoded.argmax(1).cpu()
    of_class = torch.nn.functional.one_hot(labels, decoded.shape[1])
    rank = of_class.cumsum(0).gather(1, labels.unsqueeze(1)).squeeze(1) - 1
    return rank * ipc // of_class.sum(0)[labels]


def _optimizer(
    leaves: list[Tensor], extras: list[Tensor], recipe: Recipe, spec: Spec, ipc: int
) -> torch.optim.Optimizer:
    lr = recipe.lr * (ipc if recipe.lr_per_image else 1)
    if recipe.normalised:
        lr *= sum(s * s for s in spec.std) / len(spec.std)
    groups: list[dict[str, Any]] = [{"params": leaves, "initial_lr": lr}]
    if extras:
        groups.append({"params": extras, "initial_lr": recipe.lr if recipe.lr_extras is None else recipe.lr_extras})
    if recipe.optimizer == "adam":
        return torch.optim.Adam(groups, lr=lr, betas=recipe.betas)
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=lr, momentum=recipe.betas[0])
    raise SettingError(f"optimizer {recipe.optimizer!r}; needed: 'adam' or 'sgd'")


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return {k: _to(v, device) for k, v in value.items()} if isinstance(value, dict) else value
