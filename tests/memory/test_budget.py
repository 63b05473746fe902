"""A memory's bytes bound its file at any time, and settings work in a stream or are refused before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fedcondense.condensing import loop
from fedcondense.data.images import Data
from fedcondense.deadline import OutOfTime
from fedcondense.errors import SettingError
from fedcondense.memory import UPDATES, Condenser, Memory, Selector
from fedcondense.memory.budget import largest_share, largest_within
from fedcondense.objectives import OBJECTIVES, with_learned_labels
from fedcondense.parametrizations import PARAMETRIZATIONS
from fedcondense.sets.selection import SELECTIONS, select_quietly
from fedcondense.sets.synthetic import SyntheticSet

SOFT = with_learned_labels(OBJECTIVES["mmd-ridge"])
FEW = settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
Pieces = Callable[..., Data]


@dataclass(frozen=True)
class Wordy:
    """A maker that says nothing of its sets' size, and puts a long name into their record."""

    per_image: int = 1

    def __call__(self, data: Data, ipc: int, seed: int, stored: Tensor) -> SyntheticSet:
        return select_quietly(data, ipc, "random", seed).with_record(method="wordy " * 40)


def condenser(objective: Any = "dm", parametrization: str = "pixels", **more: Any) -> Condenser:
    return Condenser(objective, parametrization, network="convnet1-w16", steps=1, **more)


MAKES: Mapping[str, Any] = {
    **{name: Selector(name) for name in SELECTIONS},
    **{f"dm {name}": condenser("dm", name) for name in PARAMETRIZATIONS},
    "soft": condenser(SOFT),
    "soft multi-formation": condenser(SOFT, "multi-formation"),
    "prefixes": condenser(prefixes=True),
    "wordy": Wordy(),
}


@FEW
@given(
    make=st.sampled_from(sorted(MAKES)),
    update=st.sampled_from([*UPDATES, None]),
    max_bytes=st.integers(800, 6000),
    groups=st.sampled_from([None, None, 6]),
    minimum=st.sampled_from([1, 1, 12]),
    real_fraction=st.sampled_from([0.0, 0.0, 0.4, 1.0]),
    resized=st.integers(2, 60),
)
def test_the_file_is_within_the_bytes_after_each_call(
    make: str,
    update: str | None,
    max_bytes: int,
    groups: int | None,
    minimum: int,
    real_fraction: float,
    resized: int,
    piece: Pieces,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    told: dict[str, Any] = {"groups": groups, "minimum": minimum, "real_fraction": real_fraction}
    try:
        memory = Memory(max(max_bytes // 64, groups or 1), MAKES[make], update=update, max_bytes=max_bytes, **told)
    except SettingError as refused:
        assert "soft labels" in str(refused) or "share codes" in str(refused)  # noqa: PT017
        return
    for classes, begin in (((0, 1), 0), ((2, 3), 0), ((0, 4), 30), ((5,), 0), ((2, 5), 30)):
        before = memory.to_bytes() if memory.names else b""
        try:
            memory.add(piece(*classes, count=10, begin=begin))
        except SettingError as refused:
            assert f"{max_bytes} bytes cannot hold" in str(refused) or "stored images cannot hold" in str(refused)  # noqa: PT017
            assert (memory.to_bytes() if memory.names else b"") == before
        assert memory.nbytes <= max_bytes
    if memory.names:
        try:
            memory.resize(resized)
        except SettingError as refused:
            assert "cannot hold" in str(refused)  # noqa: PT017
        path = memory.save(tmp_path_factory.mktemp("memory") / "file")
        assert path.stat().st_size == memory.nbytes <= max_bytes
        assert sum(map(len, memory.waiting.values())) <= (memory.images or 0)


@pytest.mark.parametrize("make", ["random", "dm multi-formation", "dm pixels"])
@pytest.mark.parametrize("max_bytes", [2500, 9000])
def test_what_fits_is_used(make: str, max_bytes: int, piece: Pieces) -> None:
    """One more image per group would be too many, but for what a record may be longer than it is."""
    memory = Memory(max_bytes // 64, MAKES[make], max_bytes=max_bytes)
    for classes in ((0, 1), (2, 3)):
        memory.add(piece(*classes, count=60))
    assert memory.nbytes <= max_bytes < memory.nbytes + 4 * 65 + 80


@pytest.mark.parametrize("update", sorted(UPDATES))
def test_a_stream_of_many_pieces_leaves_bytes_for_images(update: str, piece: Pieces) -> None:
    """A record per piece would take all of them; groups that are named anew with each piece have to."""
    memory = Memory(50, Selector("random"), update=update, max_bytes=3200)
    for begin in range(0, 100, 10):
        memory.add(piece(0, 1, count=10, begin=begin))
        assert memory.nbytes <= 3200
    assert memory.synthetic is not None
    assert len(memory.synthetic) >= 20
    assert sum(memory.seen.values()) == 200
    assert sum(sum(part.record.counts) for part in memory.synthetic.parts) <= 200


@pytest.mark.parametrize("images", [90, 20, 7])
def test_no_more_than_a_smaller_budget_waits(images: int, piece: Pieces) -> None:
    memory = Memory(100, Selector("random"), minimum=1000)
    memory.add(piece(*range(7), count=12))
    assert sum(map(len, memory.waiting.values())) == 84
    memory.resize(images)
    assert sum(map(len, memory.waiting.values())) <= images
    assert memory.synthetic is not None
    assert len(memory.names) == 7


@FEW
@given(
    make=st.sampled_from(sorted(MAKES)),
    update=st.sampled_from(sorted(UPDATES)),
    images=st.sampled_from([6, 11, 40]),
    groups=st.sampled_from([None, 4]),
    minimum=st.sampled_from([1, 15]),
    real_fraction=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_settings_that_a_memory_takes_work_in_a_stream(
    make: str, update: str, images: int, groups: int | None, minimum: int, real_fraction: float, piece: Pieces
) -> None:
    told: dict[str, Any] = {"groups": groups, "minimum": minimum, "real_fraction": real_fraction}
    try:
        memory = Memory(images, MAKES[make], update=update, **told)
    except SettingError as refused:
        assert "soft labels" in str(refused) or "share codes" in str(refused)  # noqa: PT017
        return
    additions = ((0, 1), (2, 3)) if update == "append" else ((0, 1), (2, 3), (1, 2))
    for k, classes in enumerate(additions):
        memory.add(piece(*classes, count=20, begin=20 * k))
    assert memory.synthetic is not None
    memory.resize(images - 1)
    memory.from_bytes(memory.to_bytes())


class TestRefusedAtOnce:
    @pytest.mark.parametrize(
        ("make", "says"),
        [
            (condenser(SOFT), "soft labels"),
            (condenser("dm", "bases"), "share codes"),
            (condenser("nothing"), "no objective is called 'nothing'"),
            (condenser(start="nowhere"), "no start is called 'nowhere'"),
            (Condenser(network="convnet99"), "convnet99"),
            (Condenser(steps=-1), "-1 steps; give a whole number"),
            (Selector("nobody"), "no selection is called 'nobody'"),
        ],
    )
    def test_what_could_not_work_in_any_stream(self, make: Any, says: str) -> None:
        with pytest.raises(SettingError, match=says):
            Memory(20, make, update="reservoir")

    def test_no_time_and_no_bytes(self) -> None:
        with pytest.raises(SettingError, match="max_seconds 0; needed: a number above 0"):
            Condenser(max_seconds=0)
        with pytest.raises(SettingError, match="max_bytes 0; needed: "):
            Memory(20, Selector(), max_bytes=0)


@given(most=st.integers(1, 60), slope=st.integers(1, 9), base=st.integers(0, 200), bound=st.integers(1, 400))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_largest_share_is_the_last_that_fits(most: int, slope: int, base: int, bound: int) -> None:
    fits = [share for share in range(1, most + 1) if base + slope * share <= bound]
    if fits:
        assert largest_share(most, bound, 1, lambda share: base + slope * share) == fits[-1]
    else:
        with pytest.raises(SettingError, match=f"its file takes {base + slope} bytes"):
            largest_share(most, bound, 1, lambda share: base + slope * share)


@given(
    most=st.integers(1, 3000),
    slope=st.floats(0.3, 90),
    base=st.integers(0, 900),
    bound=st.integers(0, 90_000),
    first=st.sampled_from([None, 1, 32]),
)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_a_number_that_fits_is_near_the_largest(
    most: int, slope: float, base: int, bound: int, first: int | None
) -> None:
    """Sizes that bend, as those of coded images do, in twelve tries."""
    asked = []

    def nbytes(images: int) -> int:
        asked.append(images)
        return base + int(slope * images**0.9)

    largest = max((n for n in range(1, most + 1) if base + int(slope * n**0.9) <= bound), default=0)
    found = largest_within(most, bound, nbytes, first)
    assert found <= largest
    assert found >= largest - max(1, 0.03 * largest) or base + int(slope * found**0.9) >= 0.99 * bound
    assert len(asked) <= 12
    assert not found or found in asked


class TestSeconds:
    """How far a run comes depends on the machine's speed, so time stops or stands still here."""

    @staticmethod
    def made(steps: int, monkeypatch: pytest.MonkeyPatch, piece: Pieces) -> SyntheticSet:
        """Condense in 40 steps, with a moment that comes after some of them."""
        taken = iter(range(1000))

        def check() -> None:
            if next(taken) >= steps:
                raise OutOfTime

        monkeypatch.setattr(loop, "check_time", check)
        make = Condenser("dm", "pixels", network="convnet1-w16", steps=40, start="grey", max_seconds=1e6)
        return make(piece(0, 1), 2, 0, torch.zeros(60, dtype=torch.bool))

    @pytest.mark.parametrize("steps", [4, 25])
    def test_what_was_made_until_then_is_taken_and_told(
        self, steps: int, monkeypatch: pytest.MonkeyPatch, piece: Pieces, caplog: pytest.LogCaptureFixture
    ) -> None:
        synthetic = self.made(steps, monkeypatch, piece)
        assert (synthetic.record.steps, len(synthetic)) == (steps, 4)
        assert f"at step {steps} of 40" in caplog.text
        assert "real images" not in caplog.text

    @pytest.mark.parametrize("steps", [0, 3])
    def test_too_few_steps_give_real_images(
        self, steps: int, monkeypatch: pytest.MonkeyPatch, piece: Pieces, caplog: pytest.LogCaptureFixture
    ) -> None:
        data = piece(0, 1)
        synthetic = self.made(steps, monkeypatch, piece)
        assert synthetic.record.steps == 0
        real = {image.numpy().tobytes() for image in data.images}
        stored = synthetic.parts[0].codes["images"]
        assert {image.numpy().tobytes() for image in stored} <= real
        assert "real images take its place" in caplog.text

    def test_with_time_enough_nothing_changes(self, piece: Pieces, caplog: pytest.LogCaptureFixture) -> None:
        sets = [
            condenser(max_seconds=seconds)(piece(0, 1), 2, 0, torch.zeros(60, dtype=torch.bool))
            for seconds in (None, 1e6)
        ]
        first, second = (one.with_record(seconds=0.0).to_bytes() for one in sets)
        assert first == second
        assert not caplog.text

    def test_it_says_nothing_of_what_the_sets_are(self, piece: Pieces) -> None:
        """A memory that was saved with one is loaded with another, on a slower machine say."""
        memory, other = (Memory(8, condenser(max_seconds=seconds)) for seconds in (None, 1e6))
        memory.add(piece(0, 1))
        other.from_bytes(memory.to_bytes())
        assert other.to_bytes() == memory.to_bytes()
