"""Soft labels by networks that were trained on the real data.

Hinton, Vinyals and Dean, 2015, https://arxiv.org/abs/1503.02531; what they are worth in distilled sets: Qin, Deng and
Alvarez-Melis, NeurIPS 2024, https://arxiv.org/abs/2406.10485
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.arguments import device_of, instance_of
from fedcondense.errors import DivergenceError, SettingError
from fedcondense.networks import NetworkMaker, build, default_network, describe, probe
from fedcondense.networks.passes import repeatable
from fedcondense.plain import whole_number
from fedcondense.progress import counted
from fedcondense.randomness import child_seed
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.fit import Fit, fit_on, of_network

if TYPE_CHECKING:
    from fedcondense.data.images import Data

__all__ = ["relabel"]

_AT_ONCE = 500  # images


@counted("training teachers")
@in_own_state
def relabel(
    synthetic: SyntheticSet,
    data: Data,
    *,
    network: str | NetworkMaker | None = None,
    teachers: int = 1,
    recipe: Fit = Fit(steps=1000),
    share: float = 0.5,
    temperature: float = 2.0,
    seed: int = 0,
    device: torch.device | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SyntheticSet:
    """Mix into the label of each decoded image what networks trained on the real data say of it.

    A label then takes two bytes per class and decoded image instead of one per stored image: compare at equal bytes. A
    teacher takes about a minute of one CPU core at width 32.

    Args:
        synthetic: A set of classes that the data have, of any method.
        data: Real images to train the teachers on.
        network: The teachers' network, as in `evaluate`.
        teachers: How many; what they say is averaged.
        recipe: How each is trained, on as many of the real images as its steps take.
        share: How much of a label is the teachers', in (0, 1]; the rest stays.
        temperature: What their logits are divided by, above 0; the more, the softer.
        seed: Weights, batches and augmentation of the teachers follow from it.
        device: Where; None: where the data are.
        progress: Called with (step, steps), over all teachers.

    Raises:
        SettingError: A number that cannot work, images of another shape, a class that the data lack, or a set that
            promises privacy, which teachers would break.
        DivergenceError: A teacher's answers are no longer finite; the set as it was given is in its `synthetic`.
    """
    instance_of("recipe", recipe, Fit, "a Fit, which says how a network is trained")
    teachers, seed = whole_number(teachers, "teachers"), whole_number(seed, "seed")
    if not (teachers >= 1 and 0 < share <= 1 and temperature > 0):
        given = f"{teachers} teachers, a share of {share:g} and a temperature of {temperature:g}"
        raise SettingError(f"{given}; needed: 1 or more, a share above 0 and up to 1, a temperature above 0")
    if synthetic.shape != data.spec.shape:
        raise SettingError(
            f"images of {synthetic.shape} and of {data.spec.shape}; relabel with data of the set's shape"
        )
    if any(part.record.privacy is not None for part in synthetic.parts):
        raise SettingError("the set promises privacy, and teachers see the real data; leave its labels as they are")
    unknown = [name for name in synthetic.classes if name not in data.spec.classes]
    if unknown:
        few = ", ".join(unknown[:5])
        raise SettingError(f"{data.spec.name} lacks {len(unknown)} classes ({few}); relabel with the data of the set")
    began = time.monotonic()
    data = data.to(device_of(device)) if device is not None else data
    network = network or default_network(data.spec.shape)
    probe(network, data.spec.shape, len(data.spec.classes), images=min(2, recipe.batch, max(1, len(data))))
    columns = [[data.spec.classes.index(name) for name in part.record.classes] for part in synthetic.parts]
    batches = [part.decode(data.device) for part in synthetic.parts]
    said = [torch.zeros_like(batch.targets) for batch in batches]
    for k in range(teachers):
        teacher_seed = child_seed(seed, "teacher", k)
        teacher = build(network, data.spec.shape, len(data.spec.classes), teacher_seed)
        step = of_network(progress, k, teachers)
        fit_on(teacher, data, recipe, seed=teacher_seed, operations=data.spec.operations, progress=step)
        teacher.eval()
        for mean, batch, own in zip(said, batches, columns, strict=True):
            mean += _probabilities(teacher, data.spec.normalise(batch.images), own, temperature) / teachers
    if not all(bool(mean.isfinite().all()) for mean in said):
        raise DivergenceError(f"a teacher diverged; try a smaller step size than {recipe.lr:g} (recipe)", synthetic)
    by = f"labels {share:g} by {teachers} {describe(network)} at temperature {temperature:g}"
    seconds = (time.monotonic() - began) / len(synthetic.parts)
    parts = []
    for part, batch, mean in zip(synthetic.parts, batches, said, strict=True):
        targets = (1 - share) * batch.targets + share * mean
        record = part.record
        record = replace(record, method=f"{record.method}, {by}", seconds=round(record.seconds + seconds, 1))
        parts.append(replace(part, targets=targets.half().cpu(), record=record))
    return SyntheticSet(parts)


@torch.no_grad()
def _probabilities(teacher: nn.Module, images: Tensor, columns: list[int], temperature: float) -> Tensor:
    """Return what a teacher says of normalised images if they can be of some classes alone, (N, K) float32."""
    pieces = []
    for k, piece in enumerate(images.split(_AT_ONCE)):
        with repeatable(teacher, 0, k):
            pieces.append(teacher(piece).float())
    logits = torch.cat(pieces)
    return (logits[:, columns] / temperature).softmax(1)
