"""A step on tensors of its own equals a step on the given ones; whether a GPU replays it so: `test_cuda.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedcondense.condensing import prepare
from fedcondense.condensing.holders import Own
from fedcondense.condensing.loop import Loop, step_graph
from fedcondense.data.images import Data
from fedcondense.data.loading import load_data
from fedcondense.networks import NETWORKS, ConvNet, Headed, build
from fedcondense.objectives import OBJECTIVES, with_learned_labels
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import capturable_on_features
from fedcondense.objectives.gradient import GradientMatching, capturable_on_samples
from fedcondense.sources import Fresh, Pool, TrainedOnReal, TrainedOnSynthetic
from fedcondense.training.graphs import is_plain

OF_ROWS = [name for name, objective in OBJECTIVES.items() if capturable_on_features(objective)]
TINY = partial(ConvNet, width=8, depth=2)
SMALL_POOL = partial(Pool, size=3)


@pytest.fixture(autouse=True)
def replayed_by_running_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcondense.training.graphs.captured", lambda run, device: run)


@pytest.fixture(scope="module")
def data() -> Data:
    return load_data("digits").train


def made(objective: Any, data: Data, graph: bool, network: Any = TINY, ipc: int = 2, source: Any = SMALL_POOL) -> Loop:
    recipe = replace(objective.recipe, source=source, steps=9)
    loop = prepare(data, ipc, objective, "pixels", network=network, recipe=recipe)

    loop.graph = step_graph(objective) if graph else None
    return loop


def same_steps(objective: Any, data: Data, **settings: Any) -> None:
    plain, graph = made(objective, data, False, **settings), made(objective, data, True, **settings)
    losses = [(float(plain.step()), float(graph.step())) for _ in range(7)]
    assert len({a for a, _ in losses}) == 7
    assert [b for _, b in losses] == [a for a, _ in losses]
    assert torch.equal(plain.codes["images"], graph.codes["images"])
    assert torch.equal(plain.targets, graph.targets)


def test_objectives_on_feature_rows_are_served() -> None:
    assert {"dm", "ridge", "dm-ridge", "mmd", "mmd-ridge", "ncfm"} <= set(OF_ROWS)
    assert not {"dsa", "kip", "dd", "mtt"} & set(OF_ROWS)


@pytest.mark.parametrize("name", OF_ROWS)
def test_steps_on_its_own_tensors_are_those_on_the_given_ones(name: str, data: Data) -> None:
    same_steps(OBJECTIVES[name], data)


@pytest.mark.parametrize(
    "source", [Fresh, SMALL_POOL, partial(TrainedOnSynthetic, outer=3, epochs=2), partial(TrainedOnReal, batches=2)]
)
@pytest.mark.parametrize("name", ["dc", "dsa", "idc"])
def test_gradients_of_real_images_are_taken_in_the_same_step(name: str, source: Any, data: Data) -> None:
    assert capturable_on_samples(OBJECTIVES[name])
    same_steps(replace(OBJECTIVES[name], per_class=4), data, source=source)  # type: ignore[type-var]


class Keeping:
    """Answers for data that it does not hand out."""

    data = None

    def __init__(self, kept: Data) -> None:
        self.kept, self.spec, self.counts = kept, kept.spec, kept.counts
        self.device, self.fingerprint = kept.device, kept.fingerprint

    def observe(self, objective: Any, draw: Any) -> Any:
        return Own(self.kept).observe(objective, draw)


def test_a_holder_that_keeps_its_images_is_asked_for_gradients(data: Data) -> None:
    plain, graph = (made(OBJECTIVES["dsa"], data, served, source=Fresh) for served in (False, True))
    graph.holder = Keeping(data)
    assert float(graph.step()) == float(plain.step())


def test_the_network_that_a_source_hands_out_is_the_one_that_is_replayed(data: Data) -> None:
    def other(seed: int) -> nn.Module:
        return build(partial(ConvNet, width=8, depth=2, norm="group"), data.spec.shape, len(data.spec.classes), seed)

    same_steps(OBJECTIVES["dsa"], data, source=lambda make, operations, classes: Fresh(other, operations, classes))


def test_learned_labels_get_their_gradient(data: Data) -> None:
    same_steps(with_learned_labels(OBJECTIVES["dm-ridge"]), data)


def test_more_images_than_a_graph_of_autograd_holds(data: Data) -> None:
    same_steps(OBJECTIVES["ridge"], data, ipc=60)


def test_running_statistics_of_a_batch_norm_are_replaced_too(data: Data) -> None:
    same_steps(OBJECTIVES["dm"], data, network=partial(ConvNet, width=8, depth=2, norm="batch"))


@dataclass(frozen=True)
class Told(DistributionMatching):
    """Keeps a number of the first draw beside the sums."""

    def summarise(self, rows: Tensor, targets: Tensor) -> Any:
        return super().summarise(rows, targets), float(rows.sum())

    def merge(self, pieces: Any) -> Any:
        return super().merge([piece for piece, _ in pieces]), sum(number for _, number in pieces)

    def compare(self, observed: Any, rows: Tensor, targets: Tensor) -> Tensor:
        sums, number = observed
        loss: Tensor = super().compare(sums, rows, targets) * (1 + number % 1)
        return loss


def test_an_observation_that_is_not_all_tensors_is_left_to_the_objective(data: Data) -> None:
    loop = made(Told(), data, True)
    loop.step()
    assert loop.graph is not None
    assert loop.graph.failed
    same_steps(Told(), data)


class Unknown(nn.Module):
    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.layers(images)
        return out


@pytest.mark.parametrize("name", ["convnet1-w16", "mlp", "resnet18", "mobilenet-v3-small", "vit-small", "vgg11"])
def test_our_networks_are_plain(name: str) -> None:
    assert is_plain(build(NETWORKS[name], (1, 32, 32), 3, 0))


def test_a_module_of_a_user_is_not(data: Data) -> None:
    assert not is_plain(Headed(Unknown((1, 8, 8), 3)))
    loop = made(OBJECTIVES["dm"], data, True, network=Unknown)
    loop.step()
    assert loop.graph is not None
    assert loop.graph.failed


@pytest.mark.parametrize("change", ["loss", "rows", "backward"])
def test_an_objective_that_sees_more_of_the_draw_is_not_served(change: str) -> None:
    method: Callable[..., Any] = getattr(DistributionMatching, change)
    kind = type("Seeing", (DistributionMatching,), {change: lambda self, *given: method(self, *given)})
    assert capturable_on_features(DistributionMatching())
    assert not capturable_on_features(kind())


@pytest.mark.parametrize("change", ["sample", "answer", "observe", "loss", "backward"])
def test_gradient_matching_that_sees_more_of_the_draw_is_not_served(change: str) -> None:
    method: Callable[..., Any] = getattr(GradientMatching, change)
    kind = type("Seeing", (GradientMatching,), {change: lambda self, *given: method(self, *given)})
    assert capturable_on_samples(GradientMatching())
    assert not capturable_on_samples(kind())
