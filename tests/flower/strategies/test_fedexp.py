from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from fedcondense.flower.hosts.inprocess import task_identity
from fedcondense.flower.strategies.fedexp import FedExP


def combined(before: dict[str, Any], sites: Sequence[dict[str, Any]], counts: Sequence[int]) -> dict[str, NDArray[Any]]:
    """Return what a round makes of weights that sites have changed."""
    strategy = FedExP(fraction_train=0.0)
    with task_identity():
        strategy.configure_train(1, _record(before), ConfigRecord(), cast(Grid, None))
        replies = []
        for site, n in zip(sites, counts, strict=True):
            content = RecordDict({"arrays": _record(site), "metrics": MetricRecord({"num-examples": n})})
            replies.append(Message(content, dst_node_id=1, message_type="train"))
        arrays, _ = strategy.aggregate_train(1, replies)
    assert arrays is not None
    return {name: array.numpy() for name, array in arrays.items()}


def _record(values: dict[str, Any]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.asarray(value, np.float32)) for name, value in values.items()})


class TestFedExP:
    def test_opposed_changes_are_gone_further_along_what_they_share(self) -> None:
        """Changes (3, 1) and (-1, 1) of equal sites: mean (1, 1); lengths 10 and 2, their mean 6 by twice 2."""
        moved = combined({"w": [0.0, 0.0]}, [{"w": [3.0, 1.0]}, {"w": [-1.0, 1.0]}], [5, 5])
        np.testing.assert_allclose(moved["w"], [1.5, 1.5])

    def test_sites_weigh_by_their_records(self) -> None:
        """Mean (2, 1), squared 5; lengths 3/4 of 10 and 1/4 of 2 make 8: 8 / (2 * 5) is less than the average's own."""
        moved = combined({"w": [1.0, 1.0]}, [{"w": [4.0, 2.0]}, {"w": [0.0, 2.0]}], [15, 5])
        np.testing.assert_allclose(moved["w"], [3.0, 2.0])

    def test_all_layers_go_as_far(self) -> None:
        before = {"a": [0.0], "b": [[0.0, 0.0]]}
        moved = combined(before, [{"a": [1.0], "b": [[3.0, 0.0]]}, {"a": [1.0], "b": [[-3.0, 0.0]]}], [1, 1])
        np.testing.assert_allclose(moved["a"], [5.0])
        np.testing.assert_allclose(moved["b"], [[0.0, 0.0]])

    @pytest.mark.parametrize("name", ["norm.running_mean", "norm.running_var", "norm.num_batches_tracked"])
    def test_statistics_of_batch_normalisation_are_averaged(self, name: str) -> None:
        before = {"w": [0.0, 0.0], name: [1.0]}
        sites = [{"w": [3.0, 1.0], name: [0.2]}, {"w": [-1.0, 1.0], name: [0.0]}]
        moved = combined(before, sites, [5, 5])
        np.testing.assert_allclose(moved["w"], [1.5, 1.5])
        np.testing.assert_allclose(moved[name], [0.1], rtol=1e-6)

    def test_no_change_is_none(self) -> None:
        np.testing.assert_array_equal(combined({"w": [2.0]}, [{"w": [2.0]}, {"w": [2.0]}], [1, 3])["w"], [2.0])
