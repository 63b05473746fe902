"""Condensing: the loop for every objective and parametrization, what it starts from, costs, and resumes from."""

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing.holders import FixedSums, Own, Summed, add_up, sums
from fedcondense.condensing.loop import Loop
from fedcondense.condensing.planning import Plan, estimate, plan
from fedcondense.condensing.preparing import precision_of, prepare
from fedcondense.condensing.rate import Rate, rate_of
from fedcondense.condensing.running import Progress, condense, run
from fedcondense.condensing.starts import STARTS, Start
from fedcondense.data.shares import images_per_class

__all__ = [
    "STARTS",
    "Checkpoint",
    "FixedSums",
    "Loop",
    "Own",
    "Plan",
    "Progress",
    "Rate",
    "Start",
    "Summed",
    "add_up",
    "condense",
    "estimate",
    "images_per_class",
    "plan",
    "precision_of",
    "prepare",
    "rate_of",
    "run",
    "sums",
]
