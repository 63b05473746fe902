"""Flower's own FedAvg on the same network, partition and seeds: what the one-shot sets have to be compared with."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.exception import AggregationError
from flwr.serverapp.strategy import FedAvg
from safetensors.torch import load, save
from torch import Tensor, nn
from torch.nn import functional as F

from fedcondense.data.images import Data
from fedcondense.errors import ResumeError, SettingError
from fedcondense.files import write_file
from fedcondense.flower.inprocess import CLIENT_RAISED, NO_DATA, InProcessGrid, log_from, run_in_process
from fedcondense.flower.message import safe_text
from fedcondense.networks import build
from fedcondense.randomness import stream
from fedcondense.training.fit import accuracy, autocast_of_caller

__all__ = ["FedAvgRow", "LocalTraining", "fedavg", "fingerprint", "make_fedavg_client", "train_locally"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalTraining:
    """How a FedAvg client trains between two rounds: SGD with momentum, which starts anew each round.

    Args:
        lr: Step size, constant.
        epochs: Passes over the client's data a round.
        batch: Images a step.
        momentum: As in most published FedAvg baselines.
    """

    lr: float = 0.05
    epochs: int = 1
    batch: int = 64
    momentum: float = 0.9


class FedAvgRow(NamedTuple):
    """Where FedAvg stands after so many rounds."""

    rounds: int
    accuracy: float  # percent
    per_class: tuple[float, ...]  # percent; nan for a class that the test data lack
    bytes_up: float  # mean over clients, all rounds so far
    bytes_down: float
    seconds: float  # wall clock, clients one after another
    failed: int = 0  # answers that were left out so far because a client failed, diverged say


def train_locally(network: nn.Module, data: Data, training: LocalTraining, generator: torch.Generator) -> float:
    """Train a network in place by plain SGD on cross-entropy; return the mean loss of the last epoch.

    Batches are gathered from the uint8 tensor on its device. A last batch of one image is left out where there are
    others: normalisation over a single value has no gradient.

    Raises:
        SettingError: The loss left the finite numbers; the step size is too large.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=training.lr, momentum=training.momentum)
    mean = torch.zeros((), device=data.device)
    for _ in range(training.epochs):
        losses, seen = torch.zeros((), device=data.device), 0
        for index in torch.split(torch.randperm(len(data), generator=generator), training.batch):
            if len(index) == 1 < len(data):
                continue
            images = data.batch(index).images
            with autocast_of_caller(data.device):
                logits = network(images)
            loss = F.cross_entropy(logits.float(), data.labels[index.to(data.device)])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            losses += loss.detach() * len(index)
            seen += len(index)
        mean = losses / max(seen, 1)
    if not torch.isfinite(mean):
        raise SettingError(f"local training diverged at lr {training.lr:g}; try a third of it")
    return float(mean)


def make_fedavg_client(train: Data, partition: Sequence[Tensor], network: str) -> ClientApp:
    """Return a ClientApp whose ``train`` is one round of local SGD on its partition.

    The message's ``config`` holds `LocalTraining`'s fields, ``seed`` and the round; a client's batches follow from
    (seed, partition, round) alone, so that neither the order nor the place of the clients matters.

    Args:
        train: All training data, on the device that the clients compute on.
        partition: Indices into `train`, by ``partition-id``.
        network: A name in `NETWORKS`.
    """
    app = ClientApp()

    @app.train()
    def local_round(message: Message, context: Context) -> Message:
        identifier = int(context.node_config["partition-id"])
        config: Mapping[str, Any] = message.content.config_records["config"]
        data = train.subset(partition[identifier])
        if not len(data):
            return Message(Error(CLIENT_RAISED, NO_DATA), reply_to=message)
        training = LocalTraining(
            float(config["lr"]), int(config["epochs"]), int(config["batch"]), float(config["momentum"])
        )
        number = int(config["rounds-before"]) + int(config["server-round"])
        model = build(network, train.spec.shape, len(train.spec.classes), 0).to(train.device)
        model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        loss = train_locally(model, data, training, stream(int(config["seed"]), "fedavg", identifier, number))
        metrics = MetricRecord({"num-examples": len(data), "loss": loss})
        return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)

    return app


def fedavg(
    train: Data,
    partition: Sequence[Tensor],
    test: Data,
    network: str,
    *,
    rounds: int = 20,
    training: LocalTraining = LocalTraining(),
    seed: int = 0,
    evaluate_at: Sequence[int] = (1, 5, 20),
    checkpoint: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, FedAvgRow]:
    """Run Flower's FedAvg over all clients in one process, over its real serialisation.

    Args:
        train: All training data, on the device that the clients compute on.
        partition: Indices into `train`, one tensor a client.
        test: What the server evaluates on, after the rounds asked for only.
        network: A name in `NETWORKS`; initialised from `seed`, the same for all clients.
        rounds: Communication rounds, every client in each.
        training: What a client does in a round.
        seed: Of the network and of every client's batches.
        evaluate_at: The rounds to report; the last round is reported in any case.
        checkpoint: A file that is replaced after each round, so that a killed run loses one round at most.
        resume: Go on from `checkpoint` where it exists.
        progress: Called with (rounds done, rounds) after each.

    Returns:
        A row for each reported round.

    Raises:
        AggregationError: All clients failed in a round.
        ResumeError: The checkpoint is of other settings, or damaged.
    """
    wanted = {r for r in evaluate_at if r <= rounds} | {rounds}
    settings = {
        "network": network,
        "training": asdict(training),
        "seed": seed,
        "data": train.fingerprint,
        "partition": fingerprint(partition),
    }
    state = _State.load(checkpoint, settings) if checkpoint and resume and checkpoint.exists() else None
    if state is None or any(r <= state.done and r not in state.rows for r in wanted):  # rounds that nobody tested then
        model = build(network, train.spec.shape, len(train.spec.classes), seed)
        state = _State(settings, dict(model.state_dict()), 0, {}, 0.0, 0.0, 0.0)
    if state.done >= rounds:
        return {r: row for r, row in state.rows.items() if r in wanted}
    first, started = state.done, time.perf_counter() - state.seconds
    before = (state.bytes_up, state.bytes_down)
    client = make_fedavg_client(train, partition, network)
    server = ServerApp()

    def after_round(grid: InProcessGrid, number: int, arrays: ArrayRecord) -> MetricRecord | None:
        if number == 0:  # Flower evaluates the start too
            return None
        state.done, state.weights = first + number, dict(arrays.to_torch_state_dict())
        state.bytes_up = before[0] + sum(t.up for t in grid.traffic.values()) / len(partition)
        state.bytes_down = before[1] + sum(t.down for t in grid.traffic.values()) / len(partition)
        metrics = None
        if state.done in wanted:
            model = build(network, train.spec.shape, len(train.spec.classes), seed).to(test.device)
            model.load_state_dict(state.weights)
            percent, per_class = accuracy(model, test)
            metrics = MetricRecord({"accuracy": percent})
            seconds = time.perf_counter() - started
            numbers = (state.bytes_up, state.bytes_down, seconds, state.failed)
            state.rows[state.done] = FedAvgRow(state.done, percent, tuple(per_class.tolist()), *numbers)
        state.seconds = time.perf_counter() - started
        if checkpoint:
            state.save(checkpoint)
        if progress:
            progress(state.done, rounds)
        return metrics

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, InProcessGrid)
        everyone = len(partition)
        strategy = _CountingFedAvg(state, fraction_evaluate=0.0, min_train_nodes=everyone, min_available_nodes=everyone)
        config = ConfigRecord({**asdict(training), "seed": seed, "rounds-before": first})
        strategy.start(
            grid,
            ArrayRecord(state.weights),
            rounds - first,
            train_config=config,
            evaluate_fn=partial(after_round, grid),
        )

    with log_from(logging.ERROR):
        run_in_process(server, client, len(partition))
    return {r: row for r, row in state.rows.items() if r in wanted}


class _CountingFedAvg(FedAvg):
    """FedAvg, which leaves out clients that fail, and here says so: an accuracy without them is another one."""

    def __init__(self, state: _State, **settings: Any) -> None:
        super().__init__(**settings)
        self.state = state

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Count and name those who failed, and average the others."""
        replies = list(replies)
        failed = [r.error.reason for r in replies if r.has_error() and r.error.reason != NO_DATA]
        if failed:
            self.state.failed += len(failed)
            left = sum(not r.has_error() for r in replies)
            text = f"FedAvg, round {server_round}: {len(failed)} clients failed, {left} are left; {failed[0]}"
            if not left:
                raise AggregationError(safe_text(text))
            _LOG.warning(safe_text(text))
        return super().aggregate_train(server_round, replies)


@dataclass
class _State:
    """What a resumed run needs: weights, rows so far, bytes and seconds spent."""

    settings: dict[str, Any]
    weights: dict[str, Tensor]
    done: int
    rows: dict[int, FedAvgRow]
    bytes_up: float
    bytes_down: float
    seconds: float
    failed: int = 0

    def save(self, path: Path) -> None:
        """Replace the checkpoint."""
        record = {k: v for k, v in vars(self).items() if k != "weights"}
        weights = {name: value.cpu().contiguous() for name, value in self.weights.items()}
        write_file(path, save(weights, {"fedavg": json.dumps(record)}), overwrite=True)

    @classmethod
    def load(cls, path: Path, settings: dict[str, Any]) -> _State:
        """Read a checkpoint of the same settings."""
        try:
            blob = path.read_bytes()
            size = int.from_bytes(blob[:8], "little")
            record = json.loads(json.loads(blob[8 : 8 + size])["__metadata__"]["fedavg"])
            rows = {int(r): FedAvgRow(*values) for r, values in record.pop("rows").items()}
            rows = {r: row._replace(per_class=tuple(row.per_class)) for r, row in rows.items()}
            state = cls(weights=load(blob), rows=rows, **record)
        except Exception as damaged:  # whatever a damaged file raises
            raise ResumeError(f"{path}: not a FedAvg checkpoint ({damaged}); delete it to start over") from damaged
        differ = sorted(k for k in settings if state.settings.get(k) != settings[k])
        if differ:
            raise ResumeError(f"{path}: of another run, {', '.join(differ)} differ; use another output folder")
        return state


def fingerprint(partition: Sequence[Tensor]) -> str:
    """Return sixteen hex digits: equal partitions, equal text."""
    digest = hashlib.sha256()
    for index in partition:
        digest.update(np.int64(len(index)).tobytes() + torch.as_tensor(index).to(torch.int64).cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
