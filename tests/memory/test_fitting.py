"""Coded memories: never over their bytes, near them, and what stays is never encoded again."""

from __future__ import annotations

import pickle
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedcondense.data.images import Data, Spec
from fedcondense.errors import ResumeError, SettingError
from fedcondense.memory import Condenser, Memory, Selector
from fedcondense.memory.fitting import sampled_rate
from fedcondense.memory.stored import count_stored
from fedcondense.objectives import OBJECTIVES, with_learned_labels
from fedcondense.sets.coded import Coded
from fedcondense.sets.synthetic import SyntheticSet

Pieces = Callable[..., Data]
RANDOM = Selector("random")
FEW = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def condenser(parametrization: str = "pixels", objective: Any = "dm") -> Condenser:
    return Condenser(objective, parametrization, network="convnet1-w16", steps=1)


MAKES: dict[str, Any] = {
    "random": RANDOM,
    "half-resolution": Selector("half-resolution"),
    "pixels": condenser(),
    "multi-formation": condenser("multi-formation"),
    "bases": condenser("bases"),
    "soft": condenser("pixels", with_learned_labels(OBJECTIVES["mmd-ridge"])),
}


def chunks(memory: Memory) -> list[bytes]:
    """Return the packed bytes of a memory's images, in order."""
    found = []
    for one in (*memory.sets, *([memory.real] if memory.real else [])):
        for part in one.parts:
            assert isinstance(part.codes, Coded)
            found += [chunk.data for stored in part.codes.stored.values() for chunk in stored.chunks]
    return found


def decoded(memory: Memory) -> set[bytes]:
    assert memory.synthetic is not None
    return {image.numpy().tobytes() for image in memory.synthetic.pixels().images}


@FEW
@given(
    make=st.sampled_from(sorted(MAKES)),
    update=st.sampled_from(["recondense", "reservoir", "append"]),
    codecs=st.sampled_from(
        [("bits-2", "bits-2"), ("jpeg-10", "jpeg-40"), ("bits-1-class", "jpeg-20"), ("raw", "bits-3")]
    ),
    max_bytes=st.integers(1500, 6000),
    groups=st.sampled_from([None, 6]),
    minimum=st.sampled_from([1, 12]),
    real_fraction=st.sampled_from([0.0, 0.4, 1.0]),
    images=st.sampled_from([None, 30]),
)
def test_the_file_is_within_the_bytes_and_comes_back(
    make: str,
    update: str,
    codecs: tuple[str, str],
    max_bytes: int,
    groups: int | None,
    minimum: int,
    real_fraction: float,
    images: int | None,
    piece: Pieces,
) -> None:
    told: dict[str, Any] = {"groups": groups, "minimum": minimum, "real_fraction": real_fraction, "update": update}
    told |= {"max_bytes": max_bytes, "codec": codecs[0], "real_codec": codecs[1]}
    try:
        memory, other = (Memory(images, MAKES[make], **told) for _ in range(2))
    except SettingError as refused:
        assert "soft labels" in str(refused) or "share codes" in str(refused)  # noqa: PT017
        return
    for classes, begin in (((0, 1), 0), ((2, 3), 0), ((0, 4), 30), ((5,), 0), ((2, 5), 30)):
        before = memory.to_bytes() if memory.names else b""
        try:
            memory.add(piece(*classes, count=20, begin=begin))
        except SettingError as refused:
            assert "bytes cannot hold" in str(refused)  # noqa: PT017
            assert (memory.to_bytes() if memory.names else b"") == before
        assert memory.nbytes <= max_bytes
    if memory.names:
        other.from_bytes(memory.to_bytes())
        assert other.to_bytes() == memory.to_bytes() == pickle.loads(pickle.dumps(memory)).to_bytes()


@pytest.mark.parametrize(("codec", "most"), [("jpeg-20", 0.85), ("bits-2", 0.85), ("raw", 0.85)])
def test_the_number_of_images_follows_from_the_bytes_and_uses_them(codec: str, most: float, piece: Pieces) -> None:
    found = []
    for max_bytes in (2200, 3600):
        memory = Memory(None, RANDOM, max_bytes=max_bytes, codec=codec)
        for classes in ((0, 1), (2, 3)):
            memory.add(piece(*classes, count=150))
            assert most * max_bytes < memory.nbytes <= max_bytes
        (per_class,) = set(count_stored(memory.sets).values())
        found.append(per_class)
    assert found[1] > 1.7 * found[0]


def test_more_images_fit_in_fewer_bits(piece: Pieces) -> None:
    stored = []
    for codec in ("raw", "bits-3", "bits-1"):
        memory = Memory(None, RANDOM, max_bytes=2500, codec=codec)
        memory.add(piece(0, 1, count=170))
        stored.append(sum(count_stored(memory.sets).values()))
    assert stored[0] < stored[1] / 1.8 < stored[2] / 3


@pytest.mark.parametrize("codec", ["jpeg-20", "bits-2"])
def test_images_that_stay_are_not_encoded_again(codec: str, piece: Pieces) -> None:
    """Every image of a class that shrinks decodes as it did, and one that stays whole keeps its very bytes."""
    memory = Memory(None, RANDOM, max_bytes=5000, codec=codec)
    memory.add(piece(0, 1, count=150))
    before = decoded(memory)
    memory.add(piece(2, 3, count=150))
    assert memory.synthetic is not None
    images, targets = memory.synthetic.pixels()
    old = [
        image.numpy().tobytes() for image, label in zip(images, targets.argmax(1).tolist(), strict=True) if label < 2
    ]
    assert len(old) > 10
    assert set(old) <= before
    fixed = Memory(None, RANDOM, max_bytes=5000, codec=codec, groups=4)
    fixed.add(piece(0, 1, count=150))
    first = chunks(fixed)
    fixed.add(piece(2, 3, count=12))
    assert chunks(fixed)[: len(first)] == first


def test_writing_a_coded_memory_decodes_nothing(piece: Pieces, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(None, RANDOM, max_bytes=3000, codec="jpeg-20")
    memory.add(piece(0, 1, count=50))
    with monkeypatch.context() as patch:
        patch.setattr(Coded, "__getitem__", lambda *_: pytest.fail("decoded"))
        before = memory.to_bytes()
        memory.add(piece(2, count=50))
        assert memory.to_bytes() != before


def test_real_images_take_their_share_of_the_bytes_and_condensed_ones_the_rest(piece: Pieces) -> None:
    memory = Memory(
        None, condenser("multi-formation"), max_bytes=9000, codec="bits-2", real_codec="jpeg-20", real_fraction=0.3
    )
    memory.add(piece(0, 1, count=170))
    assert memory.real is not None
    real = sum(part.code_bytes for part in memory.real.parts)
    assert 0.2 * 9000 < real <= 0.3 * 9000
    assert [part.codec for part in memory.real.parts] == ["jpeg-20"]
    assert [part.codec for one in memory.sets for part in one.parts] == ["bits-2"]


@pytest.mark.parametrize("balance", ["class", "reservoir"])
def test_real_images_are_as_many_of_each_class_or_by_how_many_there_were(balance: str, piece: Pieces) -> None:
    memory = Memory(None, RANDOM, max_bytes=1500, real_fraction=1.0, real_codec="bits-2", balance=balance)
    memory.add(piece(0, count=150))
    memory.add(piece(1, count=50))
    assert memory.real is not None
    counts = count_stored([memory.real])
    if balance == "class":
        assert counts["0"] == counts["1"]
    else:
        assert 2.5 < counts["0"] / counts["1"] < 3.5


@pytest.mark.parametrize("told", [{}, {"real_fraction": 1.0}, {"real_fraction": 1.0, "real_codec": "jpeg-90"}])
def test_within_bytes_each_image_of_a_long_stream_is_as_likely_to_be_kept(told: dict[str, Any]) -> None:
    """400 images that are told apart by their values; of 15 memories, each quarter of the stream gives a quarter."""
    values = torch.randperm(400, generator=torch.Generator().manual_seed(0))
    images = (
        torch.stack([values // 20, values % 20], 1)
        .to(torch.uint8)
        .mul(12)
        .view(-1, 1, 2, 1)
        .repeat_interleave(4, 2)
        .repeat(1, 1, 1, 8)
    )
    found: Counter[int] = Counter()
    for seed in range(15):
        memory = Memory(
            None if "real_codec" in told else 20,
            RANDOM,
            max_bytes=4000 if "real_codec" in told else 2200,
            seed=seed,
            update="reservoir",
            **told,
        )
        for first in range(0, 400, 100):
            spec = Spec("numbers", (1, 8, 8), ("a",), (0.5,), (0.25,))
            piece = images[first : first + 100]
            memory.add(Data(piece, torch.zeros(100, dtype=torch.int64), spec))
        assert memory.synthetic is not None
        kept = memory.synthetic.pixels().images
        distance = (kept.unsqueeze(1) * 255 - images.unsqueeze(0)).abs().flatten(2).amax(2)
        found.update(number // 100 for number in distance.argmin(1).tolist())
    total = sum(found.values())
    assert total > 100
    spread = 4 * (total * 0.25 * 0.75) ** 0.5  # four standard deviations
    assert all(abs(found[quarter] - total / 4) < spread for quarter in range(4)), found


class TestWebP:
    def test_it_is_refused_where_images_leave_one_by_one(self) -> None:
        for told in ({"update": "reservoir", "codec": "webp-20"}, {"real_fraction": 0.5, "real_codec": "webp-20"}):
            with pytest.raises(SettingError, match=r"webp-20 leaves out whole classes alone: choose jpeg-10"):
                Memory(None, RANDOM, max_bytes=4000, **told)

    def test_with_a_known_number_of_groups_it_works(self, piece: Pieces) -> None:
        memory = Memory(None, RANDOM, max_bytes=6000, real_fraction=1.0, real_codec="webp-20", groups=4)
        memory.add(piece(0, 1, count=150))
        before = chunks(memory)
        memory.add(piece(2, 3, count=150))
        assert chunks(memory)[: len(before)] == before
        assert 4000 < memory.nbytes <= 6000

    def test_a_class_that_comes_again_is_refused_in_words_and_nothing_changes(self, piece: Pieces) -> None:
        memory = Memory(None, RANDOM, max_bytes=6000, real_fraction=1.0, real_codec="webp-20", groups=2)
        memory.add(piece(0, 1, count=80))
        before = memory.to_bytes()
        with pytest.raises(SettingError, match="choose a codec whose images can be left out one by one"):
            memory.add(piece(0, count=80, begin=80))
        assert memory.to_bytes() == before


def test_codes_that_no_codec_takes_keep_their_bytes_and_the_bound_holds(
    piece: Pieces, caplog: pytest.LogCaptureFixture
) -> None:
    memory = Memory(None, condenser("bases"), max_bytes=9000, codec="bits-2")
    memory.add(piece(0, 1, count=60))
    memory.add(piece(2, 3, count=60))
    assert memory.nbytes <= 9000
    assert {part.codec for one in memory.sets for part in one.parts} == {"raw"}
    assert "keep their bytes" in caplog.text


def test_a_number_of_images_can_be_the_bound_of_a_coded_memory(piece: Pieces) -> None:
    memory = Memory(8, RANDOM, codec="bits-1")
    memory.add(piece(0, 1))
    memory.add(piece(2, 3))
    assert count_stored(memory.sets) == dict.fromkeys("0123", 2)
    assert all(part.codec == "bits-1" for one in memory.sets for part in one.parts)


def test_condensed_images_are_made_again_only_where_their_share_shrinks_much(piece: Pieces) -> None:
    memory = Memory(None, condenser(), max_bytes=2000, codec="bits-2")
    memory.add(piece(0, 1, count=150))
    first = count_stored(memory.sets)["0"]
    memory.add(piece(2, count=150))
    assert count_stored(memory.sets)["0"] < first / 1.25
    (counts,) = (
        dict(zip(part.record.classes, part.record.counts, strict=True)) for one in memory.sets for part in one.parts
    )
    assert counts == memory.seen


def test_a_sample_tells_the_bytes_of_selected_images_well(piece: Pieces) -> None:
    memory = Memory(None, RANDOM, max_bytes=6000, codec="bits-2")
    data = piece(0, 1, count=150)
    trial = memory.copy()
    trial.spec = data.spec
    trial.waiting = {name: data.images[data.labels == c] for c, name in enumerate(data.spec.classes)}
    told = sampled_rate(trial, ["0", "1"])
    memory.add(data)
    real = sum(part.code_bytes for one in memory.sets for part in one.parts) / sum(count_stored(memory.sets).values())
    assert 0.9 < told / real < 1.2


def test_another_codec_is_another_memory(piece: Pieces) -> None:
    memory, other = (Memory(None, RANDOM, max_bytes=3000, codec=codec) for codec in ("bits-2", "bits-1"))
    memory.add(piece(0, 1))
    with pytest.raises(ResumeError, match="codec was 'bits-2', is 'bits-1'"):
        other.from_bytes(memory.to_bytes())
    assert SyntheticSet.from_bytes(memory.to_bytes()).parts[0].codec == "bits-2"


class TestRefused:
    @pytest.mark.parametrize(
        ("told", "needed"),
        [
            ({}, "neither images nor max_bytes; give one of them"),
            ({"images": 9, "codec": "bits-9"}, "9 bits a value; needed: from 1 to 6"),
            ({"images": 9, "codec": "gif"}, "gif"),
            ({"images": 9, "balance": "luck"}, "balance 'luck'; needed: one of class, reservoir"),
        ],
    )
    def test_settings_that_cannot_work(self, told: dict[str, Any], needed: str) -> None:
        with pytest.raises(SettingError, match=needed):
            Memory(**{"images": None, "make": RANDOM, **told})

    def test_a_budget_too_small_for_one_image_of_each_group(self, piece: Pieces) -> None:
        memory = Memory(None, RANDOM, max_bytes=900, codec="bits-2")
        with pytest.raises(
            SettingError, match=r"900 bytes cannot hold 10 groups: .* its file takes \d+ bytes; give it"
        ):
            memory.add(piece(*range(10), count=20))
        assert not memory.names

    def test_resizing_an_empty_memory_changes_its_number_alone(self) -> None:
        memory = Memory(20, RANDOM, max_bytes=4000)
        memory.resize(10)
        assert (memory.images, memory.names) == (10, [])
