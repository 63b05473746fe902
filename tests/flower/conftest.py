"""Flower phones nobody from the tests; what the tests of this folder share."""

from __future__ import annotations

import os

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"  # read when flwr is imported
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import pytest

pytest.importorskip("flwr")

from fedcondense.data.images import Data, DataSet
from fedcondense.data.loading import load_data
from fedcondense.data.partitions import Partition, partition


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return load_data("digits")


@pytest.fixture(scope="session")
def held(digits: DataSet) -> Partition:
    """Three clients, label-skewed."""
    return partition(digits.train, 3, "dirichlet", alpha=0.5, seed=1)


@pytest.fixture(scope="session")
def train(digits: DataSet) -> Data:
    return digits.train


@pytest.fixture(scope="session")
def test(digits: DataSet) -> Data:
    return digits.test
