"""What every parametrization promises: a new line in PARAMETRIZATIONS is a new row here."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fedcondense.checkpoints import Checkpoint
from fedcondense.condensing import Progress, condense, plan, prepare, running
from fedcondense.contract import Codes, Objective, Parametrization
from fedcondense.data.images import Data, Spec
from fedcondense.networks import ConvNet
from fedcondense.objectives import OBJECTIVES
from fedcondense.objectives.kernel import FeatureRegression, KernelRegression
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.parts import Part, Record, to_storage
from fedcondense.sets.synthetic import SyntheticSet

pytestmark = pytest.mark.usefixtures("quick_fit")
TINY = partial(ConvNet, width=8, depth=2)
SHAPES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32)]
IPC = 6  # what is shared by all has to fit into the bytes of so many tiny images a class


def encoded(kind: Parametrization, shape: tuple[int, int, int], ipc: int = IPC) -> tuple[Codes, Tensor]:
    """Return codes and targets of three classes."""
    per_class = kind.start_count(ipc)
    images = torch.rand(3 * per_class, *shape, generator=torch.Generator().manual_seed(0))
    return kind.encode(images, torch.eye(3).repeat_interleave(per_class, 0))


def shapes_of(codes: Codes) -> dict[str, tuple[int, ...]]:
    return {name: tuple(code.shape) for name, code in codes.items()}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("shape", SHAPES)
class TestEveryParametrization:
    def test_codes_decode_to_images_with_one_target_each(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        images, labels = kind.decode(codes, targets)
        assert set(codes) == set(kind.storage)
        assert images.shape == (len(labels), *shape)
        assert labels.shape[1] == 3
        assert len(images) == kind.decoded(shapes_of(codes), shape) == 3 * kind.start_count(IPC)
        assert kind.shapes(len(images), shape) == shapes_of(codes)
        assert len(targets) == len(codes[next(iter(kind.storage))])
        assert labels.sum(0).tolist() == [len(images) / 3] * 3
        assert 0 <= images.min() <= images.max() <= 1

    def test_a_class_takes_the_bytes_of_ipc_images(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        stored, _ = to_storage(codes, targets, kind)
        assert sum(code.nbytes for code in stored.values()) <= 3 * IPC * torch.Size(shape).numel()

    def test_the_same_codes_give_the_same_images(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        assert torch.equal(kind.decode(codes, targets).images, kind.decode(codes, targets).images)

    def test_the_same_images_give_the_same_codes(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        state = torch.get_rng_state()
        first, _ = encoded(kind, shape)
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
        second, _ = encoded(kind, shape)
        assert all(torch.equal(code, second[key]) for key, code in first.items())
        assert not any(code.requires_grad for code in first.values())

    def test_gradients_reach_every_code_and_the_targets(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        leaves = {key: code.detach().requires_grad_() for key, code in codes.items()}
        targets = targets.detach().clone().requires_grad_()
        images, labels = kind.decode(leaves, targets)
        (images.square().sum() + labels.square().sum()).backward()
        for leaf in (*leaves.values(), targets):
            assert leaf.grad is not None
            assert leaf.grad.isfinite().all()
            assert (leaf.grad != 0).any()

    def test_projecting_puts_images_back_into_the_unit_range(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        inside = {key: code.clone() for key, code in codes.items()}
        kind.project(codes)
        assert all(torch.equal(code, inside[key]) for key, code in codes.items())
        for code in codes.values():
            code.mul_(1e6).sub_(3e5)
        kind.project(codes)
        images = kind.decode(codes, targets).images
        assert 0 <= images.min() <= images.max() <= 1
        stored, _ = to_storage(codes, targets, kind)
        assert all(code.isfinite().all() for code in stored.values())

    def test_what_is_stored_comes_back_bit_by_bit(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        stored, labels = to_storage(codes, targets, kind)
        assert {key: code.dtype for key, code in stored.items()} == dict(kind.storage)
        channels = shape[0]
        record = Record("toy", shape, ("a", "b", "c"), (0.5,) * channels, (0.25,) * channels)
        made = SyntheticSet([Part(stored, labels, kind, record)])
        again = SyntheticSet.from_bytes(made.to_bytes())
        assert again.parts[0].parametrization == kind
        assert torch.equal(again.pixels().images, made.pixels().images)
        most = 2 if kind.shared else 0.5  # half a step of a byte, or what rounding a decoder makes of it
        assert (made.pixels().images - kind.decode(codes, targets).images).abs().max() <= most / 255 + 1e-6
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(made.parts[0].decode().images, made.pixels().images)

    def test_codes_that_do_not_fit_are_refused(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, _ = encoded(kind, shape)
        channels, height, width = shape
        for other in ((channels + 1, height, width), (channels, height + 2, width), (channels, height, 2 * width)):
            with pytest.raises(ValueError, match="needed"):
                kind.decoded(shapes_of(codes), other)

    def test_settings_are_plain_numbers_that_make_it_again(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        fields = asdict(kind)  # type: ignore[call-overload]
        assert all(type(value) in (int, float, bool) for value in fields.values())
        assert PARAMETRIZATIONS[name](**fields) == kind

    def test_hostile_shapes_are_refused_or_decode_to_what_they_say(
        self, name: str, shape: tuple[int, int, int]
    ) -> None:
        """Each code's shape in turn is replaced by others, as large as a header may say."""
        kind = PARAMETRIZATIONS[name]()
        codes, _ = encoded(kind, shape)
        fits = shapes_of(codes)
        for key, size in fits.items():
            others = [(), (0,), size[1:], (*size, 1), (2**40,) * len(size), (2**40, *size[1:]), (*size[:-1], 2**40)]
            for other in others:
                try:
                    number = kind.decoded({**fits, key: other}, shape)
                except ValueError:
                    continue
                assert other[1:] == size[1:]
                assert key == next(iter(kind.storage))
                assert number * size[0] == other[0] * kind.decoded(fits, shape)

    def test_no_stored_images_are_an_empty_batch(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        first = next(iter(kind.storage))
        codes[first] = codes[first][:0]
        images, labels = kind.decode(codes, targets[:0])
        assert images.shape == (0, *shape)
        assert labels.shape == (0, 3)


def toy() -> Data:
    spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.25,))
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return Data(images, torch.arange(40) % 2, spec)


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
class TestEveryParametrizationByName:
    @pytest.mark.parametrize("objective", OBJECTIVES)
    def test_every_objective_moves_its_codes(self, name: str, objective: str) -> None:
        loop = prepare(toy(), IPC, objective, name, network=TINY, steps=1)
        before = loop.finished()
        loop.step()
        after = loop.finished()
        per_class = PARAMETRIZATIONS[name]().start_count(IPC)
        assert after.counts().tolist() == [per_class, per_class]
        assert not torch.equal(before.pixels().images, after.pixels().images)

    @pytest.mark.parametrize("objective", [KernelRegression(learn_labels=True), FeatureRegression(learn_labels=True)])
    def test_labels_are_learned_with_it(self, name: str, objective: Objective) -> None:
        made = condense(toy(), IPC, objective, name, network=TINY, steps=3)
        targets = made.parts[0].targets
        assert targets.dtype == torch.float16
        assert targets.ndim == 2
        assert 0.5 < targets.amax(1).min() < 1
        images, labels = made.pixels()
        assert len(labels) == len(images) == 2 * PARAMETRIZATIONS[name]().start_count(IPC)
        torch.testing.assert_close(labels.sum(1), torch.ones(len(labels)), rtol=0, atol=1e-3)
        again = SyntheticSet.from_bytes(made.to_bytes()).pixels()
        assert torch.equal(again.images, images)
        assert torch.equal(again.targets, labels)

    def test_a_resumed_run_ends_bit_equal(self, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(running, "_LOOK_S", 0.0)

        def run(checkpoint: Checkpoint | None, stop: int | None = None) -> bytes:
            def progress(now: Progress) -> None:
                if now.step == stop:
                    raise KeyboardInterrupt

            made = condense(toy(), IPC, "dm", name, network=TINY, steps=6, checkpoint=checkpoint, progress=progress)
            return made.with_record(seconds=0.0).to_bytes()

        unbroken, path = run(None), tmp_path / "checkpoint"
        with pytest.raises(KeyboardInterrupt):
            run(Checkpoint(path, every_s=0), stop=4)
        assert run(Checkpoint(path, every_s=0, resume=True)) == unbroken

    def test_a_file_holds_its_class_and_all_settings(self, name: str) -> None:
        made = condense(toy(), IPC, "dm", name, network=TINY, steps=0)
        kind = PARAMETRIZATIONS[name]()
        blob = made.to_bytes()
        header = json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])
        (part,) = json.loads(header["__metadata__"]["fedcondense"])["parts"]
        written = PARAMETRIZATIONS[part.pop("parametrization")]
        assert written is type(kind)
        assert written(**part.get("settings", {})) == kind
        assert made.nbytes == len(blob) >= sum(code.nbytes for code in made.parts[0].codes.values())

    def test_bytes_and_images_are_planned_as_they_will_be(self, name: str) -> None:
        expected = plan(toy(), IPC, "dm", name, network=TINY, steps=1)
        made = condense(toy(), IPC, "dm", name, network=TINY, steps=1)
        assert abs(expected.nbytes - made.nbytes) <= 16  # the digits of the seconds
        assert expected.decoded == len(made)
