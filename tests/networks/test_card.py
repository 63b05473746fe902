"""What a network's card may say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from fedcondense.errors import SettingError
from fedcondense.networks.card import NetworkCard

CARD = NetworkCard("convnet1-w16", ("cat", "dog"), (3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.2, 0.2))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": ""}, "network is empty"),
        ({"network": "a\nb"}, "network is 'a\\nb'"),
        ({"strategy": "x" * 201}, "strategy is"),
        ({"classes": ()}, "classes are ()"),
        ({"classes": ("cat", "")}, "classes are"),
        ({"classes": ("cat", "cat")}, "class names repeat"),
        ({"classes": ("e\u0301",)}, "Unicode's form NFC"),
        ({"classes": ["cat"]}, "classes are ['cat']"),
        ({"shape": (3, 8)}, "shape is (3, 8)"),
        ({"shape": (3, 8, 5000)}, "each from 1 to 4096"),
        ({"mean": (0.5,)}, "mean is (0.5,); needed: 3 finite numbers"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean is"),
        ({"std": (0.2, 0.2, 0.0)}, "needed: above zero"),
    ],
)
def test_a_value_that_cannot_be_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError) as refused:
        replace(CARD, **changes)
    assert said in str(refused.value)


def test_all_that_is_wrong_is_said_at_once() -> None:
    with pytest.raises(SettingError, match=r"network is empty.*classes are.*shape is"):
        NetworkCard("", (), (1, 2, 0), (0.0,), (1.0,))
