"""Who answers for the real data: their owner, or class sums that several owners added up without showing a record.

Sums are added in fixed point. What a record adds is rounded to a multiple of 2**-24 by itself, and whole numbers add up
to the same in any order and grouping, so the division of records among sites leaves no trace in a set. This holds bit
for bit where all sites compute a record's features alike: the same kind of processor, torch and number of threads.
Elsewhere the last bits of features differ, and sums by about 1e-6 of a feature for each record.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedcondense.ambient import in_own_state
from fedcondense.arguments import device_of
from fedcondense.contract import Draw, Holder, Objective
from fedcondense.data.given import as_data
from fedcondense.data.images import Batch, Data, Spec
from fedcondense.errors import DataError, SettingError
from fedcondense.objectives import OBJECTIVES, recorded
from fedcondense.objectives.features import ClassSums, SumObjective

__all__ = ["FixedSums", "Own", "Summed", "add_up", "held_by", "sums"]

_UNIT = 2**24  # what one is in fixed point: float32 resolves about as much of a feature near one
_AT_ONCE = 32  # records that pass a network together, always as many: what kernels compute depends on a batch's shape
_LARGEST = 2**62  # of a sum; int64 holds twice as much


class Own:
    """The owner of data, who answers every objective and lets networks be trained on them.

    Args:
        data: The real images.
    """

    def __init__(self, data: Data) -> None:
        self.data = data

    def __repr__(self) -> str:
        return f"Own({self.data!r})"

    @property
    def spec(self) -> Spec:
        """What the images are."""
        return self.data.spec

    @property
    def counts(self) -> Tensor:
        """How many images each class has, (K,) int64 on the CPU."""
        return self.data.counts

    @property
    def device(self) -> torch.device:
        """Where the images are."""
        return self.data.device

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits: equal data, equal text."""
        return self.data.fingerprint

    @in_own_state
    def observe(self, objective: Objective, draw: Draw) -> Any:
        """Return what `objective` needs of these data for `draw`."""
        with torch.no_grad():
            return objective.observe(draw, self.data)


def held_by(holder: Any, device: torch.device | str | None = None) -> Holder:
    """Return a holder as it is, and data as their owner's.

    Args:
        holder: Data, what `as_data` makes data of, or who answers for them.
        device: Where data are taken; None: where they are.

    Raises:
        SettingError: There is no such device, or another holder answers on another one.
        DataError: It is neither.
    """
    if isinstance(holder, tuple) and any(isinstance(part, Data) for part in holder):
        raise SettingError("a pair of Data to condense; needed: one of them, as load_data(...).train")
    if isinstance(holder, Own) or not hasattr(holder, "observe"):
        data = holder.data if isinstance(holder, Own) else as_data(holder)
        return Own(data if device is None else data.to(device))
    answers: Holder = holder
    if device is not None and str(device).partition(":")[0] != answers.device.type:
        raise SettingError(f"device {str(device)!r}, but {answers!r} answers on {answers.device}; leave the device out")
    return answers


class FixedSums(NamedTuple):
    """Class sums in whole numbers: they add up to the same bits in any order."""

    sums: Tensor  # (K, D) int64, in units of 2**-24
    counts: Tensor  # (K,) int64, how many records each holds

    def floats(self, device: torch.device) -> ClassSums:
        """Return the sums as objectives take them, float32."""
        return ClassSums((self.sums.double() / _UNIT).float().to(device), self.counts.float().to(device))


@in_own_state
@torch.no_grad()
def sums(objective: Objective, draw: Draw, data: Data) -> FixedSums:
    """Sum what an objective keeps of each record by class, in fixed point; on the CPU.

    Costs a forward pass over all records: a sample, such as `per_class`, would depend on how they are divided. A sum of
    few records shows nearly what their features are, and of one record all of it: send none of small classes.

    Args:
        objective: One that keeps sums, such as ``dm`` or ``ncfm``.
        draw: From `Pool.entry`, the same at every site.
        data: The records of a site; classes may be absent, and so may all of them.

    Raises:
        SettingError: The objective keeps something else, or the network is one whose features depend on a batch.
        DataError: Features are not finite, or too large to be summed.
    """
    summed = _of_sums(objective)
    network: nn.Module = draw.network
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
        raise SettingError(
            "batch norm makes a record's features depend on the records beside it, so sums would depend on the "
            "division; take a network of another norm, such as convnet3-w32"
        )
    draw = draw._replace(network=network.to(data.device))
    index = torch.arange(len(data), device="cpu")
    at_once = _AT_ONCE if _is_apart(summed, draw, data, index[:_AT_ONCE]) else 1
    total: Tensor | None = None
    for piece in index.split(at_once):
        fixed = _rounded(_added_by(summed, draw, data, piece, at_once), len(data))
        if total is None:
            total = fixed.new_zeros(len(data.spec.classes), fixed.shape[1])
        total.index_add_(0, data.labels[piece.to(data.device)], fixed)
    assert total is not None  # no records are split into one piece of none
    return FixedSums(total.cpu(), data.counts)


@in_own_state
def add_up(pieces: Iterable[FixedSums]) -> FixedSums:
    """Add the sums of several sites, in any order; sites may lack classes, or all records.

    Raises:
        DataError: There are none, or they are of different widths or numbers of classes, or too large.
    """
    pieces = list(pieces)
    if len({tuple(piece.sums.shape) for piece in pieces}) != 1:
        shapes = ", ".join(str(tuple(piece.sums.shape)) for piece in pieces) or "none"
        raise DataError(f"sums of shapes {shapes}; needed: one or more, all of one shape (classes, features)")
    largest = sum(max(-int(piece.sums.min()), int(piece.sums.max())) for piece in pieces)
    if largest > _LARGEST:
        raise DataError(f"sums of up to {largest / _UNIT:g} in all; needed: at most {_LARGEST / _UNIT:g}")
    return FixedSums(*(torch.stack(column).sum(0) for column in zip(*pieces, strict=True)))


class Summed:
    """Answers for records of several sites by class sums alone: nobody hands out a record or trains on one.

    Condense with the pool that the sums are of, ``source=Pool(..., size=len(sites[0]), seed=seed)``; the start is grey.

    Args:
        spec: What the images are; all sites have the same classes.
        objective: Which the sums are of.
        seed: Of the pool.
        sites: For each site its sums, by the number of the pool's entry: 0 up to the pool's size less one.
        device: Where to answer.

    Raises:
        SettingError: The objective keeps more than sums.
        DataError: A site lacks an entry, or its entries are of different records or shapes.
    """

    data = None  # nobody sees a record

    def __init__(
        self,
        spec: Spec,
        objective: Objective,
        seed: int,
        sites: Sequence[Mapping[int, FixedSums]],
        device: torch.device | str = "cpu",
    ) -> None:
        self.spec, self.objective, self.seed, self.device = spec, _of_sums(objective), seed, device_of(device)
        if not sites or not sites[0] or any(set(site) != set(range(len(sites[0]))) for site in sites):
            told = "; ".join(str(sorted(site)) for site in sites[:3])
            raise DataError(f"sums of entries {told}; needed: of each site those of entries 0, 1, ... of one pool")
        for site in sites:
            if any(not torch.equal(one.counts, site[0].counts) for one in site.values()):
                raise DataError("a site's sums are of different records in each entry; needed: all records in each")
        self.totals = [add_up(site[number] for site in sites) for number in range(len(sites[0]))]
        self.counts = self.totals[0].counts
        if len(self.counts) != len(spec.classes):
            raise DataError(f"sums of {len(self.counts)} classes; needed: {len(spec.classes)}, as {spec.name} has")

    def __repr__(self) -> str:
        return f"Summed({self.spec.name}, {recorded(self.objective)}, {len(self.totals)} entries of pool {self.seed})"

    @property
    def fingerprint(self) -> str:
        """Sixteen hex digits of the SHA-256 of all sums: equal sums, equal text, however they were divided."""
        digest = hashlib.sha256(f"{self.objective!r} {self.seed}".encode())
        for total in self.totals:
            digest.update(total.counts.numpy().tobytes() + total.sums.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @in_own_state
    def observe(self, objective: Objective, draw: Draw) -> Any:
        """Return what the objective would have kept of all records together.

        Raises:
            SettingError: The sums are of another objective or pool.
        """
        summed = _of_sums(objective)
        if objective != self.objective:
            raise SettingError(f"sums of {recorded(self.objective)}, asked for {recorded(objective)}; take the former")
        size = len(self.totals)
        if draw.key not in {(self.seed, number) for number in range(size)}:
            raise SettingError(
                f"sums of the {size} entries of the pool with seed {self.seed}, asked for {draw.key}; condense with "
                f"source=Pool(..., size={size}, seed={self.seed})"
            )
        _, number = draw.key
        return summed.from_sums(self.totals[number].floats(self.device))


def _of_sums(objective: Objective) -> SumObjective:
    """Return an objective that keeps sums, or say what it keeps."""
    if not isinstance(objective, SumObjective):
        able = ", ".join(name for name, one in OBJECTIVES.items() if one.keeps == "sums")
        raise SettingError(
            f"{recorded(objective)} keeps {objective.keeps} of the real data, not class sums; those that do: {able}"
        )
    return objective


def _added_by(objective: SumObjective, draw: Draw, data: Data, index: Tensor, at_once: int) -> Tensor:
    """Return what some records add to their class, (N, D), computed in a batch of `at_once` whatever N is."""
    batch = data.batch(index)
    fill = at_once - len(index)
    images, targets = F.pad(batch.images, (0, 0) * 3 + (0, fill)), F.pad(batch.targets, (0, 0, 0, fill))
    with torch.autocast(data.device.type, enabled=False):
        return objective.added_by(objective.rows(draw, Batch(images, targets)))[: len(index)]


def _is_apart(objective: SumObjective, draw: Draw, data: Data, index: Tensor) -> bool:
    """Say whether records add the same bits at another place among others; where not, each is computed by itself."""
    forth, back = (_added_by(objective, draw, data, order, _AT_ONCE) for order in (index, index.flip(0)))
    return torch.equal(forth, back.flip(0))


def _rounded(added: Tensor, records: int) -> Tensor:
    """Return (N, D) int64 in units of 2**-24, of which any `records` add up without an overflow."""
    most = _LARGEST / _UNIT / max(1, records)
    largest = float(added.abs().amax()) if added.numel() else 0.0
    if not largest <= most:
        raise DataError(
            f"a feature of {largest:g} among {records} records; sums hold up to {most:g} for each: take a network with "
            "a norm, such as convnet3-w32"
        )
    return (added.double() * _UNIT).round().long()
