"""What an evaluation found."""

from __future__ import annotations

import logging
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fedcondense.training.fit import Fit
from fedcondense.training.protocols import protocol_of

if TYPE_CHECKING:
    from fedcondense.data.images import Data
    from fedcondense.sets.synthetic import SyntheticSet

__all__ = ["Evaluation", "missing_classes"]

_LOG = logging.getLogger(__name__)
_NAMED = 10  # classes in a line


@dataclass(frozen=True)
class Evaluation:
    """Accuracy of networks trained from scratch on a set, and how they were trained.

    Args:
        accuracies: Percent, a network each.
        per_class: Percent, the mean over networks, by class of the test data; nan where it has no examples.
        network: Which network.
        recipe: How it was trained.
        seeds: One a network.
        weighted: Whether images counted by the records that they stand for.
        test: Name and number of the test images.
        seconds: All of it.
        missing: Classes of the test images of which the set has no image: all of their images count as wrong.
    """

    accuracies: tuple[float, ...]
    per_class: tuple[float, ...]
    network: str
    recipe: Fit
    seeds: tuple[int, ...]
    weighted: bool
    test: str
    seconds: float
    missing: tuple[str, ...] = ()

    @property
    def protocol(self) -> str:
        """The name in `PROTOCOLS` of what the recipe is; ``"own"`` where it is none of them."""
        return protocol_of(self.recipe)

    @property
    def accuracy(self) -> float:
        """The mean accuracy in percent."""
        return statistics.fmean(self.accuracies)

    @property
    def accuracy_std(self) -> float:
        """The standard deviation over networks, in points; 0 for one network."""
        return statistics.stdev(self.accuracies) if len(self.accuracies) > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: what the set's file records, and what `--format json` prints."""
        return {
            "accuracy": round(self.accuracy, 3),
            "accuracy_std": round(self.accuracy_std, 3),
            "accuracies": [round(a, 3) for a in self.accuracies],
            "network": self.network,
            "protocol": self.protocol,
            "recipe": {name: value for name, value in asdict(self.recipe).items() if name != "epochs" or value},
            "seeds": list(self.seeds),
            "weighted": self.weighted,
            "test": self.test,
            "seconds": round(self.seconds, 1),
        }


def missing_classes(synthetic: SyntheticSet, test: Data) -> tuple[str, ...]:
    """Return the classes of test images of which no image of a set has a share of its label, and tell the log."""
    targets = synthetic.pixels().targets
    there = {name for name, mass in zip(synthetic.classes, targets.sum(0).tolist(), strict=True) if mass > 0}
    counts = zip(test.spec.classes, test.counts.tolist(), strict=True)
    missing = tuple(name for name, count in counts if count and name not in there)
    if missing:
        rest = f" and {len(missing) - _NAMED} more classes" if len(missing) > _NAMED else ""
        _LOG.warning(
            "no image of %s in the set: networks do not learn %s, whose test images count as wrong",
            ", ".join(missing[:_NAMED]) + rest,
            "this class" if len(missing) == 1 else f"these {len(missing)} classes",
        )
    return missing
