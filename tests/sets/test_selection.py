from __future__ import annotations

import logging
from itertools import combinations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.budgets import budget_bytes
from fedcondense.data.images import Data, Spec
from fedcondense.data.loading import load_data
from fedcondense.errors import SettingError
from fedcondense.sets.by_class import images_by_class
from fedcondense.sets.forecast import widest_evaluation
from fedcondense.sets.selection import SELECTIONS, herding, k_center, k_means, random, select

SPEC = Spec("toy", (1, 8, 8), ("a", "b", "c"), (0.4,), (0.2,))
WHOLE = [name for name in SELECTIONS if name != "half-resolution"]


@pytest.fixture(scope="module")
def train() -> Data:
    return load_data("digits").train


def toy(counts: tuple[int, int, int]) -> Data:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (sum(counts), 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Data(images, torch.arange(3).repeat_interleave(torch.tensor(counts)), SPEC)


def cloud(count: int = 30, seed: int = 0) -> Tensor:
    return torch.rand(count, 12, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("method", WHOLE)
def test_the_images_are_records_of_their_class_byte_by_byte(method: str, train: Data) -> None:
    chosen = select(train, 3, method, seed=0)
    part = chosen.parts[0]
    assert torch.bincount(part.targets.long()).tolist() == [3] * 10
    places = []
    for image, label in zip(part.codes["images"], part.targets.tolist(), strict=True):
        same = (train.images == image).flatten(1).all(1) & (train.labels == label)
        assert same.any()
        places.append(int(same.nonzero()[0]))
    assert len(set(places)) == 30


@pytest.mark.parametrize("method", SELECTIONS)
def test_equal_seeds_select_equally_and_the_global_state_stays(method: str, train: Data) -> None:
    before = torch.random.get_rng_state()
    first, second = (select(train, 2, method, seed=3).with_record(seconds=0.0).to_bytes() for _ in range(2))
    assert first == second
    assert torch.equal(torch.random.get_rng_state(), before)


def test_random_is_another_draw_for_another_seed(train: Data) -> None:
    first, second = (select(train, 2, "random", seed=seed).parts[0].codes["images"] for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("method", SELECTIONS)
def test_absent_and_small_classes(method: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        chosen = select(toy((20, 0, 2)), 4, method)
    assert torch.bincount(chosen.parts[0].targets.long(), minlength=3).tolist() == [4, 0, 2]
    assert "c (2)" in caplog.text
    assert chosen.record.counts == (20, 0, 2)


def test_a_limit_caps_the_share_of_a_class() -> None:
    chosen = select(toy((20, 6, 1)), 8, "random", limit=0.5)
    assert chosen.counts().tolist() == [8, 3, 1]


@pytest.mark.parametrize("method", SELECTIONS)
def test_a_caller_s_autocast_changes_no_choice(method: str, train: Data) -> None:
    plain = select(train, 5, method).decode().images
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(select(train, 5, method).decode().images, plain)


def test_a_seed_that_no_file_can_hold_is_refused(train: Data) -> None:
    for seed in (-1, 2**63):
        with pytest.raises(SettingError, match=f"seed {seed}; needed"):
            select(train, 1, "random", seed=seed)


def test_the_record_says_what_it_is(train: Data) -> None:
    record = select(train, 2, "herding", seed=5).record
    assert (record.method, record.start, record.ipc, record.seed, record.steps) == ("herding", "real", 2, 5, 0)
    assert record.counts == tuple(train.counts.tolist())


def test_herding_equals_a_naive_greedy_search() -> None:
    """Try every free image at every step and take the one that leaves the mean of the chosen closest."""
    pixels = cloud()
    chosen: list[int] = []
    for _ in range(10):
        trials = {
            i: float((pixels[[*chosen, i]].double().mean(0) - pixels.double().mean(0)).square().sum())
            for i in range(len(pixels))
            if i not in chosen
        }
        chosen.append(min(trials, key=lambda i: trials[i]))
    assert herding(pixels, 10, 0).tolist() == chosen


def test_herding_takes_every_image_of_a_class_once() -> None:
    assert sorted(herding(cloud(7), 20, 0).tolist()) == list(range(7))


def test_k_center_equals_a_naive_greedy_search() -> None:
    """Look at every image at every step, and take the one whose nearest chosen image is farthest away."""
    pixels = cloud().double()
    chosen = [min(range(len(pixels)), key=lambda i: float((pixels[i] - pixels.mean(0)).norm()))]
    while len(chosen) < 10:
        gaps = {
            i: min(float((pixels[i] - pixels[j]).norm()) for j in chosen) for i in range(len(pixels)) if i not in chosen
        }
        chosen.append(max(gaps, key=lambda i: gaps[i]))
    assert k_center(cloud(), 10, 0).tolist() == chosen


def test_k_center_goes_from_the_middle_to_the_corners_of_a_square() -> None:
    """A dense middle, four corners: any number of middle images comes after the corners."""
    corners = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    middle = 0.5 + 0.1 * (torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) - 0.5)
    pixels = torch.cat([middle, corners])
    chosen = k_center(pixels, 5, 0).tolist()
    assert chosen[0] == int((pixels - pixels.mean(0)).norm(dim=1).argmin())
    assert set(chosen[1:]) == {50, 51, 52, 53}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3))
def test_the_k_center_radius_is_at_most_twice_the_smallest(seed: int, count: int) -> None:
    """The bound of Gonzalez (1985) for the greedy choice, against all subsets."""
    pixels = cloud(8, seed)
    apart = torch.cdist(pixels, pixels)
    best = min(float(apart[:, list(some)].amin(1).max()) for some in combinations(range(8), count))
    assert float(apart[:, k_center(pixels, count, 0)].amin(1).max()) <= 2 * best + 1e-5


def test_k_center_takes_every_image_of_a_class_once_even_if_they_are_equal() -> None:
    pixels = torch.cat([cloud(3), cloud(3), cloud(3)])
    chosen = k_center(pixels, 20, 0).tolist()
    assert sorted(chosen) == list(range(9))
    assert len({i % 3 for i in chosen[:3]}) == 3


def test_k_center_takes_no_seed(train: Data) -> None:
    first, second = (select(train, 2, "k-center", seed=seed).parts[0].codes["images"] for seed in (0, 1))
    assert torch.equal(first, second)


def test_k_means_takes_the_image_nearest_to_each_centre() -> None:
    """Three tight clusters: one image of each, the one nearest to its cluster's mean."""
    centres = torch.tensor([[0.0], [1.0], [3.0]]).expand(3, 12)
    pixels = (centres.repeat_interleave(9, 0) + 0.1 * cloud(27)).contiguous()
    expected = set()
    for k in range(3):
        cluster = pixels[9 * k : 9 * k + 9]
        expected.add(9 * k + int((cluster - cluster.mean(0)).square().sum(1).argmin()))
    assert set(k_means(pixels, 3, 0).tolist()) == expected


def test_k_means_never_takes_an_image_twice() -> None:
    assert len(set(k_means(cloud(9), 9, 0).tolist())) == 9
    assert len(set(k_means(cloud(5), 20, 0).tolist())) == 5


def test_random_draws_without_replacement() -> None:
    assert sorted(random(cloud(8), 99, 0).tolist()) == list(range(8))


def test_half_resolution_holds_four_times_the_images_in_the_same_code_bytes(train: Data) -> None:
    whole, half = select(train, 2, "random"), select(train, 2, "half-resolution")
    assert half.parts[0].codes["images"].numel() == whole.parts[0].codes["images"].numel()
    assert len(half) == 4 * len(whole)
    assert half.counts().tolist() == [8] * 10


def test_half_resolution_tiles_are_shrunk_records(train: Data) -> None:
    half = select(train, 1, "half-resolution")
    tiles = half.parts[0].codes["images"].unfold(2, 4, 4).unfold(3, 4, 4).reshape(-1, 4, 4)
    shrunk = F.interpolate(train.images.float(), size=(4, 4), mode="area").round()[:, 0]
    labels = half.parts[0].targets.repeat_interleave(4)
    for tile, label in zip(tiles.float(), labels, strict=True):
        of_class = shrunk[train.labels == label]
        assert (of_class - tile).abs().amax((1, 2)).min() <= 1


def test_an_unknown_method_is_refused_with_the_closest(train: Data) -> None:
    with pytest.raises(SettingError, match="no selection is called 'kmeans'; did you mean 'k-means'"):
        select(train, 1, "kmeans")


class TestBudgets:
    @pytest.mark.parametrize("method", SELECTIONS)
    @pytest.mark.parametrize(("codec", "budget"), [(None, "3 kB"), ("jpeg-10", "4 kB"), ("bits-2", "2 kB")])
    def test_as_many_images_as_fit_and_no_byte_more(self, method: str, codec: str | None, budget: str) -> None:
        chosen = select(toy((40, 30, 1)), budget, method, codec=codec)
        nbytes = chosen.with_evaluation(widest_evaluation("toy")).nbytes
        assert nbytes <= budget_bytes(budget)
        assert nbytes > 0.85 * budget_bytes(budget) or chosen.parts[0].stored == 71
        assert chosen.parts[0].codec == (codec or "raw")
        assert min(chosen.counts().tolist()) >= 1

    def test_herding_within_a_budget_is_the_first_of_herding(self) -> None:
        data = toy((40, 30, 20))
        fitted = select(data, "3 kB", "herding")
        whole = select(data, 20, "herding")
        for name, images in images_by_class(fitted).items():
            assert torch.equal(images, images_by_class(whole)[name][: len(images)])

    def test_more_than_there_are_is_all_of_them(self) -> None:
        assert select(toy((4, 3, 2)), "1 MB").counts().tolist() == [4, 3, 2]
        assert select(toy((4, 3, 2)), "1 MB", limit=0.5).counts().tolist() == [2, 1, 1]

    def test_a_budget_that_is_too_small_names_the_smallest(self) -> None:
        with pytest.raises(SettingError, match="cannot hold one image of each of 3 classes") as refused:
            select(toy((4, 3, 2)), "500 B", codec="bits-1")
        needed = str(refused.value).split("needed: ")[1]
        assert select(toy((4, 3, 2)), needed.replace("bytes", "B"), codec="bits-1").counts().tolist() == [1, 1, 1]

    def test_a_codec_alone_stores_what_was_chosen(self) -> None:
        assert select(toy((4, 3, 2)), 2, codec="bits-3").parts[0].codec == "bits-3"
