"""How real and synthetic data are compared, by name: settings with pure functions."""

from fedcondense.contract import Objective
from fedcondense.objectives.characteristic import CharacteristicFunction
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.gradient import AbsoluteGradientMatching, GradientMatching
from fedcondense.objectives.kernel import FeatureRegression, KernelRegression
from fedcondense.objectives.mmd import KernelMeans
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.objectives.unrolled import UnrolledTraining

__all__ = ["DEFAULT_OBJECTIVE", "OBJECTIVES", "recorded"]

OBJECTIVES: dict[str, Objective] = {
    "dm": DistributionMatching(),
    "dc": GradientMatching(siamese=False),
    "dsa": GradientMatching(siamese=True),
    "ridge": RidgeRegression(),
    "dm-ridge": means_and_ridge(),
    "mmd": KernelMeans(),
    "ncfm": CharacteristicFunction(),
    "kip": KernelRegression(),
    "frepo": FeatureRegression(),
    "dd": UnrolledTraining(),
    "idc": AbsoluteGradientMatching(),
    "mtt": TrajectoryMatching(),
    "mtt-recompute": TrajectoryMatching(gradient="recompute"),
    "tesla": TrajectoryMatching(gradient="direct"),
}
"""What `condense`, the Flower client and the command line may name; a user adds a line with an objective."""

DEFAULT_OBJECTIVE = "dm-ridge"

_SHIPPED = dict(OBJECTIVES)


def recorded(objective: Objective) -> str:
    """Return what a set's record says of an objective: the toolkit's name for its own, else the repr, all settings.

    >>> recorded(OBJECTIVES["dm"]), recorded(DistributionMatching(per_class=64))
    ('dm', "DistributionMatching(layer='embedding', per_class=64, relative=False)")
    """
    return next((name for name, shipped in _SHIPPED.items() if shipped == objective), repr(objective))
