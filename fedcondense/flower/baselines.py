"""What a sceptic asks for first: closed-form statistics of random features instead of images, at the bytes they cost.

All clients share a frozen random network, by its seed, and send sums over their features once. Sums of any partition
give one model, so label skew costs these baselines nothing; what they cannot do is train another network end to end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor
from torch.nn import functional as F

from fedcondense.contract import Network
from fedcondense.data.images import Data
from fedcondense.errors import DataError
from fedcondense.flower.inprocess import NO_DATA, log_from, run_in_process
from fedcondense.flower.message import safe_text
from fedcondense.networks import build
from fedcondense.randomness import stream

__all__ = ["StatisticsRow", "feature_statistics", "make_statistics_client", "random_features", "ridge", "ridge_dims"]

STATISTICS = "query.statistics"
_SAMPLES = 20_000  # features drawn for the head of `feature_statistics`, all clients and classes together
_HEAD_STEPS = 500


class StatisticsRow(NamedTuple):
    """What one round of statistics gives."""

    accuracy: float  # percent
    per_class: tuple[float, ...]  # percent; nan for a class that the test data lack
    bytes_up: float  # mean over clients
    bytes_down: float


def random_features(data: Data, network: str, seed: int, dims: int = 0) -> Tensor:
    """Return what an untrained network's classifier would be fed, (N, D) float32 on the data's device.

    Args:
        data: The images.
        network: A name in `NETWORKS`.
        seed: Of the network and of the projection.
        dims: Project to so many dimensions by a random Gaussian matrix; 0 keeps all.
    """
    model = build(network, data.spec.shape, len(data.spec.classes), seed).to(data.device).eval()
    embed = cast(Network, model).features
    with torch.no_grad(), torch.autocast(data.device.type, enabled=False):
        pieces = [embed(data.batch(index).images) for index in torch.split(torch.arange(len(data)), 500)]
        features = torch.cat(pieces)
        if 0 < dims < features.shape[1]:
            projection = torch.randn(features.shape[1], dims, generator=stream(seed, "projection")) / dims**0.5
            features = features @ projection.to(features.device)
    return features


def make_statistics_client(load_partition: Callable[[Context], Data]) -> ClientApp:
    """Return a ClientApp that answers ``query.statistics`` with sums over random features.

    The message's ``config`` holds ``kind`` (``"ridge"`` or ``"feature-statistics"``), ``network``, ``seed``, ``dims``.
    """
    app = ClientApp()

    @app.query(STATISTICS.partition(".")[2])
    def answer(message: Message, context: Context) -> Message:
        config: Mapping[str, Any] = message.content.config_records["config"]
        data = load_partition(context)
        if not len(data):
            raise DataError(NO_DATA)
        kind = _gram if config["kind"] == "ridge" else _moments
        with torch.autocast(data.device.type, enabled=False):  # sums over all records need all the digits
            features = random_features(data, str(config["network"]), int(config["seed"]), int(config["dims"]))
            arrays = {name: Array(value) for name, value in kind(features, data).items()}
        metrics = MetricRecord({"num-examples": len(data)})
        return Message(RecordDict({"statistics": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)

    return app


def _gram(features: Tensor, data: Data) -> dict[str, np.ndarray]:
    """Return the Gram matrix of the features and a constant one, its upper triangle, and the products with labels."""
    features = torch.cat([features, features.new_ones(len(features), 1)], 1)
    targets = F.one_hot(data.labels, len(data.spec.classes)).float()
    gram = (features.T @ features).cpu()
    rows, columns = torch.triu_indices(*gram.shape)
    return {"gram": gram[rows, columns].numpy(), "products": (features.T @ targets).cpu().numpy()}


def _moments(features: Tensor, data: Data) -> dict[str, np.ndarray]:
    """Return each present class's label, count, mean and variances, in half precision as FedPFT sends them."""
    present = torch.where(data.counts > 0)[0]
    rows = [features[data.labels == int(c)] for c in present]
    return {
        "labels": present.numpy(),
        "counts": data.counts[present].numpy(),
        "means": torch.stack([row.mean(0) for row in rows]).half().cpu().numpy(),
        "variances": torch.stack([row.var(0, correction=0) for row in rows]).half().cpu().numpy(),
    }


def ridge_dims(nbytes: int, classes: int) -> int:
    """Return how many feature dimensions ridge statistics of at most `nbytes` bytes can have, at least 1.

    They take ``4 * ((d + 1) * (d + 2) / 2 + (d + 1) * classes)`` bytes.
    """
    dims = 1
    while 4 * ((dims + 2) * (dims + 3) // 2 + (dims + 2) * classes) <= nbytes:
        dims += 1
    return dims


def ridge(
    train: Data,
    partition: Sequence[Tensor],
    test: Data,
    network: str,
    *,
    seed: int = 0,
    dims: int = 0,
    strength: float = 1e-4,
) -> StatisticsRow:
    """Solve least squares on the clients' summed statistics: one classifier, whatever the partition (Fed3R, 2024).

    Args:
        train: All training data.
        partition: Indices into `train`, one tensor a client.
        test: What the classifier is tested on.
        network: A name in `NETWORKS`; its untrained features are used.
        seed: Of the network.
        dims: Feature dimensions; 0 takes all of the network's.
        strength: The ridge, as a share of the mean diagonal of the Gram matrix; a guess that is flat around itself.
    """
    replies, traffic = _ask(train, partition, {"kind": "ridge", "network": network, "seed": seed, "dims": dims})
    products = sum(torch.from_numpy(r["products"].numpy()).double() for r in replies)
    triangle = sum(torch.from_numpy(r["gram"].numpy()).double() for r in replies)
    assert isinstance(products, Tensor)
    assert isinstance(triangle, Tensor)
    size = len(products)
    gram = torch.zeros(size, size, dtype=torch.float64)
    rows, columns = torch.triu_indices(size, size)
    gram[rows, columns] = triangle
    gram = gram + gram.triu(1).T
    penalty = strength * gram.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    weights = torch.linalg.solve(gram + penalty, products).float()
    features = random_features(test, network, seed, dims).cpu()
    return _row(features @ weights[:-1] + weights[-1], test, traffic)


def feature_statistics(
    train: Data, partition: Sequence[Tensor], test: Data, network: str, *, seed: int = 0
) -> StatisticsRow:
    """Train a linear head on features drawn from each client's Gaussian a class, as FedPFT does (2402.01862).

    Diagonal covariances and one Gaussian a class, on the features of an untrained network where FedPFT has a pretrained
    one.

    Args:
        train: All training data.
        partition: Indices into `train`, one tensor a client.
        test: What the head is tested on.
        network: A name in `NETWORKS`.
        seed: Of the network, the draws and the head.
    """
    config: dict[str, str | int] = {"kind": "feature-statistics", "network": network, "seed": seed, "dims": 0}
    replies, traffic = _ask(train, partition, config)
    generator = stream(seed, "feature-statistics")
    total = sum(int(r["counts"].numpy().sum()) for r in replies)
    features, labels = [], []
    for reply in replies:
        means, variances = (torch.from_numpy(reply[k].numpy()).float() for k in ("means", "variances"))
        pairs = zip(reply["labels"].numpy().tolist(), reply["counts"].numpy().tolist(), strict=True)
        for i, (label, count) in enumerate(pairs):
            draws = max(1, round(count * min(1.0, _SAMPLES / total)))
            noise = torch.randn(draws, means.shape[1], generator=generator)
            features.append(means[i] + noise * variances[i].sqrt())
            labels.append(torch.full((draws,), label))
    weights, mean, std = _head(torch.cat(features), torch.cat(labels), len(train.spec.classes), generator)
    tested = (random_features(test, network, seed).cpu() - mean) / std
    return _row(tested @ weights[:-1] + weights[-1], test, traffic)


def _head(features: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Fit a linear classifier by Adam on standardised features; return (D+1, K) weights, mean and deviation."""
    mean, std = features.mean(0), features.std(0).clamp_min(1e-6)
    features = (features - mean) / std
    weights = torch.zeros(features.shape[1] + 1, classes, requires_grad=True)
    optimizer = torch.optim.Adam([weights], lr=0.01)
    for step in range(_HEAD_STEPS):
        optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / _HEAD_STEPS)
        index = torch.randint(len(features), (256,), generator=generator)
        loss = F.cross_entropy(features[index] @ weights[:-1] + weights[-1], labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
    return weights.detach(), mean, std


def _ask(
    train: Data, partition: Sequence[Tensor], config: Mapping[str, str | int]
) -> tuple[list[ArrayRecord], tuple[float, float]]:
    """Send one question to every client; return the statistics and the mean bytes a client (up, down)."""
    server = ServerApp()
    answers: list[Message] = []
    failed: list[Message] = []
    client = make_statistics_client(lambda context: train.subset(partition[int(context.node_config["partition-id"])]))

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        content = RecordDict({"config": ConfigRecord(dict(config))})
        messages = [Message(content, dst_node_id=node, message_type=STATISTICS) for node in grid.get_node_ids()]
        for reply in grid.send_and_receive(messages):
            (failed if reply.has_error() else answers).append(reply)

    with log_from(logging.ERROR):
        grid = run_in_process(server, client, len(partition))
    reasons = sorted({safe_text(reply.error.reason or "") for reply in failed})
    broken = [reason for reason in reasons if not reason.endswith(NO_DATA)]
    if broken:  # sums without a client that has data are another baseline
        raise DataError(f"a client failed to send statistics: {'; '.join(broken[:3])}")
    if not answers:
        raise DataError(f"no client sent statistics ({'; '.join(reasons[:3])}); at least one needs data")
    up, down = (
        sum(column) / len(partition) for column in zip(*((t.up, t.down) for t in grid.traffic.values()), strict=True)
    )
    return [answer.content.array_records["statistics"] for answer in answers], (up, down)


def _row(logits: Tensor, test: Data, traffic: tuple[float, float]) -> StatisticsRow:
    labels, classes = test.labels.cpu(), len(test.spec.classes)
    right = (logits.argmax(1) == labels).float()
    per_class = 100 * torch.bincount(labels, weights=right, minlength=classes) / test.counts
    return StatisticsRow(float(100 * right.mean()), tuple(per_class.tolist()), *traffic)
