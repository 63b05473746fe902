from __future__ import annotations

import os
import signal
import threading
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedcondense.contract import Draw, Synthetic
from fedcondense.data.images import Data, Spec
from fedcondense.errors import ResumeError, SettingError
from fedcondense.files import hold, write_file
from fedcondense.networks import ConvNet, build
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.trajectory import TrajectoryMatching
from fedcondense.randomness import batches, child_seed, stream
from fedcondense.sources import trajectories
from fedcondense.sources.trajectories import Trajectories, kept_in
from fedcondense.training.fit import Fit, fit

OPERATIONS = ("crop", "flip")
FEW: dict[str, Any] = {"experts": 2, "latest": 2, "span": 2, "interval": 3, "batch": 4}


def make(seed: int, norm: str = "instance") -> nn.Module:
    return build(partial(ConvNet, width=4, depth=2, norm=norm), (1, 8, 8), 3, seed)


def toy() -> Data:
    images = torch.randint(0, 256, (30, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Data(images, torch.arange(3).repeat_interleave(10), Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,)))


def leaves() -> Synthetic:
    return Synthetic(torch.zeros(3, 1, 8, 8, requires_grad=True), torch.eye(3))


def draws(source: Trajectories, count: int = 8, seed: int = 0) -> list[tuple[Draw, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    found = [source.draw(generator, leaves(), toy()) for _ in range(count)]
    return [(draw, nn.utils.parameters_to_vector(draw.network.parameters()).detach()) for draw in found]


def by_hand(seed: int, expert: int, snapshots: int) -> list[Tensor]:
    """An expert trained in one go, with the images of each interval drawn as documented."""
    root = child_seed(seed, "expert", expert)
    network, data, kept = make(root), toy(), []
    kept.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
    for age in range(1, snapshots):
        images, targets = data.batch(torch.cat(batches(30, 4, 3, stream(root, "images", age))))
        recipe = Fit(3, 4, 0.02, momentum=0.0, weight_decay=0.0, schedule="constant")
        fit(network, images, targets, recipe, seed=child_seed(root, age, 0), operations=OPERATIONS)
        kept.append(nn.utils.parameters_to_vector(network.parameters()).detach().clone())
    return kept


@pytest.mark.parametrize("in_folder", [False, True])
def test_a_draw_is_two_moments_of_an_expert_trained_by_hand(in_folder: bool, tmp_path: Path) -> None:
    folder = tmp_path if in_folder else None
    source = Trajectories(make, OPERATIONS, 3, **FEW, seed=5, folder=folder)
    known = [by_hand(5, expert, 5) for expert in range(2)]
    seen = set()
    for draw, begin in draws(source, 20):
        (place,) = [(e, a) for e in range(2) for a in range(3) if torch.equal(known[e][a], begin)]
        seen.add(place)
        assert torch.equal(draw.goal, known[place[0]][place[1] + 2])
        assert draw.key is None
        assert not any(p.requires_grad for p in draw.network.parameters())
    assert seen == {(e, a) for e in range(2) for a in range(3)}


def test_experts_of_a_mixture_are_of_all_kinds(tmp_path: Path) -> None:
    def mixed(seed: int) -> nn.Module:
        return build("convnet1-w16+convnet2-w16-none", (1, 8, 8), 3, seed)

    for folder in (None, tmp_path):
        source = Trajectories(mixed, OPERATIONS, 3, **FEW | {"experts": 6}, seed=5, folder=folder)
        found = draws(source, 20)
        assert len({len(begin) for _, begin in found}) == 2
        assert all(len(draw.goal) == len(begin) for draw, begin in found)


def test_an_expert_learns_what_it_is_shown() -> None:
    """Three classes that are three greys: the later snapshot has the lower loss."""
    labels = torch.arange(3).repeat_interleave(20)
    images = (labels * 100).to(torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 8, 8).clone()
    images[:, :, :4] //= 2  # instance norm sees no constant image
    data = Data(images, labels, Spec("greys", (1, 8, 8), ("a", "b", "c"), (0.5,), (0.25,)))
    source = Trajectories(partial(make, norm="none"), (), 3, interval=20, batch=30, lr=0.1)
    first, last = source.snapshots(0, (0, 5), data)
    losses = []
    for weights in (first, last):
        network = make(0, norm="none")
        nn.utils.vector_to_parameters(weights, network.parameters())
        losses.append(float(F.cross_entropy(network(data.batch().images), labels).detach()))
    assert losses[1] < 0.5 * losses[0]


def test_draws_follow_from_the_generator_and_resume_from_the_state() -> None:
    first = Trajectories(make, OPERATIONS, 3, **FEW)
    a, b = draws(first), draws(Trajectories(make, OPERATIONS, 3, **FEW))
    assert all(torch.equal(x, y) and torch.equal(p.goal, q.goal) for (p, x), (q, y) in zip(a, b, strict=True))
    resumed = Trajectories(make, OPERATIONS, 3, **FEW)
    resumed.load_state_dict(first.state_dict())
    same, other = draws(first, 4, 9), draws(resumed, 4, 9)
    assert all(torch.equal(p.goal, q.goal) for (p, _), (q, _) in zip(same, other, strict=True))


class TestFolder:
    def test_it_serves_the_next_run_without_training(self, tmp_path: Path) -> None:
        first = draws(Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path), 20)
        again = draws(Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path, train=False), 20)
        assert all(torch.equal(p.goal, q.goal) for (p, _), (q, _) in zip(first, again, strict=True))
        assert sorted(p.name for p in tmp_path.iterdir()) == ["expert-000.safetensors", "expert-001.safetensors"]

    def test_a_longer_run_trains_on_from_what_is_there(self, tmp_path: Path) -> None:
        source = Trajectories(make, OPERATIONS, 3, **FEW, seed=5, folder=tmp_path)
        source.snapshots(0, (1,), toy())
        assert torch.equal(source.snapshots(0, (4,), toy())[0], by_hand(5, 0, 5)[4])

    def test_what_is_missing_is_an_error_where_it_may_not_be_trained(self, tmp_path: Path) -> None:
        source = Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path, train=False)
        with pytest.raises(ResumeError, match=r"expert-000.safetensors holds no 3 snapshots, and none may be trained"):
            source.snapshots(0, (2,), toy())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"build": partial(make, norm="none")}, "network was"),
            ({"interval": 5}, "interval was 3, is 5"),
            ({"operations": ()}, "operations was"),
            ({"seed": 1}, "seed was 0, is 1"),
        ],
    )
    def test_another_network_or_setting_is_refused(self, changes: dict[str, Any], message: str, tmp_path: Path) -> None:
        told: dict[str, Any] = {"build": make, "operations": OPERATIONS, "classes": 3, **FEW, "folder": tmp_path}
        Trajectories(**told).snapshots(0, (1,), toy())
        with pytest.raises(ResumeError, match=f"is of another run: .*{message}.*name another folder"):
            Trajectories(**{**told, **changes}).snapshots(0, (1,), toy())

    @pytest.mark.parametrize("field", ["mean", "std", "classes"])
    @given(number=st.floats(0.01, 0.99))
    @settings(max_examples=8, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_data_that_are_told_otherwise_are_refused(self, field: str, number: float, tmp_path: Path) -> None:
        data = toy()
        value: Any = (f"a {number}", "b", "c") if field == "classes" else (number,)
        other = Data(data.images, data.labels, replace(data.spec, **{field: value}))
        source = Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path)
        source.snapshots(0, (1,), data)
        if value == getattr(data.spec, field):
            return
        for one in (source, Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path)):
            with pytest.raises(ResumeError, match=f"{field} was "):
                one.snapshots(0, (1,), other)

    def test_other_code_of_an_equal_network_is_refused(self, tmp_path: Path) -> None:
        Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path).snapshots(0, (1,), toy())
        Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path).snapshots(0, (1,), toy())
        with pytest.raises(ResumeError, match="code of the network was "):
            Trajectories(lambda seed: make(seed), OPERATIONS, 3, **FEW, folder=tmp_path).snapshots(0, (1,), toy())

    @given(place=st.integers(0, 10**6), bit=st.integers(0, 7))
    @settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    def test_every_flipped_bit_is_refused(self, place: int, bit: int, tmp_path: Path) -> None:
        path = tmp_path / "expert-000.safetensors"
        source = Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path)
        source.snapshots(0, (1,), toy())
        whole = path.read_bytes()
        blob = bytearray(whole)
        blob[place % len(blob)] ^= 1 << bit
        path.write_bytes(bytes(blob))
        for one in (source, Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path)):
            with pytest.raises(ResumeError, match="is no trajectory of this version, or is damaged"):
                one.snapshots(0, (1,), toy())
        path.write_bytes(whole)

    def test_two_that_want_one_expert_train_it_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        trained, real = [], fit

        def counted(*told: Any, **more: Any) -> Any:
            trained.append(1)
            return real(*told, **more)

        monkeypatch.setattr(trajectories, "fit", counted)
        sources = [Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path) for _ in range(2)]
        with hold(tmp_path / "expert-000.safetensors"):
            threads = [threading.Thread(target=one.snapshots, args=(0, (2,), toy())) for one in sources]
            for thread in threads:
                thread.start()
        for thread in threads:
            thread.join(600)
        assert len(trained) == 2  # intervals
        assert torch.equal(sources[0].snapshots(0, (2,), toy())[0], by_hand(0, 0, 3)[2])

    @pytest.mark.parametrize("blob", [b"", b"no trajectory", safetensors.torch.save({"weights": torch.zeros(3)})])
    def test_a_damaged_file_is_refused(self, blob: bytes, tmp_path: Path) -> None:
        (tmp_path / "expert-000.safetensors").write_bytes(blob)
        with pytest.raises(ResumeError, match="is no trajectory"):
            Trajectories(make, OPERATIONS, 3, **FEW, folder=tmp_path).snapshots(0, (1,), toy())

    def test_killed_in_mid_training_it_goes_on_and_ends_the_same(self, forked: Any, tmp_path: Path) -> None:
        """The process kills itself after the second snapshot; the file has what was written before."""

        def train() -> None:
            def once(path: Path, blob: bytes, overwrite: bool) -> None:
                write_file(path, blob, overwrite)
                os.kill(os.getpid(), signal.SIGKILL)

            trajectories.__dict__.update(_WRITE_S=0.0, write_file=once)  # in the copy of this process alone
            Trajectories(make, OPERATIONS, 3, **FEW, seed=5, folder=tmp_path / "kept").snapshots(0, (4,), toy())

        assert forked(train, tmp_path).end().code == -signal.SIGKILL
        source = Trajectories(make, OPERATIONS, 3, **FEW, seed=5, folder=tmp_path / "kept")
        assert len(safetensors.torch.load_file(tmp_path / "kept" / "expert-000.safetensors")["weights"]) == 2
        assert torch.equal(source.snapshots(0, (4,), toy())[0], by_hand(5, 0, 5)[4])


def test_a_recipe_of_trajectories_takes_a_folder_and_another_one_refuses_it(tmp_path: Path) -> None:
    recipe = kept_in(tmp_path, OBJECTIVES["mtt"].recipe)
    assert isinstance(source := recipe.source(make, OPERATIONS, 3), Trajectories)
    assert source.folder == tmp_path
    assert isinstance(source := kept_in(tmp_path, TrajectoryMatching.published).source(make, (), 3), Trajectories)
    assert (source.folder, source.experts) == (tmp_path, 100)
    with pytest.raises(SettingError, match="the objective has none; take one that matches trajectories: 'mtt'"):
        kept_in(tmp_path, OBJECTIVES["dm"].recipe)


def test_without_the_data_there_are_no_experts() -> None:
    with pytest.raises(SettingError, match="experts are trained on the real data, which their holder keeps"):
        Trajectories(make, OPERATIONS, 3).draw(torch.Generator(), leaves(), None)


def test_numbers_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingError, match=r"experts 0, span 2, .* needed: 1 or more of each"):
        Trajectories(make, OPERATIONS, 3, experts=0)
