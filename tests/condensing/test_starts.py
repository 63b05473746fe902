from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedcondense.condensing.starts import STARTS, gaussian, grey, noise, real
from fedcondense.data.images import Data, Spec

SPEC = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.4,), (0.2,))


def toy(counts: tuple[int, int, int], seed: int = 0) -> Data:
    """Classes of different brightness, each with one strong direction and little noise."""
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for c, count in enumerate(counts):
        ramp = torch.linspace(-1, 1, 64) * torch.randn(count, 1, generator=generator) * 0.15
        pieces.append(0.3 + 0.2 * c + ramp + 0.01 * torch.randn(count, 64, generator=generator))
    images = (torch.cat(pieces).clamp(0, 1) * 255).round().to(torch.uint8).view(-1, 1, 8, 8)
    return Data(images, torch.arange(3).repeat_interleave(torch.tensor(counts)), SPEC)


def draw(data: Data, counts: list[int], name: str = "gaussian", seed: int = 0) -> Tensor:
    return STARTS[name](data, counts, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STARTS)
class TestEveryStart:
    def test_shapes_ranges_and_an_absent_class(self, name: str) -> None:
        images = draw(toy((60, 0, 45)), [2, 0, 3], name)
        assert images.shape == (5, 1, 8, 8)
        assert images.dtype == torch.float32
        assert 0 <= images.min() <= images.max() <= 1

    def test_it_follows_from_the_generator_and_leaves_the_global_state_alone(self, name: str) -> None:
        data, before = toy((60, 20, 5)), torch.random.get_rng_state()
        assert torch.equal(draw(data, [2, 2, 2], name), draw(data, [2, 2, 2], name))
        assert not torch.equal(draw(data, [2, 2, 2], name), draw(data, [2, 2, 2], name, seed=1))
        assert torch.equal(torch.random.get_rng_state(), before)


class TestGaussian:
    def test_it_has_the_mean_and_the_covariance_of_the_class(self) -> None:
        """From 40 records on: 3,000 samples against the class's own moments, along its strongest direction."""
        data = toy((400, 0, 0))
        samples = draw(data, [3000, 0, 0]).flatten(1)
        records = data.images.flatten(1).float() / 255
        assert (samples.mean(0) - records.mean(0)).abs().max() < 0.02
        ramp = torch.nn.functional.normalize(torch.linspace(-1, 1, 64), dim=0)
        spread, expected = (samples @ ramp).std(), (records @ ramp).std()
        assert expected > 0.3
        assert spread == pytest.approx(expected.item(), rel=0.1)

    def test_below_40_records_no_direction_of_the_class_is_used(self) -> None:
        """Mean and white noise of half the deviation: along every direction the same."""
        data = toy((39, 0, 0))
        samples = draw(data, [3000, 0, 0]).flatten(1)
        records = data.images.flatten(1).float() / 255
        deviation = 0.5 * float((records - records.mean(0)).square().mean().sqrt())
        assert (samples.mean(0) - records.mean(0)).abs().max() < 0.02
        ramp = torch.nn.functional.normalize(torch.linspace(-1, 1, 64), dim=0)
        assert (samples @ ramp).std() == pytest.approx(deviation, rel=0.1)
        assert (records @ ramp).std() > 3 * (samples @ ramp).std()

    def test_below_10_records_nothing_of_the_class_is_used(self) -> None:
        """The same noise around public grey, whatever the nine records are."""
        assert torch.equal(draw(toy((9, 0, 0)), [4, 0, 0]), draw(toy((9, 0, 0), seed=1), [4, 0, 0]))
        assert torch.equal(draw(toy((9, 0, 0)), [4, 0, 0]), draw(toy((9, 0, 0)), [4, 0, 0], "grey"))

    def test_ten_and_forty_are_the_first_of_the_next_rule(self) -> None:
        nine, ten = (draw(toy((n, 0, 0)), [200, 0, 0]).mean() for n in (9, 10))
        assert nine == pytest.approx(0.4, abs=0.02)
        assert ten == pytest.approx(float(toy((10, 0, 0)).images.float().mean() / 255), abs=0.02)
        ramp = torch.nn.functional.normalize(torch.linspace(-1, 1, 64), dim=0)
        white, shaped = ((draw(toy((n, 0, 0)), [500, 0, 0]).flatten(1) @ ramp).std() for n in (39, 40))
        assert shaped > 3 * white

    def test_no_start_equals_a_record(self) -> None:
        """Not even after rounding, at any class size."""
        for count in (1, 9, 10, 39, 40, 200):
            data = toy((count, 0, 0))
            rounded = (draw(data, [20, 0, 0]) * 255).round().to(torch.uint8).flatten(1)
            distance = torch.cdist(rounded.float(), data.images.flatten(1).float())
            assert distance.min() > 0


def test_grey_is_the_public_mean_with_half_the_public_deviation() -> None:
    samples = grey(toy((1, 0, 0)), [2000, 0, 0], torch.Generator().manual_seed(0))
    assert samples.mean() == pytest.approx(0.4, abs=0.005)
    assert samples.std() == pytest.approx(0.1, rel=0.02)


def test_noise_is_uniform() -> None:
    samples = noise(toy((1, 0, 0)), [2000, 0, 0], torch.Generator().manual_seed(0))
    assert samples.mean() == pytest.approx(0.5, abs=0.005)
    assert samples.std() == pytest.approx(12**-0.5, rel=0.02)


def test_real_takes_records_of_the_right_class_without_repeats() -> None:
    data = toy((30, 4, 12))
    images = (real(data, [5, 0, 7], torch.Generator().manual_seed(0)) * 255).round().to(torch.uint8)
    places = [(image == data.images).flatten(1).all(1).nonzero().flatten().tolist() for image in images]
    assert all(len(place) == 1 for place in places)
    labels = [int(data.labels[place[0]]) for place in places]
    assert labels == [0] * 5 + [2] * 7
    assert len({place[0] for place in places}) == 12


def test_real_repeats_the_records_of_a_class_that_has_too_few() -> None:
    """Four tiles of a stored image, three records."""
    images = real(toy((3, 0, 0)), [4, 0, 0], torch.Generator().manual_seed(0))
    assert torch.equal(images[3], images[0])
    assert len(torch.unique(images.flatten(1), dim=0)) == 3


def test_directions_are_not_those_of_the_global_state() -> None:
    data = toy((100, 0, 0))
    torch.manual_seed(1)
    first = gaussian(data, [3, 0, 0], torch.Generator().manual_seed(0))
    torch.manual_seed(2)
    assert torch.equal(first, gaussian(data, [3, 0, 0], torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("side", [1, 2, 4])
def test_images_of_fewer_values_than_directions_have_fewer_directions(side: int) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (150, 1, side, side), generator=generator, dtype=torch.uint8)
    data = Data(images, torch.arange(150) % 3, Spec("tiny", (1, side, side), ("a", "b", "c"), (0.5,), (0.25,)))
    drawn = gaussian(data, [2, 0, 2], generator)
    assert drawn.shape == (4, 1, side, side)
    assert bool(drawn.isfinite().all())
