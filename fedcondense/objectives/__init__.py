"""How real and synthetic data are compared, by name: settings with pure functions."""

from dataclasses import fields, is_dataclass, replace

from fedcondense.contract import Objective
from fedcondense.errors import SettingError
from fedcondense.objectives.characteristic import CharacteristicFunction
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.gradient import AbsoluteGradientMatching, GradientMatching
from fedcondense.objectives.kernel import FeatureRegression, KernelRegression
from fedcondense.objectives.mmd import KernelMeans
from fedcondense.objectives.mmd_ridge import KernelMeansAndRidge
from fedcondense.objectives.ridge import RidgeRegression, means_and_ridge
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.objectives.unrolled import UnrolledTraining

__all__ = ["DEFAULT_OBJECTIVE", "OBJECTIVES", "recorded", "with_learned_labels"]

OBJECTIVES: dict[str, Objective] = {
    "dm": DistributionMatching(),
    "dc": GradientMatching(siamese=False),
    "dsa": GradientMatching(siamese=True),
    "ridge": RidgeRegression(),
    "dm-ridge": means_and_ridge(),
    "mmd": KernelMeans(),
    "mmd-ridge": KernelMeansAndRidge(),
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

DEFAULT_OBJECTIVE = "mmd-ridge"

_SHIPPED = dict(OBJECTIVES)


def with_learned_labels(objective: Objective) -> Objective:
    """Return an objective that learns targets with the images.

    Raises:
        SettingError: It is taken class by class, which takes hard labels.
    """
    if not _can_learn_labels(objective):
        able = ", ".join(name for name, one in OBJECTIVES.items() if _can_learn_labels(one))
        raise SettingError(f"{recorded(objective)} cannot learn soft labels; objectives that can: {able}")
    return replace(objective, learn_labels=True)  # type: ignore[type-var]


def _can_learn_labels(objective: Objective) -> bool:
    return is_dataclass(objective) and any(field.name == "learn_labels" for field in fields(objective))


def recorded(objective: Objective) -> str:
    """Return what a set's record says of an objective: the toolkit's name for its own, else the repr, all settings.

    >>> recorded(OBJECTIVES["dm"]), recorded(DistributionMatching(per_class=64))
    ('dm', "DistributionMatching(layer='embedding', per_class=64, relative=False)")
    """
    return next((name for name, shipped in _SHIPPED.items() if shipped == objective), repr(objective))
