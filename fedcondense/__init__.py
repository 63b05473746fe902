"""fedcondense: dataset distillation as a library, for federated and continual learning.

>>> import fedcondense
>>> train, test = fedcondense.load_data("digits")
>>> synthetic = fedcondense.condense(train, ipc=1, steps=5)
>>> len(synthetic), synthetic.shape
(10, (1, 8, 8))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedcondense.checkpoints import Checkpoint
    from fedcondense.condensation import Progress, condense
    from fedcondense.data import Data, DataSet, Spec
    from fedcondense.datasets import load_data
    from fedcondense.errors import FedcondenseError
    from fedcondense.evaluation import Evaluation, evaluate
    from fedcondense.exchange import export, import_tensors
    from fedcondense.labels import relabel
    from fedcondense.networks import NETWORKS
    from fedcondense.objectives import OBJECTIVES
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.partitions import Partition, partition
    from fedcondense.planning import Plan, plan
    from fedcondense.selection import SELECTIONS, select
    from fedcondense.set_format import Limits
    from fedcondense.starts import STARTS
    from fedcondense.synthetic import SyntheticSet
    from fedcondense.training import Fit
    from fedcondense.zoo import load_set, ready_sets

__version__ = "0.1.0"

_HOMES = {
    "Checkpoint": "checkpoints",
    "Data": "data",
    "DataSet": "data",
    "Evaluation": "evaluation",
    "FedcondenseError": "errors",
    "Fit": "training",
    "Limits": "set_format",
    "NETWORKS": "networks",
    "OBJECTIVES": "objectives",
    "PARAMETRIZATIONS": "parametrizations",
    "Partition": "partitions",
    "Plan": "planning",
    "Progress": "condensation",
    "SELECTIONS": "selection",
    "STARTS": "starts",
    "Spec": "data",
    "SyntheticSet": "synthetic",
    "condense": "condensation",
    "evaluate": "evaluation",
    "export": "exchange",
    "import_tensors": "exchange",
    "load_data": "datasets",
    "load_set": "zoo",
    "partition": "partitions",
    "plan": "planning",
    "ready_sets": "zoo",
    "relabel": "labels",
    "select": "selection",
}

__all__ = [
    "NETWORKS",
    "OBJECTIVES",
    "PARAMETRIZATIONS",
    "SELECTIONS",
    "STARTS",
    "Checkpoint",
    "Data",
    "DataSet",
    "Evaluation",
    "FedcondenseError",
    "Fit",
    "Limits",
    "Partition",
    "Plan",
    "Progress",
    "Spec",
    "SyntheticSet",
    "condense",
    "evaluate",
    "export",
    "import_tensors",
    "load_data",
    "load_set",
    "partition",
    "plan",
    "ready_sets",
    "relabel",
    "select",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: ``fedcondense --help`` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fedcondense' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"fedcondense.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
