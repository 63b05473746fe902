"""FedExP: the server goes further than the average where sites disagree; it asks nothing more of them.

The mean of changes that point in many directions is short. FedExP (Jhunjhunwala, Wang and Joshi, ICLR 2023,
https://arxiv.org/abs/2301.09604) goes so many times as far:

    max(1, sum_i p_i |d_i|^2 / (2 |sum_i p_i d_i|^2))

with the change d_i of site i and its share p_i of the records. It costs no byte and has no setting.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

__all__ = ["FedExP"]

_LOG = logging.getLogger("flwr")  # Flower's own: what it shows, it shows of us

_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # torch's; beyond a variance may be none


class FedExP(FedAvg):
    """FedAvg with the step size of FedExP; its arguments are those of `FedAvg`.

    Statistics of batch normalisation are averaged. Costs, beside FedAvg, a pass over the weights of each site.
    """

    current_arrays: ArrayRecord | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; what goes down is what changes are counted from."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Average, and go as many times as far from where the round began."""
        replies = list(replies)
        averaged, metrics = super().aggregate_train(server_round, replies)
        if averaged is None or self.current_arrays is None:
            return averaged, metrics
        before = {name: array.numpy() for name, array in self.current_arrays.items() if not name.endswith(_STATISTICS)}
        contents = [reply.content for reply in replies if reply.has_content()]
        weights = np.array([next(iter(one.metric_records.values()))[self.weighted_by_key] for one in contents], float)
        lengths = np.array([_length(before, next(iter(one.array_records.values()))) for one in contents])
        mean, length = float(weights @ lengths / weights.sum()), _length(before, averaged)
        times = max(1.0, mean / (2 * length)) if length else 1.0
        _LOG.info("FedExP: %.2f times as far as the average", times)
        further = {name: Array(old + times * (averaged[name].numpy() - old)) for name, old in before.items()}
        return ArrayRecord({**averaged, **further}), metrics


def _length(before: Mapping[str, NDArray[np.floating]], after: ArrayRecord) -> float:
    """Return the squared length of a change."""
    return sum(float(np.square(after[name].numpy() - old, dtype=np.float64).sum()) for name, old in before.items())
