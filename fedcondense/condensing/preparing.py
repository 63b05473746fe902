"""Before the first step of a run: its settings are checked, its start is drawn."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from functools import partial
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.arguments import called, instance_of
from fedcondense.condensing.holders import held_by
from fedcondense.condensing.loop import Loop, step_graph
from fedcondense.condensing.rate import Rate, default_parametrization, rate_at, rate_of
from fedcondense.condensing.starts import STARTS, WITHOUT_RECORDS, Start
from fedcondense.condensing.trial import on_trial
from fedcondense.contract import Codes, Holder, NetworkSource, Objective, Parametrization, Recipe, index_by_class
from fedcondense.data.augment import AUGMENTATIONS, own_among
from fedcondense.data.images import Data, Spec
from fedcondense.data.shares import images_per_class
from fedcondense.errors import SettingError, look_up
from fedcondense.identity import identity
from fedcondense.networks import NetworkMaker, build, default_network, describe, network_kinds, probe
from fedcondense.objectives import OBJECTIVES, recorded
from fedcondense.objectives.features import FeatureObjective, capturable_on_features
from fedcondense.objectives.gradient import GradientMatching, capturable_on_samples
from fedcondense.parametrizations import PARAMETRIZATIONS, Pixels
from fedcondense.plain import whole_number
from fedcondense.randomness import stream
from fedcondense.sets.codecs import RAW, codec_named
from fedcondense.sets.fitting import Within
from fedcondense.sets.synthetic import Record
from fedcondense.sources import Fresh, Pool, TrainedOnSynthetic

__all__ = ["precision_of", "prepare"]

_GRAPH_BYTES = 1 << 30  # of the real images of a step, which a graph holds a copy of


@in_own_state
def prepare(
    data: Any,
    ipc: int | Within,
    objective: str | Objective,
    parametrization: str | Parametrization | None = None,
    *,
    codec: str = RAW,
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
    """Check the arguments of `condense`, draw the start, and return the loop before its first step.

    Nothing is logged: `Loop.warning` holds what there is to say of classes that are too small for `ipc`. A budget in
    the place of `ipc` becomes images per class and a codec here, by the rate rule; `run` fits the set to it at its end.
    """
    seed = whole_number(seed, "seed")
    holder = held_by(data, device)
    spec, device = holder.spec, holder.device
    codec_named(codec)
    within = ipc if isinstance(ipc, Within) else None
    if parametrization is None:
        parametrization = Pixels() if within is None else default_parametrization(spec.shape)
    objective = look_up("objective", objective, OBJECTIVES) if isinstance(objective, str) else objective
    instance_of("objective", objective, Objective, f"one of {', '.join(OBJECTIVES)}, or an Objective")
    if isinstance(parametrization, str):
        parametrization = look_up("parametrization", parametrization, PARAMETRIZATIONS)()
    instance_of("parametrization", parametrization, "encode", f"one of {', '.join(PARAMETRIZATIONS)}, or settings")
    recipe = getattr(objective, "recipe", None) if recipe is None else recipe
    if recipe is None:
        raise SettingError(
            f"objective {type(objective).__name__} does not say how it is run; add to its class, say, "
            "recipe: ClassVar[Recipe] = Recipe(steps=200, lr=0.05, source=Fresh), or give recipe="
        )
    instance_of("recipe", recipe, Recipe, "a Recipe of condensing, or None for the objective's own")
    if source is not None:
        instance_of("source", source, NetworkSource, "a NetworkSource, built, or None for the recipe's")
    begin = _begin(holder, start, recipe)
    steps = whole_number(recipe.steps if steps is None else steps, "steps")
    recipe = replace(recipe, steps=steps, start=called(begin))
    network = network or default_network(spec.shape)
    record = Record.of(_records(holder), recorded(objective), 0, seed)
    counts = tuple(holder.counts.tolist())
    record = replace(record, network=describe(network), start=recipe.start, counts=counts, steps=steps)
    rate: Rate | None = None
    told: dict[str, Any] = {"record": record, "soft": objective.learn_labels}
    if within is not None or codec != RAW:
        told["expect"] = on_trial(holder, _records(holder), parametrization, begin, seed)
    if within is not None:
        rate = rate_of(spec, counts, within, parametrization, limit=limit, **told)
        ipc = rate.ipc
    ipc = whole_number(ipc, "ipc", 1)
    shares = images_per_class(holder, ipc, limit, "" if within is None else f"a budget of {within.most:,} bytes")
    images = shares.images if rate is None else list(rate.images)
    if rate is None and codec != RAW:
        rate = rate_at(images, codec, parametrization, **told)
    make = partial(build, network, spec.shape, len(spec.classes))
    _probe(objective, parametrization, network, spec, images)
    if objective.learn_labels and objective.separable:
        raise SettingError(
            f"{objective!r} is taken class by class, and so are hard labels alone: set learn_labels=False"
        )
    operations = spec.operations if objective.siamese else ()
    source = source or recipe.source(make, operations, len(spec.classes))
    codes, targets = _start(_records(holder), parametrization, begin, images, stream(seed, "start"))
    codes = {name: code.requires_grad_() for name, code in codes.items()}
    targets.requires_grad_(objective.learn_labels)
    extras = {name: value.to(device).requires_grad_() for name, value in objective.extras().items()}
    configuration = {
        "data": holder.fingerprint,
        **{f"{item.name} of the data": identity(getattr(spec, item.name)) for item in fields(spec)},
        "ipc": int(ipc),
        **({} if within is None else {"images": images}),
        "limit": float(limit),
        "prefixes": bool(prefixes),
        "objective": identity(objective),
        "parametrization": identity(parametrization),
        "network": describe(network),
        "code of the network": identity(network_kinds(network)),
        "code of the start": identity(begin),
        "precision": precision_of(device.type),
        "seed": seed,
        "recipe": identity(replace(recipe, source=type(source).__name__)),
        "source": _settings(source),
    }
    if own := own_among(spec.operations):
        configuration["code of the augmentation"] = identity([AUGMENTATIONS[name] for name in own])
    record = replace(record, ipc=ipc, steps=0)
    leaves = [*codes.values(), *([targets] if objective.learn_labels else [])]
    optimizer = _optimizer(leaves, list(extras.values()), recipe, spec, max(images))
    draws = stream(seed, "draws")
    alike = len(network_kinds(network)) == 1 and _is_steady(objective, source, holder)
    graph = step_graph(objective) if alike and device.type == "cuda" else None
    decoded = _decoded_targets(parametrization, codes, targets)
    return Loop(
        holder,
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
        index_by_class(decoded) if objective.separable else None,
        graph=graph,
        network=network,
        warning=shares.warning,
        within=within,
        codec=codec if rate is None else rate.codec,
        rate=rate,
    )


def precision_of(device: str) -> str:
    """Return the dtype that the caller's autocast, if any, computes features in."""
    return str(torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32)


def _settings(source: NetworkSource) -> str:
    """Return what a source was built with: a pool of another size is another run, in another folder it is the same."""
    told = {k: v for k, v in vars(source).items() if not k.startswith("_") and not isinstance(v, PurePath)}
    return f"{identity(type(source))}({', '.join(f'{k}={identity(v)}' for k, v in told.items())})"


def _probe(
    objective: Objective, parametrization: Parametrization, network: str | NetworkMaker, spec: Spec, stored: list[int]
) -> None:
    """Refuse a network that does not fit before anything is computed, in batches as small as the run's smallest."""
    counts = [parametrization.start_count(n) for n in stored if n]
    layer = objective.layer if isinstance(objective, FeatureObjective) else None
    weights, least = None, sum(counts)
    if isinstance(objective, GradientMatching):
        weights, least = objective.weights, min(counts)
    second_order = objective.second_order
    probe(
        *(network, spec.shape, len(spec.classes)),
        layer=layer,
        second_order=second_order,
        weights=weights,
        images=min(2, least),
    )


def _begin(holder: Holder, start: str | Start | None, recipe: Recipe) -> Start:
    """Return what codes start from: where records may not be seen, what needs none."""
    if not (start is None or callable(start) or isinstance(start, str)):
        raise SettingError(f"start {start!r:.100}; needed: one of {', '.join(STARTS)}, or a function like them")
    begin = start if callable(start) else look_up("start", start or recipe.start, STARTS)
    name = called(begin)
    if holder.data is not None or name in WITHOUT_RECORDS or name not in STARTS:
        return begin
    if start is None:
        return STARTS["grey"]
    raise SettingError(
        f"start {name!r} is made of records, which {holder!r} keeps; take {' or '.join(WITHOUT_RECORDS)}"
    )


def _records(holder: Holder) -> Data:
    """Return the records, or data without any where nobody may see one."""
    if holder.data is not None:
        return holder.data
    images = torch.empty(0, *holder.spec.shape, dtype=torch.uint8, device=holder.device)
    return Data(images, torch.empty(0, dtype=torch.int64, device=holder.device), holder.spec)


def _start(
    data: Data, parametrization: Parametrization, start: Start, stored: list[int], generator: torch.Generator
) -> tuple[Codes, Tensor]:
    counts = [parametrization.start_count(n) if n else 0 for n in stored]
    parametrization.shapes(sum(counts), data.spec.shape)  # refuse what does not fit before anything is computed
    labels = torch.arange(len(counts), device="cpu").repeat_interleave(torch.tensor(counts, device="cpu"))
    targets = torch.nn.functional.one_hot(labels, len(counts)).float().to(data.device)
    # the same start at any precision; some starts and codes are computed on the CPU, wherever the data are
    with torch.autocast(data.device.type, enabled=False), torch.autocast("cpu", enabled=False):
        return parametrization.encode(start(data, counts, generator), targets)


def _is_steady(objective: Objective, source: NetworkSource, holder: Holder) -> bool:
    """Say whether a graph serves all steps: the objective reads what a graph copies, and the real images fit twice."""
    if isinstance(source, Pool) and capturable_on_features(objective):
        return True
    if not (capturable_on_samples(objective) and isinstance(source, Fresh | TrainedOnSynthetic | Pool)):
        return False
    return 4 * math.prod(holder.spec.shape) * int(holder.counts.clamp_max(objective.per_class).sum()) <= _GRAPH_BYTES


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
