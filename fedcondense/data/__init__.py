"""Real data: images with labels, where they are loaded from, how they are augmented and divided among clients."""

from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.loading import load_data
from fedcondense.data.partition import Partition

__all__ = ["Data", "DataSet", "Partition", "Spec", "load_data"]
