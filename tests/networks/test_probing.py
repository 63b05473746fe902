"""Networks of one's own: what can work works, what cannot is refused by a sentence before a run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedcondense import Fit, condense, evaluate, load_data, relabel
from fedcondense.contract import NetworkSource
from fedcondense.data import Data
from fedcondense.errors import SettingError
from fedcondense.networks import build, probe
from fedcondense.networks.convnet import Shape
from fedcondense.networks.trainable import freeze, trainable, unfreeze
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.sources import OnlineTrained, TrainedOnSynthetic
from fedcondense.sources.near import Near
from fedcondense.sources.trajectories import Trajectories

SHAPE, CLASSES = (1, 8, 8), 10


class Net(nn.Module):
    """A small classifier, with what somebody may add to it."""

    def __init__(
        self, shape: Shape, classes: int, parts: frozenset[str] = frozenset(), dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.parts = parts
        if "unused first" in parts:
            self.extra = nn.Conv2d(3, 2, 3)
        self.conv: nn.Module = nn.Conv2d(shape[0], 4, 3, padding=1)
        if "weight norm" in parts:
            self.conv = nn.utils.parametrizations.weight_norm(self.conv)
        if "spectral norm" in parts:
            self.conv = nn.utils.parametrizations.spectral_norm(self.conv)
        self.norm = nn.BatchNorm2d(4, momentum=None) if "batch norm" in parts else nn.Identity()
        self.head: nn.Module = nn.LazyLinear(classes) if "lazy" in parts else nn.Linear(64, classes)
        if "auxiliary head" in parts:
            self.auxiliary = nn.Linear(64, classes)
        if "attention" in parts:
            self.attention = nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True)
        if "frozen" in parts:
            self.conv.requires_grad_(False)
        if "scale" in parts:
            self.scale = nn.Parameter(torch.ones(()))
        self.to(dtype)
        if "evaluation mode" in parts:
            self.eval()

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        if "attention" in self.parts:
            x = self.attention(x.flatten(2).transpose(1, 2)).transpose(1, 2)
        x = self.head(x.flatten(1))
        return x * self.scale if "scale" in self.parts else x


PARTS = (
    "unused first",
    "auxiliary head",
    "weight norm",
    "batch norm",
    "lazy",
    "attention",
    "frozen",
    "scale",
    "evaluation mode",
    "spectral norm",
)


def small() -> Data:
    data = load_data("digits").train
    return data.subset(torch.cat([(data.labels == c).nonzero().squeeze(1)[:8] for c in range(10)]))


def one_of_each() -> SyntheticSet:
    return condense(small(), 1, "dm", network="convnet1-w16", steps=0)


@given(
    parts=st.frozensets(st.sampled_from(PARTS), max_size=3).filter(lambda p: not {"spectral norm", "weight norm"} <= p),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
    objective=st.sampled_from(["dm", "dsa", "idc", "dd", "mmd-ridge", "mtt-recompute"]),
)
@settings(max_examples=12, deadline=None, derandomize=True)
def test_whatever_a_network_is_made_of_every_kind_of_objective_takes_it(
    parts: frozenset[str], dtype: torch.dtype, objective: str
) -> None:
    if objective == "idc":  # it matches convolutions alone, and a frozen one is not matched
        parts -= {"frozen"}
    taken: Any = OBJECTIVES[objective]
    source = None
    make = partial(Net, parts=parts, dtype=dtype)
    if isinstance(taken, TrajectoryMatching):
        source = Trajectories(
            partial(_built, make), ("flip",), CLASSES, experts=1, latest=0, span=1, interval=1, batch=8
        )
    before = torch.random.get_rng_state()
    result = condense(small(), 1, taken, network=make, steps=1, source=source)
    assert len(result) == 10
    assert torch.equal(torch.random.get_rng_state(), before)
    start = condense(small(), 1, taken, network=make, steps=0)
    assert not torch.equal(result.pixels().images, start.pixels().images)  # its gradient reached the images


def _built(make: Callable[[Shape, int], nn.Module], seed: int) -> nn.Module:
    return build(make, SHAPE, CLASSES, seed)


class NoGradient(Net):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = torch.relu(self.conv(x))
        out: Tensor = self.head(F.avg_pool2d(x, 2).flatten(1))
        return out


class Rounded(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(1, keepdim=True).expand(-1, CLASSES)


class Several(Net):
    def forward(self, x: Tensor) -> Any:
        out = super().forward(x)
        return {"logits": out} if self.training else out


class OneAtATime(Net):
    """Its batch norm sees one value per channel where a class has one image."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__(shape, classes)
        self.last = nn.BatchNorm1d(classes)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(super().forward(x))
        return out


class OnceOnly(Net):
    """Hardsigmoid of torch has no second derivative."""

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.hardsigmoid(super().forward(x))
        return out


class Maps(Net):
    def features(self, x: Tensor, layer: str = "embedding") -> Tensor:
        out: Tensor = self.conv(x) if layer == "embedding" else self(x)
        return out


class PassedAgain(Net):
    """A network that keeps no activations of its body, and passes that again for the gradient."""

    def __init__(self, shape: Shape, classes: int, dropout: float = 0.0) -> None:
        super().__init__(shape, classes)
        self.dropout = dropout

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        def body(images: torch.Tensor) -> torch.Tensor:
            rows = F.avg_pool2d(torch.relu(self.conv(images)), 2).flatten(1)
            return F.dropout(rows, self.dropout, self.training) if self.dropout else rows

        rows: torch.Tensor = checkpoint(body, images, use_reentrant=False)
        return cast(torch.Tensor, self.head(rows))


class NoLinear(nn.Module):
    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(shape[0], classes, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x).mean((2, 3))
        return out


def broken(shape: Shape, classes: int) -> nn.Module:
    raise KeyError("no such width")


ONE = Net(SHAPE, CLASSES)
BODY = nn.Conv2d(1, 4, 3, padding=1)
FIXED = copy.deepcopy(BODY).requires_grad_(False)
NORM = nn.BatchNorm2d(1).requires_grad_(False)


def around(body: nn.Module, shape: Shape, classes: int) -> nn.Module:
    return nn.Sequential(body, nn.Flatten(), nn.LazyLinear(classes))


@pytest.mark.parametrize(
    ("make", "objective", "told"),
    [
        (["convnet1-w16", "mlp"], "dm", r"needed: a name such as 'convnet3-w32'"),
        (7, "dm", "needed: a name"),
        (
            broken,
            "dm",
            r"broken cannot be built for images of \(1, 8, 8\) and 10 classes \(KeyError",
        ),
        (Net(SHAPE, CLASSES).forward, "dm", "cannot be built"),
        (lambda shape, classes: "convnet1-w16", "dm", r"returns a str; needed: a function"),
        (lambda shape, classes: Net(shape, 7), "dm", r"\(2, 7\) for 2 images; needed: logits of 10 classes"),
        (lambda shape, classes: Net(shape, 13), "dsa", r"\(2, 13\)"),
        (lambda shape, classes: Net((3, 8, 8), classes), "dm", "to have 3 channels"),
        (lambda shape, classes: nn.Sequential(nn.Flatten(), nn.Linear(49, classes)), "dm", "1 channels and 8x8 pixels"),
        (lambda shape, classes: ONE, "dm", "returns the same module"),
        (partial(around, BODY), "dm", r"the same parts \(module\.0\.weight\)"),
        (partial(around, NORM), "dsa", r"the same parts \(module\.0\.running_mean\)"),
        (NoGradient, "dm", "its features cannot be differentiated in the images"),
        (NoGradient, "dsa", "the gradient of its loss, .*, cannot be differentiated in the images"),
        (Rounded, "dsa", "int64 values"),
        (Several, "dsa", r"returns a dict for 1 images; needed: logits|returns a dict; needed: logits"),
        (OneAtATime, "dsa", "training on 1 images cannot be computed .*Expected more than 1 value per channel"),
        (OnceOnly, "dsa", "cannot be computed .*derivative for aten::hardsigmoid_backward is not implemented"),
        (Maps, "dm", r"its features of 2 images are \(2, 4, 8, 8\); needed: one row per image"),
        (NoLinear, "dm", r"calls no nn\.Linear"),
        (partial(PassedAgain, dropout=0.5), "dm", r"draws by chance .* inside of torch\.utils\.checkpoint"),
        (partial(PassedAgain, dropout=0.5), "dsa", r"draws by chance .* inside of torch\.utils\.checkpoint"),
        (PassedAgain, "dsa", r"passes again for its gradient \(torch\.utils\.checkpoint\), with other weights"),
        (lambda shape, classes: Net(shape, classes).requires_grad_(False), "dsa", "all its weights are frozen"),
    ],
)
def test_what_cannot_work_is_refused_by_a_sentence_before_a_step(make: Any, objective: str, told: str) -> None:
    called: list[int] = []
    with pytest.raises(SettingError, match=told) as error:
        condense(small(), 1, objective, network=make, steps=3, progress=lambda at: called.append(at.step))
    assert "\n" not in str(error.value)
    assert not called


@pytest.mark.parametrize("make", [OneAtATime, OnceOnly, Maps, NoLinear, PassedAgain, partial(around, FIXED)])
def test_what_one_objective_cannot_use_can_be_trained(make: Any) -> None:
    assert evaluate(one_of_each(), small(), network=make, recipe=Fit(steps=2), seeds=[0]).accuracy >= 0


@pytest.mark.parametrize("make", [lambda shape, classes: ONE, lambda shape, classes: Net(shape, 7)])
def test_evaluation_and_teachers_refuse_the_same(make: Any) -> None:
    with pytest.raises(SettingError, match=r"network .*needed|network .*return a new one"):
        evaluate(one_of_each(), small(), network=make)
    with pytest.raises(SettingError, match=r"network .*needed|network .*return a new one"):
        relabel(one_of_each(), small(), network=make)


def test_features_are_those_that_feed_the_layer_that_makes_the_logits() -> None:
    """An auxiliary head is registered after it, and is not called."""
    network: Any = build(partial(Net, parts=frozenset({"auxiliary head", "scale"})), SHAPE, CLASSES, seed=0)
    x = torch.rand(3, *SHAPE, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network.module.head(network.features(x)), network(x))


def test_weights_that_are_made_late_follow_from_the_seed() -> None:
    first, second, other = (
        build(partial(Net, parts=frozenset({"lazy"})), SHAPE, CLASSES, seed).state_dict() for seed in (0, 0, 1)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["module.head.weight"], other["module.head.weight"])


@pytest.mark.parametrize("kind", [TrainedOnSynthetic, OnlineTrained, Trajectories, Near])
def test_no_source_moves_what_a_maker_froze(kind: type[NetworkSource]) -> None:
    built: list[tuple[nn.Module, Tensor]] = []
    make = partial(Net, parts=frozenset({"frozen"}))

    def keep(seed: int) -> nn.Module:
        network = build(make, SHAPE, CLASSES, seed)
        built.append((network, network.get_parameter("module.conv.weight").clone()))
        return network

    settings_of: dict[Any, dict[str, Any]] = {
        TrainedOnSynthetic: {"outer": 5, "epochs": 1},
        OnlineTrained: {"size": 1},
        Trajectories: {"experts": 1, "latest": 0, "span": 1, "interval": 2},
        Near: {"weights": build(make, SHAPE, CLASSES, 5).state_dict(), "radius": 3.0},
    }
    more = settings_of[kind]
    source = kind(keep, (), CLASSES, **more)  # type: ignore[call-arg]
    objective = "mtt" if kind is Trajectories else "dm"
    condense(small(), 1, objective, network=make, steps=3, source=source)
    for network, weight in built:
        expected = more["weights"]["module.conv.weight"] if kind is Near else weight
        assert torch.equal(network.get_parameter("module.conv.weight"), expected)
    assert built


def test_freezing_and_unfreezing_leave_frozen_what_was() -> None:
    network = Net(SHAPE, CLASSES, frozenset({"frozen"}))
    assert set(trainable(unfreeze(freeze(network)))) == {"head.weight", "head.bias"}
    assert not network.conv.weight.requires_grad
    assert set(trainable(freeze(copy.deepcopy(network)))) == {"head.weight", "head.bias"}
    whole = Net(SHAPE, CLASSES).requires_grad_(False)  # by a source of somebody else's
    assert len(trainable(whole)) == 4


def test_equal_seeds_give_equal_results_with_a_network_of_ones_own() -> None:
    measured = evaluate(one_of_each(), small(), network=Net, recipe=Fit(steps=10), seeds=[4, 4])
    assert len(set(measured.accuracies)) == 1


def test_networks_of_the_toolkit_are_built_and_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("fedcondense.networks.probing._try_training", never)
    probe("convnet1-w16+mlp", SHAPE, CLASSES, second_order=True)
    with pytest.raises(SettingError, match="lenet needs images of 12x12 or more"):
        probe("convnet1-w16+lenet", SHAPE, CLASSES)
