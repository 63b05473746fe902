from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fedcondense.data.images import Data
from fedcondense.flower.contract import State
from fedcondense.flower.payloads import Sums, Weights
from fedcondense.flower.strategies.anchors import ANCHORS, Condensed, Nothing, Shared, saw
from fedcondense.sets.selection import select
from fedcondense.sets.synthetic import SyntheticSet


@pytest.fixture(scope="module")
def sets(train: Data) -> dict[str, SyntheticSet]:
    return {f"site-{k}": select(train, 4, "random", seed=k).recode("bits-2") for k in range(4)}


def test_what_fits_goes_down_as_it_came(sets: dict[str, SyntheticSet]) -> None:
    anchors = Shared(1 << 20)(sets, frozenset(sets))
    assert anchors is not None
    whole = SyntheticSet.join(sets.values())
    assert (len(anchors), anchors.nbytes) == (len(whole), whole.nbytes)


def test_only_sets_of_sites_that_share_go_down(sets: dict[str, SyntheticSet]) -> None:
    anchors = Shared()(sets, frozenset({"site-1", "another"}))
    assert anchors is not None
    assert torch.equal(anchors.pixels().images, sets["site-1"].pixels().images)
    assert Shared()(sets, frozenset()) is None
    assert Nothing()(sets, frozenset(sets)) is None


@pytest.mark.parametrize(("share", "sites"), [(0.95, 4), (0.6, 3), (0.3, 1)])
def test_the_bound_holds_with_fewer_images_first_and_fewer_sites_then(
    share: float, sites: int, sets: dict[str, SyntheticSet]
) -> None:
    whole = SyntheticSet.join(sets.values())
    anchors = Shared(int(share * whole.nbytes))(sets, frozenset(sets))
    assert anchors is not None
    assert anchors.nbytes <= share * whole.nbytes
    assert len(anchors.parts) == sites
    assert len(set(torch.bincount(anchors.pixels().targets.argmax(1)).tolist())) == 1  # classes are cut alike
    stored = {bytes(image.numpy().tobytes()) for image in whole.pixels().images}
    assert {bytes(image.numpy().tobytes()) for image in anchors.pixels().images} <= stored  # not encoded again


def test_a_bound_that_holds_nothing_sends_nothing(sets: dict[str, SyntheticSet]) -> None:
    assert Shared(300)(sets, frozenset(sets)) is None
    assert Shared(0)(sets, frozenset(sets)) is None
    assert Condensed(0)(sets, frozenset()) is None


def test_the_servers_own_set_holds_no_image_of_a_site(sets: dict[str, SyntheticSet]) -> None:
    anchors = Condensed(4000, steps=2)(sets, frozenset())
    assert anchors is not None
    assert anchors.nbytes <= 4000
    own, theirs = anchors.pixels().images.flatten(1), SyntheticSet.join(sets.values()).pixels().images.flatten(1)
    assert float(torch.cdist(own, theirs).min()) > 0.05


def test_they_are_named() -> None:
    assert list(ANCHORS) == ["shared", "condensed", "none"]


@pytest.mark.parametrize(
    ("server_round", "last", "sent"),
    [
        (1, Weights({}), ""),
        (2, Weights({}), ", weights"),
        (2, Sums({}), ", sums of features"),
        (3, Sums({}), ", weights, sums of features"),
    ],
)
def test_who_saw_what_follows_from_what_came(
    server_round: int, last: Weights | Sums, sent: str, sets: dict[str, SyntheticSet]
) -> None:
    state = State(server_round, sets=sets, numbers={"shares/site-1": 1})
    strategy = SimpleNamespace(state=state, anchors=Shared(), answers=[SimpleNamespace(payload=last)])
    server = f"the server sees each site's synthetic images, class counts{sent}"
    assert saw(strategy) == f"{server}; no site sees another's images"
    strategy.state = state.but(tensors={"anchors": torch.zeros(1)})
    assert saw(strategy) == f"{server}; sites see images of sites that share theirs, 1 of 4 at the end"
    strategy.anchors = Condensed()
    assert saw(strategy) == f"{server}; sites see images that the server condensed from those of all"
