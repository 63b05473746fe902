"""Training a network on a set, what a set is worth, and soft labels; on a GPU, steps as graphs."""

from fedcondense.training.evaluation import Evaluation, evaluate, evaluate_as_recorded, train_on
from fedcondense.training.fit import Fit, accuracy, fit_on
from fedcondense.training.labels import relabel
from fedcondense.training.protocols import PROTOCOLS, Protocol

__all__ = [
    "PROTOCOLS",
    "Evaluation",
    "Fit",
    "Protocol",
    "accuracy",
    "evaluate",
    "evaluate_as_recorded",
    "fit_on",
    "relabel",
    "train_on",
]
