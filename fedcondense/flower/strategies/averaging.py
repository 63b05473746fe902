"""Flower's own strategies, unchanged: FedAvg and its kin average the weights of networks that sites train by SGD.

Sites answer Flower's ``train`` and ``evaluate`` messages. What is ours is the local training, the evaluation on records
kept apart, and the checks of weights both ways (`fedcondense.flower.checked_grid`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedMedian,
    FedProx,
    FedTrimmedAvg,
    FedYogi,
    Krum,
    MultiKrum,
    QFedAvg,
)
from torch import nn
from torch.nn import functional as F

from fedcondense.ambient import in_own_state
from fedcondense.contract import Holder
from fedcondense.data import Data, Spec
from fedcondense.deadline import OutOfTime, check_time, stop_at
from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps
from fedcondense.flower.checked_grid import weights_in
from fedcondense.flower.contract import Node
from fedcondense.flower.eight_bits import BITS, Feedback, pack_weights, unpack_weights
from fedcondense.flower.evaluating import Evaluate, numbers_of
from fedcondense.flower.payloads import Weights
from fedcondense.flower.settings import number, read_all
from fedcondense.flower.strategies.entry import Entry, ServerSide
from fedcondense.flower.strategies.features import labelled_by
from fedcondense.flower.strategies.fedexp import FedExP
from fedcondense.networks import build, default_network
from fedcondense.networks.passes import repeatable
from fedcondense.randomness import stream
from fedcondense.training.fit import autocast_of_caller

__all__ = [
    "AVERAGING",
    "LocalTraining",
    "check_allowed",
    "local_evaluation",
    "local_round",
    "train_locally",
    "training_config",
]


@dataclass(frozen=True)
class LocalTraining:
    """How a site trains between two rounds: SGD with momentum, which starts anew each round.

    Args:
        lr: Step size, constant.
        epochs: Passes over the site's data per round.
        batch: Images per step.
        momentum: As in most published FedAvg baselines.
    """

    lr: float = number(0.05, 0)
    epochs: int = number(1, 1)
    batch: int = number(64, 1)
    momentum: float = number(0.9, 0, 1)


@dataclass(frozen=True)
class _Round:
    """What a ``train`` message says besides `LocalTraining`; `server_round` and `proximal_mu` are Flower's.

    `bits` is 0 for weights as they are, or 8 for weights and changes of them as `fedcondense.flower.eight_bits` packs.
    """

    network: str = ""
    classes: tuple[str, ...] = ()
    seed: int = number(0, 0)
    rounds_before: int = number(0, 0)
    server_round: int = number(1, 0)
    proximal_mu: float = number(0.0, 0)
    bits: int = number(0, 0, BITS)


def training_config(training: LocalTraining, side: ServerSide, rounds_before: int = 0, bits: int = 0) -> ConfigRecord:
    """Return what goes to sites with each round of Flower's strategies; `bits` as in `Entry`."""
    assert side.spec is not None
    network = side.network or default_network(side.spec.shape)
    config: dict[str, Any] = {item.name: getattr(training, item.name) for item in fields(LocalTraining)}
    config |= {
        "network": network,
        "classes": list(side.spec.classes),
        "seed": side.seed,
        "rounds-before": rounds_before,
    }
    return ConfigRecord({**config, "bits": bits} if bits else config)  # a node that cannot refuses by the field's name


@in_own_state
def train_locally(
    network: nn.Module, data: Data, training: LocalTraining, generator: torch.Generator, proximal_mu: float = 0.0
) -> float:
    """Train a network in place by plain SGD on cross-entropy; return the mean loss of the last epoch.

    Batches are gathered from the uint8 tensor on its device. A last batch of one image is left out where there are
    others: normalisation over a single value has no gradient.

    Args:
        network: On the data's device.
        data: The site's records.
        training: How.
        generator: Of the order of records.
        proximal_mu: Weight of FedProx's term, half the squared distance to the weights at the start (Li et al., MLSys
            2020, https://arxiv.org/abs/1812.06127).

    Raises:
        SettingError: The loss left the finite numbers; the step size is too large.
    """
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=training.lr, momentum=training.momentum)
    start = [value.detach().clone() for value in network.parameters()] if proximal_mu else []
    mean = torch.zeros((), dtype=torch.float32, device=data.device)
    for epoch in range(training.epochs):
        losses, seen = torch.zeros((), dtype=torch.float32, device=data.device), 0
        order = torch.randperm(len(data), generator=generator)
        for k, index in enumerate(order.split(training.batch)):
            if len(index) == 1 < len(data):
                continue
            check_time()
            images = data.batch(index).images
            passing = repeatable(network, generator.initial_seed(), epoch, k)
            with autocast_of_caller(data.device), passing:
                logits = network(images)
            loss = F.cross_entropy(logits.float(), data.labels[index.to(data.device)])
            optimizer.zero_grad(set_to_none=True)
            if start:
                pull = sum((w - s).square().sum() for w, s in zip(network.parameters(), start, strict=True))
                (loss + proximal_mu / 2 * pull).backward()
            else:
                loss.backward()
            optimizer.step()
            losses += loss.detach() * len(index)
            seen += len(index)
        mean = losses / max(seen, 1)
    if not torch.isfinite(mean):
        raise SettingError(f"local training diverged at lr {training.lr:g}; try a third of it")
    return float(mean)


def check_allowed(caps: Caps) -> None:
    """Refuse weights that a server chose, unless the node's config allows them."""
    if not caps.allow_weights:
        raise SettingError("weights were sent to be trained on records; this node's config has no allow-weights = true")


@in_own_state
def local_round(content: RecordDict, holder: Holder, node: Node) -> RecordDict:
    """Answer Flower's ``train`` message: one round of local SGD from the weights that it carries.

    Batches follow from (seed, place of the site, round) alone, so that neither order nor host matters.

    Raises:
        SettingError: This node's config has no ``allow-weights = true``, or a field is unknown or wrong.
        UntrustedSetError: The weights are of another network, or not finite.
    """
    check_allowed(node.caps)
    training, about = _asked(content, holder.spec, node)
    data, network = labelled_by(holder, about.classes, node), about.network
    model, came = _carried(content, about, holder.spec)
    came.load_into(model.to(data.device))
    draws = stream(about.seed, "fedavg", node.place, about.rounds_before + about.server_round)
    try:
        with stop_at(node.until):
            loss = train_locally(model, data, training, draws, about.proximal_mu)
    except OutOfTime:
        limit = f"this node allows {node.caps.max_seconds:.0f} seconds (max-seconds)"
        raise SettingError(f"local training was not done in time; {limit}: ask for fewer epochs") from None
    metrics = MetricRecord({"num-examples": len(data), "loss": loss})
    if not about.bits:
        return RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    run = (training, replace(about, server_round=0, rounds_before=0), network, data.spec)
    feedback = Feedback(node.kept, run, about.rounds_before + about.server_round)
    return RecordDict({"arrays": _rounded_change(came, model, feedback), "metrics": metrics})


def local_evaluation(content: RecordDict, holder: Holder, node: Node) -> Callable[[], RecordDict]:
    """Prepare the answer to Flower's ``evaluate`` message, as `Evaluate` counts it: metrics on records kept apart.

    Raises:
        SettingError: The node keeps no records apart, or a field is unknown or wrong.
        UntrustedSetError: The weights are of another network, or not finite.
    """
    _, about = _asked(content, holder.spec, node)
    _, came = _carried(content, about, holder.spec)
    job = Evaluate(came, about.classes, about.network).prepare(holder, node)
    node.caps.check(job.cost)

    def run() -> RecordDict:
        try:
            with stop_at(node.until):
                return RecordDict({"metrics": MetricRecord(dict(numbers_of(job.run())))})
        except OutOfTime:
            limit = f"this node allows {node.caps.max_seconds:.0f} seconds (max-seconds)"
            raise SettingError(f"an evaluation was not done in time; {limit}: ask for a smaller network") from None

    return run


def _asked(content: RecordDict, spec: Spec, node: Node) -> tuple[LocalTraining, _Round]:
    """Read what a message of Flower's own says, with the network's name."""
    config: Mapping[str, Any] = content.config_records.get("config", ConfigRecord())
    training, about = read_all((LocalTraining(), _Round()), config, "the question")
    if not about.classes:
        raise SettingError("the question names no classes, in the order of the network's outputs; update the server")
    if about.bits not in (0, BITS):
        raise SettingError(f"bits = {about.bits} in the question; needed: 0, or {BITS}")
    about = replace(about, network=about.network or default_network(spec.shape))
    node.caps.check_networks([about.network])
    return training, about


def _carried(content: RecordDict, about: _Round, spec: Spec) -> tuple[nn.Module, Weights]:
    """Return a network as this node builds it, and the weights that a message carries for it."""
    model = build(about.network, spec.shape, len(about.classes), 0)
    record = content.array_records.get("arrays", ArrayRecord())
    return model, unpack_weights(record, model) if about.bits else weights_in(record, model)


def _rounded_change(came: Weights, model: nn.Module, feedback: Feedback) -> ArrayRecord:
    """Return what training changed, and what rounding took from the last change, at eight bits."""
    trained, error = Weights.of(model).tensors, feedback.before(model)
    parameters = [name for name, _ in model.named_parameters()]
    change = {name: trained[name] - came.tensors[name] + error.get(name, 0) for name in parameters}
    packed = pack_weights({**trained, **change}, model)
    sent = unpack_weights(packed, model).tensors
    feedback.keep({name: change[name] - sent[name] for name in parameters})
    return packed


def averaging(make: Callable[..., FedAvg], label: str, *, bits: int = 0, **settings: Any) -> Entry:
    """Return the entry of a Flower strategy that averages weights; `settings` are its own arguments."""

    def build_it(side: ServerSide) -> FedAvg:
        known = ("fraction_train", "min_train_nodes", "min_available_nodes", "fraction_evaluate", "min_evaluate_nodes")
        asked: dict[str, Any] = {key: value for key, value in side.asked.items() if key in known}
        return make(**{"fraction_evaluate": 0.0, **asked, **settings})

    return Entry(
        build_it,
        label=label,
        travels=f"weights at {bits} bits, every round" if bits else "weights, every round",
        seen="the server sees each site's weights, every round",
        settings=LocalTraining(),
        handlers=("train",),
        rounds=20,
        starts=True,
        bits=bits,
    )


AVERAGING: dict[str, Entry] = {
    "fedavg": averaging(FedAvg, "FedAvg"),
    "fedavg-8bit": averaging(FedAvg, "FedAvg, 8 bits", bits=BITS),
    "fedprox": averaging(FedProx, "FedProx", proximal_mu=0.01),
    "fedprox-8bit": averaging(FedProx, "FedProx, 8 bits", bits=BITS, proximal_mu=0.01),
    "fedavgm": averaging(FedAvgM, "FedAvgM", server_momentum=0.9),
    "fedavgm-8bit": averaging(FedAvgM, "FedAvgM, 8 bits", bits=BITS, server_momentum=0.9),
    "fedadam": averaging(FedAdam, "FedAdam", eta=0.01),
    "fedadam-8bit": averaging(FedAdam, "FedAdam, 8 bits", bits=BITS, eta=0.01),
    "fedyogi": averaging(FedYogi, "FedYogi"),
    "fedexp": averaging(FedExP, "FedExP"),
    "fedexp-8bit": averaging(FedExP, "FedExP, 8 bits", bits=BITS),
    "fedadagrad": averaging(FedAdagrad, "FedAdagrad", eta=0.01),
    "fedmedian": averaging(FedMedian, "FedMedian"),
    "fedtrimmedavg": averaging(FedTrimmedAvg, "FedTrimmedAvg"),
    "krum": averaging(Krum, "Krum", num_malicious_nodes=1),
    "multikrum": averaging(MultiKrum, "MultiKrum", num_malicious_nodes=1, num_nodes_to_select=3),
    "bulyan": averaging(Bulyan, "Bulyan"),
    "qfedavg": averaging(QFedAvg, "QFedAvg", client_learning_rate=0.05, train_loss_key="loss"),
}
"""Flower's own, and `FedExP`, by name; another is one line here."""
