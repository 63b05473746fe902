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

from fedcondense.errors import SettingError
from fedcondense.networks import NetworkMaker, build, default_network
from fedcondense.randomness import child_seed, stream
from fedcondense.synthetic import Part, SyntheticSet
from fedcondense.training import Fit, fit, of_network

if TYPE_CHECKING:
    from fedcondense.data import Data

__all__ = ["relabel"]

_AT_ONCE = 500  # images


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

    A label then takes two bytes a class and decoded image instead of one a stored image: compare at equal bytes. A
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
    """
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
        raise SettingError(f"{data.spec.name} has no class {', '.join(unknown)}; relabel with the data of the set")
    began = time.monotonic()
    data = data.to(device) if device is not None else data
    network = network or default_network(data.spec.shape)
    images = [SyntheticSet([part]).decode(data.device).images for part in synthetic.parts]
    said = [image.new_zeros(len(image), len(data.spec.classes)) for image in images]
    for k in range(teachers):
        step = of_network(progress, k, teachers)
        teacher = _teacher(data, network, recipe, child_seed(seed, "teacher", k), step)
        for mean, part in zip(said, images, strict=True):
            mean += _probabilities(teacher, part, temperature) / teachers
    seconds = (time.monotonic() - began) / len(synthetic.parts)
    parts = [
        _relabelled(p, s.cpu(), data.spec.classes, share, seconds) for p, s in zip(synthetic.parts, said, strict=True)
    ]
    return SyntheticSet(parts)


def _teacher(
    data: Data, network: str | NetworkMaker, recipe: Fit, seed: int, progress: Callable[[int, int], None] | None
) -> nn.Module:
    """Return a network that was trained on the real data, in evaluation mode."""
    teacher = build(network, data.spec.shape, len(data.spec.classes), seed)
    index = torch.randperm(len(data), generator=stream(seed, "images"))[: recipe.batch * recipe.steps]
    batch = data.batch(index)
    operations = data.spec.operations
    fit(teacher, batch.images, batch.targets, recipe, seed=seed, operations=operations, progress=progress)
    return teacher.eval()


@torch.no_grad()
def _probabilities(teacher: nn.Module, images: Tensor, temperature: float) -> Tensor:
    """Return what a teacher says of normalised images, (N, K) float32."""
    return torch.cat([(teacher(piece).float() / temperature).softmax(1) for piece in images.split(_AT_ONCE)])


def _relabelled(part: Part, said: Tensor, classes: tuple[str, ...], share: float, seconds: float) -> Part:
    """Return a part whose labels are mixed with what was said, (N, K), of the classes that it has."""
    said = said[:, [classes.index(name) for name in part.record.classes]]
    said = said / said.sum(1, keepdim=True).clamp_min(torch.finfo(said.dtype).tiny)
    targets = (1 - share) * part.decode().targets + share * said
    record = part.record
    record = replace(record, method=f"{record.method}, relabelled", seconds=round(record.seconds + seconds, 1))
    return replace(part, targets=targets.half(), record=record)
