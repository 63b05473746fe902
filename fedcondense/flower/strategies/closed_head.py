"""The last layer of a trained network in closed form: least squares on sums over all sites' records.

Averaging spoils the last layer first: each site's rows stand for its own classes. Least squares do not know of sites:
products of features with each other and with labels add up to what all records together give, whatever the division,
and one answer is enough (Fed3R: Fani et al., ICML 2024, https://arxiv.org/abs/2406.01116, on pretrained features; that
the last layer is what suffers: CCVR, Luo et al., NeurIPS 2021, https://arxiv.org/abs/2106.05001). Here the features are
the global network's own, at the end of its training.

A site sends a triangular factor at 8 bits, deflated (`fedcondense.flower.strategies.factors`). Of D features it has
about D^2 / 2 numbers. Where these are too many, features are projected: on the directions that the last layer reads
now, and on random ones, which both ends draw from the question's seed.

Records may weigh by their class, so that no class counts more than another, as balanced softmax has it. That changes
nothing where all sites of the division answer. Where 7, 5 or 3 of 10 do, it takes 83, 80 and 67 percent to 88, 88 and
80 (held-out images of Fashion-MNIST, two divisions, six choices of sites each: `experiments/head_tried.py`), while the
layer that is replaced has 87 and 85. So that layer stays unless sites with two thirds of the records, and all classes,
answer.

The ridge is chosen by generalised cross-validation, which follows from the sums: three sites with 225 photographs of
leaves went from 51 percent down to 34 at a ridge that suits 60,000 images, and up to 57 at their own (by hand).

Least squares give scores near 0 and 1. Logits are `SHARPNESS` times as large, so that the softmax of a network is worth
reading: on held-out images of Fashion-MNIST, two divisions, the negative log-likelihood was 0.35 at 8, 0.44 at 5 and
0.40 at 12, and the calibration error 2 points.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fedcondense.contract import Holder
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Cost
from fedcondense.flower.contract import Answer, Job, Node, Task
from fedcondense.flower.eight_bits import Packed, packed_bytes
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.run_folder import records_by_site
from fedcondense.flower.settings import number
from fedcondense.flower.strategies.factors import (
    check_factor,
    extended,
    factor_bytes,
    factored,
    least_squares,
    products_of,
)
from fedcondense.flower.strategies.features import carried, features_of
from fedcondense.randomness import stream
from fedcondense.sets.synthetic import SyntheticSet

__all__ = [
    "SHARPNESS",
    "Head",
    "balance_of",
    "balanced",
    "check_head",
    "counts_of",
    "head_dims",
    "last_layer",
    "too_few",
    "with_head",
]

SHARPNESS = 8.0
_FORM = "int8-deflated"
_LEFT = 0.8
_MOST = 1e4  # that a record weighs
_ENOUGH = 2 / 3  # of the records, and of the sites
_NONE = Packed()


@dataclass(frozen=True)
class Head(Task[Sums]):
    """Sum the products of the global network's features with each other and with labels.

    Args:
        weights: Of the global network. They can be crafted: a node asks for ``allow-weights = true``.
        classes: The names of the network's outputs, in order.
        mean: What images are normalised by, a number per channel.
        std: Likewise.
        network: A name in `NETWORKS`; empty: the one for the images' size.
        seed: Of the projection.
        dims: Feature dimensions; 0, or as many as there are, takes them as they are.
        balance: What a record of each class weighs; empty: all the same.
    """

    weights: Packed = _NONE
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    network: str = ""
    seed: int = number(0, 0)
    dims: int = number(0, 0)
    balance: tuple[float, ...] = ()

    name: ClassVar[str] = "head"
    leaves: ClassVar[str] = "sums over records of products of features, from which a network's last layer is solved for"
    payload: ClassVar[type[Sums]] = Sums

    def prepare(self, holder: Holder, node: Node) -> Job[Sums]:
        """Return one pass over all records, for the factor of their features and labels."""
        data, network, model, came = carried(self, holder, node)
        came.load_into(model)
        size = _size(model, self.dims)
        if self.balance and not (len(self.balance) == len(self.classes) and all(0 < w <= _MOST for w in self.balance)):
            raise SettingError(
                f"balance needs {len(self.classes)} numbers above 0, at most {_MOST:g}: one for each class"
            )

        def run() -> Sums:
            with torch.autocast(data.device.type, enabled=False):  # sums over all records need all the digits
                features = features_of(data, model, self.seed)
                basis = _basis(model, self)
                if basis is not None:
                    features = features @ basis.to(features.device)
                features, targets = extended(features, data)
                if self.balance:
                    roots = torch.tensor(self.balance, device=data.device).sqrt()[data.labels].unsqueeze(1)
                    features, targets = roots * features, roots * targets
                return factored(features, targets, _FORM)

        nbytes = factor_bytes(size, len(self.classes), _FORM, len(data))
        memory = 3 * 4 * len(data) * (1 + last_layer(model)[1].in_features)
        return Job(Cost(nbytes=nbytes, memory=memory, networks=(network,)), run)


def last_layer(model: nn.Module) -> tuple[str, nn.Linear]:
    """Return the last layer and its name: the `nn.Linear` that was registered last.

    Raises:
        SettingError: There is none with a bias.
    """
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Linear)]
    if not layers or layers[-1][1].bias is None:
        raise SettingError(
            f"{type(model).__name__} has no last nn.Linear with a bias, which closed form is for: set head = averaged"
        )
    return layers[-1]


def head_dims(model: nn.Module, classes: int, nbytes: int) -> int:
    """Return how many dimensions a factor of about so many bytes can have; 0 bytes: as many as the weights take.

    What deflating leaves of a factor is taken for four fifths; of 202 dimensions or more it was less.

    Raises:
        SettingError: The network has no last layer that can be solved for.
    """
    nbytes, most = nbytes or packed_bytes(model), last_layer(model)[1].in_features
    dims = 1
    while dims < most and _LEFT * factor_bytes(dims + 2, classes, _FORM) <= nbytes:
        dims += 1
    return dims


def counts_of(sets: Mapping[str, SyntheticSet], classes: Sequence[str]) -> Tensor:
    """Return how many records of each class sites hold together, as their sets say, (K,) float64."""
    counts = records_by_site(sets, classes)["counts"]
    return torch.tensor(counts, dtype=torch.float64).reshape(len(sets), len(classes)).sum(0)


def too_few(sets: Mapping[str, SyntheticSet], answers: Sequence[Answer[Sums]], task: Head, model: nn.Module) -> str:
    """Say why the sites that answered are too few to solve for a layer; empty: they are enough.

    They need two thirds of the records, and all classes. What a site holds its set says; of one that never sent a set,
    since it came later, its answer does.

    Args:
        sets: Of the first round, by site.
        answers: Sums, as `Head` gives them.
        task: What was asked.
        model: A network like the question's.
    """
    size = _size(model, task.dims)
    said = {one.site.name: one.num_examples for one in answers if one.site.name not in sets}
    known = counts_of(sets, task.classes)
    mine = counts_of({name: sets[name] for name in (one.site.name for one in answers) if name in sets}, task.classes)
    theirs, all_of_them = float(mine.sum()) + sum(said.values()), float(known.sum()) + sum(said.values())
    if theirs < _ENOUGH * all_of_them:
        return f"those who answered hold {theirs:.0f} of {all_of_them:.0f} records, and two thirds are needed"
    if bool((mine > 0)[known > 0].all()):
        return ""
    for one in answers:
        if one.site.name in said:
            mine = mine + products_of(one.payload, size, len(task.classes), _FORM)[1][-1].clamp_min(0)
    lost = [name for name, n, m in zip(task.classes, known, mine, strict=True) if n and not m]
    return f"nobody who answered holds {lost[0]!r}" if lost else ""


def balanced(counts: Tensor, strength: float) -> tuple[float, ...]:
    """Return what records weigh so that classes count alike, each weight to a power; classes without any: 1."""
    weights = (counts.sum() / ((counts > 0).sum() * counts.clamp_min(1))) ** strength
    return tuple(torch.where(counts > 0, weights.clamp(1 / _MOST, _MOST), torch.ones(())).tolist())


def balance_of(
    sets: Mapping[str, SyntheticSet], names: Collection[str], classes: Sequence[str], strength: float
) -> tuple[float, ...]:
    """Return what records of sites of these names weigh; empty where the sets of fewer than two thirds are there."""
    known = {name: one for name, one in sets.items() if name in names}
    return balanced(counts_of(known, classes), strength) if len(known) >= _ENOUGH * len(names) > 0 else ()


def check_head(factor: Sums, model: nn.Module, classes: int, dims: int) -> None:
    """Refuse what is no factor of so many of this network's features; 0: of all.

    Raises:
        UntrustedSetError: It is not; the message says what differs.
    """
    check_factor(factor, _size(model, dims), classes, _FORM)


def with_head(model: nn.Module, task: Head, answers: Sequence[Answer[Sums]]) -> Weights:
    """Return the weights of the question with the last layer that solves least squares on all sites' records.

    A class that no site has gets the score 0.
    """
    task.weights.weights(model).load_into(model)
    size, classes = _size(model, task.dims), len(task.classes)
    solution = least_squares((products_of(one.payload, size, classes, _FORM) for one in answers), None)
    solution = SHARPNESS * (solution - solution.mean(1, keepdim=True))
    basis = _basis(model, task)
    rows = solution[:-1] if basis is None else basis.double() @ solution[:-1]
    name, _ = last_layer(model)
    weights = dict(Weights.of(model).tensors)
    weights |= {f"{name}.weight": rows.T.float().contiguous(), f"{name}.bias": solution[-1].float()}
    return Weights(weights)


def _size(model: nn.Module, dims: int) -> int:
    """Return how many columns a factor has, with that of the constant, without those of labels."""
    most = last_layer(model)[1].in_features
    return 1 + (min(dims, most) or most)


def _basis(model: nn.Module, task: Head) -> Tensor | None:
    """Return what features are projected on, (D, dims) of length 1: the last layer's rows, then random directions."""
    layer = last_layer(model)[1]
    if not 0 < task.dims < layer.in_features:
        return None
    random = torch.randn(layer.in_features, task.dims, generator=stream(task.seed, "projection"))
    columns: Tensor = torch.cat([layer.weight.detach().cpu().float().T, random], 1)[:, : task.dims]
    lengths: Tensor = torch.linalg.vector_norm(columns, dim=0)
    return columns / lengths.clamp_min(torch.finfo(torch.float32).tiny)
