"""What follows from the process's defaults, and that it does not; threads; caches that are handed out."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fedcondense as fc
from fedcondense.ambient import SinglePrecision, in_own_state
from fedcondense.condensing import prepare
from fedcondense.contract import Synthetic
from fedcondense.networks import build
from fedcondense.sources import Trajectories

OPERATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "divided": lambda whole: whole / 255,
    "dividing": lambda whole: 1 / (whole + 1),
    "times": lambda whole: whole * 0.3,
    "root": torch.sqrt,
    "chosen": lambda whole: torch.where(whole > 3, 0.1, 0.7),
    "mean of those": lambda whole: (whole > 3).sum() / len(whole),
    "tensor": lambda whole: torch.tensor([0.1, 2.0]),
    "whole tensor": lambda whole: torch.tensor([1, 2]),
    "array": lambda whole: torch.tensor(np.array([0.1])),
    "full": lambda whole: torch.full((2,), 0.1),
    "range": lambda whole: torch.arange(0.0, 1.0, 0.3),
    "linear": lambda whole: torch.linspace(0, 1, 7),
    "layer": lambda whole: nn.Linear(3, 2).weight * 0,
    "double": lambda whole: whole.double() / 3,
    "named": lambda whole: whole.to(torch.float64).mean() + torch.zeros(1, dtype=torch.float64),
    "half": lambda whole: whole.half() / 3,
    "counts": lambda whole: torch.bincount(whole.long()),
}


@settings(max_examples=40)
@given(
    st.sampled_from(sorted(OPERATIONS)),
    st.lists(st.integers(0, 255), min_size=1, max_size=9),
    st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    st.sampled_from([torch.float64, torch.bfloat16, torch.float16]),
)
def test_single_precision_gives_what_a_default_of_float32_gives(
    name: str, values: list[int], whole: torch.dtype, default: torch.dtype
) -> None:
    given_values = torch.tensor(values, dtype=whole)
    expected = OPERATIONS[name](given_values)
    torch.set_default_dtype(default)
    try:
        with SinglePrecision():
            found = OPERATIONS[name](given_values)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


def test_own_state_is_entered_once_and_costs_the_plain_path_no_context(monkeypatch: pytest.MonkeyPatch) -> None:
    entered: list[bool] = []
    monkeypatch.setattr("fedcondense.ambient.own_state", lambda: entered.append(True))
    assert in_own_state(torch.is_grad_enabled)()
    assert entered == []


@cache
def data() -> fc.Data:
    train, _ = fc.load_data("digits")
    return train.subset(torch.cat([(train.labels == c).nonzero().squeeze(1)[:45] for c in range(3)]))


class Chance(nn.Module):
    """A user's network that draws in its passes, and seeds the global generator where it is built."""

    def __init__(self, shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.RReLU())
        self.head = nn.Linear(16, classes)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.head(self.body(images + 0.1 * torch.randn_like(images)))
        return found


def codes(network: object, seed: int = 0, objective: object = "dm", steps: int = 4) -> Tensor:
    made = fc.condense(data(), 1, objective, network=network, steps=steps, seed=seed)  # type: ignore[arg-type]
    return made.parts[0].codes["images"]


@pytest.mark.parametrize("network", ["convnet1-w16", Chance], ids=["named", "own"])
def test_four_threads_give_the_four_sequential_sets_while_another_draws_all_the_time(network: object) -> None:
    expected = [codes(network, seed) for seed in range(4)]
    torch.manual_seed(5)
    mine = torch.rand(100)
    stop, wrong = threading.Event(), list[int]()

    def disturb() -> None:
        while not stop.wait(1e-4):
            torch.manual_seed(5)
            if network != Chance and not torch.equal(torch.rand(100), mine):
                wrong.append(1)

    other = threading.Thread(target=disturb)
    other.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(partial(codes, network), range(4)))
    finally:
        stop.set()
        other.join()
    assert [torch.equal(a, b) for a, b in zip(expected, found, strict=True)] == [True] * 4
    assert not wrong, "the other thread's numbers changed"


@pytest.mark.parametrize("objective", ["dm", "mmd-ridge", "dsa", "dd", "frepo"])
def test_a_network_that_draws_repeats_and_leaves_the_global_generator_alone(objective: str) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        found.append(codes(Chance, objective=objective))
        assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*found)


def test_recomputed_trajectories_equal_unrolled_ones_on_a_network_that_draws() -> None:
    source = partial(Trajectories, experts=1, latest=1, span=1, interval=2, batch=16)
    pair = []
    for name in ("mtt", "mtt-recompute"):
        objective = replace(fc.OBJECTIVES[name], window=4)  # type: ignore[type-var]
        loop = prepare(
            data(), 1, objective, "pixels", network=Chance, steps=3, recipe=replace(objective.recipe, source=source)
        )
        pair.append((loop.step(), loop.codes["images"].detach()))
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-6)


def test_the_second_of_two_passes_draws_what_the_first_drew() -> None:
    """So the gradient is that of one graph of the same pieces."""
    objective: Any = fc.OBJECTIVES["mmd-ridge"]
    loop = prepare(data(), 4, objective, "pixels", network=Chance, steps=1)
    decoded = loop.parametrization.decode(loop.codes, loop.targets)
    leaves, twin = (Synthetic(decoded.images.detach().requires_grad_(), decoded.targets.detach()) for _ in range(2))
    draw = loop.source.draw(torch.Generator().manual_seed(0), leaves, data())
    seen = objective.observe(draw, data())
    found = objective.backward(draw, seen, leaves, at_once=5)
    number = -(-len(twin.images) // 5)  # a network of one's own may mix images, so each piece has all classes
    images, targets = ([leaf[k::number] for k in range(number)] for leaf in twin[:2])
    rows = [objective.rows(draw, Synthetic(*piece)) for piece in zip(images, targets, strict=True)]
    expected = objective.compare(seen, torch.cat(rows), torch.cat(targets))
    expected.backward()
    torch.testing.assert_close((found, leaves.images.grad), (expected.detach(), twin.images.grad))


def test_a_networks_weights_do_not_stay_in_a_callers_autocast() -> None:
    loop = prepare(data(), 1, "dsa", "pixels", network="convnet1-w16", steps=3)
    kept: list[bool] = []
    with torch.autocast("cpu", torch.bfloat16):
        loop.objective = replace(loop.objective)  # type: ignore[type-var]
        build_before = loop.source.draw
        loop.source.draw = lambda *given: (  # type: ignore[method-assign]
            kept.append(torch.is_autocast_cache_enabled()) or build_before(*given)  # type: ignore[func-returns-value]
        )
        loop.step()
        assert torch.is_autocast_cache_enabled()
    assert kept == [False]


class TestCaches:
    @staticmethod
    def changed(synthetic: fc.SyntheticSet) -> None:
        for batch in (synthetic.pixels(), synthetic.decode()):
            batch.images.mul_(0)
            batch.targets.mul_(0)
        synthetic.weights().mul_(0)
        synthetic.counts().mul_(0)

    def test_edits_of_what_a_set_hands_out_leave_the_set_alone(self) -> None:
        synthetic = fc.select(data(), 2)
        before = [*synthetic.decode(), *synthetic.pixels(), synthetic.weights(), synthetic.counts()]
        self.changed(synthetic)
        after = [*synthetic.decode(), *synthetic.pixels(), synthetic.weights(), synthetic.counts()]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))

    def test_a_set_that_was_decoded_in_inference_mode_can_be_trained_on(self) -> None:
        synthetic = fc.select(data(), 2)
        with torch.inference_mode():
            synthetic.decode()
        images, targets = synthetic.decode()
        head = nn.Linear(64, len(synthetic.classes))
        nn.functional.cross_entropy(head(images.flatten(1)), targets).backward()
        assert head.weight.grad is not None

    def test_edits_of_the_index_of_ready_sets_leave_it_alone(self) -> None:
        fc.ready_sets().clear()
        assert fc.ready_sets()


def test_attention_as_written_is_torchs_own_mathematics_and_sets_no_flag_of_the_process() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    network = build("vit-small", (1, 8, 8), 3, seed=0)
    images = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    inner = network.module.module  # type: ignore[union-attr]
    flags: list[bool] = []
    inner.encoder.register_forward_hook(lambda *_: flags.append(torch.backends.cuda.flash_sdp_enabled()))  # type: ignore[union-attr]
    found = network(images)
    assert flags == [True]
    with sdpa_kernel(SDPBackend.MATH):
        expected = inner(images)  # type: ignore[operator]
    weights = list(network.parameters())
    for a, b in zip((found, expected), (expected, found), strict=True):
        assert torch.equal(a, b)
    gradients = [torch.autograd.grad(out.square().sum(), weights, create_graph=True) for out in (found, expected)]
    twice = [torch.autograd.grad(sum(g.square().sum() for g in some), images)[0] for some in gradients]  # type: ignore[arg-type]
    assert torch.equal(*twice)
