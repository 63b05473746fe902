from __future__ import annotations

import pytest
import torch
from torch import nn

import fedcondense as fc
from fedcondense.errors import SettingError
from fedcondense.networks import build, probe


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5"])
def test_a_classifier_takes_grey_and_small_images_and_its_features_are_read(name: str) -> None:
    module = build(f"torchvision:{name}", (1, 28, 28), 7, seed=0).eval()
    images = torch.zeros(2, 1, 28, 28)
    assert module(images).shape == (2, 7)
    assert module.features(images).ndim == 2  # type: ignore[operator]
    probe(f"torchvision:{name}", (1, 28, 28), 7)


def test_a_small_image_meets_the_stem_of_our_resnet_and_a_large_one_torchvision_s() -> None:
    stems = {side: build("torchvision:resnet18", (3, side, side), 7, 0).module for side in (32, 64)}
    assert [(stem.conv1.stride, type(stem.maxpool)) for stem in stems.values()] == [  # type: ignore[union-attr]
        ((1, 1), nn.Identity),
        ((2, 2), nn.MaxPool2d),
    ]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("torchvision:resnet19", "near: torchvision:resnet18"),
        ("torchvision:vgg16", "has 138 million weights"),
        ("torchvision:inception_v3", "cannot be built for images of"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, says: str) -> None:
    with pytest.raises(SettingError, match=says) as told:
        probe(name, (1, 8, 8), 10)
    assert "\n" not in str(told.value)


def test_a_set_is_evaluated_by_its_name_and_again_from_its_record() -> None:
    train, test = fc.load_data("digits")
    synthetic = fc.select(train, 1, "random")
    found = fc.evaluate(synthetic, test, network="torchvision:shufflenet_v2_x0_5", recipe=fc.Fit(steps=2), seeds=[0])
    assert found.network == "torchvision:shufflenet_v2_x0_5"
