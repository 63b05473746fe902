"""Real data: images with labels, where they are loaded from, how they are augmented and divided among clients."""

from fedcondense.data.augment import AUGMENTATIONS, OPERATIONS, Augmentation
from fedcondense.data.catalogue import CATALOGUE
from fedcondense.data.given import as_data
from fedcondense.data.images import Data, DataSet, Spec
from fedcondense.data.items import from_dataset
from fedcondense.data.listing import Available, available
from fedcondense.data.loading import data_root, load_data, load_train
from fedcondense.data.partition import Partition, draw_partition
from fedcondense.data.partitions import PARTITIONS
from fedcondense.data.shares import Shares, images_per_class
from fedcondense.data.sites import load_sites

__all__ = [
    "AUGMENTATIONS",
    "CATALOGUE",
    "OPERATIONS",
    "PARTITIONS",
    "Augmentation",
    "Available",
    "Data",
    "DataSet",
    "Partition",
    "Shares",
    "Spec",
    "as_data",
    "available",
    "data_root",
    "draw_partition",
    "from_dataset",
    "images_per_class",
    "load_data",
    "load_sites",
    "load_train",
]
