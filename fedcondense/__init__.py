"""fedcondense: dataset distillation as a library, for federated and continual learning.

>>> import fedcondense
>>> train, test = fedcondense.load_data("digits")
>>> synthetic = fedcondense.condense(train, ipc=1, steps=5)
>>> len(synthetic), synthetic.shape
(10, (1, 8, 8))
"""

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensation import Progress, condense
from fedcondense.data import Data, DataSet, Spec
from fedcondense.datasets import load_data
from fedcondense.errors import FedcondenseError
from fedcondense.evaluation import Evaluation, evaluate
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

__version__ = "0.1.0"

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
    "load_data",
    "partition",
    "plan",
    "select",
]
