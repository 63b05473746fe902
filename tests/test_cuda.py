"""On a GPU: every method runs there, and means what it means on a CPU. Skipped where there is none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fedcondense as fc
from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import Progress, prepare
from fedcondense.data.images import Data
from fedcondense.networks import ConvNet
from fedcondense.objectives.distribution import DistributionMatching
from fedcondense.objectives.features import capturable_on_features
from fedcondense.objectives.gradient import capturable_on_samples
from fedcondense.sources import Pool
from fedcondense.training.graphs import captured

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

TINY = partial(ConvNet, width=8, depth=2)


@pytest.fixture(scope="module")
def data() -> Data:
    return fc.load_data("digits").train


@pytest.fixture(autouse=True)
def plain_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """The GPU rounds as the CPU does, to compare them."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def images(synthetic: fc.SyntheticSet) -> torch.Tensor:
    return synthetic.decode().images


@pytest.mark.parametrize("name", fc.OBJECTIVES)
def test_a_step_of_every_objective_is_that_of_the_cpu(name: str, data: Data) -> None:
    loops = [prepare(data, 2, name, "pixels", network=TINY, steps=8, device=device) for device in ("cpu", "cuda")]
    cpu, gpu = (loop.step().item() for loop in loops)
    assert gpu == pytest.approx(cpu, rel=5e-3)
    ours, theirs = (loop.codes["images"].grad for loop in loops)
    assert ours is not None
    assert theirs is not None
    assert torch.nn.functional.cosine_similarity(ours.flatten(), theirs.cpu().flatten(), dim=0) > 0.995


@pytest.mark.parametrize("name", fc.PARAMETRIZATIONS)
def test_every_parametrization_condenses_and_serves(name: str, data: Data) -> None:
    test = fc.load_data("digits").test
    made = fc.condense(data, 4, "dm-ridge", name, network=TINY, steps=6, device="cuda")
    assert images(made).isfinite().all()
    found = fc.evaluate(made, test, network=TINY, recipe=fc.Fit(steps=120), seeds=[0], device="cuda")
    assert found.accuracy > 20


OF_ROWS = [name for name, objective in fc.OBJECTIVES.items() if capturable_on_features(objective)]
OF_SAMPLES = [name for name, objective in fc.OBJECTIVES.items() if capturable_on_samples(objective)]


@pytest.mark.parametrize("name", [*OF_ROWS, *OF_SAMPLES])
def test_a_graph_takes_the_steps_that_kernels_take(name: str, data: Data) -> None:
    objective = fc.OBJECTIVES[name]
    source: Any = partial(Pool, size=3) if name in OF_ROWS else objective.recipe.source
    recipe = replace(objective.recipe, source=source, steps=9)
    losses, gradients = [], []
    for graph in (True, False):
        loop = prepare(data, 2, objective, "pixels", network=TINY, recipe=recipe, device="cuda")
        assert loop.graph is not None
        if not graph:
            loop.graph = None
        loop.step()
        gradients.append(loop.codes["images"].grad)
        losses.append([loop.step().item() for _ in range(8)])
        if loop.graph is not None:
            assert not loop.graph.failed
    assert losses[0] == pytest.approx(losses[1], rel=2e-2)
    first, second = gradients
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first, second, rtol=1e-2, atol=1e-2 * float(second.abs().max()))


def test_an_objective_that_waits_for_the_device_is_run_without_a_graph(data: Data) -> None:
    class Waiting(DistributionMatching):
        def compare(self, observed: object, rows: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            loss = super().compare(observed, rows, targets)  # type: ignore[arg-type]
            return loss * (2.0 if loss.item() > 0 else 1.0)

    loop = prepare(data, 2, Waiting(), "pixels", network=TINY, steps=4, device="cuda")
    assert all(torch.isfinite(loop.step()) for _ in range(4))
    assert loop.graph is not None
    assert loop.graph.failed


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_a_network_is_trained_the_same_by_a_graph(norm: str, data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    replays = []

    def watched(run: Callable[[], torch.Tensor], device: torch.device) -> Callable[[], torch.Tensor] | None:
        replays.append(captured(run, device))
        return replays[-1]

    monkeypatch.setattr("fedcondense.training.fit.captured", watched)
    real = fc.select(data, 5, seed=0)
    test = fc.load_data("digits").test
    network = partial(ConvNet, width=8, depth=2, norm=norm)
    found = []
    for worth in (1, 10**9):
        monkeypatch.setattr("fedcondense.training.fit._WORTH_A_GRAPH", worth)
        recipe = fc.Fit(steps=60)
        found.append(fc.evaluate(real, test, network=network, recipe=recipe, seeds=[0], device="cuda").accuracy)
    assert len(replays) == 1
    assert replays[0] is not None
    assert found[0] == pytest.approx(found[1], abs=3)
    assert found[0] > 60


def test_it_goes_on_from_a_checkpoint(data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedcondense.condensing.running._LOOK_S", 0.0)
    kept = Checkpoint(tmp_path / "state.safetensors", every_s=0.0)

    def stop(now: Progress) -> None:
        if now.step == 6:
            raise KeyboardInterrupt

    run = partial(fc.condense, data, 2, "dm-ridge", network=TINY, steps=12, device="cuda")
    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=kept, progress=stop)
    again = run(checkpoint=replace(kept, resume=True))
    assert again.record.steps == 12
    torch.testing.assert_close(images(again), images(run()), rtol=0, atol=0.03)
