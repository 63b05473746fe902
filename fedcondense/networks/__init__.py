"""Networks by name, with readable features: the ConvNet family of the field, others to test on, and any `nn.Module`."""

from fedcondense.networks.convnet import NORMS, ConvNet, pool2
from fedcondense.networks.headed import Headed
from fedcondense.networks.names import (
    NETWORKS,
    NetworkMaker,
    build,
    default_network,
    describe,
    is_shipped,
    named,
    network_kinds,
)
from fedcondense.networks.probing import probe

__all__ = [
    "NETWORKS",
    "NORMS",
    "ConvNet",
    "Headed",
    "NetworkMaker",
    "build",
    "default_network",
    "describe",
    "is_shipped",
    "named",
    "network_kinds",
    "pool2",
    "probe",
]
