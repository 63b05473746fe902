"""How real and synthetic data are compared, by name: settings with pure functions."""

from fedcondense.contract import Objective
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.gradient import GradientMatching
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge

__all__ = ["DEFAULT_OBJECTIVE", "OBJECTIVES"]

OBJECTIVES: dict[str, Objective] = {
    "dm": DistributionMatching(),
    "dc": GradientMatching(siamese=False),
    "dsa": GradientMatching(siamese=True),
    "ridge": RidgeRegression(),
    "dm-ridge": means_and_ridge(),
}
"""What `condense`, the Flower client and the command line may name; a user adds a line with an objective."""

DEFAULT_OBJECTIVE = "dm-ridge"
