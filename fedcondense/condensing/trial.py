"""What codes are expected to take in a codec before they are condensed, by a trial set that is as rough as they get."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.condensing.rate import Expected
from fedcondense.condensing.starts import Start
from fedcondense.contract import Holder, Parametrization
from fedcondense.data.images import Data
from fedcondense.randomness import stream
from fedcondense.sets.codecs import codec_named
from fedcondense.sets.coded import encode
from fedcondense.sets.parts import to_storage
from fedcondense.sets.recoding import takes_codecs

__all__ = ["on_trial"]

_NOISE, _LOUDEST = 0.8, 0.2
"""What matching adds to a start: noise of this part of a pixel's deviation within its class, itself at most the second
number. Chosen on the ready sets; its error on four data sets is measured in `experiments/coded.md`."""

_FEW, _MORE = 1, 4  # images per class of the two trial sets
_RECORDS = 500  # of a class: more tell hardly more


@in_own_state
def on_trial(
    holder: Holder, records: Data, parametrization: Parametrization, start: Start, seed: int
) -> Callable[[str], Expected] | None:
    """Return what tells the bytes that codes are expected to take in a codec, by its name; None where none takes them.

    Two sets of one and four images per class are drawn as a run's start is, get noise, and are encoded.

    Args:
        holder: Whose data will be condensed.
        records: The records that it shows; none, where it shows none.
        parametrization: Of the codes.
        start: What codes start from.
        seed: The run's.
    """
    if not takes_codecs(parametrization):
        return None
    records = _some(records)
    present = [int(n > 0) for n in holder.counts.tolist()]
    generator = stream(seed, "trial")
    with torch.autocast(records.device.type, enabled=False), torch.autocast("cpu", enabled=False):
        codes, labels = _codes(records, parametrization, start, [_MORE * n for n in present], generator)
    rows = torch.cat([(labels == c).nonzero().flatten()[:_FEW] for c in labels.unique()])

    @lru_cache
    def expected(codec: str) -> Expected:
        packs = codec_named(codec)
        if packs is None:
            return Expected(0.0, sum(code[0].numel() for code in codes.values()))
        sizes = []
        for kept in (rows, torch.arange(len(labels))):
            coded = encode({name: code[kept] for name, code in codes.items()}, labels[kept], packs)
            sizes.append(sum(len(one.to_bytes()) for one in coded.stored.values()))
        each = (sizes[1] - sizes[0]) / max(1, len(labels) - len(rows))
        return Expected(max(0.0, sizes[0] - each * len(rows)), each)

    return expected


def _codes(
    records: Data, parametrization: Parametrization, start: Start, stored: Sequence[int], generator: torch.Generator
) -> tuple[dict[str, Tensor], Tensor]:
    """Return codes of a start with noise, as they would be stored, and the label of each stored image."""
    counts = [parametrization.start_count(n) if n else 0 for n in stored]
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    targets = torch.nn.functional.one_hot(labels, len(counts)).float()
    codes, kept = parametrization.encode(start(records, counts, generator).cpu(), targets)
    deviations, _ = parametrization.encode(_deviations(records)[labels], targets)
    for name, code in codes.items():
        code.add_(_NOISE * deviations[name] * torch.randn(code.shape, generator=generator)).clamp_(0, 1)
    stored_codes, stored_labels = to_storage(codes, kept, parametrization)
    return dict(stored_codes), stored_labels.long()


def _some(records: Data) -> Data:
    """Return the first records of each class."""
    labels = records.labels.cpu()
    return records.subset(
        torch.cat([(labels == c).nonzero().flatten()[:_RECORDS] for c in labels.unique()] or [labels])
    )


def _deviations(records: Data) -> Tensor:
    """Return the deviation of each pixel within each class, (K, C, H, W); zero where there are not two records."""
    found = []
    for c in range(len(records.spec.classes)):
        mine = records.images[records.labels == c].cpu().float() / 255
        found.append(mine.std(0).clamp_max(_LOUDEST) if len(mine) > 1 else torch.zeros(records.spec.shape))
    return torch.stack(found)
