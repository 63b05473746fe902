"""The bytes of files that do not exist yet: exact where nothing packs them, bounds where a codec does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedcondense.contract import Parametrization
from fedcondense.parametrizations import Bases, MultiFormation, Pixels
from fedcondense.sets.codecs import codec_named
from fedcondense.sets.forecast import file_bytes, largest_file, widest_evaluation
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet
from fedcondense.training.evaluation import Evaluation
from fedcondense.training.fit import Fit

CLASSES = ("a", "b", "c")


def noise(images: list[int], parametrization: Parametrization, side: int = 8, channels: int = 1) -> SyntheticSet:
    """A set of white noise: no coder makes it smaller."""
    shape = (channels, side, side)
    record = Record("toy", shape, CLASSES, (0.5,) * channels, (0.25,) * channels, method="dm", ipc=max(images))
    shapes = parametrization.shapes(sum(map(parametrization.start_count, images)), shape)
    kinds = parametrization.storage
    generator = torch.Generator().manual_seed(0)
    codes = {k: torch.randint(0, 256, v, generator=generator).to(kinds[k]) for k, v in shapes.items()}
    rows = shapes[next(iter(kinds))][0]
    labels = torch.arange(3).repeat_interleave(torch.tensor(images) * rows // sum(images)).to(torch.uint8)
    return SyntheticSet([Part(codes, labels, parametrization, record)])


@pytest.mark.parametrize("parametrization", [Pixels(), MultiFormation(2), Bases(2, 2)])
def test_a_file_that_nothing_packs_is_known_to_the_byte(parametrization: Parametrization) -> None:
    images = [4, 2, 4]
    made = noise(images, parametrization)
    said = file_bytes(parametrization, made.record, images, "bits-2" if parametrization.shared else "raw")
    assert said == made.nbytes
    assert largest_file(parametrization, made.record, images) == made.nbytes


CODECS = ["bits-1", "bits-2", "bits-3", "bits-6", "bits-2-class", "bits-3-patch", "palette-5"]


@settings(deadline=None, derandomize=True, max_examples=25)
@given(st.sampled_from(CODECS), st.lists(st.integers(1, 5), min_size=3, max_size=3), st.sampled_from([4, 7, 12]))
def test_noise_takes_what_is_said_and_never_more_than_the_most(codec: str, images: list[int], side: int) -> None:
    made = noise(images, Pixels(), side, 3).recode(codec)
    most = largest_file(Pixels(), made.record, images, codec)
    assert most is not None
    assert made.nbytes <= most
    said = file_bytes(Pixels(), made.record, images, codec, made.parts[0].code_bytes)
    assert abs(said - made.nbytes) <= 8  # the header is filled up to eights


@pytest.mark.parametrize("codec", ["jpeg-20", "webp-20"])
def test_a_picture_codec_says_no_most_but_its_file_is_known_by_its_codes(codec: str) -> None:
    made = noise([3, 2, 2], Pixels(), 16).recode(codec)
    assert largest_file(Pixels(), made.record, [3, 2, 2], codec) is None
    assert abs(file_bytes(Pixels(), made.record, [3, 2, 2], codec, made.parts[0].code_bytes) - made.nbytes) <= 24


def test_the_bound_of_a_codec_is_that_of_noise() -> None:
    """Two bits a value, one byte for the coder's mark, one for the number of groups, and four levels."""
    codec = codec_named("bits-2")
    assert codec is not None
    images = torch.randint(0, 256, (5, 3, 8, 8), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert len(codec.encode(images, torch.zeros(5, dtype=torch.int64))) == codec.bound((5, 3, 8, 8)) == 246  # type: ignore[attr-defined]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.lists(st.floats(0, 100), min_size=3, max_size=3), st.floats(0, 1e6), st.integers(1, 10**7))
def test_no_evaluation_takes_more_than_the_widest(accuracies: list[float], seconds: float, images: int) -> None:
    found = Evaluation(tuple(accuracies), (), "convnet3-w32", Fit(), (0, 1, 2), False, f"toy, {images} images", seconds)
    made = noise([1, 1, 1], Pixels()).recode("bits-2")
    wide = made.with_evaluation(widest_evaluation("toy"))
    assert made.with_evaluation(found.to_dict()).nbytes <= wide.nbytes


def test_room_grows_with_what_will_be_evaluated() -> None:
    made = noise([1, 1, 1], Pixels()).recode("bits-2")

    def room(**wanted: object) -> int:
        return made.with_evaluation(widest_evaluation("toy", **wanted)).nbytes  # type: ignore[arg-type]

    assert room() < room(seeds=10)
    assert room() < room(network="+".join(["convnet3-w32"] * 3))
    assert room() == room(network="mlp")


def test_soft_labels_are_counted() -> None:
    record = noise([2, 2, 2], Pixels()).record
    hard = file_bytes(Pixels(), record, [2, 2, 2])
    assert file_bytes(Pixels(), record, [2, 2, 2], soft=True) >= hard + 6 * 3 * 2 - 6
