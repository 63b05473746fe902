"""What codes are expected to take: by images as rough as condensed ones."""

from __future__ import annotations

import torch

import fedcondense as fc
from fedcondense.condensing.holders import Own
from fedcondense.condensing.starts import STARTS
from fedcondense.condensing.trial import on_trial
from fedcondense.contract import Parametrization
from fedcondense.data.images import Data, Spec
from fedcondense.parametrizations import Bases, MultiFormation, Pixels
from fedcondense.randomness import stream


def toy(still: float = 0.0, side: int = 8) -> Data:
    """Noise of two classes; a part of the pixels never changes."""
    images = torch.randint(0, 256, (120, 1, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images[..., : int(still * side)] = 0
    spec = Spec("toy", (1, side, side), ("a", "b"), (0.5,), (0.25,))
    return Data(images, torch.arange(120) % 2, spec)


def expected(data: Data, codec: str, parametrization: Parametrization | None = None) -> float:
    found = on_trial(Own(data), data, parametrization or Pixels(), STARTS["gaussian"], 0)
    assert found is not None
    fixed, each = found(codec)
    return fixed + 20 * each


def test_noise_takes_nearly_all_its_bits_and_what_never_changes_few() -> None:
    rough, still = expected(toy(), "bits-2"), expected(toy(0.5), "bits-2")
    assert 0.85 * 20 * 16 < rough < 1.1 * 20 * 16
    assert still < 0.75 * rough
    assert expected(toy(), "bits-1") < rough < expected(toy(), "bits-4")
    assert expected(toy(), "raw") == 20 * 64


def test_tiles_are_as_large_as_the_image_that_they_stand_for() -> None:
    assert expected(toy(side=16), "raw", MultiFormation(2)) == 20 * 256


def test_codes_that_no_codec_takes_are_not_tried() -> None:
    assert on_trial(Own(toy()), toy(), Bases(), STARTS["gaussian"], 0) is None


def test_a_trial_repeats_and_leaves_the_start_alone() -> None:
    assert expected(toy(), "bits-2") == expected(toy(), "bits-2")
    before = STARTS["gaussian"](toy(), [1, 1], stream(0, "start"))
    expected(toy(), "bits-2")
    assert torch.equal(before, STARTS["gaussian"](toy(), [1, 1], stream(0, "start")))


def test_absent_classes_and_single_records_are_no_trouble() -> None:
    data = toy().subset(torch.tensor([0]))
    assert expected(data, "bits-2") > 0


def test_the_bytes_of_digits_are_met_within_a_fifth() -> None:
    data = fc.load_data("digits").train
    made = fc.condense(data, 3, steps=40, network="convnet1-w16")
    found = on_trial(Own(data), data, Pixels(), STARTS["gaussian"], 0)
    assert found is not None
    fixed, each = found("bits-2")
    assert abs((fixed + 30 * each) / made.recode("bits-2").parts[0].code_bytes - 1) < 0.2
