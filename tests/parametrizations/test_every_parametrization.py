"""What every parametrization promises: a new line in PARAMETRIZATIONS is a new row here."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial

import pytest
import torch
from torch import Tensor

from fedcondense.condensation import condense
from fedcondense.contract import Codes, Parametrization
from fedcondense.data import Data, Spec
from fedcondense.networks import ConvNet
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.synthetic import Part, Record, SyntheticSet, to_storage

SHAPES = [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 32, 32)]


def encoded(kind: Parametrization, shape: tuple[int, int, int], ipc: int = 2) -> tuple[Codes, Tensor]:
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
        assert len(images) == kind.decoded(shapes_of(codes), shape)
        assert labels.sum(0).tolist() == [len(images) / 3] * 3
        assert 0 <= images.min() <= images.max() <= 1

    def test_a_class_takes_the_bytes_of_ipc_images(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape, ipc=4)
        stored, _ = to_storage(codes, targets, kind)
        assert sum(code.nbytes for code in stored.values()) <= 3 * 4 * torch.Size(shape).numel()

    def test_the_same_codes_give_the_same_images(self, name: str, shape: tuple[int, int, int]) -> None:
        kind = PARAMETRIZATIONS[name]()
        codes, targets = encoded(kind, shape)
        assert torch.equal(kind.decode(codes, targets).images, kind.decode(codes, targets).images)

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
            code.mul_(7).sub_(3)
        assert kind.decode(codes, targets).images.abs().max() > 1
        kind.project(codes)
        images = kind.decode(codes, targets).images
        assert 0 <= images.min() <= images.max() <= 1

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
        assert (made.pixels().images - kind.decode(codes, targets).images).abs().max() <= 0.5 / 255 + 1e-6

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


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_condense_takes_it_by_name(name: str) -> None:
    spec = Spec("toy", (1, 8, 8), ("a", "b"), (0.5,), (0.25,))
    images = torch.randint(0, 256, (40, 1, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data = Data(images, torch.arange(40) % 2, spec)
    network = partial(ConvNet, width=8, depth=2)
    before, after = (condense(data, 2, "dm", name, network=network, steps=steps) for steps in (0, 3))
    per_class = PARAMETRIZATIONS[name]().start_count(2)
    assert after.counts().tolist() == [per_class, per_class]
    assert not torch.equal(before.pixels().images, after.pixels().images)
