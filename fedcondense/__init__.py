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
    from fedcondense.condensing import Plan, Progress, condense, plan
    from fedcondense.condensing.starts import STARTS
    from fedcondense.data import AUGMENTATIONS
    from fedcondense.data.given import as_data
    from fedcondense.data.images import Data, DataSet, Spec
    from fedcondense.data.loading import load_data
    from fedcondense.data.partitions import Partition, partition
    from fedcondense.data.sites import load_sites
    from fedcondense.errors import FedcondenseError
    from fedcondense.loggers import LOGGERS, Logger, logged
    from fedcondense.networks import NETWORKS
    from fedcondense.networks.exported import export_network
    from fedcondense.networks.saved import load_network
    from fedcondense.objectives import OBJECTIVES
    from fedcondense.parametrizations import PARAMETRIZATIONS
    from fedcondense.sets.codecs import CODECS
    from fedcondense.sets.exchange import export, import_tensors
    from fedcondense.sets.fitting import Within
    from fedcondense.sets.format import Limits
    from fedcondense.sets.selection import SELECTIONS, select
    from fedcondense.sets.synthetic import SyntheticSet
    from fedcondense.sets.zoo import load_set, ready_sets
    from fedcondense.training.evaluation import Evaluation, evaluate
    from fedcondense.training.fit import Fit
    from fedcondense.training.labels import relabel
    from fedcondense.training.protocols import PROTOCOLS, Protocol
    from fedcondense.training.ready import train
    from fedcondense.training.scores import score

__version__ = "0.1.0"

_HOMES = {
    "AUGMENTATIONS": "data",
    "CODECS": "sets.codecs",
    "Checkpoint": "condensing",
    "Data": "data.images",
    "DataSet": "data.images",
    "Evaluation": "training.evaluation",
    "FedcondenseError": "errors",
    "Fit": "training.fit",
    "Limits": "sets.format",
    "LOGGERS": "loggers",
    "Logger": "loggers",
    "NETWORKS": "networks",
    "OBJECTIVES": "objectives",
    "PARAMETRIZATIONS": "parametrizations",
    "PROTOCOLS": "training.protocols",
    "Partition": "data.partitions",
    "Plan": "condensing",
    "Progress": "condensing",
    "Protocol": "training.protocols",
    "SELECTIONS": "sets.selection",
    "STARTS": "condensing",
    "Spec": "data.images",
    "SyntheticSet": "sets.synthetic",
    "Within": "sets.fitting",
    "as_data": "data.given",
    "condense": "condensing",
    "evaluate": "training.evaluation",
    "export": "sets.exchange",
    "export_network": "networks.exported",
    "import_tensors": "sets.exchange",
    "load_data": "data.loading",
    "load_network": "networks.saved",
    "load_set": "sets.zoo",
    "load_sites": "data.sites",
    "logged": "loggers",
    "partition": "data.partitions",
    "plan": "condensing",
    "ready_sets": "sets.zoo",
    "relabel": "training.labels",
    "score": "training.scores",
    "select": "sets.selection",
    "train": "training.ready",
}

__all__ = [
    "AUGMENTATIONS",
    "CODECS",
    "LOGGERS",
    "NETWORKS",
    "OBJECTIVES",
    "PARAMETRIZATIONS",
    "PROTOCOLS",
    "SELECTIONS",
    "STARTS",
    "Checkpoint",
    "Data",
    "DataSet",
    "Evaluation",
    "FedcondenseError",
    "Fit",
    "Limits",
    "Logger",
    "Partition",
    "Plan",
    "Progress",
    "Protocol",
    "Spec",
    "SyntheticSet",
    "Within",
    "as_data",
    "condense",
    "evaluate",
    "export",
    "export_network",
    "import_tensors",
    "load_data",
    "load_network",
    "load_set",
    "load_sites",
    "logged",
    "partition",
    "plan",
    "ready_sets",
    "relabel",
    "score",
    "select",
    "train",
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
