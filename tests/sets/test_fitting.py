"""Sets that fit a number of bytes: never one more, whatever they hold, and by the written order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.budgets import Budget
from fedcondense.errors import SettingError
from fedcondense.parametrizations import Bases, MultiFormation, Pixels
from fedcondense.sets.fitting import LEAST_KEPT, Within, amount_of, coarser, finer, fit_within
from fedcondense.sets.forecast import widest_evaluation
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

CODECS = ["raw", "bits-1", "bits-2", "bits-4", "bits-2-class", "jpeg-20", "webp-30", "palette-4"]


def toy(counts: list[int], noise: float = 1.0, side: int = 8, channels: int = 3, soft: bool = False) -> SyntheticSet:
    generator = torch.Generator().manual_seed(sum(counts))
    names = tuple("abcdefgh"[: len(counts)])
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = 128 + noise * 127 * (2 * torch.rand(len(labels), channels, side, side, generator=generator) - 1)
    targets = torch.eye(len(counts))[labels].half() if soft else labels.to(torch.uint8)
    record = Record("toy", (channels, side, side), names, (0.5,) * channels, (0.25,) * channels, ipc=max(counts))
    return SyntheticSet([Part({"images": images.to(torch.uint8)}, targets, Pixels(), record)])


def made_codec(refusal: str) -> str:
    """The codec that a refusal speaks of."""
    return refusal.split("'")[1]


def size(synthetic: SyntheticSet) -> int:
    """The bytes of the set with its evaluation."""
    return synthetic.with_evaluation(widest_evaluation("toy")).nbytes


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any),
    st.floats(0, 1),
    st.sampled_from([4, 7, 16]),
    st.integers(600, 6000),
    st.sampled_from(CODECS),
    st.booleans(),
)
def test_never_a_byte_more(counts: list[int], noise: float, side: int, nbytes: int, codec: str, named: bool) -> None:
    made = toy(counts, noise, side)
    try:
        fitted = fit_within(made, Within(nbytes, codec if named else None), codec)
    except SettingError as error:
        needed = int(str(error).split("needed: ")[1].split()[0])
        nbytes, codec = needed, made_codec(str(error))
        fitted = fit_within(made, Within(nbytes, codec), codec)
    assert size(fitted) <= nbytes
    assert SyntheticSet.from_bytes(fitted.to_bytes()).to_bytes() == fitted.to_bytes()
    kept = dict(zip(fitted.classes, fitted.counts().tolist(), strict=True))
    before = dict(zip(made.classes, made.counts().tolist(), strict=True))
    assert all(1 <= kept[name] <= n for name, n in before.items() if n)  # each class keeps an image
    assert fitted.record.ipc == made.record.ipc
    if named:
        assert fitted.parts[0].codec == codec


@pytest.mark.parametrize("codec", CODECS)
def test_the_smallest_that_is_named_works(codec: str) -> None:
    made = toy([3, 2, 4])
    with pytest.raises(SettingError, match="toy: 400 bytes cannot hold one image of each of 3 classes") as refused:
        fit_within(made, Within(400), codec)
    needed = int(str(refused.value).split("needed: ")[1].split()[0])
    assert fit_within(made, Within(needed), codec).counts().tolist() == [1, 1, 1]
    with pytest.raises(SettingError):
        fit_within(made, Within(needed - 1), codec)


class TestOrder:
    made = toy([8, 8, 8], side=16)

    def whole(self, codec: str) -> int:
        return size(self.made.recode(codec))

    def test_more_bits_where_all_images_fit(self) -> None:
        fitted = fit_within(self.made, Within(self.whole("bits-4")), "bits-2")
        assert (fitted.parts[0].codec, len(fitted)) == ("bits-4", 24)

    def test_a_codec_that_the_budget_names_stays(self) -> None:
        fitted = fit_within(self.made, Within(self.whole("bits-4"), "bits-2"), "bits-2")
        assert (fitted.parts[0].codec, len(fitted)) == ("bits-2", 24)
        fitted = fit_within(self.made, Within(self.whole("bits-1"), "bits-2"), "bits-2")
        assert fitted.parts[0].codec == "bits-2"
        assert len(fitted) < 24 * LEAST_KEPT

    def test_few_images_are_left_out_before_bits(self) -> None:
        fitted = fit_within(self.made, Within(self.whole("bits-2") - 1), "bits-2")
        assert fitted.parts[0].codec == "bits-2"
        assert 24 * LEAST_KEPT <= len(fitted) < 24

    def test_bits_before_many_images(self) -> None:
        fitted = fit_within(self.made, Within(self.whole("bits-1")), "bits-2")
        assert (fitted.parts[0].codec, len(fitted)) == ("bits-1", 24)

    def test_many_images_in_one_bit_at_last(self) -> None:
        fitted = fit_within(self.made, Within((self.whole("bits-1") + 1000) // 2), "bits-2")
        assert fitted.parts[0].codec == "bits-1"
        assert len(fitted) < 24 * LEAST_KEPT

    def test_the_last_image_of_the_last_class_goes_first(self) -> None:
        fitted = fit_within(self.made, Within(self.whole("bits-2") - 1), "bits-2")
        counts = fitted.counts().tolist()
        assert counts == sorted(counts, reverse=True)
        assert counts[0] - counts[-1] <= 1
        first = fitted.parts[0].codes["images"][:1]
        assert torch.equal(first, self.made.recode("bits-2").parts[0].codes["images"][:1])


def test_images_that_cannot_be_left_out_are_all_kept_in_fewer_bits() -> None:
    made = toy([4, 4], side=16, soft=True)
    fitted = fit_within(made, Within(size(made.recode("bits-1"))), "bits-2")
    assert (fitted.parts[0].codec, len(fitted)) == ("bits-1", 8)
    with pytest.raises(SettingError, match="needed"):
        fit_within(made, Within(size(made.recode("bits-1")) - 1), "bits-2")


def test_codes_that_no_codec_takes_keep_their_bytes(caplog: pytest.LogCaptureFixture) -> None:
    shape = (1, 8, 8)
    codes = {name: torch.zeros(s, dtype=torch.float16) for name, s in Bases(2, 2).shapes(8, shape).items()}
    record = Record("toy", shape, ("a", "b"), (0.5,), (0.25,))
    labels = torch.tensor([0] * 4 + [1] * 4, dtype=torch.uint8)
    made = SyntheticSet([Part(codes, labels, Bases(2, 2), record)])
    assert fit_within(made, Within(size(made)), "raw").parts[0].codec == "raw"
    with pytest.raises(SettingError, match="cannot hold"):
        fit_within(made, Within(size(made) - 1), "raw")


def test_a_set_of_tiles_is_cut_by_stored_images() -> None:
    pixels = toy([4, 4], side=16)
    made = SyntheticSet([Part(pixels.parts[0].codes, pixels.parts[0].targets, MultiFormation(2), pixels.record)])
    fitted = fit_within(made, Within(size(made.recode("bits-2")) - 1, "bits-2"), "bits-2")
    assert fitted.parts[0].stored == 7
    assert len(fitted) == 28


def test_no_room_is_left_where_no_evaluation_comes() -> None:
    made = toy([2, 2]).recode("raw")
    exact = made.recode("bits-2").nbytes
    assert fit_within(made, Within(exact, "bits-2", seeds=0), "bits-2").nbytes == exact
    assert Within(exact, seeds=0).evaluation("toy") is None


def test_ladders_of_bits() -> None:
    assert finer("bits-4") == ["bits-5", "bits-6"]
    assert coarser("bits-3-patch") == ["bits-2-patch", "bits-1-patch"]
    assert finer("jpeg-10") == coarser("jpeg-10") == coarser("raw") == coarser("bits-1") == []


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((None, None, None), 10),
        ((3, None, None), 3),
        (("20 kB", None, None), Within(20_000)),
        ((None, 20_000, "bits-3"), Within(20_000, "bits-3")),
        ((Budget(5000), None, None), Within(5000)),
        ((Within("5 kB", seeds=0), None, "bits-1"), Within(5000, "bits-1", seeds=0)),
        ((None, Within("5 kB"), None), Within(5000)),
    ],
)
def test_how_much_is_images_or_bytes(given: Any, expected: Any) -> None:
    assert amount_of(*given) == expected


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ((3, "20 kB", None), "ipc 3 and budget '20 kB'; give one of them"),
        (("20", None, None), "needed: images per class as a number, or a budget with its unit: '20 B'"),
        (("20 KB", None, None), "ipc or budget '20 KB'; needed: kB"),
        ((None, "4 kB per client", None), "is for a federation"),
        ((None, "4 kB", "zip-3"), "no codec is called 'zip-3'"),
        ((None, -1, None), "budget -1; needed"),
    ],
)
def test_what_cannot_be_how_much_is_refused(given: Any, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        amount_of(*given)
