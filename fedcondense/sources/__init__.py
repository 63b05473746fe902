"""Where a step's network comes from: untrained, pooled, trained on synthetic or real images, near given weights."""

from fedcondense.sources.near import Near
from fedcondense.sources.online import OnlineTrained
from fedcondense.sources.passing import Passing
from fedcondense.sources.pools import Pool, TrainedPool
from fedcondense.sources.trained import TrainedOnReal, TrainedOnSynthetic
from fedcondense.sources.trajectories import Trajectories
from fedcondense.sources.untrained import Fresh, NoNetwork

__all__ = [
    "Fresh",
    "Near",
    "NoNetwork",
    "OnlineTrained",
    "Passing",
    "Pool",
    "TrainedOnReal",
    "TrainedOnSynthetic",
    "TrainedPool",
    "Trajectories",
]
