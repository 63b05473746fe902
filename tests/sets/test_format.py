from __future__ import annotations

import json
import math
import re
import tracemalloc
import unicodedata
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense.errors import SettingError, UntrustedSetError
from fedcondense.parametrizations import PARAMETRIZATIONS, MultiFormation, Pixels
from fedcondense.sets.format import VERSION, Limits, dump, read_beside
from fedcondense.sets.parts import Part, Record
from fedcondense.sets.synthetic import SyntheticSet

Edit = Callable[[dict[str, Any], dict[str, Any]], None]

NAMES = (
    st.text(st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"]), max_size=20)
    .map(lambda name: unicodedata.normalize("NFC", name).strip())
    .filter(bool)
)

RECORD = Record(
    "toy",
    (1, 8, 8),
    ("a", "b", "c"),
    (0.5,),
    (0.25,),
    method="dm",
    ipc=2,
    seed=7,
    network="convnet2-w32",
    augmentation=("crop", "flip"),
    start="gaussian",
    steps=10,
    counts=(40, 0, 3),
    seconds=1.5,
    privacy={"epsilon": 2.0},
)


def codes(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def toy() -> SyntheticSet:
    """Pixels with labels, then tiles with soft targets."""
    soft = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]).half()
    labels = torch.tensor([0, 0, 2, 2], dtype=torch.uint8)
    parts = [
        Part({"images": codes(4)}, labels, Pixels(), RECORD),
        Part({"images": codes(2, 1)}, soft, MultiFormation(2), RECORD),
    ]
    return SyntheticSet(parts, {"accuracy": 81.25, "seeds": [0, 1]})


BLOB = toy().to_bytes()
HEADER = 8 + int.from_bytes(BLOB[:8], "little")


def edited(edit: Edit, blob: bytes = BLOB) -> bytes:
    """Return the file with its header and record changed, and a header length and checksum that are right again."""
    end = 8 + int.from_bytes(blob[:8], "little")
    header = json.loads(blob[8:end])
    content = json.loads(header["__metadata__"]["fedcondense"])
    edit(header, content)
    header["__metadata__"]["fedcondense"] = json.dumps(content, separators=(",", ":"))
    return with_header(json.dumps(header, separators=(",", ":")).encode(), blob[end:])


def with_header(text: bytes, data: bytes = BLOB[HEADER:]) -> bytes:
    """Return a file of this header, with the checksum that the module's docstring describes."""
    blob = len(text).to_bytes(8, "little") + text + data
    place = re.search(rb'"crc32[\\]+":[\\]+"', blob)
    if place is None:
        return blob
    head, tail = blob[: place.end()], blob[place.end() + 8 :]
    return head + f"{zlib.crc32(head + tail):08x}".encode() + tail


def version_1(header: dict[str, Any], content: dict[str, Any]) -> None:
    """Write the header as version 1 did."""
    classes = content.pop("classes")
    content.pop("crc32")
    content |= {"version": 1, **content.pop("beside", {})}
    for part in content["parts"]:
        part |= part.pop("settings", {})
        part["record"]["classes"] = [classes[k] for k in part["record"].get("classes", range(len(classes)))]


OLD = edited(version_1)


def refused(blob: bytes, match: str = ".", limits: Limits | None = None) -> None:
    with pytest.raises(UntrustedSetError, match=match):
        SyntheticSet.from_bytes(blob, limits)


class TestRoundTrip:
    def test_a_set_comes_back_equal_in_every_part(self) -> None:
        before, after = toy(), SyntheticSet.from_bytes(BLOB)
        assert after.evaluation == before.evaluation
        for a, b in zip(before.parts, after.parts, strict=True):
            assert a.record == b.record
            assert a.parametrization == b.parametrization
            assert a.targets.dtype == b.targets.dtype
            assert torch.equal(a.targets, b.targets)
            assert a.codes.keys() == b.codes.keys()
            assert all(torch.equal(a.codes[name], b.codes[name]) for name in a.codes)

    def test_bytes_of_bytes_are_the_same_bytes(self) -> None:
        assert SyntheticSet.from_bytes(BLOB).to_bytes() == BLOB
        assert SyntheticSet.from_bytes(memoryview(BLOB)).to_bytes() == BLOB

    def test_an_unchanged_header_that_is_written_again_is_accepted(self) -> None:
        """The check of the checks below: their edits, not the rewriting, are what is refused."""
        again = SyntheticSet.from_bytes(edited(lambda header, content: None))
        assert again.to_bytes() == BLOB

    def test_any_safetensors_reader_opens_it(self) -> None:
        tensors = safetensors.torch.load(BLOB)
        assert set(tensors) == {"0.images", "0.targets", "1.images", "1.targets"}
        assert torch.equal(tensors["0.images"], codes(4))
        assert tensors["1.targets"].dtype == torch.float16

    def test_the_header_is_json_that_says_what_it_is(self) -> None:
        content = json.loads(json.loads(BLOB[8:HEADER])["__metadata__"]["fedcondense"])
        assert content["version"] == VERSION
        assert content["parts"][1]["parametrization"] == "multi-formation"
        assert content["parts"][1]["settings"] == {"factor": 2}
        assert content["classes"] == ["a", "b", "c"]
        assert "classes" not in content["parts"][0]["record"]

    def test_what_is_empty_takes_no_bytes(self) -> None:
        bare = Record("toy", (1, 8, 8), ("a",), (0.5,), (0.25,))
        part = Part({"images": codes(1)}, torch.zeros(1, dtype=torch.uint8), Pixels(), bare)
        blob = SyntheticSet([part]).to_bytes()
        assert b"privacy" not in blob
        assert SyntheticSet.from_bytes(blob).record == bare

    def test_more_than_256_classes_take_two_bytes_a_label(self) -> None:
        names = tuple(map(str, range(300)))
        part = Part(
            {"images": codes(2)},
            torch.tensor([299, 4], dtype=torch.int16),
            Pixels(),
            Record("toy", (1, 8, 8), names, (0.5,), (0.25,)),
        )
        again = SyntheticSet.from_bytes(SyntheticSet([part]).to_bytes())
        assert again.decode().targets.argmax(1).tolist() == [299, 4]

    @settings(max_examples=25, deadline=None)
    @given(
        st.integers(0, 6),
        st.sampled_from([1, 3]),
        st.lists(NAMES, min_size=1, max_size=5, unique=True),
        st.integers(0, 2**62),
        st.booleans(),
    )
    def test_any_set_survives(self, count: int, channels: int, names: list[str], seed: int, soft: bool) -> None:
        record = Record("x", (channels, 8, 8), tuple(names), (0.5,) * channels, (0.25,) * channels, seed=seed)
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(len(names), (count,), generator=generator)
        targets = torch.eye(len(names))[labels].half() if soft else labels.to(torch.uint8)
        images = torch.randint(0, 256, (count, channels, 8, 8), generator=generator, dtype=torch.uint8)
        before = SyntheticSet([Part({"images": images}, targets, Pixels(), record)])
        after = SyntheticSet.from_bytes(before.to_bytes())
        assert after.record == record
        assert torch.equal(after.parts[0].codes["images"], images)
        assert torch.equal(after.parts[0].targets, targets)

    def test_what_was_put_beside_a_set_is_read_and_changes_nothing_else(self) -> None:
        state = {"settings": {"images": 20, "groups": None}, "note": "é", "seen": [0.1, 3]}
        blob = dump(toy().parts, toy().evaluation, memory=state)
        assert read_beside(blob, "memory") == state
        assert read_beside(blob, "other") is None
        assert read_beside(BLOB, "memory") is None
        assert SyntheticSet.from_bytes(blob).to_bytes() == BLOB

    def test_a_parametrization_without_a_name_is_refused_while_writing(self) -> None:
        class Mine(Pixels):
            pass

        part = toy().parts[0]
        with pytest.raises(SettingError, match="Mine is not in PARAMETRIZATIONS; add it by name"):
            SyntheticSet([Part(part.codes, part.targets, Mine(), part.record)]).to_bytes()


class TestDamage:
    @pytest.mark.parametrize("size", [*range(64), *range(64, len(BLOB), 13), len(BLOB) - 1])
    def test_every_truncation_is_refused(self, size: int) -> None:
        refused(BLOB[:size])

    @pytest.mark.parametrize("bit", range(64))
    def test_a_bit_flipped_in_the_header_s_length_is_refused(self, bit: int) -> None:
        blob = bytearray(BLOB)
        blob[bit // 8] ^= 1 << bit % 8
        refused(bytes(blob))

    @pytest.mark.parametrize("bit", range(8))
    def test_any_bit_flipped_anywhere_is_refused(self, bit: int) -> None:
        for place in range(len(BLOB)):
            blob = bytearray(BLOB)
            blob[place] ^= 1 << bit
            refused(bytes(blob))

    def test_a_bit_flipped_in_a_large_file_is_refused_wherever_it_is(self) -> None:
        blob = bytearray(large := SyntheticSet.join([toy()] * 300).to_bytes())
        for place in range(0, len(blob), 5003):
            blob[place] ^= 1 << place % 8
            refused(bytes(blob))
            blob[place] ^= 1 << place % 8
        assert blob == large

    @pytest.mark.parametrize("bit", range(8))
    def test_any_bit_flipped_in_a_header_of_version_1_is_refused_or_gives_a_sound_set(self, bit: int) -> None:
        """A flip may make another name or number of the record, which nothing can tell; shapes and ranges hold."""
        for place in range(8, len(OLD) - len(BLOB) + HEADER):
            blob = bytearray(OLD)
            blob[place] ^= 1 << bit
            self.refused_or_sound(bytes(blob))

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.tuples(st.integers(0, len(BLOB) - 1), st.integers(0, 255)), min_size=1, max_size=12))
    def test_bytes_changed_at_random_are_refused_or_give_a_sound_set(self, changes: list[tuple[int, int]]) -> None:
        blob = bytearray(BLOB)
        for place, value in changes:
            blob[place] = value
        self.refused_or_sound(bytes(blob))

    @settings(max_examples=200, deadline=None)
    @given(st.binary(max_size=300))
    def test_noise_is_refused(self, blob: bytes) -> None:
        refused(blob)

    @settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(
        st.sampled_from(["0.images", "0.targets", "1.images", "1.targets", "version", "parts", "record", "part"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
            max_leaves=6,
        ),
        st.sampled_from(["dtype", "shape", "data_offsets", "mean", "std", "classes", "counts", "shape", "factor", ""]),
    )
    def test_any_json_in_the_place_of_any_value_is_refused_or_sound(self, where: str, value: Any, key: str) -> None:
        def edit(header: dict[str, Any], content: dict[str, Any]) -> None:
            if where in header:
                header[where] = {**header[where], key: value} if key else value
            elif where == "record":
                content["parts"][0]["record"] = {**content["parts"][0]["record"], key: value} if key else value
            elif where == "part":
                content["parts"][1] = {**content["parts"][1], key: value} if key else value
            else:
                content[where] = value

        self.refused_or_sound(edited(edit))

    @staticmethod
    def refused_or_sound(blob: bytes) -> None:
        try:
            found = SyntheticSet.from_bytes(blob)
            images, targets = found.decode()
        except UntrustedSetError as refusal:
            reason = str(refusal)
        else:
            reason = ""
        assert reason.isprintable()
        assert len(reason) < 1000
        if reason:
            return
        assert images.shape == (len(targets), *found.shape)
        assert images.isfinite().all()
        assert targets.shape[1] == len(found.classes)
        assert (targets.sum(1) - 1).abs().max() <= 0.02
        assert len(found.weights()) == len(images)


def record(**changes: Any) -> Edit:
    return lambda header, content: content["parts"][0]["record"].update(changes)


def tensor(name: str, **changes: Any) -> Edit:
    return lambda header, content: header[name].update(changes)


IMAGES = 4 * 64  # bytes of 0.images

EDITS: dict[str, tuple[Edit, str]] = {
    "a name of settings": (
        lambda h, c: c["parts"][1].update(parametrization="multi-formation-4"),
        "no parametrization",
    ),
    "settings that are nested": (lambda h, c: c["parts"][1].update(settings={"factor": [2]}), "settings: factor"),
    "a setting that is none": (lambda h, c: c["parts"][1].update(settings={"factor": None}), "no plain values"),
    "a codec": (lambda h, c: c["parts"][1].update(codec="zip"), "codec zip of part 1; needed: an object"),
    "no codec": (lambda h, c: c["parts"][1].update(codec=None), "codec None of part 1; needed: an object"),
    "unknown key of a part": (lambda h, c: c["parts"][1].update(colour=1), r"part 1 holds \['colour'\]"),
    "unknown key": (lambda h, c: c.update(colour=1), r"the header holds \['colour'\], which are not known"),
    "nothing beside": (lambda h, c: c.update(beside=None), "what stands beside the set is no object"),
    "more metadata": (lambda h, c: h["__metadata__"].update(more="a"), "format version 2 without a checksum"),
    "version 1 with a checksum": (lambda h, c: c.update(version=1), "format version 1 with a checksum"),
    "no checksum": (lambda h, c: c.pop("crc32"), "format version 2 without a checksum"),
    "a class of no part": (
        lambda h, c: (
            c.update(classes=["a", "b", "c", "d"])
            or record(classes=[0, 1, 2])(h, c)
            or c["parts"][1]["record"].update(classes=[0, 1, 2])
        ),
        "1 class names that no part has",
    ),
    "classes in another order": (record(classes=[0, 2, 1]), "class 2 of part 0 comes before class 1"),
    "all classes as places": (record(classes=[0, 1, 2]), "needed: places below 3, or none for all"),
    "a place twice": (record(classes=[0, 1, 1]), "class name 'b' of labels 1 and 2"),
    "a place beyond": (record(classes=[0, 1, 3]), "needed: places below 3"),
    "a place from the end": (record(classes=[0, 1, -1]), "needed: places below 3"),
    "a place that is a truth": (record(classes=[False, True, 2]), "needed: places below 3"),
    "a name that is a number": (
        lambda h, c: c.update(classes=["a", "b", 3]),
        "class name 3 of label 2 is not in normal",
    ),
    "a name with a space": (lambda h, c: c.update(classes=["a", "b", "c "]), "class name 'c ' .*is not in normal form"),
    "a name in pieces": (lambda h, c: c.update(classes=["a", "b", "e\u0301"]), "is not in normal form; needed: 'é'"),
    "a name that ends": (lambda h, c: c.update(classes=["a", "b", "c\0"]), r"has U\+0000"),
    "a name that turns": (lambda h, c: c.update(classes=["a", "b", "\u202ec"]), r"has U\+202E"),
    "half a character": (lambda h, c: c.update(classes=["a", "b", "\ud800"]), "malformed|U.D800"),
    "no class": (lambda h, c: c.update(classes=[]), "class names .*needed: a list of texts"),
    "a text of two lines": (record(network="a\nb"), "network a.b of a record; it is written as a b"),
    "newer version": (
        lambda h, c: c.update(version=VERSION + 1),
        f"format version {VERSION + 1} is newer than this library's {VERSION}; upgrade fedcondense",
    ),
    "version zero": (lambda h, c: c.update(version=0), "format version 0; needed: a whole number from 1"),
    "version of another type": (lambda h, c: c.update(version=True), "format version True"),
    "overlap": (tensor("0.targets", data_offsets=[0, 4]), "truncated or inconsistent"),
    "gap": (tensor("1.images", data_offsets=[IMAGES + 5, IMAGES + 5 + 128]), "truncated or inconsistent"),
    "offsets beyond the file": (tensor("1.targets", data_offsets=[388, 10**6]), "truncated or inconsistent"),
    "offsets backwards": (tensor("0.images", data_offsets=[IMAGES, 0]), "truncated or inconsistent"),
    "no offsets": (tensor("0.images", data_offsets=[]), "is of shape .* at"),
    "one offset": (tensor("0.images", data_offsets=[0]), "is of shape .* at"),
    "shape larger than its bytes": (tensor("0.images", shape=[5, 1, 8, 8]), "truncated or inconsistent"),
    "shape of many dimensions": (tensor("0.images", shape=[1] * 9), "is of shape"),
    "negative shape": (tensor("0.images", shape=[-4, 1, 8, -8]), "is of shape"),
    "huge shape": (tensor("0.images", shape=[2**62, 1, 8, 8]), "is of shape"),
    "shape of no numbers": (tensor("0.images", shape=["4", 1, 8, 8]), "is of shape"),
    "codes as half": (tensor("0.images", dtype="F16", shape=[2, 1, 8, 8]), "needed: torch.uint8"),
    "dtype that is not ours": (tensor("0.images", dtype="I64"), "is of dtype I64; allowed: U8, I16, F16, F32"),
    "labels as half": (tensor("0.targets", dtype="F16", shape=[2]), "targets of part 0"),
    "targets for another number of codes": (
        lambda h, c: (
            h["0.images"].update(shape=[3, 1, 8, 8], data_offsets=[12, 204]),  # after the 12 bytes of soft targets
            h["0.targets"].update(shape=[68], data_offsets=[204, 272]),
        )[0],
        "part 0 has 3 codes for 3 images but 68 targets",
    ),
    "images of another shape": (record(shape=[1, 4, 16]), "malformed: images of"),
    "undescribed tensor": (lambda h, c: c["parts"].pop(), "are not described by a part"),
    "described twice": (lambda h, c: c["parts"].append(c["parts"][0]), "part 2 has no images"),
    "mean that is no number": (record(mean=[math.nan]), "NaN in the header; needed: finite numbers"),
    "mean beyond single precision": (record(mean=[1e300]), "mean 1e.300; needed: a finite number"),
    "infinite deviation": (record(std=[math.inf]), "Infinity in the header"),
    "zero deviation": (record(std=[0.0]), "std 0.0; needed: a finite number from 1e-06"),
    "repeated class": (lambda h, c: c.update(classes=["a", "b", "a"]), "class name 'a' of labels 0 and 2"),
    "classes in one text": (lambda h, c: c.update(classes="abc"), "class names abc; needed: a list of texts"),
    "negative count": (record(counts=[1, -1, 0]), "counts with -1; needed: a whole number from 0"),
    "privacy that is nested": (record(privacy={"a": {"b": 1}}), "privacy: a .*needed: a text, a finite number"),
    "accuracy in words": (
        lambda h, c: c.update(evaluation={"accuracy": "high"}),
        "whose accuracy is high; needed: int or float",
    ),
    "no accuracy": (lambda h, c: c.update(evaluation={"accuracy": None}), "an evaluation whose accuracy is None"),
    "one seed for a list": (lambda h, c: c.update(evaluation={"seeds": 3}), "an evaluation whose seeds is 3"),
    "accuracy beyond floats": (lambda h, c: c.update(evaluation={"accuracy": 10**400}), "an evaluation whose accuracy"),
    "evaluation that is nested": (lambda h, c: c.update(evaluation={"x": {"y": {}}}), "an evaluation whose x"),
    "evaluation that is a list": (lambda h, c: c.update(evaluation=[]), "the evaluation is no object"),
    "unknown parametrization": (
        lambda h, c: c["parts"][0].update(parametrization="pixel"),
        "no parametrization is called 'pixel'; did you mean 'pixels'",
    ),
    "factor that does not divide": (
        lambda h, c: c["parts"][1].update(settings={"factor": 3}),
        "factor 3 does not divide",
    ),
    "factor beyond reason": (lambda h, c: c["parts"][1].update(settings={"factor": 10**6}), "from 2 to 8"),
}


def test_probabilities_may_be_those_of_the_decoded_images_and_labels_may_not() -> None:
    soft = torch.rand(8, 3, generator=torch.Generator().manual_seed(0)).softmax(1).half()
    tiles = SyntheticSet([Part({"images": codes(2)}, soft, MultiFormation(2), RECORD)])
    again = SyntheticSet.from_bytes(tiles.to_bytes())
    assert torch.equal(again.decode().targets, soft.float())
    for targets in (soft[:3], soft.argmax(1).to(torch.uint8)):
        wrong = SyntheticSet([Part({"images": codes(2)}, targets, MultiFormation(2), RECORD)])
        with pytest.raises(SettingError, match=f"2 codes for 8 images but {len(targets)} targets"):
            wrong.to_bytes()


def test_labels_of_many_images_over_many_classes_are_refused_before_they_are_made() -> None:
    record = replace(RECORD, shape=(1, 1, 1), classes=tuple(map(str, range(500))), counts=())
    images = torch.zeros(100, 1, 1, 1, dtype=torch.uint8)
    blob = SyntheticSet([Part({"images": images}, torch.zeros(100, dtype=torch.int16), Pixels(), record)]).to_bytes()
    assert len(SyntheticSet.from_bytes(blob, Limits(decoded_bytes=200_400))) == 100
    with pytest.raises(UntrustedSetError, match="labels of 100 images over 500 classes"):
        SyntheticSet.from_bytes(blob, Limits(decoded_bytes=200_399))


@pytest.mark.parametrize("kind", EDITS)
def test_each_lie_in_the_header_is_refused_with_its_reason(kind: str) -> None:
    edit, reason = EDITS[kind]
    refused(edited(edit), reason)


def with_targets(targets: torch.Tensor) -> bytes:
    """Return the file with other soft targets, which lie first among the tensors."""
    return with_header(BLOB[8:HEADER], targets.numpy().tobytes() + BLOB[HEADER + targets.nbytes :])


ROWS = [
    *([0.5, 0.4, 0.4], [0.2, 0.2, 0.2], [-0.5, 1.0, 0.5]),
    *([math.nan, 0.5, 0.5], [math.inf, 0.0, 0.0], [0.0, 0.0, 0.0]),
]


@pytest.mark.parametrize("row", ROWS)
def test_targets_that_are_no_probabilities_are_refused_when_written_and_when_read(row: list[float]) -> None:
    targets, part = torch.tensor([[1.0, 0.0, 0.0], row]).half(), toy().parts[1]
    refused(with_targets(targets), "targets of part 1 are no probabilities")
    with pytest.raises(SettingError, match="targets of part 0 are no probabilities"):
        SyntheticSet([replace(part, targets=targets)]).to_bytes()


def test_half_precision_probabilities_of_many_classes_are_accepted() -> None:
    targets = torch.rand(2, 3, generator=torch.Generator().manual_seed(0)).softmax(1).half()
    assert SyntheticSet.from_bytes(with_targets(targets)).decode().targets.shape == (12, 3)


def test_labels_beyond_the_classes_are_refused() -> None:
    part = toy().parts[0]
    labels = torch.tensor([0, 1, 2, 3], dtype=torch.uint8)
    place = BLOB.index(bytes(part.targets.tolist()), HEADER + 12 + IMAGES)
    refused(
        with_header(BLOB[8:HEADER], BLOB[HEADER:place] + bytes(labels.tolist()) + BLOB[place + 4 :]), "up to 3; need"
    )
    with pytest.raises(SettingError, match="labels of part 0 up to 3; needed: below 3"):
        SyntheticSet([replace(part, targets=labels)]).to_bytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_codes_that_are_not_finite_are_refused(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Pixels):
        storage: ClassVar[Mapping[str, torch.dtype]] = {"images": torch.float16}

    monkeypatch.setitem(PARAMETRIZATIONS, "half", Half)
    images = torch.rand(1, 1, 8, 8).half()
    sound = SyntheticSet([Part({"images": images}, torch.zeros(1, dtype=torch.uint8), Half(), RECORD)])
    blob = sound.to_bytes()
    images[0, 0, 3, 3] = value
    end = 8 + int.from_bytes(blob[:8], "little")
    refused(
        with_header(blob[8:end], images.numpy().tobytes() + b"\0"), "images of part 0 has values that are not finite"
    )
    with pytest.raises(SettingError, match="images of part 0 has values that are not finite"):
        sound.to_bytes()


class TestLimits:
    @pytest.mark.parametrize(
        ("limits", "reason"),
        [
            (Limits(nbytes=1000), "bytes; allowed: 1000"),
            (Limits(header=100), "a header of .* bytes; allowed: 100"),
            (Limits(decoded=11), "decodes to 12 images"),
            (Limits(decoded_bytes=12 * 64 * 4 - 1), "decodes to 12 images of 3072 bytes; allowed"),
            (Limits(classes=2), "names 3 classes; allowed: 2"),
            (Limits(names=5), "parts that name more than 5 classes"),
            (Limits(parts=1), "no parts, or more than 1"),
        ],
    )
    def test_each_limit_holds(self, limits: Limits, reason: str) -> None:
        refused(BLOB, reason, limits)

    def test_at_the_limits_a_set_is_accepted(self) -> None:
        limits = Limits(len(BLOB), 12, 12 * (64 + 3) * 4, HEADER - 8, 3, 2, 6)
        assert len(SyntheticSet.from_bytes(BLOB, limits)) == 12

    @pytest.mark.parametrize(
        "bomb",
        [
            (2**63 - 1).to_bytes(8, "little") + BLOB[8:],
            edited(tensor("0.images", shape=[2**38, 1, 8, 8], data_offsets=[0, 2**44])),
            edited(lambda h, c: c["parts"][1].update(settings={"factor": 8})),
            edited(record(shape=[4096, 4096, 4096])),
            edited(lambda h, c: c.update(parts=c["parts"] * 10_000))[: 1 << 20],
        ],
    )
    def test_a_bomb_in_the_header_allocates_nothing(self, bomb: bytes) -> None:
        """At most a few copies of the bytes at hand."""
        tracemalloc.start()
        try:
            with pytest.raises(UntrustedSetError):
                SyntheticSet.from_bytes(bomb, Limits(decoded=50))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * len(bomb) + (1 << 20)

    def test_deep_nesting_is_refused(self) -> None:
        text = b"[" * 200_000
        refused(len(text).to_bytes(8, "little") + text)

    def test_other_safetensors_files_are_refused(self) -> None:
        import safetensors.numpy

        blob = safetensors.numpy.save({"weight": np.zeros(3, np.float32)})
        refused(blob, "a safetensors file without a fedcondense record")
