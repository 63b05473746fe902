"""What probabilities are worth beyond accuracy, which misleads where classes are rare: per class, and calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from fedcondense.ambient import in_own_state
from fedcondense.data.images import Data
from fedcondense.data.vocabulary import by_name
from fedcondense.errors import SettingError
from fedcondense.networks.saved import SavedNetwork

__all__ = ["ClassScore", "Scores", "score", "scores_of", "wilson"]

_NORMAL = 1.959963984540054  # of 95 percent, two-sided
_BINS = 15  # of confidence, equally wide: as usual for the expected calibration error


def wilson(right: int, count: int) -> tuple[float, float]:
    """Return the 95 percent interval of a share after Wilson (1927), in percent; it stays sound near 0 and 100.

    >>> [round(end, 1) for end in wilson(9, 10)]
    [59.6, 98.2]
    """
    if not count:
        return 0.0, 100.0
    share, z2 = right / count, _NORMAL**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _NORMAL / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)


@dataclass(frozen=True)
class ClassScore:
    """One class against all others, in percent; None where the records cannot say.

    Args:
        name: Of the class.
        records: How many of it were tested.
        sensitivity: Share of them that were called so (recall).
        sensitivity_interval: Its 95 percent interval (`wilson`).
        specificity: Share of the others that were not called so.
        specificity_interval: Likewise.
        auroc: Area under the receiver operating characteristic by the class's probability, 0 to 1.
    """

    name: str
    records: int
    sensitivity: float | None
    sensitivity_interval: tuple[float, float] | None
    specificity: float | None
    specificity_interval: tuple[float, float] | None
    auroc: float | None


@dataclass(frozen=True)
class Scores:
    """What a network's probabilities are worth on labelled records.

    Args:
        records: How many were tested.
        accuracy: Share that was called right, in percent.
        accuracy_interval: Its 95 percent interval (`wilson`).
        balanced_accuracy: Mean sensitivity over the classes that occur, in percent.
        calibration_error: Expected calibration error over 15 bins of confidence (Guo et al., ICML 2017,
            https://arxiv.org/abs/1706.04599), in percent: how far a stated probability is from how often it is right.
        classes: One class each.
        confusion: Of each class (rows) how many were called what (columns).
    """

    records: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    balanced_accuracy: float
    calibration_error: float
    classes: tuple[ClassScore, ...]
    confusion: tuple[tuple[int, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, rounded to what is meaningful."""
        found: dict[str, Any] = _rounded(asdict(self))
        return found


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


@in_own_state
def scores_of(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> Scores:
    """Score probabilities (N, K) against labels (N,), which index the names of the K classes.

    Raises:
        SettingError: There is nothing to score, or the shapes do not fit.
    """
    if probabilities.shape != (len(labels), len(classes)) or not len(labels):
        given = f"{tuple(probabilities.shape)} probabilities, {len(labels)} labels, {len(classes)} classes"
        raise SettingError(f"{given}; needed: (N, K), N labels of 1 or more records and K names")
    probabilities, labels = probabilities.detach().cpu().double(), labels.cpu()
    confidence, called = probabilities.max(1)
    right = called == labels
    count = len(classes)
    confusion = torch.bincount(labels * count + called, minlength=count**2).view(count, count)
    bins = (confidence * _BINS).long().clamp(0, _BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64).index_add(0, bins, right.double() - confidence)
    found = tuple(_of_class(c, name, confusion, probabilities, labels) for c, name in enumerate(classes))
    known = [one.sensitivity for one in found if one.sensitivity is not None]
    return Scores(
        len(labels),
        100 * float(right.double().mean()),
        wilson(int(right.sum()), len(labels)),
        sum(known) / len(known),
        100 * float(gaps.abs().sum()) / len(labels),
        found,
        tuple(map(tuple, confusion.tolist())),
    )


@in_own_state
def score(network: SavedNetwork, data: Data) -> Scores:
    """Score a network on labelled images, whose classes are matched by name.

    Args:
        network: As `load_network` returns it.
        data: Of the network's image shape.

    Raises:
        DataError: The data have a class that the network does not know.
    """
    known = by_name(data, network.classes)
    return scores_of(network.probabilities(known.images), known.labels, network.classes)


def _of_class(c: int, name: str, confusion: Tensor, probabilities: Tensor, labels: Tensor) -> ClassScore:
    from sklearn.metrics import roc_auc_score

    own = int(confusion[c].sum())
    others = len(labels) - own
    hit = int(confusion[c, c])
    spared = others - int(confusion[:, c].sum()) + hit
    both = own > 0 and others > 0
    return ClassScore(
        name,
        own,
        100 * hit / own if own else None,
        wilson(hit, own) if own else None,
        100 * spared / others if others else None,
        wilson(spared, others) if others else None,
        float(roc_auc_score((labels == c).numpy(), probabilities[:, c].numpy())) if both else None,
    )
