"""Sets in other codecs: what keeps its bytes, what is cut without loss, what is refused."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import fedcondense as fc
from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.memory.stored import merge
from fedcondense.sets.codecs import CODECS
from fedcondense.sets.coded import Coded

NAMES = ["bits-1", "bits-2", "bits-2-patch", "bits-3-class", "jpeg-25", "webp-30"]


@pytest.fixture(scope="module")
def ready() -> fc.SyntheticSet:
    return fc.load_set("mnist", ipc=10).recode("raw")


@pytest.fixture
def plugin() -> Iterator[None]:
    @dataclass(frozen=True)
    class Halved:
        exact: ClassVar[bool] = True
        by_class: ClassVar[bool] = False

        def most(self, shape: tuple[int, int, int]) -> int:
            return 7

        def encode(self, images: Tensor, labels: Tensor) -> bytes:
            return (images >> 1).numpy().tobytes()

        def decode(self, data: bytes, shape: tuple[int, int, int, int]) -> Tensor:
            return torch.frombuffer(bytearray(data), dtype=torch.uint8).reshape(shape) << 1

        def select(self, data: bytes, shape: tuple[int, int, int, int], rows: Tensor) -> bytes:
            return (self.decode(data, shape)[rows] >> 1).numpy().tobytes()

    CODECS["halved"] = Halved
    yield
    CODECS.pop("halved", None)


def plain(synthetic: fc.SyntheticSet) -> fc.SyntheticSet:
    """The same images, as they are decoded from their codec."""
    return synthetic.recode("raw")


@pytest.mark.parametrize("name", NAMES)
def test_bytes_stay_what_they_are(name: str, ready: fc.SyntheticSet) -> None:
    coded = ready.recode(name)
    assert coded.nbytes < 0.6 * ready.nbytes
    assert coded.parts[0].codec == name
    blob = coded.to_bytes()
    read = fc.SyntheticSet.from_bytes(blob)
    assert read.to_bytes() == blob
    assert read.recode(name) is read
    assert torch.equal(read.pixels().images, coded.pixels().images)
    joined = fc.SyntheticSet.join([read, coded])
    assert fc.SyntheticSet.from_bytes(joined.to_bytes()).to_bytes() == joined.to_bytes()
    assert all(isinstance(part.codes, Coded) for part in joined.parts)
    assert isinstance(read.with_evaluation({"accuracy": 1.0}).parts[0].codes, Coded)
    assert isinstance(read.with_record(seed=3).parts[0].codes, Coded)


@pytest.mark.parametrize("name", NAMES)
def test_classes_and_images_are_left_out_without_loss(name: str, ready: fc.SyntheticSet) -> None:
    coded = ready.recode(name)
    few = coded.restrict(["3", "7"])
    assert few is not None
    assert few.parts[0].codec == name
    assert few.nbytes < coded.nbytes / 2
    expected = plain(coded).restrict(["3", "7"])
    assert expected is not None
    assert torch.equal(few.pixels().images, expected.pixels().images)
    if name.startswith("webp"):
        with pytest.raises(SettingError, match=r"5 of 10 images of a class in one WebP sheet"):
            coded.restrict(["3"], {"3": 5})
        return
    prefix, whole = coded.restrict(["3"], {"3": 5}), plain(coded).restrict(["3"], {"3": 5})
    assert prefix is not None
    assert whole is not None
    assert torch.equal(prefix.pixels().images, whole.pixels().images)


@pytest.mark.parametrize("name", NAMES)
def test_parts_of_one_codec_merge_to_one(name: str, ready: fc.SyntheticSet) -> None:
    coded = ready.recode(name)
    halves = [coded.restrict(coded.classes[:5]), coded.restrict(coded.classes[5:])]
    (merged,) = merge([half for half in halves if half is not None])
    assert len(merged.parts) == 1
    assert merged.parts[0].codec == name
    assert torch.equal(merged.pixels().images, coded.pixels().images)
    assert fc.SyntheticSet.from_bytes(merged.to_bytes()).to_bytes() == merged.to_bytes()


def test_an_evaluation_says_what_decoded_where_others_may_decode_otherwise(ready: fc.SyntheticSet) -> None:
    for name, library in (("jpeg-10", "libjpeg"), ("webp-10", "libwebp")):
        coded = ready.recode(name)
        assert coded.codec == name
        measured = coded.with_evaluation({"accuracy": 50.0})
        assert measured.evaluation is not None
        assert re.fullmatch(rf"Pillow \S+, {library}\S* \S+", measured.evaluation["decoder"])
        read = fc.SyntheticSet.from_bytes(measured.to_bytes())
        assert read.evaluation == measured.evaluation
        again = read.with_evaluation({**measured.evaluation, "decoder": "another"})
        assert again.evaluation == {"accuracy": 50.0, "decoder": "another"}
        joined = fc.SyntheticSet.join([read, ready])
        assert joined.codec == f"{name}, raw"
    assert ready.recode("bits-2").with_evaluation({"accuracy": 50.0}).evaluation == {"accuracy": 50.0}


def test_labels_in_runs_are_read_as_they_were(ready: fc.SyntheticSet) -> None:
    coded = fc.SyntheticSet([replace(part, targets=part.targets) for part in ready.parts]).recode("bits-2")
    read = fc.SyntheticSet.from_bytes(coded.to_bytes())
    assert b'"targets":["runs",[100]]' not in coded.to_bytes()  # a hundred labels are as small
    many = merge([coded] * 9)[0]
    assert b'\\"targets\\":[\\"runs\\",[900]]' in many.to_bytes()
    assert torch.equal(read.parts[0].targets, ready.parts[0].targets)
    assert torch.equal(fc.SyntheticSet.from_bytes(many.to_bytes()).parts[0].targets, many.parts[0].targets)


def test_soft_labels_keep_the_likeliest(ready: fc.SyntheticSet) -> None:
    targets = torch.rand(100, 10, generator=torch.Generator().manual_seed(0)).pow(4)
    soft = fc.SyntheticSet([replace(ready.parts[0], targets=(targets / targets.sum(1, keepdim=True)).half())])
    coded = soft.recode("bits-2", labels="top-3")
    read = fc.SyntheticSet.from_bytes(coded.to_bytes())
    found = read.parts[0].targets
    assert found.dtype == torch.float16
    assert bool(((found > 0).sum(1) <= 3).all())
    assert torch.equal(found.argmax(1), soft.parts[0].targets.argmax(1))
    assert torch.equal(found, coded.parts[0].targets)
    assert read.to_bytes() == coded.to_bytes()
    assert coded.nbytes < soft.recode("bits-2").nbytes - 1000
    assert read.recode(labels="top-3").to_bytes() == read.to_bytes()
    with pytest.raises(SettingError, match="needed: 'top-3', say"):
        soft.recode(labels="best")


def test_a_second_loss_is_said(ready: fc.SyntheticSet, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        ready.recode("jpeg-10").recode("bits-2")
    assert "was coded by jpeg-10: bits-2 is a second loss; recode the original" in caplog.text


def test_what_no_codec_takes_keeps_its_bytes(caplog: pytest.LogCaptureFixture) -> None:
    train, _ = fc.load_data("digits")
    bases = fc.condense(train, 2, "dm", "bases", steps=1)
    with caplog.at_level(logging.WARNING):
        assert bases.recode("bits-2") is bases
    assert "coefficients, bases keep their bytes" in caplog.text


def test_a_plugin_is_one_more_name(plugin: None, ready: fc.SyntheticSet) -> None:
    coded = ready.recode("halved")
    read = fc.SyntheticSet.from_bytes(coded.to_bytes())
    assert torch.equal(read.pixels().images, coded.pixels().images)
    codes = read.parts[0].codes
    assert isinstance(codes, Coded)
    assert len(codes.stored["images"].chunks) == 15
    blob = read.to_bytes()
    del CODECS["halved"]
    with pytest.raises(UntrustedSetError, match=r"no codec is called 'halved'.*upgrade fedcondense"):
        fc.SyntheticSet.from_bytes(blob)


def test_a_palette_is_found_where_k_means_does_not_settle() -> None:
    """Pillow's own k-means goes on until colours stay, which on these images they never did."""
    coded = fc.load_set("cifar10", ipc=10).recode("palette-4")
    assert coded.nbytes < 24_000
    pixels = coded.parts[0].codes["images"].transpose(0, 1).flatten(1).T
    assert len(pixels.unique(dim=0)) == 4
