"""How changes of weights are combined: by Flower's own strategies, of which the averaging alone is used."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

from flwr.app import ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAdam, FedAvg, FedAvgM, FedYogi
from torch import Tensor, nn

from fedcondense.flower.checked_grid import averageable, settled
from fedcondense.flower.contract import Answer
from fedcondense.flower.eight_bits import Packed, added
from fedcondense.flower.optimizer_state import held, hold
from fedcondense.flower.payloads import Weights
from fedcondense.flower.strategies.fedexp import FedExP

__all__ = ["AVERAGES", "averaged"]

AVERAGES: dict[str, Callable[..., FedAvg]] = {
    "fedavg": FedAvg,
    "fedavgm": partial(FedAvgM, server_momentum=0.5),
    "fedadam": partial(FedAdam, eta=0.003, tau=0.001),
    "fedyogi": partial(FedYogi, eta=0.003, tau=0.001),
    "fedexp": FedExP,
}
"""Flower's own strategies and `FedExP`, by name."""

_PREFIX = "average/"


def averaged(
    average: FedAvg,
    server_round: int,
    before: Weights,
    model: nn.Module,
    changes: Sequence[Answer[Packed]],
    tensors: Mapping[str, Tensor],
) -> tuple[Weights, dict[str, Tensor]]:
    """Let Flower's strategy combine the weights of sites, as replies to a ``train`` message.

    Args:
        average: Flower's strategy; what it keeps is taken from `tensors` and returned with them.
        server_round: As it counts them.
        before: Weights that went down.
        model: A network of theirs.
        changes: What sites changed in them.
        tensors: Of the state.
    """
    average.fraction_train = 0.0  # whom to ask is not its to say
    hold(average, {n.removeprefix(_PREFIX): t for n, t in tensors.items() if n.startswith(_PREFIX)})
    if isinstance(average, FedAvgM):
        average.current_arrays = None  # its own last average: the server has trained since
    average.configure_train(server_round, averageable(before.tensors), ConfigRecord(), cast(Grid, None))
    replies = []
    for answer in changes:
        trained = added(before.tensors, answer.payload.weights(model), model)
        metrics = MetricRecord({"num-examples": answer.num_examples})
        content = RecordDict({"arrays": averageable(trained.tensors), "metrics": metrics})
        replies.append(Message(content, dst_node_id=answer.site.node, message_type="train"))
    arrays, _ = average.aggregate_train(server_round, replies)
    assert arrays is not None
    kept: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith(_PREFIX)}
    kept |= {f"{_PREFIX}{name}": tensor for name, tensor in held(average).items() if "current_arrays" not in name}
    return settled(arrays, model), kept
