from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest

from fedcondense.errors import SettingError
from fedcondense.flower.caps import Caps, Cost

LARGE = 2**61


class TestCheck:
    @pytest.mark.parametrize(
        ("caps", "cost", "reason"),
        [
            ({"max_steps": 5}, {"steps": 6}, "6 steps; this node allows 5: ask for fewer"),
            ({"max_seconds": 5.0}, {"seconds": 5.6}, "about 6 seconds would be needed; this node allows 5"),
            ({"max_bytes": 5}, {"nbytes": 6}, "6 bytes of payload; this node allows 5"),
            ({"max_memory": 5}, {"memory": 6}, "6 bytes of working memory; this node allows 5"),
            ({"max_pixels": 5}, {"pixels": 6}, "6 bytes of decoded images; this node allows 5"),
            ({"networks": "mlp, lenet"}, {"networks": ("mlp", "vgg11")}, "networks vgg11; this node allows lenet, mlp"),
            ({}, {"is_real": True}, "it publishes real records; this node's config has no allow-real = true"),
        ],
    )
    def test_each_cap_holds_its_own_cost_and_says_both_numbers(
        self, caps: dict[str, Any], cost: dict[str, Any], reason: str
    ) -> None:
        with pytest.raises(SettingError, match="^" + reason.replace("(", r"\(")):
            replace(Caps(), **caps).check(Cost(**cost))
        (name,) = cost
        if name in ("steps", "seconds", "nbytes", "memory", "pixels"):
            replace(Caps(), **caps).check(Cost().but(**{name: 5}))  # as much as is allowed

    def test_all_that_is_too_much_is_said_in_one_line(self) -> None:
        with pytest.raises(SettingError) as refused:
            Caps(max_steps=1, max_bytes=1).check(Cost(steps=2, nbytes=2, is_real=True))
        assert len(str(refused.value).split("; this node")) == 4
        assert "\n" not in str(refused.value)

    @pytest.mark.parametrize("ipc", [0, -1, 51])
    def test_ipc_is_held_before_anything_is_made_of_it(self, ipc: int) -> None:
        with pytest.raises(SettingError, match=f"ipc {ipc} asked for; this node condenses to 1 to 50 images"):
            Caps().check_ipc(ipc)
        Caps().check_ipc(50)

    @pytest.mark.parametrize("allowed", ["", " ", ","])
    def test_no_networks_named_are_all(self, allowed: str) -> None:
        replace(Caps(), networks=allowed).check_networks(["anything"])

    def test_caps_of_none_refuse_nothing_and_allow_all(self) -> None:
        huge = Cost({"a": LARGE}, {"a": LARGE}, LARGE, LARGE, 1e300, LARGE, LARGE, ("vit-small",), 1e9, True)
        caps = Caps.none()
        caps.check(huge)
        caps.check_ipc(LARGE)
        caps.check_steps(LARGE)
        assert caps.max_seconds == math.inf
        assert (caps.allow_real, caps.allow_weights, caps.min_records) == (True, True, 1)

    def test_caps_of_none_can_leave_small_classes_out(self) -> None:
        assert Caps.none(7) == replace(Caps.none(), min_records=7)

    def test_by_default_nothing_that_shows_records_is_allowed(self) -> None:
        assert not any(getattr(Caps(), item.name) for item in fields(Caps) if item.name.startswith("allow"))
        assert Caps().min_records == 10

    @pytest.mark.parametrize(("least", "share"), [(1, 0.5), (2, 0.5), (3, 1 / 3), (10, 0.1)])
    def test_an_image_stands_for_so_many_records_and_a_class_sends_at_most_half(self, least: int, share: float) -> None:
        assert Caps(min_records=least).share == share
