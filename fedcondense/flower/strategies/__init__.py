"""Strategies by name, and the tasks that their nodes answer: one file each, one line here."""

from fedcondense.flower.contract import Question
from fedcondense.flower.evaluating import Evaluate
from fedcondense.flower.strategies.analytic import ANALYTIC
from fedcondense.flower.strategies.anchored import ANCHORED
from fedcondense.flower.strategies.averaging import AVERAGING
from fedcondense.flower.strategies.dynafed import DYNAFED
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.feature_statistics import FEATURE_STATISTICS
from fedcondense.flower.strategies.fedaf import FEDAF
from fedcondense.flower.strategies.growing import GROWING
from fedcondense.flower.strategies.incremental import INCREMENTAL
from fedcondense.flower.strategies.iterative import ITERATIVE
from fedcondense.flower.strategies.one_shot import ONE_SHOT
from fedcondense.flower.strategies.ridge import RIDGE
from fedcondense.flower.strategies.selections import selection

__all__ = ["STRATEGIES", "TASKS", "Entry", "ServerSide"]

STRATEGIES: dict[str, Entry] = {
    "one-shot": ONE_SHOT,
    "anchored": ANCHORED,
    "growing": GROWING,
    "iterative": ITERATIVE,
    "fedaf": FEDAF,
    "dynafed": DYNAFED,
    "incremental": INCREMENTAL,
    "analytic": ANALYTIC,
    **AVERAGING,
    "random-real": selection("random", "random real"),
    "half-resolution-real": selection("half-resolution", "half-resolution real", "real images, half resolution"),
    "herding": selection("herding", "herding"),
    "k-center": selection("k-center", "k-center"),
    "k-means": selection("k-means", "k-means"),
    **RIDGE,
    "feature-statistics": FEATURE_STATISTICS,
}
"""What a run takes by name; one of your own: ``STRATEGIES["mine"] = Entry(...)``."""

TASKS: dict[str, type[Question]] = {
    Evaluate.name: Evaluate,
    **{kind.name: kind for entry in STRATEGIES.values() for kind in entry.tasks},
}
"""What a node answers, by the name that a message asks by; one of your own: `make_client_app(..., tasks=[Mine])`."""
